//! The last quarter of an hour, so that whoever opens the page late sees what was. Sampled from the gates and the
//! counters; nothing on a request's path knows of it. Bounded in accounts, points and events.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::events::{Events, Key, What};
use crate::{
    clock,
    control::{
        gate::{GateView, PauseReason},
        limit::ChangeReason,
        signals::Attribution,
    },
    fault::FaultKind,
    gate::Gate,
    metrics::{Totals, quantile},
};

/// Time between two looks at the gates.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks that make a point of the charts.
const LOOKS: u32 = 5;
/// Points kept: 15 minutes.
const POINTS_MAX: usize = 180;
/// Accounts with charts of their own; all count in the sum. As many as have a metric label of their own.
const SERIES_MAX: usize = 64;
/// Memory of the rate at which an account is served.
const SERVED_WINDOW: f64 = 10.0;

/// What the numbers of a point are, in their order.
const COLUMNS: [&str; 20] = [
    "in_flight",
    "limit",
    "ceiling",
    "queued",
    "paused",
    "answers",
    "faults",
    "refused_ceiling",
    "refused_rate",
    "refused_quota",
    "refused_overload",
    "refused_unknown",
    "wait_p50",
    "wait_p99",
    "first_byte_p50",
    "first_byte_p99",
    "input_tokens",
    "output_tokens",
    "spend_usd",
    "server_errors",
];

/// What was, per account and in all.
#[derive(Debug, Default)]
pub(super) struct History {
    accounts: BTreeMap<Key, Account>,
    all: Series,
    events: Events,
    looks: u32,
    /// Points made so far; the number of the next one.
    made: u64,
}

