//! Budgets, by the structure of their header names.
//!
//! `x-ratelimit-remaining-tokens-minute` is a family, a role, a dimension and a window; limit and reset of the same
//! budget differ only in the role. Reading the name word by word covers the providers' orders and combinations, and
//! leaves a counter alone whose name has a word that is not known here.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::{Budget, Dimension, Refill, texts};
use crate::provider::{
    durations::{self, Notation},
    names,
    presets::Preset,
};

/// Adds what the headers with speaking names count. Negative counts, and those whose limit is not positive, are unknown
/// and left out.
pub(super) fn read(preset: Preset, headers: &HeaderMap, now: SystemTime, found: &mut Vec<Budget>) {
    found.extend(headers.keys().filter_map(|name| named(preset, headers, name.as_str(), now)));
}

fn named(preset: Preset, headers: &HeaderMap, name: &str, now: SystemTime) -> Option<Budget> {
    let meaning = meaning(name)?;
    let role = |role: &str| name.replacen(REMAINING, role, 1);
    let remaining = remaining(headers, name)?;
    let limit = limit(headers, &role("limit")).ok()?;
    let reset = reset(headers, &role("reset"), now);
    let refill = match reset {
        // GitHub says what is used; a bucket that refills all the time could not.
        _ if headers.contains_key(role("used")) => Some(Refill::Window),
        Some((_, Notation::Epoch)) => Some(Refill::Window),
        Some((_, Notation::Units)) => Some(Refill::Continuous),
        Some((_, Notation::Date)) => meaning.family.dated,
        Some((_, Notation::Delta)) | None => None,
    };
    Some(Budget {
        id: names::short_number(name.split(REMAINING)),
        dimension: meaning.dimension,
        limit,
        remaining,
        reset: reset.map(|(after, _)| after),
        window: meaning.window.or_else(|| preset.window(meaning.dimension)),
        refill,
    })
}

/// The smallest count that is not negative.
pub(super) fn remaining(headers: &HeaderMap, name: &str) -> Option<u64> {
    texts(headers, name).filter_map(count).filter_map(|count| u64::try_from(count).ok()).min()
}

/// The smallest positive limit, if one was sent.
pub(super) fn limit(headers: &HeaderMap, name: &str) -> Result<Option<u64>, NotPositive> {
    let limits = || texts(headers, name).filter_map(count);
    let positive = limits().filter(|limit| *limit > 0).filter_map(|limit| u64::try_from(limit).ok()).min();
    if positive.is_none() && limits().next().is_some() { Err(NotPositive) } else { Ok(positive) }
}

/// A limit of 0 or less: how upstreams write that they do not know.
pub(super) struct NotPositive;

/// The longest reset.
pub(super) fn reset(headers: &HeaderMap, name: &str, now: SystemTime) -> Option<(Duration, Notation)> {
    texts(headers, name).filter_map(|text| durations::reset(text, now)).max_by_key(|(after, _)| *after)
}

const REMAINING: &str = "remaining";

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Thirty days: what a calendar month is, no header says.
const MONTH: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The first words of a header's name.
struct Family {
    prefix: &'static str,
    /// What it counts where the name does not say.
    dimension: Dimension,
    /// Over which time, where the name does not say.
    window: Option<Duration>,
    /// What a reset that is a date says about the refill.
    dated: Option<Refill>,
}

const fn family(prefix: &'static str, dimension: Dimension) -> Family {
    Family { prefix, dimension, window: None, dated: None }
}

static FAMILIES: [Family; 7] = [
    // A token bucket per minute, in every dimension.
    Family {
        window: Some(MINUTE),
        dated: Some(Refill::Continuous),
        ..family("anthropic-ratelimit-", Dimension::Requests)
    },
    // Mistral: the bare form is that of the minute.
    Family { window: Some(MINUTE), ..family("ratelimitbysize-", Dimension::Tokens) },
    family("x-rate-limit-", Dimension::Requests),
    family("x-ratelimit-", Dimension::Requests),
    family("x-ratelimitbysize-", Dimension::Tokens),
    family("x-tokenlimit-", Dimension::Tokens),
    family("x-trial-endpoint-", Dimension::Requests),
];

/// How the names of all of them begin.
#[cfg(test)]
pub(super) fn prefixes() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.prefix)
}

struct Meaning {
    family: &'static Family,
    dimension: Dimension,
    window: Option<Duration>,
}

/// What a `…remaining…` header counts; `None` for any other name.
fn meaning(name: &str) -> Option<Meaning> {
    let (family, words) = FAMILIES.iter().find_map(|family| Some((family, name.strip_prefix(family.prefix)?)))?;
    let mut dimension = family.dimension;
    let mut window = family.window;
    let mut is_remaining = false;
    for word in words.split('-') {
        match word {
            REMAINING => is_remaining = true,
            "requests" | "req" | "call" => dimension = Dimension::Requests,
            "input" => dimension = Dimension::InputTokens,
            "output" => dimension = Dimension::OutputTokens,
            // Fireworks, which writes per second what it enforces per minute.
            "prompt" => (dimension, window) = (Dimension::InputTokens, Some(SECOND)),
            "generated" => (dimension, window) = (Dimension::OutputTokens, Some(SECOND)),
            "tokens" if matches!(dimension, Dimension::InputTokens | Dimension::OutputTokens) => {}
            "tokens" | "tokens_usage_based" => dimension = Dimension::Tokens,
            "second" => window = Some(SECOND),
            "minute" => window = Some(MINUTE),
            "hour" => window = Some(HOUR),
            "day" => window = Some(DAY),
            "month" => window = Some(MONTH),
            // More budgets of the same dimension.
            "project" | "cache" | "adjusted" => {}
            _ => return None,
        }
    }
    is_remaining.then_some(Meaning { family, dimension, window })
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
