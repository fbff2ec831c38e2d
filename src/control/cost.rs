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

    /// The same of a request that only fetches what there is, and uses no tokens.
    #[must_use]
    pub fn fetching(self) -> Self {
        Self { input_tokens: 0, output_tokens_max: Some(0), read: false, ..self }
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
    /// Those of them that were written to a cache.
    pub cache_write_tokens: u32,
    /// Those of them in turn that it keeps for an hour.
    pub cache_write_1h_tokens: u32,
    /// What is paid for, where the answer tells that apart from what was used.
    pub billed: Option<Billed>,
    /// What it cost in billionths of a dollar, where the answer itself says that.
    pub cost_nanos: Option<u64>,
}

/// An answer never costs more than this, in billionths of a dollar: a sum of ten thousand dollars each stays far from where
/// its counter would begin anew. A guess: the dearest answers cost a few dollars.
pub const COST_NANOS_MAX: u64 = 10_000 * 1_000_000_000;

/// The tokens that are paid for. Budgets lose what was used all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Billed {
    /// Of those that went up.
    pub input_tokens: u32,
    /// Of those that came down.
    pub output_tokens: u32,
}

/// What a model's tokens cost, each in millionths of a millionth of a dollar: the whole numbers in which one dollar for a
/// million tokens is 1,000,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// A token that goes up.
    pub input: u64,
    /// One that goes up and came from a cache.
    pub cached: u64,
    /// One that goes up and is written to a cache.
    pub cache_write: u64,
    /// One that it keeps for an hour.
    pub cache_write_1h: u64,
    /// One that comes down.
    pub output: u64,
}

impl Price {
    /// What was used costs so many billionths of a dollar, rounded to the nearest, and at most [`COST_NANOS_MAX`].
    #[must_use]
    pub fn of(&self, usage: &Usage) -> u64 {
        let (input, output) = (usage.input_tokens, usage.output_tokens);
        let cached = usage.cached_tokens.min(input);
        let written = usage.cache_write_tokens.min(input - cached);
        let for_an_hour = usage.cache_write_1h_tokens.min(written);
        let parts = match usage.billed {
            // How many of these came from a cache, or were written to one, is not told.
            Some(billed) => &[(billed.input_tokens, self.input), (billed.output_tokens, self.output)][..],
            None => &[
                (input - cached - written, self.input),
                (cached, self.cached),
                (written - for_an_hour, self.cache_write),
                (for_an_hour, self.cache_write_1h),
                (output, self.output),
            ],
        };
        let picos: u128 = parts.iter().map(|(tokens, price)| u128::from(*tokens) * u128::from(*price)).sum();
        u64::try_from((picos + 500) / 1000).map_or(COST_NANOS_MAX, |nanos| nanos.min(COST_NANOS_MAX))
    }
}

/// By which price an exchange's tokens are paid for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Tariff {
    /// Prices are known, but none for this model.
    Missing,
    /// No prices are known: nothing is counted but what an answer itself says.
    #[default]
    None,
    /// It was paid for, and counted, when it was made: an answer that is only fetched, whatever it says.
    Paid,
    /// This one.
    Price(Price),
}

impl Tariff {
    /// What an answer cost, in billionths of a dollar: what it says itself, else what its tokens come to. `None`: there
    /// should be a price, and is none.
    #[must_use]
    pub fn bill(&self, usage: &Usage) -> Option<u64> {
        match (usage.cost_nanos, self) {
            (_, Self::Paid) => Some(0),
            (Some(told), _) => Some(told),
            (None, Self::Missing) => None,
            (None, Self::None) => Some(0),
            (None, Self::Price(price)) => Some(price.of(usage)),
        }
    }
}

