//! The numbers of a usage object, in every provider's words.

use super::{Billed, Usage};
use crate::provider::{count::Count, members::Members, money};

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
    /// OpenRouter: what was charged, in billionths of a dollar.
    cost_nanos: Option<u64>,
}

impl Numbers {
    /// Reads one object. What stands before a break counts.
    pub(super) fn read(&mut self, object: &[u8]) {
        self.read_part(object, Part::Usage);
    }

    /// `None`: that was all that can be read.
    fn read_part(&mut self, object: &[u8], part: Part) -> Option<()> {
        let mut members = Members::of(object)?;
        loop {
            let (key, value) = members.next_key()?;
            let slot = match (part, Word::of(&key)) {
                (Part::Usage, Word::InputDetails) => {
                    self.read_part(value, Part::InputDetails);
                    None
                }
                // Or a plain total under the name of Cohere's object.
                (Part::Usage, Word::Counted) => {
                    self.read_part(value, Part::Counted);
                    None
                }
                (Part::Usage, Word::Billed) => {
                    self.read_part(value, Part::Billed);
                    None
                }
                (Part::Usage, Word::Cost) => {
                    self.cost_nanos = money::told_nanos(value).or(self.cost_nanos);
                    None
                }
                (Part::Usage, Word::WholeInput) | (Part::Counted, Word::Input) => Some(&mut self.whole_input),
                (Part::Usage, Word::Input) => Some(&mut self.input),
                (Part::Usage, Word::CacheWrite) => Some(&mut self.cache_write),
                (Part::Usage, Word::CacheRead) => Some(&mut self.cache_read),
                (Part::Usage, Word::ToolInput) => Some(&mut self.tool_input),
                (Part::Usage | Part::InputDetails, Word::Cached) => Some(&mut self.cached),
                (Part::Usage | Part::Counted, Word::Output) => Some(&mut self.output),
                (Part::Usage, Word::Thoughts) => Some(&mut self.thoughts),
                (Part::Billed, Word::Input) => Some(&mut self.billed_input),
                (Part::Billed, Word::Output) => Some(&mut self.billed_output),
                _ => None,
            };
            if let Some(slot) = slot {
                *slot = Count::read(value).or(*slot);
            }
            members.pass()?;
        }
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        let sum = |parts: &[Option<u32>]| parts.iter().flatten().fold(0, |sum: u32, part| sum.saturating_add(*part));
        let input = match (self.whole_input, self.input) {
            (Some(_), _) => sum(&[self.whole_input, self.tool_input]),
            (None, Some(_)) => sum(&[self.input, self.cache_write, self.cache_read]),
            (None, None) => self.billed_input.unwrap_or(0),
        };
        let output = self.output.or(self.billed_output);
        // Of the two, one that is not told is not paid for.
        let billed = self.billed_input.or(self.billed_output).map(|_| Billed {
            input_tokens: self.billed_input.unwrap_or(0),
            output_tokens: self.billed_output.unwrap_or(0),
        });
        let is_told = self.whole_input.or(self.input).or(self.billed_input).or(output).is_some();
        is_told.then_some(Usage {
            input_tokens: input,
            output_tokens: sum(&[output, self.thoughts]),
            cached_tokens: self.cached.or(self.cache_read).unwrap_or(0),
            billed,
            cost_nanos: self.cost_nanos,
        })
    }
}

/// One object, or one of those in it that refine it.
#[derive(Clone, Copy)]
enum Part {
    Usage,
    /// Parts of the input.
    InputDetails,
    /// Cohere's objects of counted tokens, and of billed ones.
    Counted,
    Billed,
}

enum Word {
    WholeInput,
    Input,
    CacheWrite,
    CacheRead,
    ToolInput,
    Cached,
    Output,
    Thoughts,
    InputDetails,
    Counted,
    Billed,
    Cost,
    Other,
}

impl Word {
    fn of(key: &[u8]) -> Self {
        match key {
            b"prompt_tokens" | b"promptTokenCount" => Self::WholeInput,
            b"input_tokens" | b"inputTokens" => Self::Input,
            b"cache_creation_input_tokens" | b"cacheWriteInputTokens" => Self::CacheWrite,
            b"cache_read_input_tokens" | b"cacheReadInputTokens" => Self::CacheRead,
            b"toolUsePromptTokenCount" => Self::ToolInput,
            // DeepSeek's word is the second.
            b"cached_tokens" | b"prompt_cache_hit_tokens" | b"cachedContentTokenCount" => Self::Cached,
            b"completion_tokens" | b"output_tokens" | b"outputTokens" | b"candidatesTokenCount" => Self::Output,
            b"thoughtsTokenCount" => Self::Thoughts,
            b"prompt_tokens_details" | b"input_tokens_details" => Self::InputDetails,
            b"tokens" => Self::Counted,
            b"billed_units" => Self::Billed,
            b"cost" => Self::Cost,
            _ => Self::Other,
        }
    }
}
