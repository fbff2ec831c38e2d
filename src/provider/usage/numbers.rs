//! The numbers of a usage object, in every provider's words.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

use super::Usage;
use crate::provider::{count::Count, kinds::nothing_but_objects};

/// What was said last in each word. The numbers of a stream are cumulative: they replace each other, and are never
/// added up.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Numbers {
    /// Input that includes what came from a cache: OpenAI, Gemini, Cohere.
    whole_input: Option<u32>,
    /// Input that does not, if cached input is told apart: Anthropic, Bedrock. OpenAI's Responses uses the same word
    /// for all of it, and has no words of its own for cached input beside it.
    input: Option<u32>,
    cache_write: Option<u32>,
    cache_read: Option<u32>,
    /// Gemini: the results of tools, which go up too.
    tool_input: Option<u32>,
    /// A part of the input, whatever it is called.
    cached: Option<u32>,
    output: Option<u32>,
    /// Gemini: beside the output.
    thoughts: Option<u32>,
    /// Cohere: what is paid for, which is less than what is counted.
    billed_input: Option<u32>,
    billed_output: Option<u32>,
}

impl Numbers {
    /// Reads one object. What stands before a break counts.
    pub(super) fn read(&mut self, object: &[u8]) {
        let fields = Fields { numbers: self, part: Part::Usage };
        drop(fields.deserialize(&mut serde_json::Deserializer::from_slice(object)));
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        let sum = |parts: &[Option<u32>]| parts.iter().flatten().fold(0, |sum: u32, part| sum.saturating_add(*part));
        let input = match (self.whole_input, self.input) {
            (Some(_), _) => sum(&[self.whole_input, self.tool_input]),
            (None, Some(_)) => sum(&[self.input, self.cache_write, self.cache_read]),
            (None, None) => self.billed_input.unwrap_or(0),
        };
        let output = self.output.or(self.billed_output);
        let is_told = self.whole_input.or(self.input).or(self.billed_input).or(output).is_some();
        is_told.then_some(Usage {
            input_tokens: input,
            output_tokens: sum(&[output, self.thoughts]),
            cached_tokens: self.cached.or(self.cache_read).unwrap_or(0),
        })
    }
}

/// One object, and those in it that refine it.
struct Fields<'r> {
    numbers: &'r mut Numbers,
    part: Part,
}

#[derive(Clone, Copy)]
enum Part {
    Usage,
    /// Parts of the input.
    InputDetails,
    /// Cohere's objects of counted tokens, and of billed ones.
    Counted,
    Billed,
}

#[derive(Deserialize)]
#[serde(field_identifier)]
enum Word {
    #[serde(rename = "prompt_tokens", alias = "promptTokenCount")]
    WholeInput,
    #[serde(rename = "input_tokens", alias = "inputTokens")]
    Input,
    #[serde(rename = "cache_creation_input_tokens", alias = "cacheWriteInputTokens")]
    CacheWrite,
    #[serde(rename = "cache_read_input_tokens", alias = "cacheReadInputTokens")]
    CacheRead,
    #[serde(rename = "toolUsePromptTokenCount")]
    ToolInput,
    /// DeepSeek's word is the second.
    #[serde(rename = "cached_tokens", alias = "prompt_cache_hit_tokens", alias = "cachedContentTokenCount")]
    Cached,
    #[serde(rename = "completion_tokens", alias = "output_tokens", alias = "outputTokens")]
    #[serde(alias = "candidatesTokenCount")]
    Output,
    #[serde(rename = "thoughtsTokenCount")]
    Thoughts,
    #[serde(rename = "prompt_tokens_details", alias = "input_tokens_details")]
    InputDetails,
    #[serde(rename = "tokens")]
    Counted,
    #[serde(rename = "billed_units")]
    Billed,
    #[serde(other)]
    Other,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or nothing")
    }

    // Among them: a plain total under the name of Cohere's object.
    nothing_but_objects!(());

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let numbers = self.numbers;
        while let Some(word) = map.next_key()? {
            let slot = match (self.part, word) {
                (Part::Usage, Word::InputDetails) => {
                    map.next_value_seed(Fields { numbers, part: Part::InputDetails })?;
                    continue;
                }
                (Part::Usage, Word::Counted) => {
                    map.next_value_seed(Fields { numbers, part: Part::Counted })?;
                    continue;
                }
                (Part::Usage, Word::Billed) => {
                    map.next_value_seed(Fields { numbers, part: Part::Billed })?;
                    continue;
                }
                (Part::Usage, Word::WholeInput) | (Part::Counted, Word::Input) => &mut numbers.whole_input,
                (Part::Usage, Word::Input) => &mut numbers.input,
                (Part::Usage, Word::CacheWrite) => &mut numbers.cache_write,
                (Part::Usage, Word::CacheRead) => &mut numbers.cache_read,
                (Part::Usage, Word::ToolInput) => &mut numbers.tool_input,
                (Part::Usage | Part::InputDetails, Word::Cached) => &mut numbers.cached,
                (Part::Usage | Part::Counted, Word::Output) => &mut numbers.output,
                (Part::Usage, Word::Thoughts) => &mut numbers.thoughts,
                (Part::Billed, Word::Input) => &mut numbers.billed_input,
                (Part::Billed, Word::Output) => &mut numbers.billed_output,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let Count(count) = map.next_value()?;
            *slot = count.or(*slot);
        }
        Ok(())
    }
}
