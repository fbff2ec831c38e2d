//! Reads a refusal: why the upstream refused, and how long it asks to wait.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

pub use crate::control::signals::{Attribution, Signals};
use crate::{
    control::signals::Dimension,
    provider::{presets::Preset, signals},
};
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refusal {
    /// Why the attempt was refused.
    pub attribution: Attribution,
    /// What the head said, with the body's delay where the head had none.
    pub signals: Signals,
}

/// Understands a refusal from its head and as much of its body as was kept, compressed or not.
///
/// The delay is the head's; else the body's. The reset of an exhausted budget is trusted less than both and stays with
/// the budget. Which dimension was refused is told only where time may cure it.
#[must_use]
pub fn read(preset: Preset, status: StatusCode, headers: &HeaderMap, body: &[u8], local_now: SystemTime) -> Refusal {
    let said = Said::of(&decode(headers, body, BODY_BYTES_MAX));
    let head = signals::from_head(preset, status, headers, || local_now);
    let attribution = attribute(status, headers, &said, &head);
    let is_timely = matches!(attribution, Attribution::Rate | Attribution::Unknown);
    Refusal {
        attribution,
        signals: Signals {
            retry_after: head.retry_after.or_else(|| said.delay()),
            refused: is_timely.then(|| refused(&said)).flatten(),
            ..head
        },
    }
}

/// Bytes of a body that are looked at. Known refusals have less than 4 KiB.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Why an attempt was refused.
///
/// Meant for 429, 498, 503 and 529; a 400 or 403 must be unmistakable, and a 402 is `Quota` unless it is about money in
/// flight. Machine words of the body decide before its prose, and prose before the counters. A sentence that providers
/// use for both kinds of 429 decides nothing: "You exceeded your current quota" is Gemini's per-minute text as well as
/// OpenAI's terminal one.
fn attribute(status: StatusCode, headers: &HeaderMap, said: &Said, signals: &Signals) -> Attribution {
    let amazon = amazon_error(headers);
    let is_word =
        |list: &[&str]| said.words.iter().map(String::as_str).chain(amazon.as_deref()).any(|word| list.contains(&word));
    let text = phrases::normalised(&said.text);
    let is_in_flight = is_word(&[IN_FLIGHT_BUDGET]);
    let is_budget_empty = signals.budgets.iter().any(|budget| budget.remaining == 0);

    // These are about the request nearly always ("parallel_tool_calls is not supported", "1000 tokens per request at
    // most"), so only what cannot mean anything else counts.
    if [StatusCode::BAD_REQUEST, StatusCode::FORBIDDEN].contains(&status) {
        let told = status == StatusCode::FORBIDDEN && (is_budget_empty || signals.retry_after.is_some());
        let is_mute = said.text.trim().is_empty() && said.words.is_empty();
        return if is_word(&QUOTA_WORDS) || phrases::is_credit(&text) {
            Attribution::Quota
        } else if is_in_flight {
            Attribution::Ceiling
        } else if told && (is_mute || phrases::is_limit(&text)) {
            if phrases::is_ceiling(&text) { Attribution::Ceiling } else { Attribution::Rate }
        } else {
            Attribution::Unknown
        };
    }

    let is_quota = is_word(&QUOTA_WORDS)
        || said.quota_ids.iter().any(|id| is_daily(id))
        || said.retry_info.is_some_and(|delay| delay > RETRY_INFO_MAX)
        || (status == StatusCode::PAYMENT_REQUIRED && !is_in_flight && !is_bill(headers))
        || phrases::is_quota(&text)
        || is_month_exhausted(signals);
    let is_ceiling = is_in_flight
        || phrases::is_ceiling(&text)
        || said.words.iter().chain(&said.quota_ids).any(|word| phrases::is_ceiling(&phrases::normalised(word)));

    if is_quota {
        Attribution::Quota
    } else if is_ceiling {
        Attribution::Ceiling
    } else if is_word(&OVERLOAD_WORDS) {
        Attribution::Overload
    } else if is_word(&RATE_WORDS)
        || said.quota_ids.iter().any(|id| is_short(id))
        || phrases::is_rate(&text)
        || is_budget_empty
    {
        Attribution::Rate
    } else if OVERLOAD_STATUSES.contains(&status.as_u16()) {
        Attribution::Overload
    } else {
        Attribution::Unknown
    }
}

/// The dimension that was refused: by Google's names, which are the most precise; else by the prose, which may tell
/// input from output where the type says only "tokens"; else by type or code.
fn refused(said: &Said) -> Option<Dimension> {
    let by_word = || {
        said.words.iter().find_map(|word| match word.as_str() {
            "requests" => Some(Dimension::Requests),
            "tokens" => Some(Dimension::Tokens),
            _ => None,
        })
    };
    let by_quota = said.quota_ids.iter().find_map(|id| phrases::dimension_of_quota(id));
    by_quota.or_else(|| phrases::dimension(&phrases::normalised(&said.text))).or_else(by_word)
}

/// A 402 that names the price of this one request, which its client is about to pay (L402, x402).
fn is_bill(headers: &HeaderMap) -> bool {
    headers.contains_key(header::WWW_AUTHENTICATE) || headers.contains_key("payment-required")
}

/// Whether a budget of four weeks or more is gone: waiting is measured in minutes.
fn is_month_exhausted(signals: &Signals) -> bool {
    let is_long = |window: Duration| window >= MONTH_MIN;
    signals.budgets.iter().any(|budget| budget.remaining == 0 && budget.window.is_some_and(is_long))
}

const MONTH_MIN: Duration = Duration::from_secs(28 * 24 * 60 * 60);

/// Flex tier at capacity (Groq), service unavailable, overloaded (Anthropic).
const OVERLOAD_STATUSES: [u16; 3] = [498, 503, 529];

/// A longer `retryDelay` is a quota's. Source: gemini-cli, `googleQuotaErrors.ts`.
const RETRY_INFO_MAX: Duration = Duration::from_secs(300);

/// OpenRouter: too much money in flight, which frees itself.
const IN_FLIGHT_BUDGET: &str = "openrouter_in_flight_budget";

/// Types, codes and reasons, in lower case, that no wait in the scale of a request cures.
const QUOTA_WORDS: [&str; 19] = [
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
    "organization_on_hold",
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
