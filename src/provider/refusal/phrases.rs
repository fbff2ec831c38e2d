//! What the prose of refusals gives away. All texts are in lower case.

use std::time::Duration;

use crate::provider::durations;

/// One spelling for `per-minute` and `per minute`, `in_flight` and `in flight`.
pub(super) fn normalised(text: &str) -> String {
    text.replace(['-', '_'], " ")
}

/// Money or a monthly allowance. "Monthly" alone is not enough: advertising for plans uses it too.
pub(super) fn is_quota(text: &str) -> bool {
    any(text, &["credit balance is too low", "you have reached your specified"])
        || (any(text, &MONTH) && !any(text, &SHORT_WINDOW))
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
