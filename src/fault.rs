//! Every failure Tidegate itself answers for: one closed enum, one function that turns it into a response.
//!
//! The body is built from the kind, never from an inner error's text: a client learns what happened and what to do,
//! not how the inside looks.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;

use crate::provider::presets::ErrorShape;

/// A failure Tidegate answers for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The head cannot be forwarded as it is.
    #[error("the request cannot be forwarded: {0}")]
    BadHead(&'static str),
    /// The request's body ended early or was malformed.
    #[error("the request body could not be read to its end")]
    BadBody,
    /// The method is one that no request of an API has: CONNECT, TRACE.
    #[error("this method is not for an API, and is not forwarded")]
    BadMethod,
    /// The account is paused for longer than the request may wait.
    #[error("the account is paused for {} more ({why}), longer than this request may wait", seconds(.retry_after))]
    CannotWait {
        /// When it opens again.
        retry_after: Duration,
        /// Why it is paused.
        why: &'static str,
    },
    /// The exchange took longer than `deadlines.total`.
    #[error("the exchange took longer than {} in all", seconds(.0))]
    Deadline(Duration),
    /// No new work while shutting down.
    #[error("Tidegate is shutting down")]
    Draining,
    /// No response head in time.
    #[error("the upstream did not answer within {}", seconds(.0))]
    FirstByteTimeout(Duration),
    /// A mistake in Tidegate itself.
    #[error("Tidegate failed inside; other requests are not affected")]
    Internal,
    /// The request body is longer than `limits.body_bytes_max`.
    #[error("the request body is too long")]
    LongBody,
    /// The request head is longer than `limits.header_bytes_max`, or has too many lines.
    #[error("the request head is too long, or has too many fields")]
    LongHead,
    /// The request target is longer than half a head may be.
    #[error("the request target is too long")]
    LongTarget,
    /// No upstream is configured for the path.
    #[error("no upstream is configured for this path")]
    NoRoute,
    /// As many wait already as may, over all flows or in this flow.
    #[error("the queue is full: {depth_max} requests are waiting already")]
    QueueFull {
        /// The bound that was met.
        depth_max: usize,
        /// When a place may be free.
        retry_after: Duration,
    },
    /// Waited for a slot for as long as allowed.
    #[error("no slot became free within {}", seconds(.waited))]
    QueueTimeout {
        /// For how long.
        waited: Duration,
        /// When a slot may be free.
        retry_after: Duration,
    },
    /// The upstream said that a quota is spent, and it is not time to ask again.
    #[error("the upstream said that the quota is spent; it is asked again in {}", seconds(.retry_after))]
    Quota {
        /// When it is asked again.
        retry_after: Duration,
    },
    /// The request body took too long to arrive.
    #[error("the request body did not arrive in time")]
    RequestTimeout,
    /// The upstream could not be reached.
    #[error("the upstream could not be reached ({0})")]
    Unreachable(Unreached),
    /// The upstream broke off, or spoke something that is not HTTP, before its response head was complete.
    #[error("the upstream closed the connection or broke the protocol before it answered")]
    UpstreamProtocol,
}

/// Why the upstream could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreached {
    /// The connection was closed before the request was written.
    Closed,
    /// Nothing listens there, or the way is barred.
    Connect,
    /// The name does not resolve.
    Dns,
    /// Connecting took too long.
    Timeout,
    /// The TLS handshake failed.
    Tls,
}

impl std::fmt::Display for Unreached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Closed => "the connection closed before the request was sent",
            Self::Connect => "connecting failed",
            Self::Dns => "its name does not resolve",
            Self::Timeout => "connecting took too long",
            Self::Tls => "the TLS handshake failed",
        })
    }
}

/// The kind of a fault: metric label and `x-tidegate-fault`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each is the variant of `Fault` with the same name")]
pub enum FaultKind {
    BadBody,
    BadHead,
    BadMethod,
    CannotWait,
    Deadline,
    Draining,
    FirstByteTimeout,
    Internal,
    LongBody,
    LongHead,
    LongTarget,
    NoRoute,
    QueueFull,
    QueueTimeout,
    Quota,
    RequestTimeout,
    Unreachable,
    UpstreamProtocol,
}

impl FaultKind {
    /// All of them, in label order.
    pub const ALL: [Self; 18] = [
        Self::BadBody,
        Self::BadHead,
        Self::BadMethod,
        Self::CannotWait,
        Self::Deadline,
        Self::Draining,
        Self::FirstByteTimeout,
        Self::Internal,
        Self::LongBody,
        Self::LongHead,
        Self::LongTarget,
        Self::NoRoute,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::Quota,
        Self::RequestTimeout,
        Self::Unreachable,
        Self::UpstreamProtocol,
    ];

