//! What the prose of refusals gives away. All texts are in lower case.

use std::time::Duration;

use crate::{control::signals::Dimension, provider::durations};

/// One spelling for `per-minute` and `per minute`, `in_flight` and `in flight`.
pub(super) fn normalised(text: &str) -> String {
    text.replace(['-', '_'], " ")
}

/// Money or a monthly allowance. "Monthly" alone is not enough: advertising for plans uses it too.
pub(super) fn is_quota(text: &str) -> bool {
    any(text, &["credit balance is too low", "you have reached your specified"])
        || (any(text, &MONTH) && !any(text, &SHORT_WINDOW))
}

/// Anthropic's sentences on a 400. They stand first: further on they might be a quotation.
pub(super) fn is_credit(text: &str) -> bool {
    ["your credit balance is too low", "you have reached your specified"].iter().any(|start| text.starts_with(start))
}

/// Some limit over time, on a 403 whose head speaks of time too.
pub(super) fn is_limit(text: &str) -> bool {
    is_rate(text) || any(text, &["abuse detection", "rate limit", "throttl", "too many requests"])
}

/// Attempts in flight. Anthropic words this as a rate limit: "Number of concurrent connections has exceeded your rate
/// limit".
pub(super) fn is_ceiling(text: &str) -> bool {
    any(text, &["concurren", "simultaneous", "in flight", "parallel"])
}

/// Requests or tokens per time.
pub(super) fn is_rate(text: &str) -> bool {
    any(text, &SHORT_WINDOW)
        || any(text, &RATE)
        || text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| RATE_ABBREVIATIONS.contains(&word))
}

/// What was counted, by the first phrase that names it: "30,000 input tokens per minute" names three, and means the
/// first. A phrase begins and ends with a word.
pub(super) fn dimension(text: &str) -> Option<Dimension> {
    let is_inside = |c: char| c.is_ascii_alphanumeric();
    let first = |phrase: &str| {
        let stands_alone = |at: &usize| {
            let (before, after) = (text.get(..*at), text.get(at + phrase.len()..));
            !before.is_some_and(|text| text.ends_with(is_inside))
                && !after.is_some_and(|text| text.starts_with(is_inside))
        };
        text.match_indices(phrase).map(|(at, _)| at).find(stands_alone)
    };
    DIMENSIONS
        .iter()
        .filter_map(|(phrase, dimension)| Some((first(phrase)?, *dimension)))
        .min_by_key(|(at, _)| *at)
        .map(|(_, dimension)| dimension)
}

/// What a quota of Google's counts: `GenerateContentInputTokensPerModelPerMinute-FreeTier`, in lower case.
pub(super) fn dimension_of_quota(id: &str) -> Option<Dimension> {
    [
        ("inputtoken", Dimension::InputTokens),
        ("outputtoken", Dimension::OutputTokens),
        ("token", Dimension::Tokens),
        ("request", Dimension::Requests),
    ]
    .into_iter()
    .find_map(|(part, dimension)| id.contains(part).then_some(dimension))
}

/// The delay a text asks for: `try again in 6m0s`, `retry after 37 seconds`, `please retry in 34.07s`.
pub(super) fn delay(text: &str) -> Option<Duration> {
    ["try again in ", "retry after ", "retry in "]
        .into_iter()
        .flat_map(|phrase| text.split(phrase).skip(1))
        .find_map(delay_at)
}

const MONTH: [&str; 10] = [
    "/ month",
    "/month",
    "monthly cap",
    "monthly limit",
    "monthly quota",
    "monthly request",
    "monthly spend",
    "monthly token",
    "monthly usage",
    "per month",
];

const SHORT_WINDOW: [&str; 6] = ["/ min", "/ sec", "/min", "/sec", "per min", "per sec"];

const RATE: [&str; 7] = [
    "daily",
    "per day",
    "per hour",
    "requests per",
    "requests rate limit", // Mistral's per-second refusal
    "tokens per",
    "too many tokens", // Bedrock
];

const RATE_ABBREVIATIONS: [&str; 10] = ["itpm", "otpm", "qpm", "qps", "rpd", "rpm", "rps", "tpd", "tpm", "tps"];

/// "Too many requests" is not among these: it is the name of the status.
const DIMENSIONS: [(&str, Dimension); 27] = [
    ("api calls", Dimension::Requests),
    ("call rate limit", Dimension::Requests), // Azure
    ("completion tokens", Dimension::OutputTokens),
    ("input token", Dimension::InputTokens),
    ("input tokens", Dimension::InputTokens),
    ("itpm", Dimension::InputTokens),
    ("number of requests", Dimension::Requests), // Anthropic, earlier
    ("otpm", Dimension::OutputTokens),
    ("output token", Dimension::OutputTokens),
    ("output tokens", Dimension::OutputTokens),
    ("prompt tokens", Dimension::InputTokens),
    ("qpm", Dimension::Requests),
    ("qps", Dimension::Requests),
    ("request rate limit", Dimension::Requests),
    ("request tokens", Dimension::InputTokens), // Anthropic, earlier
    ("requests per", Dimension::Requests),
    ("requests rate limit", Dimension::Requests), // Mistral
    ("rpd", Dimension::Requests),
    ("rpm", Dimension::Requests),
    ("rps", Dimension::Requests),
    ("token rate limit", Dimension::Tokens), // Azure
    ("tokens per", Dimension::Tokens),
    ("tokens rate limit", Dimension::Tokens),
    ("too many tokens", Dimension::Tokens), // Bedrock
    ("tpd", Dimension::Tokens),
    ("tpm", Dimension::Tokens),
    ("tps", Dimension::Tokens),
];

fn any(text: &str, phrases: &[&str]) -> bool {
    phrases.iter().any(|phrase| text.contains(phrase))
}

/// The delay a text begins with: one word (`1m30s`), or numbers with units in words (`1 minute and 30 seconds`).
///
/// A number without a unit is seconds if the clause ends there; before any other word (`2 business days`) it is nothing.
fn delay_at(text: &str) -> Option<Duration> {
    let mut words = text.split_whitespace().filter(|word| *word != "and");
    let mut total = None;
    while let Some(word) = words.next() {
        let number = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let (part, last) = if let Some(part) = durations::duration(number) {
            (Some(part), word)
        } else {
            let follower = (number.len() == word.len()).then(|| words.next()).flatten();
            let unit = follower.map_or(Some(Duration::from_secs(1)), unit_of);
            let part = unit.and_then(|unit| durations::count_of(unit, number));
            (part, follower.unwrap_or(word))
        };
        let Some(part) = part else { break };
        total = Some(total.unwrap_or(Duration::ZERO).saturating_add(part));
        if last.ends_with(['.', ';', ')', '!']) {
            break;
        }
    }
    total.map(|total| total.min(durations::DELAY_MAX))
}

fn unit_of(word: &str) -> Option<Duration> {
    let word = word.trim_end_matches(|c: char| !c.is_ascii_alphabetic());
    let millis = match word {
        "ms" | "millisecond" | "milliseconds" => 1,
        "s" | "sec" | "secs" | "second" | "seconds" => 1000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600_000,
        "day" | "days" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(millis))
}
