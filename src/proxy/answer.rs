//! What a response head means, and the bodies of answers that may lead to another attempt.

use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header, response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::{
    clock,
    control::{
        limit::Outcome,
        retry::Failure,
        signals::{Attribution, Signals},
    },
    provider::{presets::Preset, refusal},
    upstream::Hold,
};

use super::{head, record::Record, relay::OutBody, seen::SeenAnswer};

/// An answer that may lead to another attempt is read up to here; refusals take a few hundred bytes.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// Time such a body may take.
const REFUSAL_READ_MAX: Duration = Duration::from_secs(10);
/// The same for an error that only might be a refusal: what takes longer is passed on as it comes.
const SUSPECT_READ_MAX: Duration = Duration::from_secs(1);
/// An error that is about the request nearly always is read if it is JSON of at most so many bytes.
const SUSPECT_BYTES_MAX: u64 = 16 * 1024;
/// Errors that are about the request nearly always, and some providers' words for "no money" or "too fast".
const SUSPECTS: [StatusCode; 3] = [StatusCode::BAD_REQUEST, StatusCode::PAYMENT_REQUIRED, StatusCode::FORBIDDEN];

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
    if status.is_server_error() {
        Outcome::Failed
    } else if status.is_client_error() {
        Outcome::Ignored
    } else {
        Outcome::Accepted
    }
}

/// Whether an error that is passed on as a rule may be a refusal after all, so that its body has to be read. Nothing
/// that is large or streams is.
#[must_use]
pub(super) fn may_refuse<B: Body>(response: &Response<B>, signals: &Signals) -> bool {
    if !SUSPECTS.contains(&response.status()) {
        return false;
    }
    let kind = response.headers().get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let length = response.body().size_hint().exact();
    let is_bounded = kind != b"text/event-stream" && length.is_none_or(|bytes| bytes <= REFUSAL_BYTES_MAX as u64);
    let is_short_json = || kind.ends_with(b"json") && length.is_some_and(|bytes| bytes <= SUSPECT_BYTES_MAX);
    let told = || signals.retry_after.is_some() || signals.budgets.iter().any(|budget| budget.remaining == 0);
    match response.status() {
        StatusCode::PAYMENT_REQUIRED => is_bounded,
        StatusCode::FORBIDDEN => is_short_json() || (is_bounded && told()),
        StatusCode::BAD_REQUEST => is_short_json(),
        _ => false,
    }
}

/// An answer whose body was read before it is decided what becomes of it.
pub(super) struct Examined {
    /// What failure it is; `None`: none, it is to be passed on.
    pub failure: Option<Failure>,
    /// What it said.
    pub signals: Signals,
    head: response::Parts,
    body: Held,
}

enum Held {
    Whole {
        data: Bytes,
        trailers: Option<Box<HeaderMap>>,
        /// Its length was known from the start.
        announced: bool,
    },
    /// Longer than is held, or slow; the rest comes as it comes.
    Part(Bytes, Box<(Incoming, Hold)>),
}

impl Examined {
    /// Reads the body, tells the limit, and gives the slot back if the answer is complete. `None`: it broke off.
    ///
    /// `failure` is what the head says; of an error that [`may_refuse`] the body has the last word.
    pub(super) async fn read(
        failure: Option<Failure>,
        preset: Preset,
        response: Response<Incoming>,
        mut hold: Hold,
    ) -> Option<Self> {
        let (head, mut body) = response.into_parts();
        let announced = body.size_hint().exact().is_some();
        let patience = if failure.is_some() { REFUSAL_READ_MAX } else { SUSPECT_READ_MAX };
        let read = up_to(&mut body, REFUSAL_BYTES_MAX, patience, hold.is_http1()).await?;
        let said = refusal::read(preset, head.status, &head.headers, &read.data, SystemTime::now());
        let outcome = match (failure, said.attribution) {
            (_, Attribution::Ceiling | Attribution::Rate | Attribution::Quota) if SUSPECTS.contains(&head.status) => {
                Outcome::Bounced(said.attribution)
            }
            (Some(Failure::Bounced(_)), attribution) => Outcome::Bounced(attribution),
            // 503 and its kin are about capacity, whatever else they say.
            (Some(Failure::Overload), _) => Outcome::Overloaded,
            (Some(Failure::Broken | Failure::Server | Failure::TimedOut | Failure::Unreached) | None, _) => {
                outcome_of(head.status)
            }
        };
        let outcome = match hold.permit() {
            Some(permit) => permit.observe(outcome, Some((head.status.as_u16(), &said.signals))),
            None => outcome,
        };
        let failure = match outcome {
            Outcome::Bounced(attribution) => Some(Failure::Bounced(attribution)),
            // A 429 may speak of overload too.
            Outcome::Overloaded => Some(Failure::Overload),
            Outcome::Accepted | Outcome::Failed | Outcome::Ignored => failure,
        };
        let body = if read.whole {
            hold.finish();
            Held::Whole { data: read.data, trailers: read.trailers, announced }
        } else {
            Held::Part(read.data, Box::new((body, hold)))
        };
        Some(Self { failure, signals: said.signals, head, body })
    }

