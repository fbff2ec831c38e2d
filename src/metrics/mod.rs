//! Every metric: name, help, labels, buckets. Nothing else creates one.
//!
//! Counters and histograms are fed through handles that are resolved once, when a gate is made. Gauges are not set on
//! the request path at all: whoever scrapes asks the gates ([`Metrics::render`]), so they cannot drift.

mod process;
mod totals;

use std::collections::HashSet;

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    proto::{Counter, MetricFamily},
};

use crate::{
    control::{
        cost::Usage,
        gate::{GateView, PauseReason},
        limit::ChangeReason,
        retry::Failure,
        signals::{Attribution, Budgets, Dimension},
    },
    fault::FaultKind,
};

pub use process::process;
pub use totals::{Buckets, Totals, quantile};

/// Buckets in seconds, from 50 µs (Tidegate's own overhead) over about 2.5 steps a decade to 10 minutes (a stream).
const SECONDS: [f64; 22] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

/// How an exchange ended: the `end` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client left before the answer was complete.
    ClientLeft,
    /// The whole answer went down.
    Complete,
    /// Tidegate answered itself.
    Fault,
    /// The body was silent for too long.
    IdleTimeout,
    /// Both sides were joined after a 101, and one of them closed.
    Upgraded,
    /// The upstream broke off inside the body.
    UpstreamError,
}

impl End {
    const ALL: [Self; 6] =
        [Self::ClientLeft, Self::Complete, Self::Fault, Self::IdleTimeout, Self::Upgraded, Self::UpstreamError];

    /// The label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::ClientLeft => "client_left",
            Self::Complete => "complete",
            Self::Fault => "fault",
            Self::IdleTimeout => "idle_timeout",
            Self::Upgraded => "upgraded",
            Self::UpstreamError => "upstream_error",
        }
    }
}

/// Outcome labels of `tidegate_attempts_total`.
const OUTCOMES: [&str; 5] = ["accepted", "bounced", "failed", "ignored", "overloaded"];
/// Both ways bytes go.
const DIRECTIONS: [&str; 2] = ["request", "response"];
/// Labels of `tidegate_tokens_total`.
const TOKENS: [&str; 3] = ["cached", "input", "output"];
/// Labels of `tidegate_config_reloads_total`.
const RELOADS: [&str; 2] = ["accepted", "rejected"];
/// Labels of `tidegate_spans_dropped_total`.
const SPANS_DROPPED: [&str; 3] = ["export_failed", "late", "queue_full"];
/// Sides that hold connections.
const SIDES: [&str; 2] = ["downstream", "upstream"];

