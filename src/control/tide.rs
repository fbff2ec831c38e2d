//! The measured ceiling: a refusal tells the ceiling exactly, so it is read off instead of guessed by a factor.
//!
//! While nothing is refused the limit grows quickly, one step each time it was in use for as long as a refusal takes
//! to arrive. When a burst of refusals has settled, what the upstream still holds *is* its ceiling: the limit goes
//! there and stays, and asks for one more slot now and then to notice a ceiling that rose. Only refusals that follow
//! one another without any acceptance in between cut deeper, since then the ceiling fell or others share it.

use std::time::{Duration, Instant};

use super::{
    limit::{Change, ChangeReason, Epoch},
    signals::Attribution,
};

/// Factor of the deeper cut, when a second burst follows the first with nothing accepted between.
/// Guess: halfway between the 0.9 that needs many rounds and the 0.7 that idles; a cut is regrown within a second.
const CUT: f64 = 0.8;
/// A held ceiling is tried again after this many accepted answers, so that at most 1 in 50 attempts is spent on it …
const PROBE_ANSWERS: u32 = 50;
/// … but not sooner than this …
const PROBE_MIN: Duration = Duration::from_secs(5);
/// … and at the latest after this.
const PROBE_MAX: Duration = Duration::from_secs(20);
/// Overload answers in a row, with nothing accepted between, that halve the limit. Single ones are noise.
const OVERLOADS_IN_ROW: u32 = 5;

/// The state of one account's limit.
#[derive(Debug)]
pub struct Tide {
    value: u32,
    min: u32,
    top: u32,
    /// A value known to be refused; growth stays below it.
    bound: Option<u32>,
    step: u32,
    mode: Mode,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Grow,
    Hold { since: Instant, answers: u32 },
}

impl Tide {
    /// Begins at `initial` and stays within `min ..= top`.
    #[must_use]
    pub fn new(initial: u32, min: u32, top: u32) -> Self {
        let value = initial.clamp(min, top);
        Self { value, min, top, bound: None, step: value, mode: Mode::Grow }
    }

