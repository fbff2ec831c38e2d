//! What happened, so that a test can say exactly what was refused, processed, and processed twice.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use serde::Serialize;

/// Request ids remembered one by one; beyond that only sums are kept.
const IDS_MAX: usize = 200_000;
/// Duplicates listed by id.
const DUPLICATES_LISTED_MAX: usize = 100;

/// Why a request was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Ceiling,
    Fault,
    Invalid,
    Quota,
    Requests,
    Tokens,
    TooLarge,
}

/// Requests refused, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Too many in flight.
    pub ceiling: u64,
    /// Failed on purpose before any work was done.
    pub fault: u64,
    /// Let in, but their bodies could not be understood.
    pub invalid: u64,
    /// The account's money is gone (asked for by a header).
    pub quota: u64,
    /// Too many requests a second or a minute.
    pub requests: u64,
    /// Too many tokens a minute.
    pub tokens: u64,
    /// More tokens than a whole minute has: no wait would help.
    pub too_large: u64,
}

impl Refused {
    fn count(&mut self, cause: Cause) {
        *match cause {
            Cause::Ceiling => &mut self.ceiling,
            Cause::Fault => &mut self.fault,
            Cause::Invalid => &mut self.invalid,
            Cause::Quota => &mut self.quota,
            Cause::Requests => &mut self.requests,
            Cause::Tokens => &mut self.tokens,
            Cause::TooLarge => &mut self.too_large,
        } += 1;
    }

    fn add(&mut self, other: &Self) {
        self.ceiling += other.ceiling;
        self.fault += other.fault;
        self.invalid += other.invalid;
        self.quota += other.quota;
        self.requests += other.requests;
        self.tokens += other.tokens;
        self.too_large += other.too_large;
    }
}

/// The counts of one key, or of all.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Counts {
    /// Requests let in and not refused after that: those processed, abandoned, or still in flight.
    pub accepted: u64,
    /// Requests refused.
    pub refused: Refused,
    /// Requests whose work was done, whether or not the answer arrived.
    pub processed: u64,
    /// Requests whose client left before the work was done.
    pub abandoned: u64,
    /// In flight now.
    pub in_flight: u32,
    /// The most there were at once.
    pub in_flight_max: u32,
    /// Time that slots were held, added up, those in flight up to now: what a ceiling was used for.
    pub slot_seconds_total: f64,
    /// Service times of processed requests, added up; without what an overload stretched them by.
    pub service_seconds_total: f64,
    /// Tokens charged up front, whether or not a limit bounds them.
    pub charged_tokens: u64,
    /// Tokens of the answers to processed requests.
    pub output_tokens: u64,
    /// Up to when `slot_seconds_total` is counted.
    #[serde(skip)]
    counted: Option<Instant>,
}

impl Counts {
    /// Counts the slots held until `now`. Before every change of `in_flight`.
    fn count_slots(&mut self, now: Instant) {
        if let Some(counted) = self.counted {
            let held = now.saturating_duration_since(counted).as_secs_f64();
            self.slot_seconds_total += f64::from(self.in_flight) * held;
        }
        self.counted = self.counted.max(Some(now));
    }
}

