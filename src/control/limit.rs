//! The adaptive limit on attempts in flight: one enum over the algorithms, and what they learn from.

use std::time::{Duration, Instant};

use super::{
    aimd::{Aimd, AimdSettings},
    gradient::{Gradient, GradientSettings},
    signals::Attribution,
    tide::{Tide, TideSettings},
    vegas::{Vegas, VegasSettings},
};

/// One accepted attempt, heard of at its response head.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Which attempt: the order of departure.
    pub id: u64,
    /// The last one that left until now.
    pub newest: u64,
    /// When the attempt left.
    pub sent: Instant,
    /// From there to the response head. Not the length of the stream.
    pub first_byte: Duration,
    /// Attempts in flight when it left, itself included.
    pub in_flight: u32,
    /// What it is compared with: answers of one model.
    pub class: u64,
    /// When it was heard of.
    pub now: Instant,
}

#[cfg(test)]
impl Sample {
    pub(super) fn of(in_flight: u32, first_byte: Duration, now: Instant) -> Self {
        Self { id: 1, newest: 1, sent: now, first_byte, in_flight, class: 0, now }
    }
}

/// What an attempt told about the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream did the work, or at least took it.
    Accepted,
    /// A 429.
    Bounced(Attribution),
    /// Nothing about limits: it answered with a server error.
    Failed,
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
            Self::Failed => "failed",
            Self::Ignored => "ignored",
            Self::Overloaded => "overloaded",
        }
    }
}

/// One burst of refusals, told once, by its first.
#[derive(Debug, Clone, Copy)]
pub struct Epoch {
    /// Attempts the upstream held when it refused: those that left before the refused one and had not ended.
    pub held: u32,
    /// Bursts since an attempt was last accepted, this one included.
    pub in_row: u32,
    /// No more were in flight than had passed before.
    pub passed_before: bool,
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
    /// Answers took longer.
    Delay,
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
    pub const ALL: [Self; 5] = [Self::Delay, Self::Growth, Self::Overload, Self::Refusal, Self::Retune];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Delay => "delay",
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
    /// Compares the delay of now with the delay of long.
    Gradient,
    /// Measures the ceiling from the refusals themselves. The default.
    Tide,
    /// Reads the queue inside the upstream from delay.
    Vegas,
}

impl Algorithm {
    /// All of them, in the order a user meets them: the default first.
    pub const ALL: [Self; 5] = [Self::Tide, Self::Aimd, Self::Vegas, Self::Gradient, Self::Fixed];

    /// The word for it in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Aimd => "aimd",
            Self::Fixed => "fixed",
            Self::Gradient => "gradient",
            Self::Tide => "tide",
            Self::Vegas => "vegas",
        }
    }
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
    /// Of use with [`Algorithm::Aimd`].
    pub aimd: AimdSettings,
    /// Of use with [`Algorithm::Gradient`].
    pub gradient: GradientSettings,
    /// Of use with [`Algorithm::Tide`].
    pub tide: TideSettings,
    /// Of use with [`Algorithm::Vegas`].
    pub vegas: VegasSettings,
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
#[allow(clippy::large_enum_variant, reason = "one per account, and never moved")]
pub enum Limit {
    /// Additive increase, multiplicative decrease.
    Aimd(Aimd),
    /// Does not move.
    Fixed(u32),
    /// The delay of now against the delay of long.
    Gradient(Gradient),
    /// The measured ceiling.
    Tide(Tide),
    /// The queue read from delay.
    Vegas(Vegas),
}

impl Limit {
    /// The limit as it begins. The seed feeds what an algorithm leaves to chance.
    #[must_use]
    pub fn new(settings: &LimitSettings, ceiling: Option<u32>, seed: u64) -> Self {
        let (initial, top) = settings.range(ceiling);
        let min = settings.min.min(top);
        match settings.algorithm {
            Algorithm::Aimd => Self::Aimd(Aimd::new(initial, min, top, settings.aimd)),
            Algorithm::Fixed => Self::Fixed(initial),
            Algorithm::Gradient => Self::Gradient(Gradient::new(initial, min, top, settings.gradient)),
            Algorithm::Tide => Self::Tide(Tide::new(initial, min, top, settings.tide)),
            Algorithm::Vegas => Self::Vegas(Vegas::new(initial, min, top, settings.vegas, seed)),
        }
    }

