//! Reads a refusal: why the upstream refused, and how long it asks to wait.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};

pub use crate::control::signals::{Attribution, Signals};
use crate::provider::signals::{self, counters};
use said::Said;

mod decode;
mod phrases;
#[cfg(test)]
mod rows;
mod said;
#[cfg(test)]
mod tests;

pub use decode::decode;

/// A refusal, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why the attempt was refused.
    pub attribution: Attribution,
    /// What the head said, with the body's delay where the head had none.
    pub signals: Signals,
}

/// Understands a refusal from its head and as much of its body as was kept, compressed or not.
///
/// The delay is the head's; else the body's. The reset of an exhausted counter is trusted less than both and stays in
/// `exhausted_for`.
#[must_use]
pub fn read(status: StatusCode, headers: &HeaderMap, body: &[u8], local_now: SystemTime) -> Refusal {
    let said = Said::of(&decode(headers, body, BODY_BYTES_MAX));
    let head = signals::from_head(status, headers, local_now);
    Refusal {
        attribution: attribute_said(status, headers, &said, &head),
        signals: Signals { retry_after: head.retry_after.or_else(|| said.delay()), ..head },
    }
}

/// Why an attempt was refused. `body` is decoded; only its first 64 KiB are looked at.
///
/// Meant for 429, 498, 503 and 529; other statuses are judged by the same evidence, and a 402 is `Quota` unless it is
/// about money in flight. Machine words of the body decide before its prose, and prose before the counters. A sentence
/// that providers use for both kinds of 429 decides nothing: "You exceeded your current quota" is Gemini's per-minute
/// text as well as OpenAI's terminal one.
#[must_use]
pub fn attribute(status: StatusCode, headers: &HeaderMap, body: &[u8], signals: &Signals) -> Attribution {
    attribute_said(status, headers, &Said::of(body), signals)
}

/// How long a refusal's body asks to wait: Google's `RetryInfo`, else the prose. `body` is decoded. At most 24 hours.
#[must_use]
pub fn body_delay(body: &[u8]) -> Option<Duration> {
    Said::of(body).delay()
}

/// Bytes of a body that are looked at. Known refusals have less than 4 KiB.
const BODY_BYTES_MAX: usize = 64 * 1024;

fn attribute_said(status: StatusCode, headers: &HeaderMap, said: &Said, signals: &Signals) -> Attribution {
    let amazon = amazon_error(headers);
    let is_word =
        |list: &[&str]| said.words.iter().map(String::as_str).chain(amazon.as_deref()).any(|word| list.contains(&word));
    let text = phrases::normalised(&said.text);
    let is_in_flight = is_word(&[IN_FLIGHT_BUDGET]);

    let is_quota = is_word(&QUOTA_WORDS)
        || said.quota_ids.iter().any(|id| is_daily(id))
        || said.retry_info.is_some_and(|delay| delay > RETRY_INFO_MAX)
        || (status == StatusCode::PAYMENT_REQUIRED && !is_in_flight)
        || phrases::is_quota(&text)
        || counters::is_month_exhausted(headers);
    let is_ceiling = is_in_flight
        || phrases::is_ceiling(&text)
        || said.words.iter().chain(&said.quota_ids).any(|word| phrases::is_ceiling(&phrases::normalised(word)));
    let is_counter_empty =
        signals.requests_remaining == Some(0) || signals.tokens_remaining == Some(0) || signals.exhausted_for.is_some();

    if is_quota {
        Attribution::Quota
    } else if is_ceiling {
        Attribution::Ceiling
    } else if is_word(&OVERLOAD_WORDS) {
        Attribution::Overload
    } else if is_word(&RATE_WORDS)
        || said.quota_ids.iter().any(|id| is_short(id))
        || phrases::is_rate(&text)
        || is_counter_empty
    {
        Attribution::Rate
    } else if OVERLOAD_STATUSES.contains(&status.as_u16()) {
        Attribution::Overload
    } else {
        Attribution::Unknown
    }
}

/// Flex tier at capacity (Groq), service unavailable, overloaded (Anthropic).
const OVERLOAD_STATUSES: [u16; 3] = [498, 503, 529];

/// A longer `retryDelay` is a quota's. Source: gemini-cli, `googleQuotaErrors.ts`.
const RETRY_INFO_MAX: Duration = Duration::from_secs(300);

/// OpenRouter: too much money in flight, which frees itself.
const IN_FLIGHT_BUDGET: &str = "openrouter_in_flight_budget";

/// Types, codes and reasons, in lower case, that no wait in the scale of a request cures.
const QUOTA_WORDS: [&str; 18] = [
    "billing_error",
    "billing_hard_limit_reached",
    "blocked_api_access",
    "contract_spend_limit_reached",
    "credit_balance_exhausted",
    "enforced_spend_limit_reached",
    "exceeded_current_quota_error",
    "insufficient_g1_credits_balance",
    "insufficient_quota",
    "linked_organization_billing_unavailable",
    "linked_organization_spend_limit_reached",
    "openrouter_guardrail_budget",
    "openrouter_key_limit",
    "openrouter_workspace_budget",
    "organization_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "project_spend_limit_exceeded",
    "quota_exhausted",
];

/// The upstream, not the account, is at its limit. 3505 is Mistral's code for it.
const OVERLOAD_WORDS: [&str; 6] = [
    "3505",
    "modelnotreadyexception",
    "overloaded_error",
    "service_tier_capacity_exceeded",
    "serviceunavailableexception",
    "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
];

/// `rate_limit_error` and `rate_limit_exceeded` are not among these: they stand on concurrency refusals too.
const RATE_WORDS: [&str; 5] = [
    "https://iana.org/assignments/http-problem-types#quota-exceeded",
    "ramp_limit_exceeded",
    "requests",
    "throttlingexception",
    "tokens",
];

/// `x-amzn-errortype: ThrottlingException:http://…`, in lower case, without what follows the colon.
fn amazon_error(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("x-amzn-errortype")?.to_str().ok()?;
    Some(value.split(':').next()?.trim().to_ascii_lowercase())
}

/// Google's quota names say their window: `GenerateRequestsPerDayPerProjectPerModel-FreeTier`. The name decides, not
/// the delay: such bodies have carried `38s` as well as `65205s`.
fn is_daily(quota_id: &str) -> bool {
    ["perday", "daily"].iter().any(|part| quota_id.contains(part))
}

fn is_short(quota_id: &str) -> bool {
    ["persecond", "perminute", "perhour"].iter().any(|part| quota_id.contains(part))
}