/// The ledger as `/__ledger` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct LedgerSnapshot {
    /// All keys together. `in_flight_max` is the most there were at once over all of them.
    #[serde(flatten)]
    pub total: Counts,
    /// Requests that were processed more than once, however often.
    pub duplicates_total: u64,
    /// Their ids, the first hundred.
    pub duplicates: Vec<String>,
    /// The ceiling as it stands now.
    pub ceiling: Option<u32>,
    /// Service times ÷ ceiling: what a perfect client would have taken. Only with a ceiling and one key.
    pub ideal_seconds: Option<f64>,
    /// From the first request let in to the last answer's last byte.
    pub span_seconds: f64,
    /// By key: its last characters and a hash of the whole.
    pub per_key: BTreeMap<String, Counts>,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    keys: BTreeMap<String, Counts>,
    in_flight: u32,
    in_flight_max: u32,
    processed: HashMap<String, u32>,
    attempts: HashMap<String, u32>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Ledger {
    fn key(&mut self, key: &str) -> &mut Counts {
        self.keys.entry(key.to_owned()).or_default()
    }

    /// Which attempt of this id it is, from 1.
    pub(super) fn attempt(&mut self, id: &str) -> u32 {
        if self.attempts.len() >= IDS_MAX && !self.attempts.contains_key(id) {
            return 1;
        }
        let attempts = self.attempts.entry(id.to_owned()).or_default();
        *attempts += 1;
        *attempts
    }

    pub(super) fn let_in(&mut self, key: &str, now: Instant) {
        self.first.get_or_insert(now);
        self.in_flight += 1;
        self.in_flight_max = self.in_flight_max.max(self.in_flight);
        let counts = self.key(key);
        counts.count_slots(now);
        counts.accepted += 1;
        counts.in_flight += 1;
        counts.in_flight_max = counts.in_flight_max.max(counts.in_flight);
    }

    /// Refused at the door.
    pub(super) fn refused(&mut self, key: &str, cause: Cause) {
        self.key(key).refused.count(cause);
    }

    /// Let in, then refused after all.
    pub(super) fn sent_away(&mut self, key: &str, cause: Cause) {
        let counts = self.key(key);
        counts.accepted = counts.accepted.saturating_sub(1);
        counts.refused.count(cause);
    }

    pub(super) fn charged(&mut self, key: &str, tokens: u64) {
        self.key(key).charged_tokens += tokens;
    }

    pub(super) fn processed(&mut self, key: &str, id: &str, service: Duration, output_tokens: u64) {
        let counts = self.key(key);
        counts.processed += 1;
        counts.service_seconds_total += service.as_secs_f64();
        counts.output_tokens += output_tokens;
        if self.processed.len() < IDS_MAX || self.processed.contains_key(id) {
            *self.processed.entry(id.to_owned()).or_default() += 1;
        }
    }

    pub(super) fn gone(&mut self, key: &str, done: bool, now: Instant) {
        self.last = Some(now);
        self.in_flight = self.in_flight.saturating_sub(1);
        let counts = self.key(key);
        counts.count_slots(now);
        counts.in_flight = counts.in_flight.saturating_sub(1);
        if !done {
            counts.abandoned += 1;
        }
    }

    pub(super) fn snapshot(&mut self, ceiling: Option<u32>, now: Instant) -> LedgerSnapshot {
        let mut total = Counts { in_flight: self.in_flight, in_flight_max: self.in_flight_max, ..Counts::default() };
        for counts in self.keys.values_mut() {
            counts.count_slots(now);
            total.accepted += counts.accepted;
            total.refused.add(&counts.refused);
            total.processed += counts.processed;
            total.abandoned += counts.abandoned;
            total.slot_seconds_total += counts.slot_seconds_total;
            total.service_seconds_total += counts.service_seconds_total;
            total.charged_tokens += counts.charged_tokens;
            total.output_tokens += counts.output_tokens;
        }
        let twice = || self.processed.iter().filter(|(_, times)| **times > 1);
        let span = self.first.zip(self.last).map(|(first, last)| last.saturating_duration_since(first));
        LedgerSnapshot {
            total,
            duplicates_total: twice().count() as u64,
            duplicates: twice().map(|(id, _)| id.clone()).take(DUPLICATES_LISTED_MAX).collect(),
            ceiling,
            ideal_seconds: ceiling
                .filter(|_| self.keys.len() == 1)
                .map(|ceiling| total.service_seconds_total / f64::from(ceiling)),
            span_seconds: span.unwrap_or_default().as_secs_f64(),
            per_key: self.keys.clone(),
        }
    }

    /// Starts over, except for what is in flight.
    pub(super) fn clear(&mut self, now: Instant) {
        let held: Vec<_> = self.keys.iter().map(|(key, counts)| (key.clone(), counts.in_flight)).collect();
        *self = Self { in_flight: self.in_flight, in_flight_max: self.in_flight, ..Self::default() };
        for (key, in_flight) in held.into_iter().filter(|(_, in_flight)| *in_flight > 0) {
            let counts = self.key(&key);
            counts.accepted = u64::from(in_flight);
            counts.in_flight = in_flight;
            counts.in_flight_max = in_flight;
            counts.counted = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_slots_is_counted_up_to_now_and_from_the_last_clearing() {
        let start = crate::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ledger = Ledger::default();
        let held = |ledger: &mut Ledger, now| ledger.snapshot(None, now).total.slot_seconds_total;
        ledger.let_in("a", at(0));
        ledger.let_in("b", at(1));
        ledger.let_in("a", at(2));
        assert_eq!(held(&mut ledger, at(2)), 3.0);
        ledger.gone("a", true, at(4));
        assert_eq!(held(&mut ledger, at(4)), 9.0);
        assert_eq!(ledger.snapshot(None, at(4)).per_key["b"].slot_seconds_total, 3.0);
        assert_eq!(held(&mut ledger, at(5)), 11.0, "what is in flight counts");
        ledger.clear(at(6));
        assert_eq!(held(&mut ledger, at(8)), 4.0);
        ledger.gone("a", false, at(9));
        ledger.gone("b", true, at(10));
        assert_eq!(held(&mut ledger, at(20)), 7.0);
    }
}
