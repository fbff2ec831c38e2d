//! The IETF `RateLimit` fields, in the four generations in circulation (draft-ietf-httpapi-ratelimit-headers).
//!
//! Malformed members are ignored, as the drafts ask.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::{
    Budget, Dimension, Refill,
    counters::{integer, limit, remaining, reset},
    texts,
};
use crate::provider::{
    durations::{self, Notation},
    names,
};

/// Adds what the `RateLimit` fields count.
pub(super) fn read(headers: &HeaderMap, now: SystemTime, found: &mut Vec<Budget>) {
    let is_sent = ["ratelimit", "ratelimit-remaining"].into_iter().any(|name| headers.contains_key(name));
    if !is_sent {
        return;
    }
    let policies = policies(headers);
    let lines = || texts(headers, "ratelimit");
    found.extend(separate(headers, now, &policies));
    found.extend(lines().filter_map(|text| dictionary(text, &policies)));
    found.extend(lines().flat_map(|text| split(text, ',')).filter_map(|member| current(member, &policies)));
}

/// An item of `RateLimit-Policy`, or of an old `RateLimit-Limit`.
struct Policy<'a> {
    /// The quoted name since draft 08, the quota before.
    name: &'a str,
    quota: Option<i64>,
    window: Option<Duration>,
    /// `None` for a unit that is no budget: a place in flight comes back when a request ends, not at a time.
    dimension: Option<Dimension>,
}

fn policies(headers: &HeaderMap) -> Vec<Policy<'_>> {
    ["ratelimit-policy", "ratelimit-limit"]
        .into_iter()
        .flat_map(|name| texts(headers, name))
        .flat_map(|text| split(text, ','))
        // A bare `10` in an old `RateLimit-Limit` is the limit, not a policy.
        .filter(|member| member.contains(';'))
        .map(policy)
        .collect()
}

fn policy(member: &str) -> Policy<'_> {
    let name = split(member, ';').next().unwrap_or_default();
    let dimension = match parameter(member, "qu").map(|unit| unit.trim_matches('"')) {
        None | Some("requests") => Some(Dimension::Requests),
        Some("tokens") => Some(Dimension::Tokens),
        Some(_) => None,
    };
    Policy {
        name,
        quota: parameter(member, "q").map_or(integer(name), integer),
        window: parameter(member, "w").and_then(|text| text.parse().ok()).and_then(window),
        dimension,
    }
}

/// Drafts 01 to 06: `RateLimit-Limit`, `RateLimit-Remaining`, `RateLimit-Reset`.
fn separate(headers: &HeaderMap, now: SystemTime, policies: &[Policy<'_>]) -> Option<Budget> {
    let remaining = remaining(headers, "ratelimit-remaining")?;
    limit(headers, "ratelimit-limit").ok()?;
    let limit = texts(headers, "ratelimit-limit").find_map(|text| integer(text.split([',', ';']).next()?.trim()));
    let reset = reset(headers, "ratelimit-reset", now);
    Some(Budget {
        reset: reset.map(|(after, _)| after),
        // The drafts have delta seconds; what sends an epoch knows when its window turns.
        refill: reset.filter(|(_, notation)| *notation == Notation::Epoch).map(|_| Refill::Window),
        ..unnamed(limit, remaining, policies)
    })
}

/// Draft 07: `RateLimit: limit=100, remaining=50, reset=5`. Semicolons have been seen in place of the commas.
fn dictionary(text: &str, policies: &[Policy<'_>]) -> Option<Budget> {
    let member =
        |key: &str| split(text, ',').flat_map(|member| split(member, ';')).find_map(|pair| value_of(pair, key));
    let remaining = u64::try_from(integer(member("remaining")?)?).ok()?;
    let limit = member("limit").and_then(integer);
    if limit.is_some_and(|limit| limit <= 0) {
        return None;
    }
    Some(Budget { reset: member("reset").and_then(seconds), ..unnamed(limit, remaining, policies) })
}

/// Before draft 08 policies had no names: the one that has this quota is meant.
fn unnamed(limit: Option<i64>, remaining: u64, policies: &[Policy<'_>]) -> Budget {
    let policy = policies.iter().find(|policy| limit.is_some() && policy.quota == limit);
    Budget {
        id: names::short_number(["ratelimit"]),
        dimension: Dimension::Requests,
        limit: limit.and_then(positive),
        remaining,
        reset: None,
        window: policy.and_then(|policy| policy.window),
        refill: None,
    }
}

/// Drafts 08 and later, one member: `"default";r=50;t=30`.
fn current(member: &str, policies: &[Policy<'_>]) -> Option<Budget> {
    let remaining = u64::try_from(integer(parameter(member, "r")?)?).ok()?;
    let name = split(member, ';').next()?;
    let policy = policies.iter().find(|policy| policy.name == name);
    let quota = policy.and_then(|policy| policy.quota);
    if quota.is_some_and(|quota| quota <= 0) {
        return None;
    }
    Some(Budget {
        id: names::short_number(["ratelimit;", name]),
        dimension: policy.map_or(Some(Dimension::Requests), |policy| policy.dimension)?,
        limit: quota.and_then(positive),
        remaining,
        reset: parameter(member, "t").and_then(seconds),
        window: policy.and_then(|policy| policy.window),
        refill: None,
    })
}

/// The window of a policy; 0 is none.
fn window(seconds: u64) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds).min(WINDOW_MAX))
}

/// Longest window that is believed, so that nobody's arithmetic overflows. A guess: nothing is counted per two years.
const WINDOW_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

fn positive(limit: i64) -> Option<u64> {
    u64::try_from(limit).ok().filter(|limit| *limit > 0)
}

fn seconds(text: &str) -> Option<Duration> {
    durations::count_of(Duration::from_secs(1), text)
}

fn parameter<'a>(member: &'a str, key: &str) -> Option<&'a str> {
    split(member, ';').skip(1).find_map(|pair| value_of(pair, key))
}

fn value_of<'a>(pair: &'a str, key: &str) -> Option<&'a str> {
    let (name, value) = pair.split_once('=')?;
    (name.trim_end() == key).then_some(value.trim_start())
}

/// Parts between separators that stand outside quotes.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    text.split(move |c: char| {
        let is_literal = std::mem::take(&mut is_escaped);
        match c {
            '\\' => is_escaped = is_quoted && !is_literal,
            '"' if !is_literal => is_quoted = !is_quoted,
            _ => {}
        }
        c == separator && !is_quoted
    })
    .map(str::trim)
}
