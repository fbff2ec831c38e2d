//! Reads a response head into [`Signals`].

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

pub use crate::control::signals::Signals;
use crate::{
    control::signals::{Budget, Budgets, Dimension, Refill},
    provider::{durations, presets::Preset},
};

mod counters;
mod ietf;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod tests;
mod unified;

/// What a response head says about limits and delays. Never fails: what cannot be read was not said.
///
/// Server times are compared with the response's own `Date`; `local_now` stands in where there is none. Delays and
/// resets are at most 24 hours. A header sent twice counts with its stricter readable value.
///
/// - `retry_after` is read from refusals (400 and up) only: on a 202 or a redirect it tells when to poll or follow.
/// - A budget's window is the one its name or policy says; else the one `preset` is known for.
/// - Resets are given as sent. OpenAI and Anthropic say when the bucket is *full* again, which is later than when the
///   next request would pass; `refill` tells these from windows that turn.
/// - Anthropic's `fast` and `priority` pools are left out: they can be empty while ordinary requests pass.
#[must_use]
pub fn from_head(
    preset: Preset,
    status: StatusCode,
    headers: &HeaderMap,
    local_now: impl FnOnce() -> SystemTime,
) -> Signals {
    // Most answers say nothing of all this, and each header looked for by name costs as much as this look at all.
    if !headers.keys().any(|name| may_tell(name.as_str())) {
        return Signals::default();
    }
    let now = texts(headers, header::DATE.as_str()).find_map(durations::date).unwrap_or_else(local_now);
    let is_refusal = status.as_u16() >= 400;
    let mut found = Vec::new();
    counters::read(preset, headers, now, &mut found);
    ietf::read(headers, now, &mut found);
    found.extend(is_refusal.then(|| unified::read(headers, now)).flatten());
    if found.len() > Budgets::MAX {
        // Some are dropped: those that are exhausted explain more than the others.
        found.sort_by_key(|budget| budget.remaining != 0);
    }
    let mut budgets = Budgets::default();
    found.into_iter().for_each(|budget| budgets.add(budget));
    Signals {
        retry_after: is_refusal.then(|| retry_after(headers, now)).flatten(),
        should_retry: should_retry(headers),
        budgets,
        refused: None,
    }
}

/// Whether a header of this name may be read by [`from_head`].
#[must_use]
pub fn may_tell(name: &str) -> bool {
    // Hardly any begins so.
    matches!(name.as_bytes().first(), Some(b'a' | b'r' | b'x'))
        && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// How the names begin of all headers that are read.
const BEGINNINGS: [&str; 9] = [
    "anthropic-ratelimit-",
    "ratelimit",
    "retry-after",
    "x-amz-retry-after",
    "x-ms-retry-after",
    "x-rate",
    "x-should-retry",
    "x-tokenlimit-",
    "x-trial-endpoint-",
];

/// The headers that carry a delay, most trusted first, with the unit of a bare number.
const RETRY_AFTER: [(&str, Duration); 5] = [
    ("retry-after-ms", Duration::from_millis(1)),
    ("x-ms-retry-after-ms", Duration::from_millis(1)),
    ("retry-after", Duration::from_secs(1)),
    ("x-amz-retry-after", Duration::from_millis(1)),
    ("x-ratelimit-retry-after", Duration::from_secs(1)),
];

fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    RETRY_AFTER.into_iter().find_map(|(name, unit)| {
        texts(headers, name)
            .filter_map(|text| durations::count_of(unit, text).or_else(|| durations::until_date(text, now)))
            .max()
    })
}

/// Exactly `true` or `false`, as the SDKs read it; of several, `false` wins.
fn should_retry(headers: &HeaderMap) -> Option<bool> {
    texts(headers, "x-should-retry")
        .filter_map(|text| match text {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        })
        .min()
}

/// The values of a header that are visible ASCII.
fn texts<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}
