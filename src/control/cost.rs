//! What a request costs the budgets of an account: guessed before it leaves, learnt from what the answers say.

use std::{
    collections::BTreeMap,
    ops::{Add, Sub},
};

use super::signals::Dimension;

/// What a request asks for, as far as its head and body tell before it is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// Hash of the model's name, or 0 if the body names none: what costs are learnt by.
    pub model: u64,
    /// Input tokens, guessed from the length of the body.
    pub input_tokens: u32,
    /// `max_tokens` and its relatives.
    pub output_tokens_max: Option<u32>,
    /// The answer is to come as a stream.
    pub stream: bool,
    /// The body was read for all this. Of one that was not, only its length and what its path says are known.
    pub read: bool,
}

impl Demand {
    /// Answers of one class take about the same time to their first byte, as long as nothing is crowded.
    #[must_use]
    pub fn class(&self) -> u64 {
        self.model.wrapping_mul(2).wrapping_add(u64::from(self.stream))
    }
}

/// What a request really used, as its answer says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens that went up, cached ones included.
    pub input_tokens: u32,
    /// Tokens that came down.
    pub output_tokens: u32,
    /// Those of `input_tokens` that came from a cache.
    pub cached_tokens: u32,
}

/// An amount in each [`Dimension`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Requests.
    pub requests: f64,
    /// Tokens that go up.
    pub input: f64,
    /// Tokens that come down.
    pub output: f64,
}

impl Cost {
    /// The amount in one dimension.
    #[must_use]
    pub fn of(&self, dimension: Dimension) -> f64 {
        match dimension {
            Dimension::Requests => self.requests,
            Dimension::InputTokens => self.input,
            Dimension::OutputTokens => self.output,
            Dimension::Tokens => self.input + self.output,
        }
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            input: self.input + other.input,
            output: self.output + other.output,
        }
    }
}

impl Sub for Cost {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            requests: self.requests - other.requests,
            input: self.input - other.input,
            output: self.output - other.output,
        }
    }
}

/// Output of a model never seen, for a request that names no maximum. A guess; the first answer corrects it.
const OUTPUT_UNKNOWN: f64 = 256.0;
/// Share a new answer has in what is known of a model: a memory of about ten answers.
const SHARE: f64 = 0.1;
/// Models remembered per account; beyond it all new ones are taken together.
const MODELS_MAX: usize = 64;

/// What requests of one account have cost, by model.
#[derive(Debug, Default)]
pub struct Costs {
    // Few, and ordered: to hash a number safely takes longer than to find it.
    models: BTreeMap<u64, Model>,
}

#[derive(Debug, Clone, Copy)]
struct Model {
    /// Real input tokens per guessed one.
    input: f64,
    /// Output tokens of an answer.
    output: f64,
}

impl Costs {
    /// What a request is taken to cost. Never more output than it allows.
    #[must_use]
    pub fn estimate(&self, demand: &Demand) -> Cost {
        let max = demand.output_tokens_max.map(f64::from);
        let guessed = f64::from(demand.input_tokens);
        let known = self.models.get(&demand.model);
        let known = known.or_else(|| self.models.get(&0).filter(|_| self.models.len() >= MODELS_MAX));
        let (input, output) = match known {
            Some(model) => (guessed * model.input, model.output.min(max.unwrap_or(f64::MAX))),
            None => (guessed, max.unwrap_or(OUTPUT_UNKNOWN)),
        };
        Cost { requests: 1.0, input, output }
    }

    /// An answer said what was used.
    pub fn learn(&mut self, demand: &Demand, usage: &Usage) {
        if !demand.read {
            // Nothing is known of what it was guessed by.
            return;
        }
        let input = f64::from(usage.input_tokens) / f64::from(demand.input_tokens.max(1));
        let output = f64::from(usage.output_tokens);
        let key = if self.models.len() < MODELS_MAX { demand.model } else { 0 };
        let key = if self.models.contains_key(&demand.model) { demand.model } else { key };
        self.models
            .entry(key)
            .and_modify(|model| {
                model.input += SHARE * (input - model.input);
                model.output += SHARE * (output - model.output);
            })
            .or_insert(Model { input, output });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Demand =
        Demand { model: 7, input_tokens: 100, output_tokens_max: Some(1000), stream: false, read: true };

    #[test]
    fn the_maximum_is_the_guess_until_an_answer_says_more() {
        let mut costs = Costs::default();
        assert_eq!(costs.estimate(&ASKED), Cost { requests: 1.0, input: 100.0, output: 1000.0 });
        costs.learn(&ASKED, &Usage { input_tokens: 120, output_tokens: 300, cached_tokens: 0 });
        assert_eq!(costs.estimate(&ASKED), Cost { requests: 1.0, input: 120.0, output: 300.0 });
        let short = Demand { output_tokens_max: Some(10), ..ASKED };
        assert_eq!(costs.estimate(&short).output, 10.0);
        let other = Demand { model: 8, output_tokens_max: None, ..ASKED };
        assert_eq!(costs.estimate(&other).output, OUTPUT_UNKNOWN);
    }

    #[test]
    fn what_was_not_read_teaches_nothing_about_what_is() {
        let mut costs = Costs::default();
        costs.learn(&Demand::default(), &Usage { input_tokens: 800, output_tokens: 300, cached_tokens: 0 });
        assert_eq!(costs.estimate(&ASKED), Cost { requests: 1.0, input: 100.0, output: 1000.0 });
    }

    #[test]
    fn models_are_bounded_in_number() {
        let mut costs = Costs::default();
        for model in 0..10_000 {
            costs.learn(&Demand { model, ..ASKED }, &Usage { input_tokens: 1, output_tokens: 1, cached_tokens: 0 });
        }
        assert!(costs.models.len() <= MODELS_MAX + 1);
    }
}