    /// Takes new constants and keeps what it learnt. `false`: it cannot.
    pub fn retune(&mut self, settings: &LimitSettings) -> bool {
        match self {
            Self::Tide(tide) if settings.algorithm == Algorithm::Tide => {
                tide.set(settings.tide);
                true
            }
            Self::Tide(_) | Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => false,
        }
    }

    /// How many attempts may be in flight.
    #[must_use]
    pub fn value(&self) -> u32 {
        match self {
            Self::Aimd(aimd) => aimd.value(),
            Self::Fixed(value) => *value,
            Self::Gradient(gradient) => gradient.value(),
            Self::Tide(tide) => tide.value(),
            Self::Vegas(vegas) => vegas.value(),
        }
    }

    /// The highest value that is known to have passed.
    #[must_use]
    pub fn confirmed(&self) -> u32 {
        match self {
            Self::Tide(tide) => tide.confirmed(),
            Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => self.value(),
        }
    }

    /// Another refusal of the same burst was met with fewer held.
    pub fn refine(&mut self, held: u32) -> Option<Change> {
        match self {
            Self::Tide(tide) => tide.refine(held),
            Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => None,
        }
    }

    /// Refusals that lowered the limit turned out to be about something else.
    pub fn restore(&mut self) -> Option<Change> {
        match self {
            Self::Tide(tide) => tide.restore(),
            Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => None,
        }
    }

    /// What delay alone would allow, where that is watched; `None`: more than is asked for.
    #[must_use]
    pub fn delay_verdict(&self) -> Option<u32> {
        match self {
            Self::Tide(tide) => tide.delay_verdict(),
            Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => None,
        }
    }

    /// What an overload has left, until it is given back; `None`: there was none, or it is told by the limit alone.
    #[must_use]
    pub fn overload_limit(&self) -> Option<u32> {
        match self {
            Self::Tide(tide) => tide.overload_limit(),
            Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => None,
        }
    }

    /// How many times a refusal's time the limit has to be in use before it counts as unrefused.
    #[must_use]
    pub fn patience(&self) -> u32 {
        match self {
            Self::Tide(tide) => tide.patience(),
            Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => 1,
        }
    }

    /// What answers take when little is in flight is known, or not wanted.
    #[must_use]
    pub fn has_base(&self) -> bool {
        match self {
            Self::Tide(tide) => tide.has_base(),
            Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => true,
        }
    }

    /// An attempt was accepted.
    pub fn accepted(&mut self, sample: &Sample) -> Option<Change> {
        match self {
            Self::Aimd(aimd) => aimd.accepted(sample),
            Self::Fixed(_) => None,
            Self::Gradient(gradient) => gradient.accepted(sample),
            Self::Tide(tide) => tide.accepted(sample),
            Self::Vegas(vegas) => vegas.accepted(sample),
        }
    }

    /// A burst of refusals began.
    pub fn refused(&mut self, epoch: &Epoch, now: Instant) -> Option<Change> {
        match self {
            Self::Aimd(aimd) => aimd.cut(ChangeReason::Refusal),
            Self::Fixed(_) | Self::Gradient(_) => None,
            Self::Tide(tide) => tide.refused(epoch, now),
            Self::Vegas(vegas) => vegas.cut(ChangeReason::Refusal),
        }
    }

    /// The upstream said it is overloaded; at most once per burst. `in_row`: since the last accepted attempt.
    pub fn overloaded(&mut self, in_row: u32) -> Option<Change> {
        match self {
            Self::Aimd(aimd) => aimd.cut(ChangeReason::Overload),
            Self::Fixed(_) | Self::Gradient(_) => None,
            Self::Tide(tide) => tide.overloaded(in_row),
            Self::Vegas(vegas) => vegas.cut(ChangeReason::Overload),
        }
    }

