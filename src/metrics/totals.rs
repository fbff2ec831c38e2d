//! What the counters of an account say, as plain numbers that can be subtracted.

use std::slice;

use prometheus::{Histogram, IntCounter, core::Metric};

use super::{AccountMetrics, DIRECTIONS, End, NANOS, OUTCOMES, SECONDS, TOKENS};
use crate::{
    control::{gate::PauseReason, limit::ChangeReason, retry::Failure, signals::Attribution},
    fault::FaultKind,
};

/// One attempt that fails for so many that are accepted is trouble.
const TROUBLE: u64 = 4;

/// Observations per bucket, the last one above all bounds.
pub type Buckets = [u64; SECONDS.len() + 1];

/// All counters of an account, or their growth. Each list is in the order of its labels.
#[derive(Debug, Clone, Copy, Default)]
#[expect(missing_docs, reason = "each is the metric of the same name")]
pub struct Totals {
    pub exchanges: [u64; End::ALL.len()],
    pub attempts: [u64; OUTCOMES.len()],
    pub refusals: [u64; Attribution::ALL.len()],
    pub retries: [u64; Failure::LABELS.len()],
    pub faults: [u64; FaultKind::ALL.len()],
    pub limit_changes: [u64; ChangeReason::ALL.len()],
    pub pauses: [u64; PauseReason::ALL.len()],
    pub relayed_bytes: [u64; DIRECTIONS.len()],
    /// Cached, input, output.
    pub tokens: [u64; TOKENS.len()],
    /// Billionths of a dollar.
    pub spend_nanos: u64,
    pub unpriced: u64,
    pub queue_wait: Buckets,
    pub first_byte: Buckets,
}

impl AccountMetrics {
    /// As they are now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        Totals {
            exchanges: read(&self.exchanges),
            attempts: read(&self.attempts),
            refusals: read(&self.refusals),
            retries: read(&self.retries),
            faults: read(&self.faults),
            limit_changes: read(&self.limit_changes),
            pauses: read(&self.pauses),
            relayed_bytes: read(&self.relayed_bytes),
            tokens: read(&self.tokens),
            spend_nanos: self.spend.get(),
            unpriced: self.unpriced.get(),
            queue_wait: buckets(&self.queue_wait),
            first_byte: buckets(&self.first_byte),
        }
    }
}

impl Totals {
    /// Adds another account's.
    pub fn add(&mut self, other: &Self) {
        self.each(other, |own, other| own.saturating_add(other));
    }

