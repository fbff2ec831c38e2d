//! Reads a response head into [`Signals`].

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

pub use crate::control::signals::Signals;
use crate::provider::durations;
use counters::{Counter, Unit, Window};

pub(super) mod counters;
mod ietf;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod tests;

/// What a response head says about limits and delays. Never fails: what cannot be read was not said.
///
/// Server times are compared with the response's own `Date`; `local_now` stands in where there is none. Delays are at
/// most 24 hours. A header sent twice counts with its stricter readable value.
///
/// - `retry_after` is read from refusals (400 and up) only: on a 202 or a redirect it tells when to poll or follow.
/// - The remaining counters hold windows up to a minute, and those whose header does not name its window. Groq's unnamed
///   requests window is a day: only a preset can know that.
/// - `exhausted_for` is the longest reset of all counters at 0, whatever their window, as given. OpenAI and Anthropic
///   say when the bucket is *full* again, which is later than when the next request would pass; deriving the earlier
///   time from the limit is left to the next version.
/// - Anthropic's `fast` and `priority` pools are left out: they can be empty while ordinary requests pass.
#[must_use]
pub fn from_head(status: StatusCode, headers: &HeaderMap, local_now: SystemTime) -> Signals {
    let now = texts(headers, header::DATE.as_str()).find_map(durations::date).unwrap_or(local_now);
    let counters = counters::read(headers, now);
    let smallest = |unit: Unit| {
        counters
            .iter()
            .filter(|counter| counter.unit == unit && counter.window == Window::Short)
            .map(|counter| counter.remaining)
            .min()
    };
    Signals {
        retry_after: (status.as_u16() >= 400).then(|| retry_after(headers, now)).flatten(),
        should_retry: should_retry(headers),
        requests_remaining: smallest(Unit::Requests),
        tokens_remaining: smallest(Unit::Tokens),
        exhausted_for: counters
            .iter()
            // A place in flight comes back when a request ends, not at a time.
            .filter(|counter| counter.remaining == 0 && counter.unit != Unit::Concurrency)
            .filter_map(|counter: &Counter| counter.reset)
            .max(),
    }
}

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