    /// The answer as the client gets it. `spent`: retries were made and did not help, so the client's own would not.
    pub(super) fn into_response(
        self,
        spent: bool,
        idle_max: Option<Duration>,
        end_by: Option<Instant>,
        mut record: Record,
    ) -> Response<OutBody> {
        let mut head = self.head;
        if spent {
            head.headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        }
        record.status = head.status.as_u16();
        let seen = SeenAnswer::of(&head.headers);
        prepare(&mut head, seen);
        let body = match self.body {
            Held::Whole { data, trailers, announced } => {
                record.end = crate::metrics::End::Complete;
                OutBody::held(data, trailers, announced, record)
            }
            Held::Part(prefix, rest) => OutBody::relay(prefix, rest.0, rest.1, idle_max, end_by, record),
        };
        Response::from_parts(head, body)
    }

    /// Lets go of connection and slot, and keeps the answer if it is complete, for the case that it is the last.
    #[must_use]
    pub(super) fn set_aside(self) -> Option<Self> {
        match self.body {
            Held::Whole { .. } => Some(self),
            Held::Part(..) => None,
        }
    }
}

/// Makes an upstream's head fit for the client's connection.
pub(super) fn prepare(head: &mut response::Parts, seen: SeenAnswer) {
    if !seen.is_plain() || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::SWITCHING_PROTOCOLS) {
        head::for_downstream(head.status, &mut head.headers);
    }
    // The client's connection decides; hyper writes what it speaks.
    head.version = Version::HTTP_11;
    drop_unknown_reason(head);
}

/// The length that a 304 tells of what it stands for (RFC 9110 8.6).
#[must_use]
pub(super) fn length_of_absent(head: &response::Parts) -> Option<u64> {
    if head.status != StatusCode::NOT_MODIFIED {
        return None;
    }
    head.headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
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

/// What was read of a body.
struct Read {
    data: Bytes,
    trailers: Option<Box<HeaderMap>>,
    /// That was all.
    whole: bool,
}

/// Reads until there are more than `max` bytes, for as long as `patience`. `None`: it broke off.
async fn up_to(body: &mut Incoming, max: usize, patience: Duration, http1: bool) -> Option<Read> {
    let until = clock::now() + patience;
    let (mut data, mut trailers) = (BytesMut::new(), None);
    loop {
        match tokio::time::timeout_at(until.into(), body.frame()).await {
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(piece) => data.extend_from_slice(&piece),
                Err(mut frame) => {
                    if let Some(trailers) = frame.trailers_mut() {
                        head::for_trailers(trailers);
                    }
                    trailers = frame.into_trailers().ok().map(Box::new);
                }
            },
            Ok(Some(Err(_))) => return None,
            // HTTP/2's reset with NO_ERROR looks like an end, but the stream knows better.
            Ok(None) => {
                return (http1 || body.is_end_stream()).then(|| Read { data: data.freeze(), trailers, whole: true });
            }
            Err(_elapsed) => return Some(Read { data: data.freeze(), trailers: None, whole: false }),
        }
        if data.len() > max {
            return Some(Read { data: data.freeze(), trailers: None, whole: false });
        }
    }
}

/// The SDKs' own read timeouts, in seconds.
pub(super) const PATIENCE: [&str; 3] = ["x-stainless-read-timeout", "x-stainless-timeout", "x-server-timeout"];

/// When the client gives up by itself, as far as its headers tell.
#[must_use]
pub(super) fn client_patience(headers: &HeaderMap) -> Option<Duration> {
    PATIENCE
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