/// An amount in each [`Dimension`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Requests.
    pub requests: f64,
    /// Those of them that use tokens.
    pub token_requests: f64,
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
            token_requests: self.token_requests + other.token_requests,
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
            token_requests: self.token_requests - other.token_requests,
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
        let token_requests = if input + output > 0.0 { 1.0 } else { 0.0 };
        Cost { requests: 1.0, token_requests, input, output }
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

    fn used(input_tokens: u32, output_tokens: u32) -> Usage {
        Usage { input_tokens, output_tokens, ..Usage::default() }
    }

    const FREE: Price = Price { input: 0, cached: 0, cache_write: 0, cache_write_1h: 0, output: 0 };

    #[test]
    fn tokens_cost_what_the_price_says_to_the_billionth() {
        let price = Price {
            input: 1_250_000,
            cached: 125_000,
            cache_write: 1_562_500,
            cache_write_1h: 2_500_000,
            output: 10_000_000,
        };
        for (input, cached, output, want) in [
            (0, 0, 0, 0),
            (1, 0, 0, 1250),
            (1, 1, 0, 125),
            (0, 0, 1, 10_000),
            (1000, 900, 100, 100 * 1250 + 900 * 125 + 100 * 10_000),
            // More from the cache than there was: an upstream's mistake.
            (10, 20, 0, 10 * 125),
            (800_000_000, 0, 0, 800_000_000 * 1250),
            (u32::MAX, 0, u32::MAX, COST_NANOS_MAX),
        ] {
            let usage = Usage { cached_tokens: cached, ..used(input, output) };
            assert_eq!(price.of(&usage), want, "{usage:?}");
        }
        let billed = Billed { input_tokens: 10, output_tokens: 2 };
        let usage = Usage { cached_tokens: 90, billed: Some(billed), ..used(100, 20) };
        assert_eq!(price.of(&usage), 10 * 1250 + 2 * 10_000, "only what is billed is paid for");
        for (written, for_an_hour, cached, want) in [
            (0, 0, 0, 1000 * 1250),
            (400, 0, 0, 600 * 1250 + 625_000),
            (400, 300, 0, 600 * 1250 + 156_250 + 300 * 2500),
            (400, 400, 500, 100 * 1250 + 500 * 125 + 400 * 2500),
            // More than there was, or than was written at all.
            (400, 900, 0, 600 * 1250 + 400 * 2500),
            (9000, 9000, 900, 900 * 125 + 100 * 2500),
            (0, 500, 0, 1000 * 1250),
        ] {
            let (cache_write_tokens, cache_write_1h_tokens) = (written, for_an_hour);
            let usage = Usage { cached_tokens: cached, cache_write_tokens, cache_write_1h_tokens, ..used(1000, 0) };
            assert_eq!(price.of(&usage), want, "{usage:?}");
        }
        let small = Price { input: 37_500, output: 499, ..FREE };
        assert_eq!((small.of(&used(1, 0)), small.of(&used(2, 0))), (38, 75), "rounded once, for all together");
        assert_eq!((small.of(&used(0, 1)), small.of(&used(0, 2)), small.of(&used(0, 1000))), (0, 1, 499));
        let absurd = Price { input: u64::MAX, output: u64::MAX, ..FREE };
        assert_eq!(absurd.of(&used(u32::MAX, u32::MAX)), COST_NANOS_MAX);
    }

    #[test]
    fn what_an_answer_says_wins_over_the_price() {
        let price = Tariff::Price(Price { input: 1_000_000, ..FREE });
        let told = Usage { cost_nanos: Some(7), ..used(5, 5) };
        for (tariff, usage, want) in [
            (Tariff::None, used(5, 5), Some(0)),
            (Tariff::None, told, Some(7)),
            (Tariff::Paid, used(5, 5), Some(0)),
            (Tariff::Paid, told, Some(0)),
            (Tariff::Missing, used(5, 5), None),
            (Tariff::Missing, told, Some(7)),
            (price, used(5, 5), Some(5000)),
            (price, told, Some(7)),
        ] {
            assert_eq!(tariff.bill(&usage), want, "{tariff:?} {usage:?}");
        }
    }

    const ASKED: Demand =
        Demand { model: 7, input_tokens: 100, output_tokens_max: Some(1000), stream: false, read: true };

    #[test]
    fn the_maximum_is_the_guess_until_an_answer_says_more() {
        let mut costs = Costs::default();
        assert_eq!(costs.estimate(&ASKED), Cost { requests: 1.0, token_requests: 1.0, input: 100.0, output: 1000.0 });
        costs.learn(&ASKED, &used(120, 300));
        assert_eq!(costs.estimate(&ASKED), Cost { requests: 1.0, token_requests: 1.0, input: 120.0, output: 300.0 });
        let short = Demand { output_tokens_max: Some(10), ..ASKED };
        assert_eq!(costs.estimate(&short).output, 10.0);
        let other = Demand { model: 8, output_tokens_max: None, ..ASKED };
        assert_eq!(costs.estimate(&other).output, OUTPUT_UNKNOWN);
    }

    #[test]
    fn what_is_only_fetched_costs_no_tokens_whatever_its_model_does() {
        let mut costs = Costs::default();
        let none = Cost { requests: 1.0, ..Cost::default() };
        assert_eq!(costs.estimate(&ASKED.fetching()), none);
        costs.learn(&ASKED, &used(120, 300));
        assert_eq!(costs.estimate(&ASKED.fetching()), none);
        costs.learn(&ASKED.fetching(), &used(9000, 9000));
        assert_eq!(costs.estimate(&ASKED).input, 120.0);
    }

    #[test]
    fn what_was_not_read_teaches_nothing_about_what_is() {
        let mut costs = Costs::default();
        costs.learn(&Demand::default(), &used(800, 300));
        assert_eq!(costs.estimate(&ASKED), Cost { requests: 1.0, token_requests: 1.0, input: 100.0, output: 1000.0 });
    }

    #[test]
    fn models_are_bounded_in_number() {
        let mut costs = Costs::default();
        for model in 0..10_000 {
            costs.learn(&Demand { model, ..ASKED }, &used(1, 1));
        }
        assert!(costs.models.len() <= MODELS_MAX + 1);
    }
}
