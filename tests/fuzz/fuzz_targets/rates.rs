//! What heads say about limits: nothing beyond its cap, the same from every preset but for windows, and no sway for
//! the order in which a header's lines stand.
//!
//! Input: a status, then header lines.

#![no_main]

use std::{collections::BTreeSet, time::Duration};

use http::{HeaderMap, StatusCode};
use libfuzzer_sys::fuzz_target;
use tidegate::provider::{door::DELAY_MAX, presets::Preset, signals};
use tidegate_fuzz::{head, headers, now};

const WINDOW_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

fuzz_target!(|data: &[u8]| {
    let (lines, _) = head(data);
    let Some((first, rest)) = lines.split_first() else { return };
    let Ok(status) = StatusCode::from_bytes(first) else { return };
    let headers = headers(rest);
    let plain = signals::from_head(Preset::Generic, status, &headers, now);

    assert!(plain.retry_after.is_none_or(|delay| delay <= DELAY_MAX), "{plain:?}");
    assert!(plain.retry_after.is_none() || status.as_u16() >= 400, "a delay from a {status}");
    assert!(plain.refused.is_none());
    let verdicts = || headers.get_all("x-should-retry").iter().map(|verdict| verdict.as_bytes());
    let verdict = if verdicts().any(|verdict| verdict == b"false") {
        Some(false)
    } else {
        verdicts().any(|verdict| verdict == b"true").then_some(true)
    };
    assert_eq!(plain.should_retry, verdict);
    let mut ids = BTreeSet::new();
    for budget in plain.budgets.iter() {
        assert!(ids.insert(budget.id), "two budgets are one: {plain:?}");
        assert!(budget.limit != Some(0), "{budget:?}");
        assert!(budget.reset.is_none_or(|reset| reset <= DELAY_MAX), "{budget:?}");
        let believable = |window: Duration| !window.is_zero() && window <= WINDOW_MAX;
        assert!(budget.window.is_none_or(believable), "{budget:?}");
    }

    // Which one is tried follows from the input; all of them each time would take most of the time.
    let preset = Preset::ALL[data.len() % Preset::ALL.len()];
    let known = signals::from_head(preset, status, &headers, now);
    assert_eq!((known.retry_after, known.should_retry), (plain.retry_after, plain.should_retry));
    assert_eq!(known.budgets.iter().count(), plain.budgets.iter().count());
    for (mut budget, bare) in known.budgets.iter().copied().zip(plain.budgets.iter()) {
        if bare.window.is_none() && budget.window == preset.window(budget.dimension) {
            budget.window = None;
        }
        assert_eq!(budget, *bare, "{preset:?}");
    }
    order(status, &headers);
});

/// Lines of one header in another order mean the same, where their order is not what a standard decides by.
fn order(status: StatusCode, headers: &HeaderMap) {
    if headers.get_all("date").iter().count() > 1 {
        return;
    }
    let mut turned = HeaderMap::new();
    for name in headers.keys() {
        let mut values: Vec<_> = headers.get_all(name).iter().collect();
        values.reverse();
        for value in values {
            turned.append(name, value.clone());
        }
    }
    let (one, other) = (
        signals::from_head(Preset::Generic, status, headers, now),
        signals::from_head(Preset::Generic, status, &turned, now),
    );
    assert_eq!((one.retry_after, one.should_retry), (other.retry_after, other.should_retry));
    if headers.keys().any(|name| name.as_str().starts_with("ratelimit")) {
        return;
    }
    assert_eq!(one.budgets.iter().count(), other.budgets.iter().count());
    for (one, other) in one.budgets.iter().zip(other.budgets.iter()) {
        let what = |budget: &tidegate::control::signals::Budget| {
            (budget.id, budget.dimension, budget.limit, budget.remaining, budget.reset, budget.window)
        };
        assert_eq!(what(one), what(other));
    }
}
