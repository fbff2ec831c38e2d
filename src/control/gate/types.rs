//! What goes into a gate and comes out of it.

use std::time::{Duration, Instant};

use crate::control::{
    cost::Demand,
    limit::{Change, LimitSettings, Outcome},
    queue::{Depths, Full},
    rates::{RateSettings, RateView},
    retry::RetrySettings,
    signals::{Attribution, Signals},
};

/// The settings of one account's gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateSettings {
    /// The adaptive limit.
    pub limit: LimitSettings,
    /// The hard maximum; `None`: none is known.
    pub ceiling: Option<u32>,
    /// Rates that are known from the start.
    pub rates: RateSettings,
    /// How many may wait.
    pub depths: Depths,
    /// What may be sent again.
    pub retry: RetrySettings,
}

/// Why an account is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// Remaining reached zero.
    Exhausted,
    /// Refused although nothing of ours was in flight, without a word on when to come back.
    Refused,
    /// `Retry-After` or a relative.
    RetryAfter,
}

impl PauseReason {
    /// All of them, in label order.
    pub const ALL: [Self; 3] = [Self::Exhausted, Self::Refused, Self::RetryAfter];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Refused => "refused",
            Self::RetryAfter => "retry_after",
        }
    }
}

/// Something the shell should count and log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// The limit moved.
    Limit(Change),
    /// Refusals without a word are taken for something else from now on.
    Mind {
        /// For this.
        verdict: Attribution,
    },
    /// The account is paused from now on.
    Paused {
        /// Why.
        reason: PauseReason,
        /// For how long.
        during: Duration,
    },
    /// A quota is spent (`true`), or there is one again.
    Quota {
        /// Whether it is spent.
        spent: bool,
    },
}

/// One that waits.
#[derive(Debug)]
pub struct Waiter<W> {
    /// What it asks for.
    pub demand: Demand,
    /// When its caller must have its turn.
    pub deadline: Instant,
    /// What wakes it: a channel in the shell, a number in a simulation.
    pub wake: W,
}

/// Why a newcomer was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// As many wait already as may.
    Full {
        /// Which bound it met.
        full: Full,
        /// How many may wait there.
        depth_max: usize,
        /// When a place may be free again, from queue length and drain rate.
        retry_after: Duration,
    },
    /// The account is paused for longer than the caller can wait.
    Hopeless {
        /// When it opens again.
        retry_after: Duration,
        /// Why it is paused.
        reason: PauseReason,
    },
}

/// What was heard of an attempt, at its response head or when it failed.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    /// From its departure to the response head (or to the failure). Not the length of the stream.
    pub first_byte: Duration,
    /// What it told.
    pub outcome: Outcome,
    /// What the answer said about limits.
    pub signals: Signals,
}

/// A copy of all numbers, for metrics and `/status`.
#[derive(Debug, Clone, PartialEq)]
pub struct GateView {
    /// What the algorithm allows.
    pub limit: u32,
    /// The hard maximum.
    pub ceiling: Option<u32>,
    /// Attempts in flight.
    pub in_flight: u32,
    /// Exchanges waiting.
    pub queued: usize,
    /// Time left of a pause, and why.
    pub paused: Option<(Duration, PauseReason)>,
    /// Attempts that ended per second, over the last seconds; 0 when idle.
    pub drain_per_second: f64,
    /// What the delay guard allows, if it has an objection; with `delay_guard: observe` it is only shown.
    pub delay_limit: Option<u32>,
    /// What an overload has left of the limit, while it comes back.
    pub overload_limit: Option<u32>,
    /// What is known of rates.
    pub rates: Vec<RateView>,
    /// What refusals without a word are taken for.
    pub unknown_means: Attribution,
    /// Models whose quota is spent.
    pub quotas_spent: usize,
}