    /// The limit has been in use to the full, with others waiting, for as long as a refusal takes to arrive.
    pub fn unrefused(&mut self, now: Instant) -> Option<Change> {
        match self {
            Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => None,
            Self::Tide(tide) => tide.unrefused(now),
        }
    }

    /// When [`unrefused`](Self::unrefused) may next move the limit; `None`: it would not.
    #[must_use]
    pub fn grows_at(&self, now: Instant) -> Option<Instant> {
        match self {
            Self::Aimd(_) | Self::Fixed(_) | Self::Gradient(_) | Self::Vegas(_) => None,
            Self::Tide(tide) => tide.grows_at(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(algorithm: Algorithm) -> Limit {
        let settings = LimitSettings {
            algorithm,
            min: 1,
            max: 1000,
            initial: 20,
            aimd: AimdSettings::default(),
            gradient: GradientSettings::default(),
            tide: TideSettings::default(),
            vegas: VegasSettings::default(),
        };
        Limit::new(&settings, None, 1)
    }

    /// A full limit for `seconds`, 100 answers in each, with this time to first byte.
    fn served(limit: &mut Limit, now: &mut Instant, seconds: u32, first_byte: Duration) {
        for _ in 0..seconds * 100 {
            *now += Duration::from_millis(10);
            let in_flight = limit.value();
            limit.accepted(&Sample::of(in_flight, first_byte, *now));
        }
    }

    #[test]
    fn delay_moves_those_that_read_it_and_no_other() {
        for (algorithm, reads) in
            [(Algorithm::Aimd, false), (Algorithm::Fixed, false), (Algorithm::Gradient, true), (Algorithm::Vegas, true)]
        {
            let (mut limit, mut now) = (limit(algorithm), crate::clock::now());
            served(&mut limit, &mut now, 20, Duration::from_millis(100));
            let before = limit.value();
            served(&mut limit, &mut now, 5, Duration::from_millis(500));
            assert_eq!(limit.value() < before, reads, "{algorithm:?}: {before} to {}", limit.value());
        }
    }

    #[test]
    fn an_outage_is_over_when_answers_come_again() {
        let second = Duration::from_secs(1);
        // With a ceiling that was found and without; as fast as before, and slower than the guard of delay would have it.
        for (found, first_byte) in [(None, second / 10), (None, second), (Some(15), second / 10), (Some(15), second)] {
            let (mut limit, mut now) = (limit(Algorithm::Tide), crate::clock::now());
            if let Some(held) = found {
                limit.refused(&Epoch { held, in_row: 1, passed_before: false }, now);
            }
            let want = limit.value();
            assert_eq!(want, found.unwrap_or(20));
            for in_row in 1..60 {
                limit.overloaded(in_row);
            }
            assert_eq!((limit.value(), limit.overload_limit()), (1, Some(1)));
            let mut rounds = 0;
            while limit.value() < want && rounds < 30 {
                rounds += 1;
                let before = limit.value();
                for _ in 0..before {
                    now += second / 10;
                    limit.accepted(&Sample::of(before, first_byte, now));
                }
                assert!(limit.value() <= before + (before / 4).max(1), "{before} to {}", limit.value());
            }
            assert_eq!((limit.value(), limit.overload_limit()), (want, None), "after {rounds} rounds");
        }
    }

    #[test]
    fn refusals_and_overload_lower_those_that_read_them_and_no_other() {
        for (algorithm, want) in [
            (Algorithm::Aimd, 18),
            (Algorithm::Fixed, 20),
            (Algorithm::Gradient, 20),
            (Algorithm::Tide, 15),
            (Algorithm::Vegas, 19),
        ] {
            let now = crate::clock::now();
            let mut refused = limit(algorithm);
            let epoch = Epoch { held: 15, in_row: 1, passed_before: false };
            let change = refused.refused(&epoch, now);
            assert_eq!(refused.value(), want, "{algorithm:?}");
            assert_eq!(change.map(|change| change.reason), (want != 20).then_some(ChangeReason::Refusal));
            let mut overloaded = limit(algorithm);
            let change = overloaded.overloaded(10);
            assert_eq!(change.map(|change| change.reason), (want != 20).then_some(ChangeReason::Overload));
        }
    }
}