    /// The word in labels, headers and bodies.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::BadBody => "bad_body",
            Self::BadHead => "bad_head",
            Self::BadMethod => "bad_method",
            Self::CannotWait => "cannot_wait",
            Self::Deadline => "deadline",
            Self::Draining => "draining",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::Internal => "internal",
            Self::LongBody => "long_body",
            Self::LongHead => "long_head",
            Self::LongTarget => "long_target",
            Self::NoRoute => "no_route",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::Quota => "quota",
            Self::RequestTimeout => "request_timeout",
            Self::Unreachable => "unreachable",
            Self::UpstreamProtocol => "upstream_protocol",
        }
    }
}

impl Fault {
    /// The kind.
    #[must_use]
    pub fn kind(&self) -> FaultKind {
        match self {
            Self::BadBody => FaultKind::BadBody,
            Self::BadHead(_) => FaultKind::BadHead,
            Self::BadMethod => FaultKind::BadMethod,
            Self::CannotWait { .. } => FaultKind::CannotWait,
            Self::Deadline(_) => FaultKind::Deadline,
            Self::Draining => FaultKind::Draining,
            Self::FirstByteTimeout(_) => FaultKind::FirstByteTimeout,
            Self::Internal => FaultKind::Internal,
            Self::LongBody => FaultKind::LongBody,
            Self::LongHead => FaultKind::LongHead,
            Self::LongTarget => FaultKind::LongTarget,
            Self::NoRoute => FaultKind::NoRoute,
            Self::QueueFull { .. } => FaultKind::QueueFull,
            Self::QueueTimeout { .. } => FaultKind::QueueTimeout,
            Self::Quota { .. } => FaultKind::Quota,
            Self::RequestTimeout => FaultKind::RequestTimeout,
            Self::Unreachable(_) => FaultKind::Unreachable,
            Self::UpstreamProtocol => FaultKind::UpstreamProtocol,
        }
    }

    /// The status the client gets.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadBody | Self::BadHead(_) => StatusCode::BAD_REQUEST,
            Self::BadMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::LongBody => StatusCode::PAYLOAD_TOO_LARGE,
            Self::LongHead => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::LongTarget => StatusCode::URI_TOO_LONG,
            Self::Deadline(_) | Self::FirstByteTimeout(_) | Self::Unreachable(Unreached::Timeout) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Draining | Self::QueueTimeout { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::CannotWait { .. } | Self::QueueFull { .. } | Self::Quota { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unreachable(_) | Self::UpstreamProtocol => StatusCode::BAD_GATEWAY,
        }
    }

