//! What kind of limit an upstream has that refuses without saying why.
//!
//! A ceiling refuses only what is over it: once it is known, nothing below it is refused. A rate refuses at any number
//! in flight. So every refusal of an attempt that should have passed speaks for a rate, and every refusal just above
//! the highest number that passed speaks for a ceiling. Once attempts are paced, both look alike as long as answers take
//! the same time; what varies less then, the number in flight or the rate, is what is limited.

use super::signals::Attribution;

/// So much evidence settles it.
const SURE: i32 = 3;
/// What a refusal with nothing in flight weighs: the ceiling of an account is hardly ever zero.
const ALONE: i32 = 2;
/// A refusal with less than this share of what was held at the one before met something else.
const ELSEWHERE: f64 = 0.8;
/// So many refusals are compared.
const COMPARED: usize = 4;

/// One refusal that did not say why.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// Something was accepted since the last refusal.
    pub accepted: bool,
    /// No more were in flight than had passed before.
    pub passed_before: bool,
    /// Attempts the upstream held.
    pub held: u32,
    /// The rate as it was measured between refusals, units per second; 0: it was not.
    pub rate: f64,
}

/// The current opinion.
#[derive(Debug, Default)]
pub struct Mind {
    /// Above 0 for a rate, below for a ceiling.
    score: i32,
    is_rate: bool,
    /// What was held at the last refusal.
    held: Option<u32>,
    last: [Option<(f64, f64)>; COMPARED],
}

impl Mind {
    /// The kind that refusals without a word are taken for.
    #[must_use]
    pub fn verdict(&self) -> Attribution {
        if self.is_rate { Attribution::Rate } else { Attribution::Ceiling }
    }

    /// How sure that is.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        self.is_rate || self.score < -1
    }

    /// Weighs one refusal. `Some`: the opinion has changed to this.
    pub fn weigh(&mut self, evidence: &Evidence) -> Option<Attribution> {
        self.last.rotate_right(1);
        if let Some(first) = self.last.first_mut() {
            *first = Some((f64::from(evidence.held), evidence.rate));
        }
        if !self.is_rate {
            if !evidence.accepted && evidence.held > 0 {
                // One fall of a ceiling is a row of refusals.
                return None;
            }
            // A ceiling is met at the same number every time, and never with nothing in flight.
            let elsewhere = self.held.is_some_and(|held| f64::from(evidence.held) < ELSEWHERE * f64::from(held));
            let surprising = evidence.passed_before || elsewhere || evidence.held == 0;
            self.held = Some(evidence.held);
            let step = match surprising {
                true if evidence.held == 0 => ALONE,
                true => 1,
                false => -1,
            };
            self.score = (self.score + step).clamp(-SURE, SURE);
            if self.score < SURE {
                return None;
            }
            self.is_rate = true;
        } else {
            let all: Vec<(f64, f64)> = self.last.iter().flatten().copied().filter(|(_, rate)| *rate > 0.0).collect();
            let never_alone = all.iter().all(|(held, _)| *held > 0.0);
            let held = variation(all.iter().map(|(held, _)| *held));
            let rate = variation(all.iter().map(|(_, rate)| *rate));
            let is_ceiling = all.len() == COMPARED && never_alone && held < 0.05 && rate > 2.0 * held.max(0.05);
            if !is_ceiling {
                return None;
            }
            self.is_rate = false;
        }
        self.score = 0;
        self.last = [None; COMPARED];
        Some(self.verdict())
    }
}

/// Standard deviation over mean.
fn variation(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let square = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    if mean > 0.0 { square.sqrt() / mean } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRY: Evidence = Evidence { accepted: true, passed_before: false, held: 50, rate: 0.0 };

    #[test]
    fn refusals_below_what_passed_speak_for_a_rate_and_one_fall_of_a_ceiling_does_not() {
        let mut mind = Mind::default();
        for _ in 0..5 {
            assert_eq!(mind.weigh(&TRY), None);
        }
        assert!(mind.is_sure());
        for held in [49, 39, 25, 13, 10] {
            assert_eq!(mind.weigh(&Evidence { accepted: held == 49, passed_before: true, held, ..TRY }), None);
        }
        assert_eq!(mind.verdict(), Attribution::Ceiling);
        let below = Evidence { passed_before: true, ..TRY };
        let changes: Vec<_> = (0..10).filter_map(|_| mind.weigh(&below)).collect();
        assert_eq!(changes, [Attribution::Rate]);
    }

    #[test]
    fn refusals_with_nothing_in_flight_speak_for_a_rate() {
        let mut mind = Mind::default();
        let alone = Evidence { accepted: false, passed_before: false, held: 0, rate: 0.0 };
        assert_eq!((0..3).filter_map(|_| mind.weigh(&alone)).last(), Some(Attribution::Rate));
    }

    #[test]
    fn what_is_refused_with_nothing_in_flight_is_no_ceiling_however_the_rate_varies() {
        let mut mind = Mind::default();
        while mind.weigh(&Evidence { passed_before: true, held: 0, rate: 9.0, ..TRY }).is_none() {}
        let again = |rate| Evidence { held: 0, rate, ..TRY };
        assert!([3.0, 9.0, 5.0, 12.0].iter().all(|rate| mind.weigh(&again(*rate)).is_none()));
    }

    #[test]
    fn the_same_number_held_at_very_different_rates_is_a_ceiling_after_all() {
        let mut mind = Mind::default();
        while mind.weigh(&Evidence { passed_before: true, held: 20, rate: 9.0, ..TRY }).is_none() {}
        let again = |rate| Evidence { held: 20, rate, ..TRY };
        let changes: Vec<_> = [3.0, 9.0, 5.0, 12.0].iter().filter_map(|rate| mind.weigh(&again(*rate))).collect();
        assert_eq!(changes, [Attribution::Ceiling]);
    }
}
