//! Refusals and plain answers.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use super::{
    body::MockBody,
    limits::{self, Refusal},
    settings::{RetryAfterForm, Says, Settings},
    shapes::{self, Api},
};

/// A minute's period in the providers' words; every other one is a second.
const MINUTE: Duration = Duration::from_secs(60);

/// A limit was met.
pub(super) fn limited(settings: &Settings, api: Api, refusal: Refusal, request_id: &str) -> Response<MockBody> {
    let anthropic = api.is_anthropic();
    let code = (!anthropic).then_some("rate_limit_exceeded");
    let again = |wait| format!("Please try again in {}.", limits::go_duration(wait));
    let (kind, message, form, wait) = match refusal {
        Refusal::TooLarge { limit, tokens } => {
            let message = format!(
                "Request too large on tokens per min (TPM): Limit {limit}, Requested {tokens}. \
                 Please reduce your message size and try again."
            );
            return refuse(anthropic, 413, "tokens", code, &message, request_id);
        }
        Refusal::Ceiling { limit } => (
            "rate_limit_error",
            format!(
                "Number of concurrent requests has exceeded your rate limit of {limit}. Try again when one has ended."
            ),
            RetryAfterForm::None,
            Duration::from_secs(1),
        ),
        Refusal::Requests { limit, period, wait } => {
            let per = if period == MINUTE { "min (RPM)" } else { "sec (RPS)" };
            let message = format!("Rate limit reached for requests per {per}: Limit {limit}. {}", again(wait));
            ("requests", message, RetryAfterForm::Seconds, wait)
        }
        Refusal::Tokens { limit, wait } => {
            let message = format!("Rate limit reached for tokens per min (TPM): Limit {limit}. {}", again(wait));
            ("tokens", message, RetryAfterForm::Seconds, wait)
        }
    };
    let (mut response, form) = match settings.says {
        Says::Kind => (refuse(anthropic, 429, kind, code, &message, request_id), form),
        Says::Nothing => {
            let response = refuse(anthropic, 429, "too_many_requests", None, "Too Many Requests", request_id);
            (response, RetryAfterForm::None)
        }
    };
    limits::write_delay(settings.retry_after.unwrap_or(form), wait, response.headers_mut());
    response
}

/// The account's money is gone: the 429 that waiting does not help.
pub(super) fn spent(anthropic: bool, request_id: &str) -> Response<MockBody> {
    if anthropic {
        let code = Some("enforced_spend_limit_reached");
        refuse(true, 429, "rate_limit_error", code, "Your spend limit has been reached.", request_id)
    } else {
        let code = "insufficient_quota";
        let message = "You exceeded your current quota, please check your plan and billing details.";
        refuse(false, 429, code, Some(code), message, request_id)
    }
}

pub(super) fn refuse(
    anthropic: bool,
    status: u16,
    kind: &str,
    code: Option<&str>,
    message: &str,
    request_id: &str,
) -> Response<MockBody> {
    let value: Value = shapes::error(anthropic, status, kind, code, message, request_id);
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    plain(status, "application/json", Bytes::from(value.to_string()))
}

pub(super) fn plain(status: StatusCode, kind: &'static str, data: Bytes) -> Response<MockBody> {
    let mut response = Response::new(MockBody::Full(Some(data)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
