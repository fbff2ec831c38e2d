//! Additive increase, multiplicative decrease, as Netflix concurrency-limits defines it (`AIMDLimit`): L ← ⌊0.9·L⌋ on
//! a refusal or a slow answer, else L ← L + 1 per answer while at least half of the limit is in use (2n ≥ L).
//!
//! One difference: a burst of refusals cuts once, not once per refusal. The gate sees to that (Envoy's rule: attempts
//! that left before the cut do not count again), or forty simultaneous 429s would leave 0.9⁴⁰ of the limit.

use std::time::Duration;

use super::limit::{Change, ChangeReason, Sample};

/// The settings of [`Aimd`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AimdSettings {
    /// Factor applied on a cut, `0 < decrease < 1`. Netflix: 0.9.
    pub decrease: f64,
    /// An answer whose first byte takes longer cuts like a refusal, each one by itself; `None`: none does. Netflix: 5 s.
    /// Off here, because models take as long as their answer is long: with a mean of 4 s a quarter of all answers would
    /// count as refused, and the limit would end near 30 at any ceiling.
    pub timeout: Option<Duration>,
}

impl Default for AimdSettings {
    fn default() -> Self {
        Self { decrease: 0.9, timeout: None }
    }
}

/// The state of one account's limit.
#[derive(Debug)]
pub struct Aimd {
    value: u32,
    min: u32,
    max: u32,
    settings: AimdSettings,
}

impl Aimd {
    /// Begins at `initial` and stays within `min ..= max`.
    #[must_use]
    pub fn new(initial: u32, min: u32, max: u32, settings: AimdSettings) -> Self {
        debug_assert!(settings.decrease > 0.0 && settings.decrease < 1.0, "{settings:?}");
        Self { value: initial.clamp(min, max), min, max, settings }
    }

    /// How many attempts may be in flight.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.value
    }

    /// An attempt was accepted.
    pub fn accepted(&mut self, sample: &Sample) -> Option<Change> {
        if self.settings.timeout.is_some_and(|timeout| sample.first_byte > timeout) {
            return self.cut(ChangeReason::Delay);
        }
        if self.value >= self.max || sample.in_flight.saturating_mul(2) < self.value {
            return None;
        }
        let from = self.value;
        self.value += 1;
        Some(Change { from, to: self.value, reason: ChangeReason::Growth })
    }

    /// Shrinks once.
    pub fn cut(&mut self, reason: ChangeReason) -> Option<Change> {
        let from = self.value;
        self.value = ((f64::from(from) * self.settings.decrease) as u32).clamp(self.min, from);
        (self.value != from).then_some(Change { from, to: self.value, reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(in_flight: u32, first_byte_ms: u64) -> Sample {
        Sample::of(in_flight, Duration::from_millis(first_byte_ms), crate::clock::now())
    }

    #[test]
    fn it_grows_by_one_per_answer_while_half_of_it_is_in_use() {
        for (limit, in_flight, want) in [(10, 10, 11), (10, 5, 11), (10, 4, 10), (11, 5, 11), (11, 6, 12), (20, 20, 20)]
        {
            let mut aimd = Aimd::new(limit, 1, 20, AimdSettings::default());
            aimd.accepted(&sample(in_flight, 60_000));
            assert_eq!(aimd.value(), want, "{in_flight} of {limit} in flight");
        }
    }

    #[test]
    fn a_refusal_cuts_to_the_floor_of_its_share() {
        for (limit, decrease, want) in
            [(20, 0.9, 18), (15, 0.9, 13), (10, 0.9, 9), (9, 0.5, 4), (3, 0.5, 2), (2, 0.9, 2)]
        {
            let mut aimd = Aimd::new(limit, 2, 100, AimdSettings { decrease, ..AimdSettings::default() });
            let change = aimd.cut(ChangeReason::Refusal);
            assert_eq!(aimd.value(), want, "{limit} by {decrease}");
            assert_eq!(change.is_some(), want != limit);
        }
    }

    #[test]
    fn a_slow_answer_cuts_where_a_timeout_is_set() {
        let timeout = Some(Duration::from_secs(5));
        let mut aimd = Aimd::new(20, 1, 100, AimdSettings { timeout, ..AimdSettings::default() });
        assert_eq!(aimd.accepted(&sample(20, 5000)).map(|change| change.to), Some(21));
        let change = Change { from: 21, to: 18, reason: ChangeReason::Delay };
        assert_eq!(aimd.accepted(&sample(1, 5001)), Some(change));
    }
}
