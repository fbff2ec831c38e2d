//! What holds an account back right now, in one plain sentence. Pure: numbers in, words out.

use std::time::Duration;

use crate::control::{
    gate::{GateView, PauseReason},
    rates::{RateSource, RateView},
    signals::{Attribution, Dimension},
};

/// Trouble and refusals that are older than this hold nothing back any more, unless the numbers say so.
const FRESH: Duration = Duration::from_secs(15);

/// What the sentence is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// The gate's numbers.
    pub(super) view: &'a GateView,
    /// The last refusal: what it was for, its status, and how long ago.
    pub(super) refusal: Option<(Attribution, u16, Duration)>,
    /// The upstream's last failure, as the retries and the faults tell it, and how long ago.
    pub(super) failure: Option<(&'static str, Duration)>,
    /// No new work is taken.
    pub(super) draining: bool,
}

/// The sentence, and a word for what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Story {
    /// One of `idle`, `flowing`, `ceiling`, `limit`, `rate`, `paused`, `quota`, `upstream`, `draining`.
    pub(super) state: &'static str,
    /// For people.
    pub(super) says: String,
}

/// What holds it back, the strongest reason first.
pub(super) fn tell(facts: &Facts<'_>) -> Story {
    let view = facts.view;
    let story = |state, says: String| Story { state, says };
    if facts.draining {
        return story("draining", format!("shutting down: {} in flight, {} waiting", view.in_flight, view.queued));
    }
    if let Some((left, reason)) = view.paused {
        return story("paused", paused(view, left, reason));
    }
    if view.quotas_spent > 0 {
        let what = "the upstream says that a quota is spent; now and then a request asks whether it is back";
        return story("quota", format!("{what}{}", waiting(view)));
    }
    if let Some((failure, ago)) = facts.failure.filter(|(_, ago)| *ago < FRESH) {
        return story("upstream", format!("{failure} ({}){}", ago_text(ago), waiting(view)));
    }
    if let Some((Attribution::Overload, status, ago)) = facts.refusal.filter(|(_, _, ago)| *ago < FRESH) {
        let what = format!("the upstream is overloaded ({status}, {}) and is tried again more slowly", ago_text(ago));
        return story("upstream", format!("{what}{}", waiting(view)));
    }
    let allowed = view.ceiling.map_or(view.limit, |ceiling| ceiling.min(view.limit));
    if view.queued == 0 {
        return match view.in_flight {
            0 => story("idle", "idle: nothing in flight, nobody waiting".to_owned()),
            in_flight => story("flowing", format!("nothing: {in_flight} in flight, {allowed} allowed")),
        };
    }
    if view.in_flight < allowed {
        return story("rate", pace(view));
    }
    if view.ceiling.is_some_and(|ceiling| view.limit >= ceiling) {
        return story("ceiling", format!("the ceiling: {} of {allowed} in flight{}", view.in_flight, waiting(view)));
    }
    let is_least = |limit: Option<u32>| limit.is_some_and(|limit| limit <= allowed);
    let why = if is_least(view.overload_limit) {
        "coming back from the upstream's trouble"
    } else if is_least(view.delay_limit) {
        "the upstream has become slow"
    } else {
        "the limit that was found"
    };
    story("limit", format!("{why}: {} of {allowed} in flight{}", view.in_flight, waiting(view)))
}

/// Which accounts are shown first: those in trouble, then those that are held back. Coarse, so that rows do not change
/// places all the time.
pub(super) fn urgency(state: &str) -> u8 {
    match state {
        "upstream" | "quota" | "paused" => 0,
        "rate" | "ceiling" | "limit" => 1,
        _ => 2,
    }
}