#[derive(Debug, Default)]
struct Account {
    /// As of the last look.
    seen: Totals,
    /// As of the last point.
    counted: Totals,
    limit: u32,
    quota_spent: bool,
    failure: Option<(&'static str, Instant)>,
    served: Served,
    /// `None`: there were too many before it.
    series: Option<Series>,
}

/// Whole answers per second: a count that fades with [`SERVED_WINDOW`].
#[derive(Debug, Default)]
struct Served {
    count: f64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Served {
    fn answered(&mut self, answers: u64, now: Instant) {
        // What the first look finds was answered within a look.
        self.first.get_or_insert(now.checked_sub(LOOK_EVERY).unwrap_or(now));
        self.count = self.faded(now) + answers as f64;
        self.last = Some(now);
    }

    fn faded(&self, now: Instant) -> f64 {
        let since = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.count * (-since.as_secs_f64() / SERVED_WINDOW).exp()
    }

    fn per_second(&self, now: Instant) -> f64 {
        // A fading count of a steady rate approaches rate × window, as far as its age has let it.
        let age = self.first.map_or(Duration::ZERO, |first| now.saturating_duration_since(first)).max(LOOK_EVERY);
        let share = 1.0 - (-age.as_secs_f64() / SERVED_WINDOW).exp();
        let rate = self.faded(now) / (SERVED_WINDOW * share);
        if rate < 0.01 { 0.0 } else { rate }
    }
}

#[derive(Debug)]
struct Series {
    points: VecDeque<Point>,
    /// The highest since the last point.
    now: Gauges,
}

impl Default for Series {
    /// Never grows.
    fn default() -> Self {
        Self { points: VecDeque::with_capacity(POINTS_MAX), now: Gauges::default() }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Gauges {
    in_flight: u32,
    limit: u32,
    /// 0: none is known.
    ceiling: u32,
    queued: u32,
    paused: bool,
}

/// Five seconds. Plain numbers, since there are many.
#[derive(Debug, Clone, Copy)]
struct Point {
    gauges: Gauges,
    answers: u32,
    faults: u32,
    refusals: [u32; Attribution::ALL.len()],
    /// Median and 99th percentile, in seconds; NaN: there was none.
    wait: [f32; 2],
    first_byte: [f32; 2],
    tokens: [u32; 2],
    spend_usd: f32,
    server_errors: u32,
}

impl History {
    /// Looks at all gates.
    pub(super) fn look(&mut self, gates: &[Arc<Gate>]) {
        let now = clock::now();
        // Gates beyond the labelled ones share theirs, and with it the counters: their gauges add up.
        let mut found: BTreeMap<Key, (GateView, Totals, u32)> = BTreeMap::new();
        for gate in gates {
            let view = gate.view();
            let key = (gate.upstream().into(), gate.account().into());
            found
                .entry(key)
                .and_modify(|(known, _, first)| {
                    add(known, &view);
                    *first = first.saturating_add(gate.limit_at_first());
                })
                .or_insert_with(|| (view, gate.metrics.totals(), gate.limit_at_first()));
        }
        let mut all = Gauges::default();
        for (key, (view, totals, first)) in found {
            let gauges = Gauges::of(&view);
            all.add(gauges);
            self.look_at(key, &view, gauges, (totals, first), now);
        }
        self.all.now.raise(all);
        self.looks += 1;
        if self.looks >= LOOKS {
            self.looks = 0;
            self.point();
        }
    }

    /// `first`: where the limit began. It may have moved before the first look.
    fn look_at(&mut self, key: Key, view: &GateView, gauges: Gauges, (totals, first): (Totals, u32), now: Instant) {
        let room = self.accounts.len() < SERIES_MAX;
        let account = self.accounts.entry(key.clone()).or_insert_with(|| Account {
            limit: first,
            series: room.then(Series::default),
            ..Account::default()
        });
        if let Some(series) = &mut account.series {
            series.now.raise(gauges);
        }
        let before = std::mem::replace(&mut account.seen, totals);
        let new = account.seen.since(&before);
        account.served.answered(new.answers(), now);
        if let Some(failure) = new.failure() {
            account.failure = Some((failure, now));
        }
        let from = std::mem::replace(&mut account.limit, view.limit);
        let mut events = Vec::new();
        if let Some((_, reason)) = most(&new.limit_changes, ChangeReason::ALL) {
            // It may have come back within a look.
            let moves = u32::try_from(new.limit_changes.iter().sum::<u64>()).unwrap_or(u32::MAX);
            events.push(What::Limit { from, to: view.limit, reason, moves });
        }
        if let Some((_, reason)) = most(&new.pauses, PauseReason::ALL) {
            events.push(What::Pause { reason, left: view.paused.map(|(left, _)| left) });
        }
        for (count, kind) in new.faults.into_iter().zip(FaultKind::ALL).filter(|(count, _)| *count > 0) {
            events.push(What::Fault { kind, count });
        }
        if std::mem::replace(&mut account.quota_spent, view.quotas_spent > 0) != account.quota_spent {
            events.push(What::Quota { spent: account.quota_spent });
        }
        let count = new.server_errors();
        if count > 0 {
            events.push(What::ServerErrors { count });
        }
        for what in events {
            self.events.happened(&key, what, now);
        }
    }

    fn point(&mut self) {
        let mut sum = Totals::default();
        for account in self.accounts.values_mut() {
            let new = account.seen.since(&account.counted);
            account.counted = account.seen;
            sum.add(&new);
            if let Some(series) = &mut account.series {
                series.push(&new);
            }
        }
        self.all.push(&sum);
        self.made += 1;
    }

    /// The upstream's last failure, as the account saw it.
    pub(super) fn failure(&self, upstream: &str, account: &str) -> Option<(&'static str, Instant)> {
        self.accounts.get(&(upstream.into(), account.into())).and_then(|account| account.failure)
    }

    /// Whole answers per second.
    pub(super) fn served(&self, upstream: &str, account: &str, now: Instant) -> f64 {
        let account = self.accounts.get(&(upstream.into(), account.into()));
        account.map_or(0.0, |account| account.served.per_second(now))
    }

    /// As JSON: the points of one account, or of all together, from the one with the number `since`, and all events.
    pub(super) fn page(&self, of: Option<(&str, &str)>, since: u64) -> Value {
        let series = match of {
            None => Some(&self.all),
            Some((upstream, account)) => {
                self.accounts.get(&(upstream.into(), account.into())).and_then(|account| account.series.as_ref())
            }
        };
        let points = series.map(|series| &series.points);
        let first = self.made - points.map_or(0, |points| points.len() as u64);
        let skip = usize::try_from(since.saturating_sub(first)).unwrap_or(usize::MAX);
        json!({
            "step_seconds": (LOOK_EVERY * LOOKS).as_secs(),
            "points_max": POINTS_MAX,
            "next": self.made,
            "columns": COLUMNS,
            "points": points.into_iter().flatten().skip(skip).map(Point::row).collect::<Vec<_>>(),
            "events": self.events.json(),
        })
    }
}

impl Gauges {
    fn of(view: &GateView) -> Self {
        Self {
            in_flight: view.in_flight,
            limit: view.limit,
            ceiling: view.ceiling.unwrap_or_default(),
            queued: u32::try_from(view.queued).unwrap_or(u32::MAX),
            paused: view.paused.is_some(),
        }
    }

    fn add(&mut self, other: Self) {
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.limit = self.limit.saturating_add(other.limit);
        self.ceiling = self.ceiling.saturating_add(other.ceiling);
        self.queued = self.queued.saturating_add(other.queued);
        self.paused |= other.paused;
    }

    /// Peaks are what a chart is read for; a limit is what it is now.
    fn raise(&mut self, other: Self) {
        *self = Self {
            in_flight: self.in_flight.max(other.in_flight),
            queued: self.queued.max(other.queued),
            paused: self.paused | other.paused,
            ..other
        };
    }
}

impl Series {
    fn push(&mut self, new: &Totals) {
        if self.points.len() >= POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(Point::new(self.now, new));
        self.now = Gauges { in_flight: 0, queued: 0, paused: false, ..self.now };
    }
}

impl Point {
    fn new(gauges: Gauges, new: &Totals) -> Self {
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let [_, input, output] = new.tokens;
        Self {
            gauges,
            answers: count(new.answers()),
            faults: count(new.faults.iter().sum()),
            refusals: new.refusals.map(count),
            wait: [0.5, 0.99].map(|share| quantile(&new.queue_wait, share) as f32),
            first_byte: [0.5, 0.99].map(|share| quantile(&new.first_byte, share) as f32),
            tokens: [count(input), count(output)],
            spend_usd: new.spend_usd() as f32,
            server_errors: count(new.server_errors()),
        }
    }

    /// In the order of [`COLUMNS`].
    fn row(&self) -> Value {
        let Gauges { in_flight, limit, ceiling, queued, paused } = self.gauges;
        let counts = [in_flight, limit, ceiling, queued, u32::from(paused), self.answers, self.faults];
        let times = self.wait.iter().chain(&self.first_byte);
        let times = times.map(|seconds| if seconds.is_nan() { Value::Null } else { json!(rounded(*seconds)) });
        let counts = counts.into_iter().chain(self.refusals).map(Value::from);
        // A millionth of a dollar is the least that a chart is read for.
        let spend_usd = (f64::from(self.spend_usd) * 1e6).round() / 1e6;
        let last = [json!(spend_usd), json!(self.server_errors)];
        counts.chain(times).chain(self.tokens.map(Value::from)).chain(last).collect()
    }
}

/// Tenths of a millisecond.
fn rounded(seconds: f32) -> f64 {
    (f64::from(seconds) * 1e4).round() / 1e4
}

/// Several gates with one label.
pub(super) fn add(known: &mut GateView, other: &GateView) {
    known.limit = known.limit.saturating_add(other.limit);
    known.in_flight = known.in_flight.saturating_add(other.in_flight);
    known.queued = known.queued.saturating_add(other.queued);
    known.ceiling = known.ceiling.zip(other.ceiling).map(|(a, b)| a.saturating_add(b));
    known.paused = known.paused.into_iter().chain(other.paused).max_by_key(|(left, _)| *left);
    known.quotas_spent = known.quotas_spent.saturating_add(other.quotas_spent);
}

/// What was counted most, if anything was.
fn most<const N: usize, T>(counts: &[u64; N], of: [T; N]) -> Option<(u64, T)> {
    counts.iter().copied().zip(of).filter(|(count, _)| *count > 0).max_by_key(|(count, _)| *count)
}

#[cfg(test)]
mod tests {
    use super::{super::events::EVENTS_MAX, *};

    fn view(in_flight: u32, limit: u32) -> GateView {
        GateView {
            limit,
            ceiling: Some(20),
            in_flight,
            queued: 3,
            paused: None,
            drain_per_second: 0.0,
            delay_limit: None,
            overload_limit: None,
            rates: Vec::new(),
            unknown_means: Attribution::Unknown,
            quotas_spent: 0,
        }
    }

    fn look(history: &mut History, account: &str, view: &GateView, totals: Totals) {
        let gauges = Gauges::of(view);
        history.all.now.raise(gauges);
        history.look_at(("u".into(), account.into()), view, gauges, (totals, 10), clock::now());
    }

    fn numbers(page: &Value, column: &str) -> Vec<f64> {
        let at = COLUMNS.iter().position(|known| *known == column).unwrap();
        page["points"].as_array().unwrap().iter().map(|point| point[at].as_f64().unwrap_or(f64::NAN)).collect()
    }

    #[test]
    fn a_point_holds_peaks_and_what_was_counted_since_the_last_one() {
        let mut history = History::default();
        let mut totals = Totals::default();
        for (in_flight, answers, answered_in) in [(7, 10, 12), (2, 5, 12), (1, 0, 12)] {
            totals.exchanges[1] += answers;
            totals.queue_wait[answered_in] += answers;
            totals.tokens = [0, totals.tokens[1] + 100, totals.tokens[2] + 10];
            totals.spend_nanos += 500_000_000;
            look(&mut history, "a", &view(in_flight, 10), totals);
        }
        history.point();
        look(&mut history, "a", &view(1, 10), totals);
        history.point();
        let page = history.page(Some(("u", "a")), 0);
        assert_eq!(numbers(&page, "in_flight"), [7.0, 1.0]);
        assert_eq!(numbers(&page, "answers"), [15.0, 0.0]);
        assert_eq!(numbers(&page, "input_tokens"), [300.0, 0.0]);
        assert_eq!(numbers(&page, "spend_usd"), [1.5, 0.0]);
        assert!((numbers(&page, "wait_p50")[0] - 0.375).abs() < 1e-9 && numbers(&page, "wait_p50")[1].is_nan());
        assert_eq!(numbers(&history.page(None, 0), "answers"), [15.0, 0.0], "the sum has them too");
        assert_eq!(numbers(&history.page(Some(("u", "a")), 1), "in_flight"), [1.0], "only what is new");
        assert_eq!((&page["next"], history.page(None, 2)["points"].as_array().unwrap().len()), (&json!(2), 0));
        assert_eq!(history.page(Some(("u", "nobody")), 0)["points"], json!([]));
        assert_eq!(history.page(None, u64::MAX)["points"], json!([]));
    }

    #[test]
    fn events_that_follow_each_other_are_one() {
        let mut history = History::default();
        let mut totals = Totals::default();
        look(&mut history, "a", &view(0, 10), totals);
        for limit in [12, 14, 13] {
            totals.limit_changes[1] += 1;
            look(&mut history, "a", &view(0, limit), totals);
        }
        // There and back between two looks.
        look(&mut history, "b", &view(0, 10), Totals::default());
        look(&mut history, "b", &view(0, 10), Totals { limit_changes: [0, 1, 0, 1, 0], ..Totals::default() });
        for _ in 0..3 {
            totals.faults[12] += 2;
            look(&mut history, "a", &view(0, 13), totals);
        }
        totals.pauses[2] += 1;
        let mut paused = view(0, 13);
        paused.paused = Some((Duration::from_millis(19_500), PauseReason::RetryAfter));
        look(&mut history, "a", &paused, totals);
        let page = history.page(None, 0);
        let says: Vec<&str> =
            page["events"].as_array().unwrap().iter().map(|event| event["says"].as_str().unwrap()).collect();
        assert_eq!(
            says,
            [
                "paused for 20 s (retry_after)",
                "6 answered by Tidegate itself: queue_full",
                "limit moved, back at 10 (moves: 2)",
                "limit from 10 to 13, step by step"
            ]
        );
    }

    #[test]
    fn what_moved_before_the_first_look_is_told_from_where_it_began() {
        let mut history = History::default();
        look(&mut history, "a", &view(0, 1), Totals { limit_changes: [0, 0, 0, 6, 0], ..Totals::default() });
        look(&mut history, "b", &view(0, 18), Totals { limit_changes: [0, 1, 0, 0, 0], ..Totals::default() });
        let page = history.page(None, 0);
        let says = [&page["events"][0]["says"], &page["events"][1]["says"]];
        assert_eq!(says, ["limit from 10 to 18 (growth)", "limit from 10 to 1, step by step"]);
    }

    #[test]
    fn what_is_served_is_what_was_answered() {
        let (mut served, start) = (Served::default(), clock::now());
        assert!(served.per_second(start).abs() < f64::EPSILON);
        for second in 0..30 {
            served.answered(if second < 20 { 50 } else { 0 }, start + Duration::from_secs(second));
            let rate = served.per_second(start + Duration::from_secs(second));
            assert!(second >= 20 || (50.0..60.0).contains(&rate), "{rate} after {second} s");
        }
        assert!((10.0..25.0).contains(&served.per_second(start + Duration::from_secs(30))));
        assert!(served.per_second(start + Duration::from_secs(300)).abs() < f64::EPSILON);
        // A whole look of nothing but faults.
        let mut history = History::default();
        look(&mut history, "a", &view(3, 10), Totals { faults: [100; FaultKind::ALL.len()], ..Totals::default() });
        assert!(history.served("u", "a", clock::now()).abs() < f64::EPSILON);
    }

    #[test]
    fn server_errors_and_quotas_leave_a_trace() {
        let mut history = History::default();
        let mut totals = Totals::default();
        let failed = |count| {
            let account = crate::metrics::Metrics::new().account("u", "a");
            (0..count).for_each(|_| account.attempt("failed"));
            account.totals()
        };
        for _ in 0..2 {
            totals.add(&failed(3));
            look(&mut history, "a", &view(0, 10), totals);
        }
        let mut spent = view(0, 10);
        spent.quotas_spent = 1;
        for view in [&spent, &spent, &view(0, 10)] {
            look(&mut history, "a", view, totals);
        }
        history.point();
        let page = history.page(None, 0);
        assert_eq!(numbers(&page, "server_errors"), [6.0]);
        let events = page["events"].as_array().unwrap().iter();
        let events: Vec<_> =
            events.map(|event| (event["kind"].as_str().unwrap(), event["says"].as_str().unwrap())).collect();
        assert_eq!(
            events,
            [
                ("quota", "a quota that was spent is back"),
                ("quota", "the upstream says that a quota is spent"),
                ("server_error", "6 answered by the upstream with a server error"),
            ]
        );
    }

    #[test]
    fn nothing_grows_without_bound() {
        let mut history = History::default();
        let mut totals = Totals::default();
        for round in 0..POINTS_MAX as u64 + 20 {
            totals.faults[usize::try_from(round).unwrap() % FaultKind::ALL.len()] += 1;
            for account in 0..SERIES_MAX + 6 {
                look(&mut history, &account.to_string(), &view(1, 10), totals);
            }
            history.point();
        }
        let series: Vec<&Series> = history.accounts.values().filter_map(|account| account.series.as_ref()).collect();
        assert_eq!(series.len(), SERIES_MAX);
        assert!(series.iter().all(|series| series.points.len() == POINTS_MAX));
        assert_eq!(history.page(None, 0)["events"].as_array().unwrap().len(), EVENTS_MAX);
        let points: usize =
            series.iter().map(|series| series.points.capacity()).sum::<usize>() + history.all.points.capacity();
        let bytes = points * size_of::<Point>()
            + history.accounts.len() * (size_of::<Account>() + 3 * 64)
            + history.events.bytes();
        assert!(bytes < 2 << 20, "{bytes} bytes for {SERIES_MAX} accounts");
        println!("{bytes} bytes for {SERIES_MAX} accounts");
    }
}