/// Money is counted in billionths of a dollar, so that sums stay exact.
const NANOS: f64 = 1e9;

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    exchanges: IntCounterVec,
    attempts: IntCounterVec,
    refusals: IntCounterVec,
    retries: IntCounterVec,
    faults: IntCounterVec,
    limit_changes: IntCounterVec,
    pauses: IntCounterVec,
    relayed_bytes: IntCounterVec,
    tokens: IntCounterVec,
    /// What is counted in [`NANOS`] and told in dollars.
    money: Registry,
    spend: IntCounterVec,
    unpriced: IntCounterVec,
    queue_wait: HistogramVec,
    first_byte: HistogramVec,
    exchange: HistogramVec,
    overhead: HistogramVec,
    reloads: IntCounterVec,
    last_reload_taken: IntGauge,
    /// Bytes of request bodies held for replay.
    pub buffered_bytes: IntGauge,
    /// Client connections.
    pub downstream_connections: IntGauge,
    /// Upstream connections.
    pub upstream_connections: IntGauge,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Panics
    ///
    /// If a name stands twice in this file.
    #[must_use]
    pub fn new() -> Self {
        let (registry, money) = (Registry::new(), Registry::new());
        let account = ["upstream", "account"];
        let with = |label| ["upstream", "account", label];
        let connections = gauge_vec(&registry, "tidegate_connections", "Open connections.", &["side"]);
        let [downstream, upstream] = SIDES.map(|side| connections.with_label_values(&[side]));
        gauge_vec(&registry, "tidegate_build_info", "1, with the version as label.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let buffered = IntGauge::new("tidegate_buffered_bytes", "Bytes of request bodies held for replay.")
            .expect("the name is a constant of this file");
        register(&registry, &buffered);
        let reloads = counter(
            &registry,
            "tidegate_config_reloads_total",
            "Reloads of the configuration, by result.",
            &["result"],
        );
        let last_reload_taken = IntGauge::new(
            "tidegate_config_last_reload_successful",
            "1 if the configuration is as it was last read, 0 if that was rejected.",
        )
        .expect("the name is a constant of this file");
        register(&registry, &last_reload_taken);
        last_reload_taken.set(1);
        // There from the start, so that the first one is seen as a change.
        for result in RELOADS {
            reloads.with_label_values(&[result]).inc_by(0);
        }
        Self {
            exchanges: counter(
                &registry,
                "tidegate_exchanges_total",
                "Exchanges (a client's request and its response), by how they ended.",
                &with("end"),
            ),
            attempts: counter(
                &registry,
                "tidegate_attempts_total",
                "Attempts at the upstream, by what they told about it.",
                &with("outcome"),
            ),
            refusals: counter(
                &registry,
                "tidegate_refusals_total",
                "Attempts the upstream refused, by what it refused them for.",
                &with("attribution"),
            ),
            retries: counter(
                &registry,
                "tidegate_retries_total",
                "Attempts made again, by what happened to the one before.",
                &with("reason"),
            ),
            faults: counter(
                &registry,
                "tidegate_faults_total",
                "Answers Tidegate gave itself, by kind.",
                &with("kind"),
            ),
            limit_changes: counter(
                &registry,
                "tidegate_limit_changes_total",
                "Moves of the adaptive limit, by reason.",
                &with("reason"),
            ),
            pauses: counter(&registry, "tidegate_pauses_total", "Pauses of an account, by reason.", &with("reason")),
            relayed_bytes: counter(
                &registry,
                "tidegate_relayed_bytes_total",
                "Body bytes passed on, by direction.",
                &with("direction"),
            ),
            tokens: counter(
                &registry,
                "tidegate_tokens_total",
                "Tokens used, by kind, as far as answers were read for it; input includes cached.",
                &with("kind"),
            ),
            spend: counter(
                &money,
                "tidegate_spend_usd_total",
                "Dollars spent, as answers say or as their tokens come to at the configured prices.",
                &account,
            ),
            unpriced: counter(
                &registry,
                "tidegate_unpriced_total",
                "Answers whose model none of the configured prices is for: they count as free.",
                &account,
            ),
            queue_wait: histogram(
                &registry,
                "tidegate_queue_wait_seconds",
                "Time an exchange waited for slots.",
                &account,
            ),
            first_byte: histogram(
                &registry,
                "tidegate_first_byte_seconds",
                "Time from sending an attempt to its response head.",
                &account,
            ),
            exchange: histogram(
                &registry,
                "tidegate_exchange_seconds",
                "Time from a request's head to the last byte of its response.",
                &account,
            ),
            overhead: histogram(
                &registry,
                "tidegate_overhead_seconds",
                "Tidegate's own share of the time to the response head: neither waiting nor the upstream.",
                &account,
            ),
            money,
            reloads,
            last_reload_taken,
            buffered_bytes: buffered,
            downstream_connections: downstream,
            upstream_connections: upstream,
            registry,
        }
    }

    /// The handles of one account, resolved once.
    #[must_use]
    pub fn account(&self, upstream: &str, account: &str) -> AccountMetrics {
        let with = |vec: &IntCounterVec, label: &str| vec.with_label_values(&[upstream, account, label]);
        let ids = [upstream, account];
        AccountMetrics {
            exchanges: End::ALL.map(|end| with(&self.exchanges, end.label())),
            attempts: OUTCOMES.map(|outcome| with(&self.attempts, outcome)),
            refusals: Attribution::ALL.map(|attribution| with(&self.refusals, attribution.label())),
            retries: Failure::LABELS.map(|reason| with(&self.retries, reason)),
            faults: FaultKind::ALL.map(|kind| with(&self.faults, kind.label())),
            limit_changes: ChangeReason::ALL.map(|reason| with(&self.limit_changes, reason.label())),
            pauses: PauseReason::ALL.map(|reason| with(&self.pauses, reason.label())),
            relayed_bytes: DIRECTIONS.map(|direction| with(&self.relayed_bytes, direction)),
            tokens: TOKENS.map(|kind| with(&self.tokens, kind)),
            spend: self.spend.with_label_values(&ids),
            unpriced: self.unpriced.with_label_values(&ids),
            queue_wait: self.queue_wait.with_label_values(&ids),
            first_byte: self.first_byte.with_label_values(&ids),
            exchange: self.exchange.with_label_values(&ids),
            overhead: self.overhead.with_label_values(&ids),
        }
    }

    /// A fault that belongs to no account (no route, a head that cannot be read).
    pub fn fault_without_account(&self, kind: FaultKind) {
        self.faults.with_label_values(&["", "", kind.label()]).inc();
    }

    /// Counts spans that were not sent. To be called once, and only where spans are sent at all.
    ///
    /// # Panics
    ///
    /// If it is called twice.
    #[must_use]
    pub fn spans_dropped(&self) -> SpansDropped {
        let counter = counter(
            &self.registry,
            "tidegate_spans_dropped_total",
            "Spans that were not sent to the collector, by reason; only with `otlp`.",
            &["reason"],
        );
        let [export_failed, late, queue_full] = SPANS_DROPPED.map(|reason| counter.with_label_values(&[reason]));
        SpansDropped { export_failed, late, queue_full }
    }

    /// A reload of the configuration ended.
    pub fn reloaded(&self, accepted: bool) {
        let [yes, no] = RELOADS;
        self.reloads.with_label_values(&[if accepted { yes } else { no }]).inc();
        self.last_reload_taken.set(i64::from(accepted));
    }

    /// The page for Prometheus: all counters, and the gauges as the gates say they are now.
    #[must_use]
    pub fn render<'a>(&self, gates: impl IntoIterator<Item = Seen<'a>>) -> String {
        let scrape = Registry::new();
        let gauge = |name, help, labels: &[&str]| gauge_f64(&scrape, name, help, labels);
        let ids = ["upstream", "account"];
        let in_flight = gauge("tidegate_in_flight", "Attempts in flight.", &ids);
        let limit = gauge("tidegate_limit", "Attempts the adaptive limit allows.", &ids);
        let ceiling = gauge("tidegate_ceiling", "Hard maximum of attempts, where one is known.", &ids);
        let queued = gauge("tidegate_queue_depth", "Exchanges waiting.", &ids);
        let paused = gauge("tidegate_paused_seconds", "Time left until a paused account reopens.", &ids);
        let pace = gauge(
            "tidegate_pace_per_second",
            "Requests per second that the tightest known rate allows, where one is known.",
            &ids,
        );
        let remaining = gauge(
            "tidegate_upstream_remaining",
            "What the upstream last said remains.",
            &["upstream", "account", "dimension"],
        );
        let balance = gauge("tidegate_balance_usd", "Dollars the upstream last said the account has left.", &ids);
        let mut told = HashSet::new();
        for Seen { upstream, account, view, remaining: left, balance_usd } in gates {
            // Several gates may share the label `other`: the numbers add up.
            let ids = [upstream, account];
            in_flight.with_label_values(&ids).add(f64::from(view.in_flight));
            limit.with_label_values(&ids).add(f64::from(view.limit));
            if let Some(value) = view.ceiling {
                ceiling.with_label_values(&ids).add(f64::from(value));
            }
            queued.with_label_values(&ids).add(view.queued as f64);
            let left_s = view.paused.map_or(0.0, |(left, _)| left.as_secs_f64());
            let series = paused.with_label_values(&ids);
            series.set(series.get().max(left_s));
            if let Some(value) = pace_of(&view) {
                pace.with_label_values(&ids).add(value);
            }
            if let Some(value) = balance_usd {
                // Those of one label may be parts of one account, which must not look richer than it is.
                let series = balance.with_label_values(&ids);
                let known = told.insert(ids.map(str::to_owned)).then_some(value);
                series.set(known.unwrap_or_else(|| value.min(series.get())));
            }
            for (dimension, value) in left.iter() {
                if let Some(value) = value {
                    remaining.with_label_values(&[upstream, account, dimension.label()]).set(value as f64);
                }
            }
        }
        let mut families: Vec<MetricFamily> = self.registry.gather();
        families.extend(self.money.gather().into_iter().map(in_dollars));
        families.extend(scrape.gather());
        families.sort_by(|a, b| a.name().cmp(b.name()));
        let mut page = Vec::new();
        TextEncoder::new().encode(&families, &mut page).expect("writing to memory does not fail");
        String::from_utf8_lossy(&page).into_owned()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// One gate as it is now.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The labels of its account.
    pub upstream: &'a str,
    /// The other one.
    pub account: &'a str,
    /// Its numbers.
    pub view: GateView,
    /// What the upstream last said remains.
    pub remaining: Remaining,
    /// And of the account's money.
    pub balance_usd: Option<f64>,
}

