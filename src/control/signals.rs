//! What an upstream's answer said about its limits, in one vocabulary. `provider::signals` fills it in.

use std::time::Duration;

/// Everything a response head (and, for a refusal, its body) says about limits and delays.
///
/// `None` always means "not said". Values are already capped and never negative.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signals {
    /// How long to wait before the next attempt, from `Retry-After` and its relatives, or from the refusal's body.
    pub retry_after: Option<Duration>,
    /// The upstream's own verdict on retrying (`x-should-retry`).
    pub should_retry: Option<bool>,
    /// The budgets that were reported.
    pub budgets: Budgets,
    /// Which dimension a refusal named in words ("tokens per minute"), where it did.
    pub refused: Option<Dimension>,
}

/// What an upstream counts per time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dimension {
    /// Requests.
    Requests,
    /// Tokens that go up.
    InputTokens,
    /// Tokens that come down.
    OutputTokens,
    /// Both together.
    Tokens,
}

impl Dimension {
    /// All of them, in label order.
    pub const ALL: [Self; 4] = [Self::Requests, Self::InputTokens, Self::OutputTokens, Self::Tokens];

    /// The metric label and the word used in `/status`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::Tokens => "tokens",
        }
    }
}

/// How a budget comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refill {
    /// A bucket that refills all the time; its reset says when it is full again.
    Continuous,
    /// All at once when the window turns; its reset says when that is.
    Window,
}

/// One budget of an account, as one answer reported it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Tells several budgets of one dimension apart (per minute and per day, of the key and of the project): a hash of
    /// the header's or policy's name.
    pub id: u32,
    /// What is counted.
    pub dimension: Dimension,
    /// What the full budget holds, in the same window as `remaining`.
    pub limit: Option<u64>,
    /// What is left.
    pub remaining: u64,
    /// Time until the reset that was named, whatever it means.
    pub reset: Option<Duration>,
    /// Over which time is counted, where name, policy or preset say so.
    pub window: Option<Duration>,
    /// How it comes back, where that is known and need not be found out.
    pub refill: Option<Refill>,
}

/// The budgets one answer reported. Fixed room, no allocation: the known families send at most six.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Budgets {
    list: [Option<Budget>; Self::MAX],
}

impl Budgets {
    /// How many are kept of one answer.
    pub const MAX: usize = 8;

    /// Adds one. One with the same `id` is replaced by the stricter of the two; beyond [`MAX`](Self::MAX) it is dropped.
    pub fn add(&mut self, budget: Budget) {
        for slot in &mut self.list {
            match slot {
                Some(known) if known.id == budget.id => {
                    if budget.remaining < known.remaining {
                        *known = budget;
                    }
                    return;
                }
                Some(_) => {}
                None => {
                    *slot = Some(budget);
                    return;
                }
            }
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Budget> {
        self.list.iter().flatten()
    }

    /// None was reported.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The least that remains of a dimension, over windows of at most a minute or not said.
    #[must_use]
    pub fn remaining(&self, dimension: Dimension) -> Option<u64> {
        let short = |budget: &&Budget| budget.window.is_none_or(|window| window <= Duration::from_secs(60));
        let same = |budget: &&Budget| budget.dimension == dimension;
        self.iter().filter(same).filter(short).map(|budget| budget.remaining).min()
    }
}

/// Why an upstream refused an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attribution {
    /// Too many attempts in flight.
    Ceiling,
    /// Too many requests or tokens per time.
    Rate,
    /// Money or a monthly cap is gone: waiting does not help.
    Quota,
    /// The upstream is short of capacity (503, 529).
    Overload,
    /// A 429 that does not say.
    Unknown,
}

impl Attribution {
    /// All of them, in label order.
    pub const ALL: [Self; 5] = [Self::Ceiling, Self::Rate, Self::Quota, Self::Overload, Self::Unknown];

    /// The metric label and the word used in `/status` and in logs.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ceiling => "ceiling",
            Self::Rate => "rate",
            Self::Quota => "quota",
            Self::Overload => "overload",
            Self::Unknown => "unknown",
        }
    }
}