    /// How many attempts may be in flight.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.value
    }

    /// An attempt was accepted.
    pub fn accepted(&mut self) {
        if let Mode::Hold { answers, .. } = &mut self.mode {
            *answers = answers.saturating_add(1);
        }
    }

    /// When the limit may next grow, if it is in use then.
    #[must_use]
    pub fn grows_at(&self, now: Instant) -> Option<Instant> {
        if self.value >= self.top {
            return None;
        }
        match self.mode {
            Mode::Grow => Some(now),
            Mode::Hold { since, answers } if answers >= PROBE_ANSWERS => Some(since + PROBE_MIN),
            Mode::Hold { since, .. } => Some(since + PROBE_MAX),
        }
    }

    /// The limit was in use to the full and nothing was refused.
    pub fn unrefused(&mut self, now: Instant) -> Option<Change> {
        if self.grows_at(now)? > now {
            return None;
        }
        if let Mode::Hold { .. } = self.mode {
            // One slot more: if it is refused, one bounce was the price.
            self.bound = None;
            self.step = 1;
            self.mode = Mode::Grow;
        }
        let top = self.bound.map_or(self.top, |bound| bound.saturating_sub(1).min(self.top));
        if self.value >= top {
            self.mode = Mode::Hold { since: now, answers: 0 };
            return None;
        }
        let from = self.value;
        self.value = from.saturating_add(self.step).min(top);
        self.step = match self.bound {
            // Doubles first, then by half of what is there: an overshoot costs bounces, not slots.
            None => self.step.saturating_mul(2).min(self.value / 2).max(1),
            Some(_) => ((top - self.value) / 2).max(1),
        };
        Some(Change { from, to: self.value, reason: ChangeReason::Growth })
    }

    /// A burst of refusals has settled.
    pub fn refused(&mut self, epoch: &Epoch, now: Instant) -> Option<Change> {
        match epoch.attribution {
            // Not about attempts in flight; the pause deals with it.
            Attribution::Rate | Attribution::Quota | Attribution::Overload => return None,
            // A ceiling that lets half of what was held through is none: something else refused.
            Attribution::Unknown if epoch.in_flight.saturating_mul(2) < self.value => return None,
            Attribution::Ceiling | Attribution::Unknown => {}
        }
        let from = self.value;
        if epoch.in_row <= 1 {
            self.value = epoch.held.clamp(self.min, from);
            self.bound = Some(self.value.saturating_add(1));
            self.mode = Mode::Hold { since: now, answers: 0 };
        } else {
            let bound = epoch.held.clamp(self.min, from);
            self.value = ((f64::from(bound) * CUT) as u32).clamp(self.min, from);
            self.bound = Some(bound.saturating_add(1));
            self.step = ((bound.saturating_add(1) - self.value) / 2).max(1);
            self.mode = Mode::Grow;
        }
        (self.value != from).then_some(Change { from, to: self.value, reason: ChangeReason::Refusal })
    }

    /// Overload answers without an acceptance between them.
    pub fn overloaded(&mut self, in_row: u32, now: Instant) -> Option<Change> {
        if in_row < OVERLOADS_IN_ROW.max(self.value / 2) {
            return None;
        }
        let from = self.value;
        self.value = (from / 2).clamp(self.min, from);
        self.bound = None;
        self.step = 1;
        self.mode = Mode::Hold { since: now, answers: 0 };
        (self.value != from).then_some(Change { from, to: self.value, reason: ChangeReason::Overload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(held: u32, in_row: u32) -> Epoch {
        Epoch { attribution: Attribution::Ceiling, held, in_flight: held + 1, in_row }
    }

    #[test]
    fn without_refusals_it_reaches_a_large_top_in_a_few_steps() {
        let now = crate::clock::now();
        let mut tide = Tide::new(10, 1, 200);
        let steps = std::iter::from_fn(|| tide.unrefused(now)).map(|change| change.to).collect::<Vec<_>>();
        assert_eq!(steps.last(), Some(&200));
        assert!(steps.len() <= 9, "{steps:?}");
        assert_eq!(tide.grows_at(now), None);
    }

    #[test]
    fn a_refusal_puts_the_limit_where_the_upstream_holds_and_it_stays_there() {
        let now = crate::clock::now();
        let mut tide = Tide::new(40, 1, 1000);
        tide.unrefused(now);
        assert_eq!(tide.value(), 80);
        assert_eq!(tide.refused(&epoch(50, 1), now).map(|change| change.to), Some(50));
        assert_eq!(tide.unrefused(now + PROBE_MIN), None);
        for _ in 0..PROBE_ANSWERS {
            tide.accepted();
        }
        assert_eq!(tide.unrefused(now + PROBE_MIN).map(|change| change.to), Some(51));
        assert_eq!(tide.refused(&epoch(50, 1), now + PROBE_MIN).map(|change| change.to), Some(50));
    }

    #[test]
    fn a_second_burst_without_an_acceptance_cuts_deeper_and_regrows_below_the_bound() {
        let now = crate::clock::now();
        let mut tide = Tide::new(50, 1, 1000);
        tide.refused(&epoch(20, 1), now);
        assert_eq!(tide.refused(&epoch(20, 2), now).map(|change| change.to), Some(16));
        while tide.unrefused(now).is_some() {}
        assert_eq!(tide.value(), 20);
    }

    #[test]
    fn refusals_that_are_not_about_slots_do_not_move_it() {
        let now = crate::clock::now();
        let mut tide = Tide::new(50, 1, 1000);
        for attribution in [Attribution::Rate, Attribution::Quota, Attribution::Overload] {
            assert_eq!(tide.refused(&Epoch { attribution, ..epoch(3, 1) }, now), None);
        }
        let few = Epoch { attribution: Attribution::Unknown, held: 3, in_flight: 4, in_row: 1 };
        assert_eq!(tide.refused(&few, now), None);
        assert_eq!(tide.value(), 50);
    }
}
