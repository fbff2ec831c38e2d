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
    /// Anthropic: parts of `cache_write`, which are paid for differently.
    cache_write_5m: Option<u32>,
    cache_write_1h: Option<u32>,
    cache_read: Option<u32>,
    /// Gemini: the results of tools, which go up too.
    tool_input: Option<u32>,
    /// A part of the input, whatever it is called.
    cached: Option<u32>,
    /// Another part of it: OpenAI.
    written: Option<u32>,
    output: Option<u32>,
    /// Gemini: beside the output.
    thoughts: Option<u32>,
    /// Input and output together, where the answer adds them up.
    total: Option<u32>,
    /// A part of the output, except in xAI's answers, where it is beside it. Read only where the total says so.
    reasoning: Option<u32>,
    /// Cohere: what is paid for, which is less than what is counted.
    billed_input: Option<u32>,
    billed_output: Option<u32>,
    /// OpenRouter: what was charged, in billionths of a dollar.
    cost_nanos: Option<u64>,
}

impl Numbers {
    /// Reads one object. What stands before a break counts.
    pub(super) fn read(&mut self, object: &[u8]) {
        let mut output_details = None;
        self.read_part(object, Part::Usage, &mut output_details);
        // Nearly always the total is that of the two, and there is nothing to look for.
        if let Some(details) = output_details
            && self.total.is_some_and(|total| total > self.input().saturating_add(self.output()))
        {
            self.read_part(details, Part::OutputDetails, &mut None);
        }
    }

    /// `None`: that was all that can be read.
    fn read_part<'a>(&mut self, object: &'a [u8], part: Part, output_details: &mut Option<&'a [u8]>) -> Option<()> {
        let mut members = Members::of(object)?;
        loop {
            let (key, value) = members.next_key()?;
            let slot = match (part, Word::of(&key)) {
                (Part::Usage, Word::InputDetails) => {
                    self.read_part(value, Part::InputDetails, &mut None);
                    None
                }
                (Part::Usage, Word::CacheWrites) => {
                    self.read_part(value, Part::CacheWrites, &mut None);
                    None
                }
                (Part::Usage, Word::OutputDetails) => {
                    *output_details = Some(value);
                    None
                }
                // Or a plain total under the name of Cohere's object.
                (Part::Usage, Word::Counted) => {
                    self.read_part(value, Part::Counted, &mut None);
                    None
                }
                (Part::Usage, Word::Billed) => {
                    self.read_part(value, Part::Billed, &mut None);
                    None
                }
                (Part::Usage, Word::Cost) => {
                    self.cost_nanos = money::told_nanos(value).or(self.cost_nanos);
                    None
                }
                (Part::Usage, Word::WholeInput) | (Part::Counted, Word::Input) => Some(&mut self.whole_input),
                (Part::Usage, Word::Input) => Some(&mut self.input),
                (Part::Usage, Word::CacheWrite) => Some(&mut self.cache_write),
                (Part::CacheWrites, Word::For5m) => Some(&mut self.cache_write_5m),
                (Part::CacheWrites, Word::For1h) => Some(&mut self.cache_write_1h),
                (Part::Usage, Word::CacheRead) => Some(&mut self.cache_read),
                (Part::Usage, Word::ToolInput) => Some(&mut self.tool_input),
                (Part::Usage | Part::InputDetails, Word::Cached) => Some(&mut self.cached),
                (Part::InputDetails, Word::Written) => Some(&mut self.written),
                (Part::Usage | Part::Counted, Word::Output) => Some(&mut self.output),
                (Part::Usage, Word::Thoughts) => Some(&mut self.thoughts),
                (Part::Usage, Word::Total) => Some(&mut self.total),
                (Part::OutputDetails, Word::Reasoning) => Some(&mut self.reasoning),
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

    fn input(&self) -> u32 {
        match (self.whole_input, self.input) {
            (Some(_), _) => sum(&[self.whole_input, self.tool_input]),
            (None, Some(_)) => sum(&[self.input, self.cache_write(), self.cache_read]),
            (None, None) => self.billed_input.unwrap_or(0),
        }
    }

    fn cache_write(&self) -> Option<u32> {
        let parts = [self.cache_write_5m, self.cache_write_1h];
        self.cache_write.or_else(|| parts.iter().any(Option::is_some).then(|| sum(&parts)))
    }

    fn output(&self) -> u32 {
        sum(&[self.output.or(self.billed_output), self.thoughts])
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        let (input, output) = (self.input(), self.output());
        // xAI's: the total comes out only with the reasoning.
        let beside = self.reasoning.filter(|_| self.total == Some(sum(&[Some(input), Some(output), self.reasoning])));
        // Of the two, one that is not told is not paid for.
        let billed = self.billed_input.or(self.billed_output).map(|_| Billed {
            input_tokens: self.billed_input.unwrap_or(0),
            output_tokens: self.billed_output.unwrap_or(0),
        });
        let is_told = [self.whole_input, self.input, self.billed_input, self.output, self.billed_output]
            .iter()
            .any(Option::is_some);
        is_told.then_some(Usage {
            input_tokens: input,
            output_tokens: sum(&[Some(output), beside]),
            cached_tokens: self.cached.or(self.cache_read).unwrap_or(0),
            cache_write_tokens: self.written.or_else(|| self.cache_write()).unwrap_or(0),
            cache_write_1h_tokens: self.cache_write_1h.unwrap_or(0),
            billed,
            cost_nanos: self.cost_nanos,
        })
    }
}

fn sum(parts: &[Option<u32>]) -> u32 {
    parts.iter().flatten().fold(0, |sum: u32, part| sum.saturating_add(*part))
}

/// One object, or one of those in it that refine it.
#[derive(Clone, Copy)]
enum Part {
    Usage,
    /// Parts of the input.
    InputDetails,
    /// Parts of the output.
    OutputDetails,
    /// Parts of what was written to a cache, by how long it keeps them.
    CacheWrites,
    /// Cohere's objects of counted tokens, and of billed ones.
    Counted,
    Billed,
}

enum Word {
    WholeInput,
    Input,
    CacheWrite,
    CacheWrites,
    For5m,
    For1h,
    CacheRead,
    ToolInput,
    Cached,
    Written,
    Output,
    Thoughts,
    InputDetails,
    OutputDetails,
    Reasoning,
    Total,
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
            b"cache_creation" => Self::CacheWrites,
            b"ephemeral_5m_input_tokens" => Self::For5m,
            b"ephemeral_1h_input_tokens" => Self::For1h,
            b"cache_read_input_tokens" | b"cacheReadInputTokens" => Self::CacheRead,
            b"toolUsePromptTokenCount" => Self::ToolInput,
            // DeepSeek's word is the second.
            b"cached_tokens" | b"prompt_cache_hit_tokens" | b"cachedContentTokenCount" => Self::Cached,
            // LiteLLM's word is the second.
            b"cache_write_tokens" | b"cache_creation_tokens" => Self::Written,
            b"completion_tokens" | b"output_tokens" | b"outputTokens" | b"candidatesTokenCount" => Self::Output,
            b"thoughtsTokenCount" => Self::Thoughts,
            b"prompt_tokens_details" | b"input_tokens_details" => Self::InputDetails,
            b"completion_tokens_details" | b"output_tokens_details" => Self::OutputDetails,
            b"reasoning_tokens" => Self::Reasoning,
            b"total_tokens" => Self::Total,
            b"tokens" => Self::Counted,
            b"billed_units" => Self::Billed,
            b"cost" => Self::Cost,
            _ => Self::Other,
        }
    }
}