    /// When to come back; only where coming back helps.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Draining => Some(Duration::from_secs(1)),
            Self::CannotWait { retry_after, .. }
            | Self::QueueFull { retry_after, .. }
            | Self::QueueTimeout { retry_after, .. }
            | Self::Quota { retry_after } => Some(*retry_after),
            Self::BadBody
            | Self::BadHead(_)
            | Self::BadMethod
            | Self::Deadline(_)
            | Self::FirstByteTimeout(_)
            | Self::Internal
            | Self::LongBody
            | Self::LongHead
            | Self::LongTarget
            | Self::NoRoute
            | Self::RequestTimeout
            | Self::Unreachable(_)
            | Self::UpstreamProtocol => None,
        }
    }

    /// Whether the client's own retry loop would not help: it would only repeat what Tidegate already did, the client
    /// has waited for as long as it may, or no wait in the scale of a request is long enough.
    #[must_use]
    pub fn final_answer(&self) -> bool {
        match self {
            Self::Deadline(_)
            | Self::FirstByteTimeout(_)
            | Self::Internal
            | Self::QueueTimeout { .. }
            | Self::Quota { .. }
            | Self::Unreachable(_)
            | Self::UpstreamProtocol => true,
            Self::BadBody
            | Self::BadHead(_)
            | Self::BadMethod
            | Self::CannotWait { .. }
            | Self::Draining
            | Self::LongBody
            | Self::LongHead
            | Self::LongTarget
            | Self::NoRoute
            | Self::QueueFull { .. }
            | Self::RequestTimeout => false,
        }
    }

    /// Whether the client's connection can carry another request afterwards.
    #[must_use]
    pub fn closes(&self) -> bool {
        match self {
            Self::BadBody
            | Self::BadHead(_)
            | Self::BadMethod
            | Self::Draining
            | Self::Internal
            | Self::LongBody
            | Self::LongHead
            | Self::LongTarget
            | Self::RequestTimeout => true,
            Self::CannotWait { .. }
            | Self::Deadline(_)
            | Self::FirstByteTimeout(_)
            | Self::NoRoute
            | Self::QueueFull { .. }
            | Self::QueueTimeout { .. }
            | Self::Quota { .. }
            | Self::Unreachable(_)
            | Self::UpstreamProtocol => false,
        }
    }

    /// The answer, in the error shape of the API the client speaks.
    #[must_use]
    pub fn response(&self, shape: ErrorShape, request: &Method, close: bool) -> Response<Bytes> {
        let status = self.status();
        let body = if *request == Method::HEAD { Bytes::new() } else { self.body(shape) };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-tidegate-fault", HeaderValue::from_static(self.kind().label()));
        if let Some(after) = self.retry_after() {
            // Whole seconds from 1 to 59 mean the same thing to every SDK; the second header has the exact value.
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX).clamp(1, 59_000);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
            headers.insert("retry-after-ms", HeaderValue::from(millis));
        }
        if self.kind() == FaultKind::BadMethod {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        if self.final_answer() {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if close && self.closes() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn body(&self, shape: ErrorShape) -> Bytes {
        let message = format!("tidegate: {self}");
        let code = format!("tidegate_{}", self.kind().label());
        let status = self.status();
        let value = match shape {
            // The family's own words: clients know them, and stop.
            ErrorShape::Openai if self.kind() == FaultKind::Quota => json!({ "error": {
                "message": message, "type": "insufficient_quota", "param": null, "code": "insufficient_quota",
            }}),
            ErrorShape::Openai => json!({ "error": {
                "message": message, "type": "tidegate_error", "param": null, "code": code,
            }}),
            ErrorShape::Anthropic => {
                let kind = match status {
                    StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
                    StatusCode::NOT_FOUND => "not_found_error",
                    StatusCode::GATEWAY_TIMEOUT => "timeout_error",
                    StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
                    status if status.is_client_error() => "invalid_request_error",
                    _ => "api_error",
                };
                json!({ "type": "error", "error": { "type": kind, "message": message, "code": code } })
            }
            ErrorShape::Gemini => {
                let name = match status {
                    StatusCode::TOO_MANY_REQUESTS => "RESOURCE_EXHAUSTED",
                    StatusCode::NOT_FOUND => "NOT_FOUND",
                    StatusCode::GATEWAY_TIMEOUT => "DEADLINE_EXCEEDED",
                    StatusCode::SERVICE_UNAVAILABLE | StatusCode::BAD_GATEWAY => "UNAVAILABLE",
                    _ => "INVALID_ARGUMENT",
                };
                json!({ "error": { "code": status.as_u16(), "message": message, "status": name } })
            }
        };
        Bytes::from(value.to_string())
    }
}

fn seconds(duration: &Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_whole_seconds_between_1_and_59() {
        for (millis, want) in [(0, 1), (1, 1), (1_000, 1), (1_001, 2), (58_100, 59), (3_600_000, 59)] {
            let fault = Fault::QueueFull { depth_max: 3, retry_after: Duration::from_millis(millis) };
            let response = fault.response(ErrorShape::Openai, &Method::POST, true);
            assert_eq!(response.status(), 429);
            assert_eq!(response.headers()["retry-after"], want.to_string(), "{millis}");
            assert!(response.headers().contains_key("retry-after-ms"));
        }
    }

    #[test]
    fn every_fault_has_a_body_in_every_shape_and_none_for_head() {
        let second = Duration::from_secs(1);
        let faults = [
            Fault::BadBody,
            Fault::BadHead("x"),
            Fault::BadMethod,
            Fault::CannotWait { retry_after: second, why: "Retry-After" },
            Fault::Deadline(second),
            Fault::Draining,
            Fault::FirstByteTimeout(second),
            Fault::Internal,
            Fault::LongBody,
            Fault::LongHead,
            Fault::LongTarget,
            Fault::NoRoute,
            Fault::QueueFull { depth_max: 1, retry_after: second },
            Fault::QueueTimeout { waited: second, retry_after: second },
            Fault::Quota { retry_after: second },
            Fault::RequestTimeout,
            Fault::Unreachable(Unreached::Dns),
            Fault::UpstreamProtocol,
        ];
        assert_eq!(faults.each_ref().map(Fault::kind), FaultKind::ALL);
        for fault in faults {
            for (shape, pointer) in [
                (ErrorShape::Openai, "/error/code"),
                (ErrorShape::Anthropic, "/error/type"),
                (ErrorShape::Gemini, "/error/status"),
            ] {
                let response = fault.response(shape, &Method::POST, true);
                let value: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
                assert!(value.pointer(pointer).is_some_and(serde_json::Value::is_string), "{fault:?}");
                assert!(value.pointer("/error/message").is_some(), "{fault:?}");
                assert_eq!(response.headers()["x-tidegate-fault"], fault.kind().label());
                assert!(response.status().is_client_error() || response.status().is_server_error());
                assert!(fault.response(shape, &Method::HEAD, true).body().is_empty());
            }
        }
    }
}