/// How all accounts together are, by the state of the one that is worst off.
pub(super) fn overall(ready: bool, states: &[&'static str]) -> Story {
    if !ready {
        return Story {
            state: "draining",
            says: "Shutting down: what runs is finished, nothing new is taken".to_owned(),
        };
    }
    let worst = WORST_FIRST.into_iter().find(|(state, _)| states.contains(state));
    let (state, says) = worst.unwrap_or(("idle", "Healthy: idle"));
    Story { state, says: says.to_owned() }
}

/// Where a state stands among all, the worst first.
pub(super) fn rank(state: &str) -> usize {
    WORST_FIRST.iter().position(|(known, _)| *known == state).unwrap_or(WORST_FIRST.len())
}

const WORST_FIRST: [(&str, &str); 7] = [
    ("upstream", "An upstream is in trouble"),
    ("quota", "A quota is spent"),
    ("paused", "Paused by an upstream"),
    ("rate", "Working as fast as the rate limits allow"),
    ("ceiling", "Working at the ceiling"),
    ("limit", "Working at the limit that was found"),
    ("flowing", "Healthy: nothing holds it back"),
];

fn paused(view: &GateView, left: Duration, reason: PauseReason) -> String {
    let left = time_text(left);
    let what = match reason {
        PauseReason::Exhausted => match tightest(view) {
            Some(rate) => format!("waiting for {} {}, {left} left", whose(rate), budget(rate.dimension)),
            None => format!("waiting for the upstream's budget, {left} left"),
        },
        PauseReason::Refused => format!("refused although nothing was in flight; asking again in {left}"),
        PauseReason::RetryAfter => format!("the upstream asked to wait, {left} left"),
    };
    // How fast it goes on then is not known now.
    if view.queued == 0 { what } else { format!("{what}; {} waiting", view.queued) }
}

fn pace(view: &GateView) -> String {
    let Some(rate) = tightest(view) else {
        return format!("the next slot is being handed over{}", waiting(view));
    };
    let (whose, budget, per_minute) = (whose(rate), budget(rate.dimension), number(rate.per_second * 60.0));
    let served = if rate.dimension == Dimension::Requests { rate.per_second } else { view.drain_per_second };
    format!("waiting for {whose} {budget} of {per_minute} a minute{}", queue(view.queued, served))
}

fn whose(rate: &RateView) -> &'static str {
    match rate.source {
        RateSource::Configured => "the configured",
        RateSource::Measured => "the measured",
        RateSource::Reported => "the upstream's",
    }
}

/// The budget of which the least is left, as a share; else the slowest measured rate.
fn tightest(view: &GateView) -> Option<&RateView> {
    let share = |rate: &RateView| match (rate.left, rate.limit) {
        (Some(left), Some(limit)) if limit > 0.0 => left / limit,
        // A rate that is measured is measured because it was met.
        _ => 0.5,
    };
    let known = view.rates.iter().filter(|rate| rate.per_second > 0.0 || rate.left.is_some());
    known.min_by(|a, b| share(a).total_cmp(&share(b)))
}

fn budget(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::Requests => "request budget",
        Dimension::InputTokens => "input token budget",
        Dimension::OutputTokens => "output token budget",
        Dimension::Tokens => "token budget",
    }
}

/// Who waits, and how long a newcomer would.
fn waiting(view: &GateView) -> String {
    queue(view.queued, view.drain_per_second)
}

/// `per_second`: how many of them have their turn.
fn queue(queued: usize, per_second: f64) -> String {
    if queued == 0 {
        return String::new();
    }
    let wait = queued as f64 / per_second;
    if per_second > 0.0 && (1.0..=3600.0).contains(&wait) {
        return format!("; {queued} waiting, about {} for a newcomer", time_text(Duration::from_secs_f64(wait)));
    }
    format!("; {queued} waiting")
}

fn ago_text(ago: Duration) -> String {
    if ago.as_secs() == 0 { "just now".to_owned() } else { format!("{} ago", time_text(ago)) }
}

/// Whole seconds, minutes from two on; never 0.
fn time_text(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil().max(1.0);
    if seconds < 120.0 {
        return format!("{seconds} s");
    }
    if seconds < 7200.0 {
        return format!("{} min", (seconds / 60.0).round());
    }
    format!("{} h", (seconds / 3600.0).round())
}