    /// What has been counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut since = *self;
        since.each(before, |own, before| own.saturating_sub(before));
        since
    }

    fn each(&mut self, other: &Self, with: impl Fn(u64, u64) -> u64) {
        let lists: [(&mut [u64], &[u64]); 13] = [
            (&mut self.exchanges, &other.exchanges),
            (&mut self.attempts, &other.attempts),
            (&mut self.refusals, &other.refusals),
            (&mut self.retries, &other.retries),
            (&mut self.faults, &other.faults),
            (&mut self.limit_changes, &other.limit_changes),
            (&mut self.pauses, &other.pauses),
            (&mut self.relayed_bytes, &other.relayed_bytes),
            (&mut self.tokens, &other.tokens),
            (slice::from_mut(&mut self.spend_nanos), slice::from_ref(&other.spend_nanos)),
            (slice::from_mut(&mut self.unpriced), slice::from_ref(&other.unpriced)),
            (&mut self.queue_wait, &other.queue_wait),
            (&mut self.first_byte, &other.first_byte),
        ];
        for (own, other) in lists {
            for (own, other) in own.iter_mut().zip(other) {
                *own = with(*own, *other);
            }
        }
    }

    /// Exchanges whose whole answer came from the upstream and went down.
    #[must_use]
    pub fn answers(&self) -> u64 {
        let ended = self.exchanges.iter().zip(End::ALL);
        ended.filter(|(_, end)| matches!(end, End::Complete | End::Upgraded)).map(|(count, _)| count).sum()
    }

    /// Attempts that were answered with a server error, passed on or not.
    #[must_use]
    pub fn server_errors(&self) -> u64 {
        count_of(&OUTCOMES, &self.attempts, &"failed")
    }

    /// Dollars spent.
    #[must_use]
    pub fn spend_usd(&self) -> f64 {
        self.spend_nanos as f64 / NANOS
    }

    /// What is wrong with the upstream, if one attempt fails for every four that are accepted: fewer hold nobody back,
    /// since they are made again. Most telling first.
    #[must_use]
    pub fn failure(&self) -> Option<&'static str> {
        let counted = |label| count_of(&Failure::LABELS, &self.retries, &label);
        let attempts = |outcome| count_of(&OUTCOMES, &self.attempts, &outcome);
        let told = |kind| count_of(&FaultKind::ALL, &self.faults, &kind);
        let is_trouble = |failed: u64| failed > 0 && failed.saturating_mul(TROUBLE) >= attempts("accepted");
        if is_trouble(counted("unreached") + told(FaultKind::Unreachable)) {
            Some("the upstream cannot be reached")
        } else if is_trouble(counted("timeout") + told(FaultKind::FirstByteTimeout)) {
            Some("the upstream does not answer in time")
        } else if is_trouble(counted("broken") + told(FaultKind::UpstreamProtocol)) {
            Some("the upstream breaks connections off")
        } else if is_trouble(counted("server_error"))
            || (2 * attempts("failed") > self.attempts.iter().sum() && attempts("accepted") == 0)
        {
            Some("the upstream answers with server errors")
        } else {
            None
        }
    }
}

/// Labels with their counts, for people and programs.
impl Totals {
    /// The counters that have labels, by name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, Vec<(&'static str, u64)>); 7] {
        fn zip<const N: usize>(labels: [&'static str; N], counts: [u64; N]) -> Vec<(&'static str, u64)> {
            labels.into_iter().zip(counts).collect()
        }
        [
            ("exchanges", zip(End::ALL.map(End::label), self.exchanges)),
            ("attempts", zip(OUTCOMES, self.attempts)),
            ("refusals", zip(Attribution::ALL.map(Attribution::label), self.refusals)),
            ("retries", zip(Failure::LABELS, self.retries)),
            ("faults", zip(FaultKind::ALL.map(FaultKind::label), self.faults)),
            ("pauses", zip(PauseReason::ALL.map(PauseReason::label), self.pauses)),
            ("tokens", zip(TOKENS, self.tokens)),
        ]
    }
}

/// How often `this` was counted, of all that have a label.
fn count_of<T: PartialEq>(labels: &[T], counts: &[u64], this: &T) -> u64 {
    labels.iter().zip(counts).filter(|(label, _)| *label == this).map(|(_, count)| count).sum()
}

fn read<const N: usize>(counters: &[IntCounter; N]) -> [u64; N] {
    std::array::from_fn(|index| counters.get(index).map_or(0, IntCounter::get))
}

fn buckets(histogram: &Histogram) -> Buckets {
    let metric = histogram.metric();
    let histogram = metric.get_histogram();
    let mut buckets = [0; SECONDS.len() + 1];
    let up_to = histogram.get_bucket().iter().map(|bucket| bucket.cumulative_count());
    let mut below = 0;
    for (bucket, up_to) in buckets.iter_mut().zip(up_to.chain([histogram.get_sample_count()])) {
        *bucket = up_to.saturating_sub(below);
        below = up_to.max(below);
    }
    buckets
}

