//! Anthropic's limits of a subscription: a share of an allowance that only Anthropic knows, over 5 hours and 7 days.
//!
//! Their numbers are shares, so nothing can be planned with them; but when they refuse, they say for how long.

use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::{Budget, Dimension, Refill, counters::reset, texts};
use crate::provider::names;

/// The allowance that a refusal says is gone. Not looked for elsewhere: beside a 200 a `rejected` may mean that the
/// request was paid from the overage.
pub(super) fn read(headers: &HeaderMap, now: SystemTime) -> Option<Budget> {
    let is_rejected = |name: &str| texts(headers, name).any(|status| status == "rejected");
    if !is_rejected("anthropic-ratelimit-unified-status") {
        return None;
    }
    let (window, own) = if is_rejected("anthropic-ratelimit-unified-7d-status") {
        (Duration::from_secs(7 * 24 * 60 * 60), "anthropic-ratelimit-unified-7d-reset")
    } else {
        (Duration::from_secs(5 * 60 * 60), "anthropic-ratelimit-unified-5h-reset")
    };
    let (reset, _) = reset(headers, "anthropic-ratelimit-unified-reset", now).or_else(|| reset(headers, own, now))?;
    Some(Budget {
        id: names::short_number(["anthropic-ratelimit-unified"]),
        dimension: Dimension::Tokens,
        limit: None,
        remaining: 0,
        reset: Some(reset),
        window: Some(window),
        refill: Some(Refill::Window),
    })
}