/// 1,200,000 and not 1200000; 0.5 and not 0.
fn number(number: f64) -> String {
    if number < 10.0 {
        return format!("{number:.1}");
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(change: impl FnOnce(&mut GateView)) -> GateView {
        let mut view = GateView {
            limit: 50,
            ceiling: Some(50),
            in_flight: 0,
            queued: 0,
            paused: None,
            drain_per_second: 0.0,
            delay_limit: None,
            overload_limit: None,
            rates: Vec::new(),
            unknown_means: Attribution::Unknown,
            quotas_spent: 0,
        };
        change(&mut view);
        view
    }

    fn rate(dimension: Dimension, source: RateSource, per_second: f64, left: Option<(f64, f64)>) -> RateView {
        let (left, limit) = left.unzip();
        RateView { dimension, source, per_second, left, limit }
    }

    #[test]
    fn one_sentence_for_every_state() {
        let seconds = Duration::from_secs;
        let reported = || {
            vec![
                rate(Dimension::Tokens, RateSource::Reported, 1000.0, Some((30_000.0, 60_000.0))),
                rate(Dimension::Requests, RateSource::Reported, 8.0, Some((0.0, 500.0))),
            ]
        };
        for (view, state, says) in [
            (view(|_| ()), "idle", "idle: nothing in flight, nobody waiting"),
            (view(|view| view.in_flight = 3), "flowing", "nothing: 3 in flight, 50 allowed"),
            (
                view(|view| (view.in_flight, view.queued, view.drain_per_second) = (50, 120, 15.0)),
                "ceiling",
                "the ceiling: 50 of 50 in flight; 120 waiting, about 8 s for a newcomer",
            ),
            (
                view(|view| (view.in_flight, view.queued, view.limit) = (22, 40, 22)),
                "limit",
                "the limit that was found: 22 of 22 in flight; 40 waiting",
            ),
            (
                view(|view| (view.in_flight, view.queued, view.limit, view.delay_limit) = (12, 9, 12, Some(12))),
                "limit",
                "the upstream has become slow: 12 of 12 in flight; 9 waiting",
            ),
            (
                view(|view| (view.in_flight, view.queued, view.limit, view.overload_limit) = (3, 9, 3, Some(3))),
                "limit",
                "coming back from the upstream's trouble: 3 of 3 in flight; 9 waiting",
            ),
            (
                view(|view| {
                    (view.in_flight, view.queued) = (2, 7);
                    view.rates = reported();
                }),
                "rate",
                "waiting for the upstream's request budget of 480 a minute; 7 waiting",
            ),
            (
                view(|view| {
                    (view.in_flight, view.queued) = (2, 7);
                    view.rates = vec![rate(Dimension::Tokens, RateSource::Configured, 20_000.0, Some((5.0, 9.0)))];
                }),
                "rate",
                "waiting for the configured token budget of 1,200,000 a minute; 7 waiting",
            ),
            (
                view(|view| {
                    view.queued = 1;
                    view.rates = vec![rate(Dimension::Requests, RateSource::Measured, 0.0125, None)];
                }),
                "rate",
                "waiting for the measured request budget of 0.8 a minute; 1 waiting, about 80 s for a newcomer",
            ),
            (view(|view| view.queued = 1), "rate", "the next slot is being handed over; 1 waiting"),
            (
                view(|view| {
                    (view.paused, view.queued) = (Some((Duration::from_millis(11_200), PauseReason::Exhausted)), 3);
                    view.drain_per_second = 1.0;
                    view.rates = reported();
                }),
                "paused",
                "waiting for the upstream's request budget, 12 s left; 3 waiting",
            ),
            (
                view(|view| view.paused = Some((seconds(180), PauseReason::Exhausted))),
                "paused",
                "waiting for the upstream's budget, 3 min left",
            ),
            (
                view(|view| view.paused = Some((seconds(20), PauseReason::RetryAfter))),
                "paused",
                "the upstream asked to wait, 20 s left",
            ),
            (
                view(|view| view.paused = Some((seconds(1), PauseReason::Refused))),
                "paused",
                "refused although nothing was in flight; asking again in 1 s",
            ),
            (
                view(|view| view.quotas_spent = 1),
                "quota",
                "the upstream says that a quota is spent; now and then a request asks whether it is back",
            ),
        ] {
            let story = tell(&Facts { view: &view, refusal: None, failure: None, draining: false });
            assert_eq!((story.state, story.says.as_str()), (state, says));
        }
    }

    #[test]
    fn all_together_are_as_the_worst_is() {
        for (ready, states, want) in [
            (true, &[][..], "idle"),
            (true, &["idle", "flowing", "idle"], "flowing"),
            (true, &["flowing", "ceiling"], "ceiling"),
            (true, &["rate", "paused", "limit"], "paused"),
            (true, &["paused", "upstream"], "upstream"),
            (false, &["flowing"], "draining"),
        ] {
            assert_eq!(overall(ready, states).state, want, "{states:?}");
        }
        let mut states = ["idle", "limit", "flowing", "paused", "draining", "quota", "rate", "upstream", "ceiling"];
        states.sort_by_key(|state| (urgency(state), rank(state)));
        let by_rank = states.map(rank);
        assert!(by_rank.is_sorted(), "both orders agree: {states:?}");
    }

    #[test]
    fn trouble_upstream_is_told_while_it_is_fresh() {
        let (view, seconds) = (view(|view| (view.in_flight, view.queued) = (50, 4)), Duration::from_secs);
        for (refusal, failure, draining, want) in [
            (
                Some((Attribution::Overload, 529, seconds(3))),
                None,
                false,
                "the upstream is overloaded (529, 3 s ago) and is tried again more slowly; 4 waiting",
            ),
            (
                Some((Attribution::Overload, 529, seconds(30))),
                None,
                false,
                "the ceiling: 50 of 50 in flight; 4 waiting",
            ),
            (Some((Attribution::Ceiling, 429, seconds(0))), None, false, "the ceiling: 50 of 50 in flight; 4 waiting"),
            (
                None,
                Some(("the upstream cannot be reached", seconds(0))),
                false,
                "the upstream cannot be reached (just now); 4 waiting",
            ),
            (
                None,
                Some(("the upstream cannot be reached", seconds(60))),
                false,
                "the ceiling: 50 of 50 in flight; 4 waiting",
            ),
            (None, None, true, "shutting down: 50 in flight, 4 waiting"),
        ] {
            assert_eq!(tell(&Facts { view: &view, refusal, failure, draining }).says, want);
        }
    }
}
