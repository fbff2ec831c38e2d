//! What an upstream's answer said about its limits, in one vocabulary. `provider::signals` fills it in.

use std::time::Duration;

/// Everything a response head (and, for a refusal, its body) says about limits and delays.
///
/// `None` always means "not said". Values are already capped and never negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signals {
    /// How long to wait before the next attempt, from `Retry-After` and its relatives, or from the refusal's body.
    pub retry_after: Option<Duration>,
    /// The upstream's own verdict on retrying (`x-should-retry`).
    pub should_retry: Option<bool>,
    /// Requests left, the smallest of the request counters sent whose window is at most a minute or not said.
    pub requests_remaining: Option<u64>,
    /// Tokens left, the smallest of the token counters sent whose window is at most a minute or not said.
    pub tokens_remaining: Option<u64>,
    /// Time until the exhausted counter recovers, whatever its window; of several the longest. Only set when a remaining
    /// counter is 0 and its reset was sent.
    pub exhausted_for: Option<Duration>,
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
