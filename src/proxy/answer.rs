//! What a response head means, and the bodies of answers that may lead to another attempt.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{
    control::{
        limit::Outcome,
        retry::Failure,
        signals::{Attribution, Signals},
    },
    provider::refusal,
    upstream::Hold,
};

use super::{head, record::Record, relay::OutBody};

/// An answer that may lead to another attempt is read up to here; refusals take a few hundred bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// Time such a body may take.
const REFUSAL_READ_MAX: Duration = Duration::from_secs(10);

/// Groq's "flex tier at capacity": not processed.
const CAPACITY_EXCEEDED: u16 = 498;
/// Anthropic's "overloaded": not processed.
const OVERLOADED: u16 = 529;

/// What kind of failure a response head is, if it is one that another attempt might mend.
#[must_use]
pub(super) fn failure_of(status: StatusCode, signals: &Signals) -> Option<Failure> {
    match status.as_u16() {
        429 => Some(Failure::Bounced(Attribution::Unknown)),
        503 | CAPACITY_EXCEEDED | OVERLOADED => Some(Failure::Overload),
        500 | 502 | 504 => Some(Failure::Server),
        400.. if signals.should_retry == Some(true) => Some(Failure::Server),
        _ => None,
    }
}

/// What an answer that was not read as a failure tells the limit.
#[must_use]
pub(super) fn outcome_of(status: StatusCode) -> Outcome {
    if status.is_client_error() || status.is_server_error() { Outcome::Ignored } else { Outcome::Accepted }
}

/// An answer that may lead to another attempt, its body read.
pub(super) struct Failing {
    /// What it is.
    pub failure: Failure,
    /// What it said.
    pub signals: Signals,
    head: response::Parts,
    body: Held,
}

enum Held {
    Whole(Bytes),
    /// Longer than is held; the rest comes as it comes.
    Part(Bytes, Box<(Incoming, Hold)>),
}

impl Failing {
    /// Reads the body, tells the limit, and gives the slot back if the answer is complete. `None`: it broke off.
    pub(super) async fn read(failure: Failure, response: Response<Incoming>, mut hold: Hold) -> Option<Self> {
        let (head, mut body) = response.into_parts();
        let (data, whole) =
            tokio::time::timeout(REFUSAL_READ_MAX, up_to(&mut body, REFUSAL_BYTES_MAX, hold.is_http1()))
                .await
                .ok()??;
        let said = refusal::read(head.status, &head.headers, &data, SystemTime::now());
        let attribution = match failure {
            Failure::Bounced(_) => Some(said.attribution),
            // 503 and its kin are about capacity, whatever else they say.
            Failure::Overload => Some(Attribution::Overload),
            Failure::Broken | Failure::Server | Failure::TimedOut | Failure::Unreached => None,
        };
        let (failure, outcome) = match (failure, attribution) {
            (Failure::Bounced(_), Some(attribution)) => (Failure::Bounced(attribution), Outcome::Bounced(attribution)),
            (Failure::Overload, _) => (failure, Outcome::Overloaded),
            (failure, _) => (failure, Outcome::Ignored),
        };
        if let Some(permit) = hold.permit() {
            permit.observe(outcome);
            let gate = Arc::clone(permit.gate());
            gate.note_signals(&said.signals, attribution.map(|attribution| (attribution, head.status.as_u16())));
            if let Some(attribution) = attribution {
                gate.metrics.refused(attribution);
            }
        }
        let body = if whole {
            hold.finish();
            Held::Whole(data)
        } else {
            Held::Part(data, Box::new((body, hold)))
        };
        Some(Self { failure, signals: said.signals, head, body })
    }