/// What was counted in [`NANOS`].
fn in_dollars(mut family: MetricFamily) -> MetricFamily {
    for metric in family.mut_metric() {
        let mut dollars = Counter::default();
        dollars.set_value(metric.get_counter().get_value() / NANOS);
        metric.set_counter(dollars);
    }
    family
}

/// Requests per second that the tightest known rate allows: configured, reported or measured.
#[must_use]
pub fn pace_of(view: &GateView) -> Option<f64> {
    let requests = view.rates.iter().filter(|rate| rate.dimension == Dimension::Requests);
    // A rate that is being found out is 0 at first.
    requests.map(|rate| rate.per_second).filter(|rate| *rate > 0.0).min_by(f64::total_cmp)
}

/// What the upstream last said remains, by dimension.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remaining([Option<u64>; Dimension::ALL.len()]);

impl Remaining {
    /// An answer reported these. What it does not mention stays.
    pub fn update(&mut self, budgets: &Budgets) {
        for (slot, dimension) in self.0.iter_mut().zip(Dimension::ALL) {
            *slot = budgets.remaining(dimension).or(*slot);
        }
    }

    /// All dimensions.
    pub fn iter(&self) -> impl Iterator<Item = (Dimension, Option<u64>)> {
        Dimension::ALL.into_iter().zip(self.0)
    }
}

