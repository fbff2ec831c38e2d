//! The breaker of a spent quota: nobody waits for it, and few ask.
//!
//! A refusal that no wait in the scale of a request cures is passed on at once. After it, requests for the same model
//! are answered without asking the upstream, but for one canary now and then.

use std::time::{Duration, Instant};

/// Time between canaries, unless the upstream named a shorter one.
const CANARY_EVERY: Duration = Duration::from_secs(30);
/// Models whose quota may be spent at the same time; the one that was spent first is forgotten beyond it.
const MODELS_MAX: usize = 64;

/// The breakers of one account, by model.
#[derive(Debug, Default)]
pub struct Breakers {
    open: Vec<Breaker>,
}

#[derive(Debug)]
struct Breaker {
    model: u64,
    /// When the next canary may ask.
    until: Instant,
    /// When the one on its way left.
    canary: Option<Instant>,
}

impl Breakers {
    /// None is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// How many models have none left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// `None`: might ask. Else the time until somebody may.
    #[must_use]
    pub fn spent(&self, model: u64, now: Instant) -> Option<Duration> {
        let breaker = self.open.iter().find(|breaker| breaker.model == model)?;
        let next = breaker.canary.map_or(breaker.until, |left| breaker.until.max(left + CANARY_EVERY));
        (now < next).then(|| next.saturating_duration_since(now))
    }

    /// `None`: may ask, and if it is the canary it now counts as such. Else the time until somebody may.
    pub fn blocks(&mut self, model: u64, now: Instant) -> Option<Duration> {
        let breaker = self.open.iter_mut().find(|breaker| breaker.model == model)?;
        // A canary that never came back (its client left) must not block for ever.
        let lost = breaker.canary.is_none_or(|left| now >= left + CANARY_EVERY);
        if now >= breaker.until && lost {
            breaker.canary = Some(now);
            return None;
        }
        Some(breaker.until.saturating_duration_since(now))
    }

    /// The quota is spent. `true`: that is news.
    pub fn trip(&mut self, model: u64, told: Option<Duration>, now: Instant) -> bool {
        let until = now + told.unwrap_or(CANARY_EVERY).min(CANARY_EVERY);
        if let Some(breaker) = self.open.iter_mut().find(|breaker| breaker.model == model) {
            *breaker = Breaker { model, until, canary: None };
            return false;
        }
        if self.open.len() >= MODELS_MAX {
            self.open.remove(0);
        }
        self.open.push(Breaker { model, until, canary: None });
        true
    }

    /// An attempt was accepted. `true`: a breaker closed.
    pub fn accepted(&mut self, model: u64) -> bool {
        let before = self.open.len();
        self.open.retain(|breaker| breaker.model != model);
        self.open.len() != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_quota_is_asked_for_by_one_canary_at_a_time() {
        let start = crate::clock::now();
        let mut breakers = Breakers::default();
        assert_eq!(breakers.blocks(1, start), None);
        assert!(breakers.trip(1, None, start));
        assert_eq!(breakers.blocks(1, start), Some(CANARY_EVERY));
        assert_eq!(breakers.blocks(2, start), None, "another model may have some left");
        let later = start + CANARY_EVERY;
        assert_eq!(breakers.blocks(1, later), None, "the canary");
        assert!(breakers.blocks(1, later).is_some(), "only one");
        assert!(!breakers.trip(1, Some(Duration::from_secs(5)), later));
        assert_eq!(breakers.blocks(1, later), Some(Duration::from_secs(5)));
        assert!(breakers.accepted(1));
        assert_eq!(breakers.blocks(1, later), None);
    }

    #[test]
    fn a_canary_that_never_comes_back_does_not_block_for_ever() {
        let start = crate::clock::now();
        let mut breakers = Breakers::default();
        breakers.trip(1, Some(Duration::ZERO), start);
        assert_eq!(breakers.blocks(1, start), None);
        assert!(breakers.blocks(1, start + CANARY_EVERY / 2).is_some());
        assert_eq!(breakers.blocks(1, start + CANARY_EVERY), None);
    }
}
