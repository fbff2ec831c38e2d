//! The adaptive limit on attempts in flight: one enum over the algorithms, and what they learn from.

use std::time::{Duration, Instant};

use super::{aimd::Aimd, signals::Attribution, tide::Tide};

/// What one attempt told about the upstream, heard at its response head or when it failed.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When the attempt left.
    pub sent: Instant,
    /// From there to the response head (or to the failure). Not the length of the stream.
    pub first_byte: Duration,
    /// Attempts in flight when it left, itself included.
    pub in_flight: u32,
    /// What it told.
    pub outcome: Outcome,
}

/// What an attempt told about the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream did the work, or at least took it.
    Accepted,
    /// A 429.
    Bounced(Attribution),
    /// Nothing: the client left, or the failure was nobody's load.
    Ignored,
    /// 503, 529, connection refused, no response head in time.
    Overloaded,
}

impl Outcome {
    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Bounced(_) => "bounced",
            Self::Ignored => "ignored",
            Self::Overloaded => "overloaded",
        }
    }
}

/// One burst of refusals, told once, after everything that was on the wire has been answered.
#[derive(Debug, Clone, Copy)]
pub struct Epoch {
    /// Why the first attempt of the burst was refused.
    pub attribution: Attribution,
    /// Attempts the upstream really held then: those it did not refuse.
    pub held: u32,
    /// Most attempts in flight when any refused one left, itself included.
    pub in_flight: u32,
    /// Epochs since an attempt was last accepted, this one included.
    pub in_row: u32,
}

/// A move of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: u32,
    /// After.
    pub to: u32,
    /// Why.
    pub reason: ChangeReason,
}

/// Why the limit moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeReason {
    /// It was in use and nothing was refused.
    Growth,
    /// The upstream is overloaded.
    Overload,
    /// The upstream refused.
    Refusal,
    /// The configuration changed.
    Retune,
}

impl ChangeReason {
    /// All of them, in label order.
    pub const ALL: [Self; 4] = [Self::Growth, Self::Overload, Self::Refusal, Self::Retune];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Growth => "growth",
            Self::Overload => "overload",
            Self::Refusal => "refusal",
            Self::Retune => "retune",
        }
    }
}

/// How the limit moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Additive increase, multiplicative decrease, driven by refusals.
    Aimd,
    /// Stays where it began.
    Fixed,
    /// Measures the ceiling from the refusals themselves. The default.
    Tide,
}

/// The settings of an account's limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitSettings {
    /// How the limit moves.
    pub algorithm: Algorithm,
    /// Never below this. At least 1.
    pub min: u32,
    /// Never above this.
    pub max: u32,
    /// Where it begins when no ceiling is known.
    pub initial: u32,
    /// AIMD: factor applied on a refusal, `0 < decrease < 1`.
    pub decrease: f64,
}

impl LimitSettings {
    /// Where the limit begins and the highest it may go, with the account's ceiling if one is known: a known ceiling
    /// is where it begins and ends, so that no attempt is spent on finding it.
    #[must_use]
    pub fn range(&self, ceiling: Option<u32>) -> (u32, u32) {
        match ceiling {
            Some(ceiling) => (ceiling.min(self.max), ceiling.min(self.max)),
            None => (self.initial, self.max),
        }
    }
}

/// The adaptive limit of one account. A closed set: an enum, not a trait object.
#[derive(Debug)]
pub enum Limit {
    /// Additive increase, multiplicative decrease.
    Aimd(Aimd),
    /// Does not move.
    Fixed(u32),
    /// The measured ceiling.
    Tide(Tide),
}

impl Limit {
    /// The limit as it begins.
    #[must_use]
    pub fn new(settings: &LimitSettings, ceiling: Option<u32>) -> Self {
        let (initial, top) = settings.range(ceiling);
        let min = settings.min.min(top);
        match settings.algorithm {
            Algorithm::Aimd => Self::Aimd(Aimd::new(initial, min, top, settings.decrease, ceiling.is_some())),
            Algorithm::Fixed => Self::Fixed(initial),
            Algorithm::Tide => Self::Tide(Tide::new(initial, min, top)),
        }
    }

    /// How many attempts may be in flight.
    #[must_use]
    pub fn value(&self) -> u32 {
        match self {
            Self::Aimd(aimd) => aimd.value(),
            Self::Fixed(value) => *value,
            Self::Tide(tide) => tide.value(),
        }
    }

    /// An attempt was accepted.
    pub fn accepted(&mut self, sample: &Sample) -> Option<Change> {
        match self {
            Self::Aimd(aimd) => aimd.accepted(sample),
            Self::Fixed(_) => None,
            Self::Tide(tide) => {
                tide.accepted();
                None
            }
        }
    }

    /// A burst of refusals ended.
    pub fn refused(&mut self, epoch: &Epoch, now: Instant) -> Option<Change> {
        match self {
            Self::Aimd(aimd) => aimd.cut(ChangeReason::Refusal),
            Self::Fixed(_) => None,
            Self::Tide(tide) => tide.refused(epoch, now),
        }
    }

    /// The upstream said it is overloaded; at most once per epoch. `in_row`: since the last accepted attempt.
    pub fn overloaded(&mut self, in_row: u32, now: Instant) -> Option<Change> {
        match self {
            Self::Aimd(aimd) => aimd.cut(ChangeReason::Overload),
            Self::Fixed(_) => None,
            Self::Tide(tide) => tide.overloaded(in_row, now),
        }
    }

    /// The limit has been in use to the full, with others waiting, for as long as a refusal takes to arrive.
    pub fn unrefused(&mut self, now: Instant) -> Option<Change> {
        match self {
            Self::Aimd(_) | Self::Fixed(_) => None,
            Self::Tide(tide) => tide.unrefused(now),
        }
    }

    /// When [`unrefused`](Self::unrefused) may next move the limit; `None`: it would not.
    #[must_use]
    pub fn grows_at(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Aimd(_) | Self::Fixed(_) => None,
            Self::Tide(tide) => tide.grows_at(now),
        }
    }
}