/// The handles of `tidegate_spans_dropped_total`.
#[derive(Debug, Clone)]
pub struct SpansDropped {
    /// The collector did not take them.
    pub export_failed: IntCounter,
    /// They came after the last batch of a drain.
    pub late: IntCounter,
    /// They came faster than they went.
    pub queue_full: IntCounter,
}

/// The handles of one account.
#[derive(Debug, Clone)]
pub struct AccountMetrics {
    exchanges: [IntCounter; End::ALL.len()],
    attempts: [IntCounter; OUTCOMES.len()],
    refusals: [IntCounter; Attribution::ALL.len()],
    retries: [IntCounter; Failure::LABELS.len()],
    faults: [IntCounter; FaultKind::ALL.len()],
    limit_changes: [IntCounter; ChangeReason::ALL.len()],
    pauses: [IntCounter; PauseReason::ALL.len()],
    relayed_bytes: [IntCounter; DIRECTIONS.len()],
    tokens: [IntCounter; TOKENS.len()],
    spend: IntCounter,
    unpriced: IntCounter,
    /// Time an exchange waited for slots.
    pub queue_wait: Histogram,
    /// Time from sending an attempt to its response head.
    pub first_byte: Histogram,
    /// Time from a request's head to the last byte of its response.
    pub exchange: Histogram,
    /// Tidegate's own share.
    pub overhead: Histogram,
}

impl AccountMetrics {
    /// An exchange ended.
    pub fn exchange_ended(&self, end: End) {
        count(&self.exchanges, End::ALL.iter().position(|of| *of == end));
    }

    /// An attempt told something.
    pub fn attempt(&self, outcome: &str) {
        count(&self.attempts, OUTCOMES.iter().position(|of| *of == outcome));
    }

    /// The upstream refused an attempt.
    pub fn refused(&self, attribution: Attribution) {
        count(&self.refusals, Attribution::ALL.iter().position(|of| *of == attribution));
    }

    /// An attempt is made again.
    pub fn retried(&self, failure: Failure) {
        count(&self.retries, Failure::LABELS.iter().position(|of| *of == failure.label()));
    }

    /// Tidegate answered itself.
    pub fn fault(&self, kind: FaultKind) {
        count(&self.faults, FaultKind::ALL.iter().position(|of| *of == kind));
    }

    /// The limit moved.
    pub fn limit_changed(&self, reason: ChangeReason) {
        count(&self.limit_changes, ChangeReason::ALL.iter().position(|of| *of == reason));
    }

    /// The account is paused.
    pub fn paused(&self, reason: PauseReason) {
        count(&self.pauses, PauseReason::ALL.iter().position(|of| *of == reason));
    }

    /// Body bytes went up (request) and down (response).
    pub fn relayed(&self, request: u64, response: u64) {
        let [up, down] = &self.relayed_bytes;
        up.inc_by(request);
        down.inc_by(response);
    }

    /// An answer said what it used.
    pub fn used(&self, usage: &Usage) {
        let [cached, input, output] = &self.tokens;
        cached.inc_by(u64::from(usage.cached_tokens));
        input.inc_by(u64::from(usage.input_tokens));
        output.inc_by(u64::from(usage.output_tokens));
    }

    /// An answer cost so many billionths of a dollar; `None`: there should be a price for it, and is none.
    pub fn billed(&self, nanos: Option<u64>) {
        match nanos {
            Some(0) => {}
            Some(nanos) => self.spend.inc_by(nanos),
            None => self.unpriced.inc(),
        }
    }
}

fn count(counters: &[IntCounter], at: Option<usize>) {
    if let Some(counter) = at.and_then(|at| counters.get(at)) {
        counter.inc();
    }
}

fn register(registry: &Registry, collector: &(impl prometheus::core::Collector + Clone + 'static)) {
    registry.register(Box::new(collector.clone())).expect("every name stands once in this file");
}

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let vec = IntCounterVec::new(Opts::new(name, help), labels).expect("names and labels are constants of this file");
    register(registry, &vec);
    vec
}

fn histogram(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    let opts = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
    let vec = HistogramVec::new(opts, labels).expect("names and labels are constants of this file");
    register(registry, &vec);
    vec
}

fn gauge_vec(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::IntGaugeVec {
    let vec = prometheus::IntGaugeVec::new(Opts::new(name, help), labels).expect("names are constants of this file");
    register(registry, &vec);
    vec
}

fn gauge_f64(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::GaugeVec {
    let vec = prometheus::GaugeVec::new(Opts::new(name, help), labels).expect("names are constants of this file");
    register(registry, &vec);
    vec
}
