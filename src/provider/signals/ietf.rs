//! The IETF `RateLimit` fields, in the four generations in circulation (draft-ietf-httpapi-ratelimit-headers).
//!
//! Malformed members are ignored, as the drafts ask.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::{
    counters::{Counter, Unit, Window, integer, is_limit_unknown, remaining, reset},
    texts,
};
use crate::provider::durations;

/// Adds what the `RateLimit` fields count.
pub(super) fn read(headers: &HeaderMap, now: SystemTime, counters: &mut Vec<Counter>) {
    let is_sent = ["ratelimit", "ratelimit-remaining"].into_iter().any(|name| headers.contains_key(name));
    if !is_sent {
        return;
    }
    let policies = policies(headers);
    counters.extend(separate(headers, now, &policies));
    for text in texts(headers, "ratelimit") {
        counters.extend(dictionary(text, &policies));
        counters.extend(split(text, ',').filter_map(|member| current(member, &policies)));
    }
}

/// An item of `RateLimit-Policy`, or of an old `RateLimit-Limit`.
struct Policy<'a> {
    /// The quoted name since draft 08, the quota before.
    name: &'a str,
    quota: Option<i64>,
    window: Window,
    unit: Unit,
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
    let unit = match parameter(member, "qu").map(|unit| unit.trim_matches('"')) {
        None | Some("requests") => Unit::Requests,
        Some("concurrent-requests") => Unit::Concurrency,
        Some("tokens") => Unit::Tokens,
        Some(_) => Unit::Other,
    };
    Policy {
        name,
        quota: parameter(member, "q").map_or(integer(name), integer),
        window: parameter(member, "w")
            .and_then(|seconds| seconds.parse().ok())
            .map_or(Window::Short, Window::of_seconds),
        unit,
    }
}

/// Drafts 01 to 06: `RateLimit-Limit`, `RateLimit-Remaining`, `RateLimit-Reset`.
fn separate(headers: &HeaderMap, now: SystemTime, policies: &[Policy<'_>]) -> Option<Counter> {
    let remaining = remaining(headers, "ratelimit-remaining")?;
    if is_limit_unknown(headers, "ratelimit-limit") {
        return None;
    }
    let limit = texts(headers, "ratelimit-limit").find_map(|text| integer(text.split([',', ';']).next()?.trim()));
    Some(Counter {
        unit: Unit::Requests,
        window: window_of(limit, policies),
        remaining,
        reset: (remaining == 0).then(|| reset(headers, "ratelimit-reset", now)).flatten(),
    })
}

/// Draft 07: `RateLimit: limit=100, remaining=50, reset=5`. Semicolons have been seen in place of the commas.
fn dictionary(text: &str, policies: &[Policy<'_>]) -> Option<Counter> {
    let member =
        |key: &str| split(text, ',').flat_map(|member| split(member, ';')).find_map(|pair| value_of(pair, key));
    let remaining = u64::try_from(integer(member("remaining")?)?).ok()?;
    let limit = member("limit").and_then(integer);
    if limit.is_some_and(|limit| limit <= 0) {
        return None;
    }
    Some(Counter {
        unit: Unit::Requests,
        window: window_of(limit, policies),
        remaining,
        reset: member("reset").and_then(seconds),
    })
}

/// Drafts 08 and later, one member: `"default";r=50;t=30`.
fn current(member: &str, policies: &[Policy<'_>]) -> Option<Counter> {
    let remaining = u64::try_from(integer(parameter(member, "r")?)?).ok()?;
    let name = split(member, ';').next()?;
    let policy = policies.iter().find(|policy| policy.name == name);
    if policy.and_then(|policy| policy.quota) == Some(0) {
        return None;
    }
    Some(Counter {
        unit: policy.map_or(Unit::Requests, |policy| policy.unit),
        window: policy.map_or(Window::Short, |policy| policy.window),
        remaining,
        reset: parameter(member, "t").and_then(seconds),
    })
}

/// The window of the policy that has this quota: before draft 08 policies had no names.
fn window_of(limit: Option<i64>, policies: &[Policy<'_>]) -> Window {
    policies
        .iter()
        .find(|policy| limit.is_some() && policy.quota == limit)
        .map_or(Window::Short, |policy| policy.window)
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
