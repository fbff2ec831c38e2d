//! What happened, so that a test can say exactly what was refused, processed, and processed twice.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde::Serialize;

/// Request ids remembered one by one; beyond that only sums are kept.
const IDS_MAX: usize = 200_000;
/// Duplicates listed by id.
const DUPLICATES_LISTED_MAX: usize = 100;

/// Requests refused, by reason.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Refused {
    /// Too many in flight.
    pub ceiling: u64,
    /// Failed on purpose before any work was done.
    pub fault: u64,
    /// The account's money is gone (asked for by a header).
    pub quota: u64,
    /// Too many requests or tokens a minute.
    pub rate: u64,
}

/// The counts of one key, or of all.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Counts {
    /// Requests let in.
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
    /// Service times of processed requests, added up.
    pub service_seconds_total: f64,
}

/// The ledger as `/__ledger` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct LedgerSnapshot {
    /// All keys together. `in_flight_max` is the highest of any key.
    #[serde(flatten)]
    pub total: Counts,
    /// Requests that were processed more than once, however often.
    pub duplicates_total: u64,
    /// Their ids, the first hundred.
    pub duplicates: Vec<String>,
    /// The configured ceiling.
    pub ceiling: Option<u32>,
    /// Service times ÷ ceiling: what a perfect client would have taken. Only with a ceiling and one key.
    pub ideal_seconds: Option<f64>,
    /// From the first request let in to the last answer's last byte.
    pub span_seconds: f64,
    /// By key, keys shortened.
    pub per_key: BTreeMap<String, Counts>,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    keys: BTreeMap<String, Counts>,
    processed: HashMap<String, u32>,
    attempts: HashMap<String, u32>,
    first: Option<std::time::Instant>,
    last: Option<std::time::Instant>,
}

impl Ledger {
    pub(super) fn key(&mut self, key: &str) -> &mut Counts {
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

    pub(super) fn let_in(&mut self, key: &str, now: std::time::Instant) {
        self.first.get_or_insert(now);
        let counts = self.key(key);
        counts.accepted += 1;
        counts.in_flight += 1;
        counts.in_flight_max = counts.in_flight_max.max(counts.in_flight);
    }

    pub(super) fn processed(&mut self, key: &str, id: &str, service: Duration) {
        let counts = self.key(key);
        counts.processed += 1;
        counts.service_seconds_total += service.as_secs_f64();
        if self.processed.len() < IDS_MAX || self.processed.contains_key(id) {
            *self.processed.entry(id.to_owned()).or_default() += 1;
        }
    }

    pub(super) fn gone(&mut self, key: &str, done: bool, now: std::time::Instant) {
        self.last = Some(now);
        let counts = self.key(key);
        counts.in_flight = counts.in_flight.saturating_sub(1);
        if !done {
            counts.abandoned += 1;
        }
    }

    pub(super) fn snapshot(&self, ceiling: Option<u32>) -> LedgerSnapshot {
        let mut total = Counts::default();
        for counts in self.keys.values() {
            total.accepted += counts.accepted;
            total.refused.ceiling += counts.refused.ceiling;
            total.refused.fault += counts.refused.fault;
            total.refused.quota += counts.refused.quota;
            total.refused.rate += counts.refused.rate;
            total.processed += counts.processed;
            total.abandoned += counts.abandoned;
            total.in_flight += counts.in_flight;
            total.in_flight_max = total.in_flight_max.max(counts.in_flight_max);
            total.service_seconds_total += counts.service_seconds_total;
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
    pub(super) fn clear(&mut self) {
        let held: Vec<_> = self.keys.iter().map(|(key, counts)| (key.clone(), counts.in_flight)).collect();
        *self = Self::default();
        for (key, in_flight) in held.into_iter().filter(|(_, in_flight)| *in_flight > 0) {
            let counts = self.key(&key);
            counts.in_flight = in_flight;
            counts.in_flight_max = in_flight;
        }
    }
}
