//! Vegas, as Netflix concurrency-limits defines it (`VegasLimit`): reads the queue inside the upstream from delay.
//!
//! With limit L, time to first byte s, its base b (the shortest seen), n in flight and lg L = max(1, ⌊log₁₀ L⌋):
//! queue q = ⌈L·(1 − b/s)⌉; 2n < L: hold; q ≤ lg L: L + β; q < α: L + lg L; q > β: L − lg L; where α = 3·lg L and
//! β = 6·lg L. A refusal: L − lg L. Every (0.5 … 1)·30·L answers the base becomes the current sample, whatever it is,
//! so that a base of better days is not kept for ever.
//!
//! One difference: the library compares with the base before it looks at the outcome, so a 429, which arrives sooner
//! than any answer, becomes the base and lowers nothing. Here a refusal is never a sample of delay. And, as for every
//! algorithm here, a burst of refusals is told once.
//!
//! The time to first byte of a model that answers as a whole is as long as its answer, so most of it looks like a
//! queue: with such traffic this limit stays far below the ceiling.

use std::time::Duration;

use super::{
    limit::{Change, ChangeReason, Sample},
    rng::Rng,
};

/// The settings of [`Vegas`]. The defaults are Netflix's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VegasSettings {
    /// A queue shorter than `alpha`·lg L is still room to grow, by lg L. At least `threshold`.
    pub alpha: u32,
    /// A queue longer than `beta`·lg L shrinks the limit, by lg L; also the step of the fast growth. At least `alpha`.
    pub beta: u32,
    /// A queue up to `threshold`·lg L is none: the limit grows by `beta`·lg L.
    pub threshold: u32,
    /// The base is measured anew after this many times L answers, or as few as half as many (random). At least 1.
    pub probe: u32,
}

impl Default for VegasSettings {
    fn default() -> Self {
        Self { alpha: 3, beta: 6, threshold: 1, probe: 30 }
    }
}

/// The state of one account's limit.
#[derive(Debug)]
pub struct Vegas {
    value: u32,
    min: u32,
    max: u32,
    settings: VegasSettings,
    base: Option<Duration>,
    /// Answers since the base was last replaced …
    answers: u32,
    /// … and the share of `probe`·L at which it is replaced again, in 0.5 .. 1.
    jitter: f64,
    rng: Rng,
}

impl Vegas {
    /// Begins at `initial` and stays within `min ..= max`. The seed decides when the base is measured anew.
    #[must_use]
    pub fn new(initial: u32, min: u32, max: u32, settings: VegasSettings, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let jitter = jitter(&mut rng);
        Self { value: initial.clamp(min, max), min, max, settings, base: None, answers: 0, jitter, rng }
    }

    /// How many attempts may be in flight.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.value
    }

    /// An attempt was accepted.
    pub fn accepted(&mut self, sample: &Sample) -> Option<Change> {
        self.answers = self.answers.saturating_add(1);
        if self.jitter * f64::from(self.settings.probe) * f64::from(self.value) <= f64::from(self.answers) {
            self.jitter = jitter(&mut self.rng);
            self.answers = 0;
            self.base = Some(sample.first_byte);
            return None;
        }
        let Some(base) = self.base.filter(|base| sample.first_byte >= *base) else {
            self.base = Some(sample.first_byte);
            return None;
        };
        if sample.in_flight.saturating_mul(2) < self.value {
            return None;
        }
        let VegasSettings { alpha, beta, threshold, .. } = self.settings;
        let (queue, lg) = (self.queue(base, sample.first_byte), self.lg());
        if queue <= threshold.saturating_mul(lg) {
            self.set(self.value.saturating_add(beta.saturating_mul(lg)), ChangeReason::Growth)
        } else if queue < alpha.saturating_mul(lg) {
            self.set(self.value.saturating_add(lg), ChangeReason::Growth)
        } else if queue > beta.saturating_mul(lg) {
            self.cut(ChangeReason::Delay)
        } else {
            None
        }
    }

    /// Shrinks by one step.
    pub fn cut(&mut self, reason: ChangeReason) -> Option<Change> {
        self.set(self.value.saturating_sub(self.lg()), reason)
    }

    fn set(&mut self, to: u32, reason: ChangeReason) -> Option<Change> {
        let from = self.value;
        self.value = to.clamp(self.min, self.max);
        (self.value != from).then_some(Change { from, to: self.value, reason })
    }

    /// q = ⌈L·(1 − b/s)⌉. `took` is at least `base`; two zeros are no queue.
    fn queue(&self, base: Duration, took: Duration) -> u32 {
        let ratio = if took.is_zero() { 1.0 } else { base.as_secs_f64() / took.as_secs_f64() };
        (f64::from(self.value) * (1.0 - ratio)).ceil() as u32
    }

    fn lg(&self) -> u32 {
        self.value.checked_ilog10().unwrap_or(0).max(1)
    }
}

