//! Additive increase, multiplicative decrease, driven by refusals.
//!
//! Grows by one each time as many answers came back as the limit is high, while at least half of it is in use
//! (Netflix concurrency-limits: `inflight * 2 < limit` does not grow); cut by a factor once per burst of refusals
//! (Envoy: attempts that left before the cut do not count again; the gate sees to that). Until the first refusal of
//! an account without a known ceiling it grows by one per answer (slow start, RFC 5681 3.1), or a ceiling of 200
//! would take minutes to reach when answers take seconds.

use super::limit::{Change, ChangeReason, Sample};

/// The state of one account's limit.
#[derive(Debug)]
pub struct Aimd {
    value: u32,
    min: u32,
    max: u32,
    decrease: f64,
    slow_start: bool,
    /// Answers until the next step.
    answers_left: u32,
}

impl Aimd {
    /// `known`: the limit begins at a configured ceiling, so slow start has nothing to find.
    #[must_use]
    pub fn new(initial: u32, min: u32, max: u32, decrease: f64, known: bool) -> Self {
        debug_assert!(decrease > 0.0 && decrease < 1.0, "decrease {decrease}");
        let value = initial.clamp(min, max);
        Self { value, min, max, decrease, slow_start: !known, answers_left: value }
    }

    /// How many attempts may be in flight.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.value
    }

    /// An attempt was accepted.
    pub fn accepted(&mut self, sample: &Sample) -> Option<Change> {
        if self.value >= self.max || sample.in_flight.saturating_mul(2) < self.value {
            return None;
        }
        self.answers_left = if self.slow_start { 0 } else { self.answers_left.saturating_sub(1) };
        if self.answers_left > 0 {
            return None;
        }
        let from = self.value;
        self.value += 1;
        self.answers_left = self.value;
        Some(Change { from, to: self.value, reason: ChangeReason::Growth })
    }

    /// Shrinks once.
    pub fn cut(&mut self, reason: ChangeReason) -> Option<Change> {
        self.slow_start = false;
        let from = self.value;
        self.value = ((f64::from(from) * self.decrease) as u32).clamp(self.min, from);
        self.answers_left = self.value;
        (self.value != from).then_some(Change { from, to: self.value, reason })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::limit::Outcome, *};

    fn sample(in_flight: u32) -> Sample {
        Sample {
            sent: crate::clock::now(),
            first_byte: Duration::from_millis(1),
            in_flight,
            outcome: Outcome::Accepted,
        }
    }

    #[test]
    fn after_a_refusal_it_grows_by_one_per_limit_of_answers() {
        let mut aimd = Aimd::new(10, 1, 100, 0.9, true);
        assert_eq!(aimd.cut(ChangeReason::Refusal).map(|c| c.to), Some(9));
        for _ in 0..8 {
            assert_eq!(aimd.accepted(&sample(9)), None);
        }
        assert_eq!(aimd.accepted(&sample(9)).map(|c| c.to), Some(10));
    }

    #[test]
    fn slow_start_doubles_per_round_and_ends_at_the_first_refusal() {
        let mut aimd = Aimd::new(10, 1, 100, 0.5, false);
        for _ in 0..10 {
            aimd.accepted(&sample(10));
        }
        assert_eq!(aimd.value(), 20);
        aimd.cut(ChangeReason::Refusal);
        assert_eq!(aimd.value(), 10);
        aimd.accepted(&sample(10));
        assert_eq!(aimd.value(), 10);
    }

    #[test]
    fn a_limit_that_is_not_used_does_not_grow_and_bounds_hold() {
        let mut aimd = Aimd::new(10, 2, 11, 0.1, false);
        assert_eq!(aimd.accepted(&sample(4)), None);
        aimd.accepted(&sample(10));
        aimd.accepted(&sample(10));
        assert_eq!(aimd.value(), 11);
        aimd.cut(ChangeReason::Refusal);
        assert_eq!(aimd.value(), 2);
        assert_eq!(aimd.cut(ChangeReason::Refusal), None);
    }
}