    /// The answer as the client gets it. `spent`: retries were made and did not help, so the client's own would not.
    pub(super) fn into_response(
        self,
        spent: bool,
        idle_max: Option<Duration>,
        end_by: Option<Instant>,
        mut record: Box<Record>,
    ) -> Response<OutBody> {
        let mut head = self.head;
        if spent {
            head.headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        }
        record.status = head.status.as_u16();
        prepare(&mut head);
        let body = match self.body {
            Held::Whole(data) => {
                record.end = crate::metrics::End::Complete;
                OutBody::full(data, record)
            }
            Held::Part(prefix, rest) => OutBody::relay(prefix, rest.0, rest.1, idle_max, end_by, record),
        };
        Response::from_parts(head, body)
    }

    /// Lets go of connection and slot, and keeps the answer if it is complete, for the case that it is the last.
    #[must_use]
    pub(super) fn set_aside(self) -> Option<Self> {
        match self.body {
            Held::Whole(_) => Some(self),
            Held::Part(..) => None,
        }
    }
}

/// Makes an upstream's head fit for the client's connection.
pub(super) fn prepare(head: &mut response::Parts) {
    head::for_downstream(head.status, &mut head.headers);
    // The client's connection decides; hyper writes what it speaks.
    head.version = Version::HTTP_11;
    drop_unknown_reason(head);
}

/// A reason phrase that is no text would break the status line.
fn drop_unknown_reason(head: &mut response::Parts) {
    let odd = head
        .extensions
        .get::<hyper::ext::ReasonPhrase>()
        .is_some_and(|phrase| !phrase.as_bytes().iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~')));
    if odd {
        head.extensions.remove::<hyper::ext::ReasonPhrase>();
    }
}

/// Reads up to `max` bytes; the flag says whether that was all. `None`: it broke off.
async fn up_to(body: &mut Incoming, max: usize, http1: bool) -> Option<(Bytes, bool)> {
    let mut data = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame.ok()?.into_data() {
            data.extend_from_slice(&piece);
        }
        if data.len() > max {
            return Some((data.freeze(), false));
        }
    }
    // HTTP/2's reset with NO_ERROR looks like an end, but the stream knows better.
    (http1 || body.is_end_stream()).then(|| (data.freeze(), true))
}

/// When the client gives up by itself, as far as its headers tell: the SDKs' own read timeouts, in seconds.
#[must_use]
pub(super) fn client_patience(headers: &HeaderMap) -> Option<Duration> {
    ["x-stainless-read-timeout", "x-stainless-timeout", "x-server-timeout"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok()?.trim().parse::<f64>().ok())
        .filter(|seconds| seconds.is_finite() && *seconds > 0.0)
        .map(|seconds| Duration::from_secs_f64(seconds.min(86_400.0)))
        .min()
        // Answered a moment before it gives up, it learns the reason.
        .map(|patience| patience - (patience / 10).min(Duration::from_secs(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_sorted_into_failures() {
        let none = Signals::default();
        let asked = Signals { should_retry: Some(true), ..none };
        for (status, signals, want) in [
            (200, none, None),
            (200, asked, None),
            (304, none, None),
            (400, none, None),
            (409, none, None),
            (409, asked, Some(Failure::Server)),
            (429, none, Some(Failure::Bounced(Attribution::Unknown))),
            (498, none, Some(Failure::Overload)),
            (500, none, Some(Failure::Server)),
            (501, none, None),
            (503, none, Some(Failure::Overload)),
            (529, none, Some(Failure::Overload)),
        ] {
            assert_eq!(failure_of(StatusCode::from_u16(status).unwrap(), &signals), want, "{status}");
        }
    }

    #[test]
    fn the_clients_patience_is_read_from_whatever_sdk_header_it_sends() {
        for (name, value, want_ms) in [
            ("x-stainless-read-timeout", "600.0", Some(599_000)),
            ("x-stainless-timeout", "5", Some(4_500)),
            ("x-server-timeout", "0.1", Some(90)),
            ("x-stainless-timeout", "NOT_GIVEN", None),
            ("x-stainless-timeout", "-1", None),
            ("x-stainless-timeout", "inf", None),
            ("accept", "5", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert_eq!(client_patience(&headers).map(|d| d.as_millis()), want_ms, "{name}: {value}");
        }
    }
}