fn jitter(rng: &mut Rng) -> f64 {
    0.5 + rng.unit() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(in_flight: u32, first_byte_ms: u64) -> Sample {
        Sample::of(in_flight, Duration::from_millis(first_byte_ms), crate::clock::now())
    }

    /// A limit that has seen a base of 100 ms.
    fn vegas(limit: u32) -> Vegas {
        let mut vegas = Vegas::new(limit, 1, 1000, VegasSettings::default(), 1);
        assert_eq!(vegas.accepted(&sample(limit, 100)), None, "the first sample is the base");
        vegas
    }

    #[test]
    fn each_step_follows_from_the_queue() {
        for (limit, in_flight, first_byte_ms, want, why) in [
            (20, 20, 100, 26, "q = 0: + 6"),
            (20, 20, 105, 26, "q = ⌈0.95⌉ = 1: + 6"),
            (20, 20, 110, 21, "q = ⌈1.82⌉ = 2: + 1"),
            (20, 20, 115, 20, "q = ⌈2.61⌉ = 3, not below 3: stays"),
            (20, 20, 140, 20, "q = ⌈5.71⌉ = 6, not above 6: stays"),
            (20, 20, 150, 19, "q = ⌈6.67⌉ = 7: - 1"),
            (20, 10, 150, 19, "half of it is in use"),
            (20, 9, 150, 20, "less than half of it is in use"),
            (20, 9, 100, 20, "less than half of it is in use"),
            (100, 100, 101, 112, "lg 100 = 2; q = ⌈0.99⌉ = 1: + 12"),
            (100, 100, 104, 102, "q = ⌈3.85⌉ = 4: + 2"),
            (100, 100, 115, 98, "q = ⌈13.04⌉ = 14: - 2"),
            (1000, 1000, 100, 1000, "the top"),
            (5, 5, 1000, 5, "q = ⌈4.5⌉ = 5: a limit of 5 cannot hold a queue above 6"),
        ] {
            let mut vegas = vegas(limit);
            let change = vegas.accepted(&sample(in_flight, first_byte_ms));
            assert_eq!(vegas.value(), want, "{why}");
            let reason = if want < limit { ChangeReason::Delay } else { ChangeReason::Growth };
            let moved = (want != limit).then_some(Change { from: limit, to: want, reason });
            assert_eq!(change, moved, "{why}");
        }
    }

    #[test]
    fn a_refusal_subtracts_one_step_and_is_no_base() {
        for (limit, want) in [(20, 19), (100, 98), (1000, 997), (2, 1), (1, 1)] {
            let mut vegas = vegas(limit);
            vegas.cut(ChangeReason::Refusal);
            assert_eq!((vegas.value(), vegas.base), (want, Some(Duration::from_millis(100))));
        }
    }

    #[test]
    fn rising_delay_brings_it_down_to_where_the_queue_is_tolerated() {
        let mut vegas = vegas(100);
        for _ in 0..120 {
            vegas.accepted(&sample(vegas.value(), 200));
        }
        // Half of the limit is queue: below 14 that is at most 6.
        assert_eq!(vegas.value(), 12);
    }

    #[test]
    fn the_base_is_replaced_by_a_sample_between_half_and_all_of_thirty_times_the_limit() {
        for seed in 0..50 {
            let mut vegas = Vegas::new(10, 1, 10, VegasSettings::default(), seed);
            vegas.accepted(&sample(1, 100));
            let mut answers = 1;
            while vegas.base == Some(Duration::from_millis(100)) {
                vegas.accepted(&sample(1, 300));
                answers += 1;
            }
            assert!((150..=300).contains(&answers), "{answers}");
            assert_eq!(vegas.base, Some(Duration::from_millis(300)));
        }
    }

    #[test]
    fn a_shorter_sample_is_the_new_base() {
        let mut vegas = vegas(20);
        assert_eq!(vegas.accepted(&sample(20, 50)), None);
        assert_eq!(vegas.accepted(&sample(20, 100)).map(|change| change.to), Some(19), "q = 10");
    }
}