/// The time that this share of observations stayed below, as Prometheus' `histogram_quantile` has it: in a straight
/// line inside a bucket. NaN: there are none.
#[must_use]
pub fn quantile(buckets: &Buckets, share: f64) -> f64 {
    let count: u64 = buckets.iter().sum();
    if count == 0 {
        return f64::NAN;
    }
    let rank = share * count as f64;
    let (mut below, mut start) = (0.0, 0.0);
    for (bucket, end) in buckets.iter().zip(SECONDS) {
        let inside = *bucket as f64;
        if inside > 0.0 && below + inside >= rank {
            return start + (end - start) * ((rank - below) / inside);
        }
        (below, start) = (below + inside, end);
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn counts_are_read_subtracted_and_named() {
        let metrics = Metrics::new();
        let account = metrics.account("u", "a");
        account.exchange_ended(End::Complete);
        account.refused(Attribution::Rate);
        let before = account.totals();
        account.exchange_ended(End::Complete);
        account.exchange_ended(End::Fault);
        account.fault(FaultKind::Unreachable);
        account.queue_wait.observe(0.3);
        let new = account.totals().since(&before);
        assert_eq!((new.answers(), new.refusals), (1, [0; 5]));
        assert_eq!(new.failure(), Some("the upstream cannot be reached"));
        assert_eq!(before.failure(), None);
        assert!(new.named().contains(&(
            "exchanges",
            vec![
                ("client_left", 0),
                ("complete", 1),
                ("fault", 1),
                ("idle_timeout", 0),
                ("upgraded", 0),
                ("upstream_error", 0)
            ]
        )));
        let mut twice = new;
        twice.add(&new);
        assert_eq!(twice.queue_wait.iter().sum::<u64>(), 2);
    }

    #[test]
    fn sums_of_money_stay_exact() {
        let metrics = Metrics::new();
        let account = metrics.account("u", "a");
        for nanos in [Some(100_000_001), Some(0), Some(200_000_000), None] {
            account.billed(nanos);
        }
        let before = account.totals();
        assert_eq!((before.spend_nanos, before.unpriced), (300_000_001, 1));
        account.billed(Some(7));
        assert_eq!(account.totals().since(&before).spend_nanos, 7);
        let page = metrics.render([]);
        assert!(page.contains("tidegate_spend_usd_total{account=\"a\",upstream=\"u\"} 0.300000008\n"), "{page}");
        assert!(page.contains("# TYPE tidegate_spend_usd_total counter\n"), "{page}");
        assert!(!page.contains("tidegate_balance_usd"), "nobody said anything");
    }

    #[test]
    fn a_failure_among_many_answers_is_no_trouble() {
        let metrics = Metrics::new();
        let account = metrics.account("u", "a");
        account.retried(Failure::Server);
        for accepted in 1..=6 {
            account.attempt("accepted");
            let trouble = (accepted <= 4).then_some("the upstream answers with server errors");
            assert_eq!(account.totals().failure(), trouble, "{accepted} accepted");
        }
    }

    #[test]
    fn an_upstream_that_answers_nothing_but_errors_has_failed() {
        let metrics = Metrics::new();
        let account = metrics.account("u", "a");
        account.attempt("failed");
        let first = account.totals();
        assert_eq!(first.failure(), Some("the upstream answers with server errors"));
        account.attempt("failed");
        account.attempt("accepted");
        let second = account.totals();
        assert_eq!(second.since(&first).failure(), None, "one in two");
        account.attempt("failed");
        account.attempt("ignored");
        assert_eq!(
            account.totals().since(&second).failure(),
            None,
            "it answers, if only with errors of the clients' own"
        );
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let mut buckets = [0; SECONDS.len() + 1];
        assert!(quantile(&buckets, 0.5).is_nan());
        // Four between 0.1 and 0.25 s, four between 0.25 and 0.5 s.
        (buckets[11], buckets[12]) = (4, 4);
        assert!((quantile(&buckets, 0.5) - 0.25).abs() < 1e-9);
        assert!((quantile(&buckets, 0.25) - 0.175).abs() < 1e-9);
        assert!((quantile(&buckets, 1.0) - 0.5).abs() < 1e-9);
        let mut late = [0; SECONDS.len() + 1];
        late[SECONDS.len()] = 1;
        assert!((quantile(&late, 0.5) - 600.0).abs() < 1e-9, "above all bounds: the highest bound");
    }
}
