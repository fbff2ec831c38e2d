//! Remaining counters, by the structure of their header names.
//!
//! `x-ratelimit-remaining-tokens-minute` is a family, a role, a unit and a window; limit and reset of the same counter
//! differ only in the role. Reading the name word by word covers the providers' orders and combinations, and leaves a
//! counter alone whose name has a word that is not known here.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::{ietf, texts};
use crate::provider::durations;

/// One counter that an upstream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::provider) struct Counter {
    pub(in crate::provider) unit: Unit,
    pub(in crate::provider) window: Window,
    pub(in crate::provider) remaining: u64,
    /// Time until it is restored. Only looked up for a counter at 0.
    pub(in crate::provider) reset: Option<Duration>,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::provider) enum Unit {
    /// Requests in flight.
    Concurrency,
    /// Anything else, such as bytes.
    Other,
    Requests,
    Tokens,
}

/// Over which time it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::provider) enum Window {
    /// More than a minute, less than a month.
    Long,
    Month,
    /// Up to a minute, or not said.
    Short,
}

impl Window {
    pub(super) fn of_seconds(seconds: u64) -> Self {
        match seconds {
            0..=60 => Self::Short,
            61..MONTH_SECONDS => Self::Long,
            MONTH_SECONDS.. => Self::Month,
        }
    }
}

const MONTH_SECONDS: u64 = 28 * 24 * 60 * 60;

/// All counters in `headers`. Negative counters, and those whose limit is not positive, are unknown and left out.
pub(in crate::provider) fn read(headers: &HeaderMap, now: SystemTime) -> Vec<Counter> {
    let mut counters: Vec<Counter> = headers.keys().filter_map(|name| named(headers, name.as_str(), now)).collect();
    ietf::read(headers, now, &mut counters);
    counters
}

/// Whether a monthly counter stands at 0.
pub(in crate::provider) fn is_month_exhausted(headers: &HeaderMap) -> bool {
    read(headers, SystemTime::UNIX_EPOCH)
        .iter()
        .any(|counter| counter.window == Window::Month && counter.remaining == 0)
}

fn named(headers: &HeaderMap, name: &str, now: SystemTime) -> Option<Counter> {
    let (unit, window) = dimension(name)?;
    let remaining = remaining(headers, name)?;
    if is_limit_unknown(headers, &name.replacen(REMAINING, "limit", 1)) {
        return None;
    }
    let reset = (remaining == 0).then(|| reset(headers, &name.replacen(REMAINING, "reset", 1), now)).flatten();
    Some(Counter { unit, window, remaining, reset })
}

/// The smallest count that is not negative.
pub(super) fn remaining(headers: &HeaderMap, name: &str) -> Option<u64> {
    texts(headers, name).filter_map(count).filter_map(|count| u64::try_from(count).ok()).min()
}

/// Whether a limit was sent, and none that is positive.
pub(super) fn is_limit_unknown(headers: &HeaderMap, name: &str) -> bool {
    texts(headers, name).filter_map(count).max().is_some_and(|limit| limit <= 0)
}

pub(super) fn reset(headers: &HeaderMap, name: &str, now: SystemTime) -> Option<Duration> {
    texts(headers, name).filter_map(|text| durations::reset(text, now)).max()
}

const REMAINING: &str = "remaining";

/// Families, with what they count where the name has no unit.
const FAMILIES: [(&str, Unit); 6] = [
    ("anthropic-ratelimit-", Unit::Requests),
    ("ratelimitbysize-", Unit::Tokens),
    ("x-rate-limit-", Unit::Requests),
    ("x-ratelimit-", Unit::Requests),
    ("x-ratelimitbysize-", Unit::Tokens),
    ("x-tokenlimit-", Unit::Tokens),
];

/// Unit and window of a `…remaining…` header; `None` for any other name.
fn dimension(name: &str) -> Option<(Unit, Window)> {
    let (words, mut unit) = FAMILIES.into_iter().find_map(|(family, unit)| Some((name.strip_prefix(family)?, unit)))?;
    let mut window = Window::Short;
    let mut is_remaining = false;
    for word in words.split('-') {
        match word {
            REMAINING => is_remaining = true,
            "requests" | "req" => unit = Unit::Requests,
            "tokens" | "tokens_usage_based" => unit = Unit::Tokens,
            "second" | "minute" => window = Window::Short,
            "hour" | "day" => window = Window::Long,
            "month" => window = Window::Month,
            // Parts of the same unit: each is a bound of its own.
            "input" | "output" | "project" | "prompt" | "generated" | "cache" | "adjusted" => {}
            _ => return None,
        }
    }
    is_remaining.then_some((unit, window))
}

/// A count: digits, perhaps with sign, fraction (dropped) or thousands separators. Of a comma-separated list the least,
/// without its items' parameters, as in `10, 10;w=1, 50;w=60`.
fn count(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Some(count) = thousands(text) {
        return Some(count);
    }
    text.split(',').map(|item| integer(item.split(';').next().unwrap_or_default().trim())).min().flatten()
}

/// `30,000`: groups of three after a first one of up to three.
fn thousands(text: &str) -> Option<i64> {
    let (first, groups) = text.split_once(',')?;
    let grouped = (1..=3).contains(&first.len()) && groups.split(',').all(|group| group.len() == 3);
    grouped.then(|| integer(&text.replace(',', ""))).flatten()
}

pub(super) fn integer(text: &str) -> Option<i64> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let value = whole.parse().unwrap_or(i64::MAX);
    // `-0.5` is negative too, so that it stays unknown rather than exhausted.
    Some(if unsigned.len() == text.len() { value } else { value.saturating_neg().min(-1) })
}
