//! One request at the mock: limits, faults, answer.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::clock;

use super::{
    State,
    body::{End, MockBody, Slot, Timed},
    limits::{self, Refusal},
    settings::{Latency, RetryAfterForm},
    shapes::{self, Api, Asked},
    websocket,
};

const BODY_BYTES_MAX: usize = 64 << 20;
/// Share of the latency before a stream's first piece.
const FIRST_PIECE: f64 = 0.3;
const WELCOME: &str = "tidegate mock: POST /v1/chat/completions, /v1/responses, /v1/embeddings, /v1/messages, /v1/infer; \
                       GET /v1/models, /__ledger\n";

/// What goes wrong with a request, if anything does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Quota,
    ResetBefore,
    ResetInside,
    Stall,
    Status(u16),
}

impl Fault {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "quota" => Self::Quota,
            "reset-before" => Self::ResetBefore,
            "reset-inside" => Self::ResetInside,
            "stall" => Self::Stall,
            status => Self::Status(status.parse().ok().filter(|status| (400..600).contains(status))?),
        })
    }
}

/// Answers one request. An error breaks the connection, which is what some faults ask for.
pub(super) async fn handle(state: Arc<State>, request: Request<Incoming>) -> io::Result<Response<MockBody>> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET | &Method::HEAD, "/") => Ok(plain(StatusCode::OK, "text/plain", WELCOME.into())),
        (&Method::GET, "/__ledger") => {
            let snapshot = state.ledger.lock().snapshot(state.settings.ceiling);
            let page = serde_json::to_vec(&snapshot).map_err(io::Error::other)?;
            Ok(plain(StatusCode::OK, "application/json", page.into()))
        }
        (&Method::DELETE, "/__ledger") | (&Method::POST, "/__ledger/reset") => {
            state.ledger.lock().clear();
            Ok(plain(StatusCode::NO_CONTENT, "text/plain", Bytes::new()))
        }
        (&Method::POST | &Method::PUT, "/v1/echo") => {
            let kind = request.headers().get(header::CONTENT_TYPE).cloned();
            let mut response = Response::new(MockBody::Echo(request.into_body()));
            if let Some(kind) = kind {
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
            }
            Ok(response)
        }
        (&Method::GET, path) if path.starts_with("/v1/bytes/") => {
            let count = path.trim_start_matches("/v1/bytes/").parse().unwrap_or(0);
            Ok(Response::new(MockBody::Filler(count)))
        }
        (&Method::GET, "/v1/realtime") => Ok(realtime(request)),
        _ => match Api::of(&path) {
            Some(api) if request.method().as_str() != api.method() => {
                Ok(refuse(api.is_anthropic(), 405, "invalid_request_error", None, &format!("use {}", api.method()), ""))
            }
            Some(api) => answer(state, api, request).await,
            None => {
                let message = format!("unknown path {path}; GET / lists the endpoints");
                Ok(refuse(false, 404, "invalid_request_error", Some("unknown_url"), &message, ""))
            }
        },
    }
}

async fn answer(state: Arc<State>, api: Api, request: Request<Incoming>) -> io::Result<Response<MockBody>> {
    let (head, body) = request.into_parts();
    let n = state.next();
    let request_id = format!("req_{n:08}");
    let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            return Ok(refuse(api.is_anthropic(), 413, "invalid_request_error", None, "body too large", &request_id));
        }
    };
    let asked = match Asked::read(api, &body) {
        Ok(asked) => asked,
        Err(why) => return Ok(refuse(api.is_anthropic(), 400, "invalid_request_error", None, &why, &request_id)),
    };
    let key = key_of(&head.headers);
    let id = id_of(&head.headers, head.uri.path(), &body);
    let attempt = state.ledger.lock().attempt(&id);
    let keyed = state.limits_of(&key);
    let now = clock::now();
    let tokens = if matches!(api, Api::Models | Api::CountTokens) { 0 } else { asked.tokens };
    let entered = keyed.lock().enter(&state.settings, tokens, now);
    let mut response = match entered {
        Err(refusal) => {
            let mut ledger = state.ledger.lock();
            let refused = &mut ledger.key(&shortened(&key)).refused;
            match refusal {
                Refusal::Ceiling { .. } => refused.ceiling += 1,
                Refusal::Requests { .. } | Refusal::Tokens { .. } => refused.rate += 1,
            }
            limited(&state, api, refusal, &request_id)
        }
        Ok(()) => {
            let service = service_time(&state, &head.headers, &asked);
            state.ledger.lock().let_in(&shortened(&key), now);
            let slot = Slot {
                key: shortened(&key),
                id,
                service,
                limits: Arc::clone(&keyed),
                ledger: Arc::clone(&state.ledger),
                done: false,
            };
            serve(&state, api, &asked, slot, fault_of(&state, &head.headers, attempt), n, &request_id).await?
        }
    };
    let headers = response.headers_mut();
    keyed.lock().write(state.settings.headers, headers, clock::now());
    if let Ok(value) = HeaderValue::try_from(request_id) {
        let name = if api.is_anthropic() { "request-id" } else { "x-request-id" };
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(response)
}

async fn serve(
    state: &State,
    api: Api,
    asked: &Asked,
    mut slot: Slot,
    fault: Option<Fault>,
    n: u64,
    request_id: &str,
) -> io::Result<Response<MockBody>> {
    let began = clock::now();
    let service = slot.service;
    let failed = |slot: &mut Slot, quota: bool| {
        let mut ledger = state.ledger.lock();
        let refused = &mut ledger.key(&slot.key).refused;
        if quota {
            refused.quota += 1;
        } else {
            refused.fault += 1;
        }
        // Refused on purpose: nobody left.
        slot.done = true;
    };
    match fault {
        Some(Fault::Quota) => {
            failed(&mut slot, true);
            return Ok(spent(api.is_anthropic(), request_id));
        }
        Some(Fault::Status(status)) => {
            failed(&mut slot, false);
            return Ok(refuse(api.is_anthropic(), status, "server_error", None, "failed on purpose", request_id));
        }
        Some(Fault::ResetBefore) => {
            failed(&mut slot, false);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Some(Fault::Stall) => {
            std::future::pending::<()>().await;
        }
        Some(Fault::ResetInside) | None => {}
    }
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let end = if fault == Some(Fault::ResetInside) { End::Broken } else { End::Clean };
    if asked.stream && matches!(api, Api::Chat | Api::Messages | Api::Responses) {
        let pieces = shapes::stream(api, asked, n, created);
        let steps = u32::try_from(pieces.len().saturating_sub(1)).unwrap_or(u32::MAX).max(1);
        let first = service.mul_f64(FIRST_PIECE);
        let gap = service.saturating_sub(first) / steps;
        let kept = if end == End::Clean { pieces.len() } else { pieces.len() / 2 };
        let pieces: VecDeque<_> =
            (0u32..).zip(pieces).map(|(nth, piece)| (began + first + gap * nth, piece)).take(kept).collect();
        tokio::time::sleep_until((began + first).into()).await;
        let body = MockBody::Timed(Timed { pieces, end, slot: Some(slot), timer: None });
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        return Ok(response);
    }
    tokio::time::sleep_until((began + service).into()).await;
    let data = Bytes::from(shapes::answer(api, asked, n, created).to_string());
    if end == End::Broken {
        let half = data.slice(..data.len() / 2);
        let pieces = VecDeque::from([(clock::now(), half)]);
        let mut response = Response::new(MockBody::Timed(Timed { pieces, end, slot: Some(slot), timer: None }));
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(data.len()));
        return Ok(response);
    }
    let length = data.len();
    let pieces = VecDeque::from([(clock::now(), data)]);
    let mut response = Response::new(MockBody::Timed(Timed { pieces, end, slot: Some(slot), timer: None }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn service_time(state: &State, headers: &HeaderMap, asked: &Asked) -> Duration {
    let own = headers.get("x-mock-latency").and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    let latency: Latency = own.unwrap_or(state.settings.latency);
    latency.draw(asked.output_tokens(), &mut state.rng.lock())
}

fn fault_of(state: &State, headers: &HeaderMap, attempt: u32) -> Option<Fault> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(name) = text("x-mock-fault") {
        let times = text("x-mock-fail-first").and_then(|times| times.parse::<u32>().ok());
        return Fault::named(name).filter(|_| times.is_none_or(|times| attempt <= times));
    }
    let settings = &state.settings;
    let mut dice = state.rng.lock().unit();
    for (share, fault) in [
        (settings.error_rate, Fault::Status(settings.error_status)),
        (settings.reset_rate, Fault::ResetBefore),
        (settings.truncate_rate, Fault::ResetInside),
        (settings.stall_rate, Fault::Stall),
    ] {
        if dice < share {
            return Some(fault);
        }
        dice -= share;
    }
    None
}

fn limited(state: &State, api: Api, refusal: Refusal, request_id: &str) -> Response<MockBody> {
    let (kind, message, form, wait) = match refusal {
        Refusal::Ceiling { limit } => (
            "rate_limit_error",
            format!(
                "Number of concurrent requests has exceeded your rate limit of {limit}. Try again when one has ended."
            ),
            state.settings.retry_after.unwrap_or(RetryAfterForm::None),
            Duration::from_secs(1),
        ),
        Refusal::Requests { limit, wait } => (
            "requests",
            format!(
                "Rate limit reached for requests per min (RPM): Limit {limit}. Please try again in {}.",
                limits::go_duration(wait)
            ),
            state.settings.retry_after.unwrap_or(RetryAfterForm::Seconds),
            wait,
        ),
        Refusal::Tokens { limit, wait } => (
            "tokens",
            format!(
                "Rate limit reached for tokens per min (TPM): Limit {limit}. Please try again in {}.",
                limits::go_duration(wait)
            ),
            state.settings.retry_after.unwrap_or(RetryAfterForm::Seconds),
            wait,
        ),
    };
    let code = (!api.is_anthropic()).then_some("rate_limit_exceeded");
    let mut response = refuse(api.is_anthropic(), 429, kind, code, &message, request_id);
    limits::write_delay(form, wait, response.headers_mut());
    response
}

/// The account's money is gone: the 429 that waiting does not help.
fn spent(anthropic: bool, request_id: &str) -> Response<MockBody> {
    if anthropic {
        let code = Some("enforced_spend_limit_reached");
        refuse(true, 429, "rate_limit_error", code, "Your spend limit has been reached.", request_id)
    } else {
        let code = "insufficient_quota";
        let message = "You exceeded your current quota, please check your plan and billing details.";
        refuse(false, 429, code, Some(code), message, request_id)
    }
}

fn refuse(
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

fn plain(status: StatusCode, kind: &'static str, data: Bytes) -> Response<MockBody> {
    let mut response = Response::new(MockBody::Full(Some(data)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// 101, then every message is sent back.
fn realtime(mut request: Request<Incoming>) -> Response<MockBody> {
    let websocket =
        request.headers().get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned().filter(|_| websocket) else {
        return refuse(false, 426, "invalid_request_error", None, "this endpoint is a WebSocket", "");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // A client that breaks off ends the echo.
            drop(websocket::echo(TokioIo::new(upgraded)).await);
        }
    });
    let mut response = Response::new(MockBody::Full(None));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let digest = {
        use sha1::{Digest, Sha1};
        let guid = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
        Sha1::new().chain_update(key.as_bytes()).chain_update(guid).finalize()
    };
    if let Ok(accept) = HeaderValue::try_from(shapes::to_base64(&digest)) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

fn key_of(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let token = text("authorization").map(|value| value.split_once(' ').map_or(value, |(_, token)| token));
    token.or_else(|| text("x-api-key")).or_else(|| text("api-key")).unwrap_or("anonymous").to_owned()
}

/// Keys are shown by their last four characters only.
fn shortened(key: &str) -> String {
    if key == "anonymous" {
        return key.to_owned();
    }
    let tail: Vec<char> = key.chars().rev().take(4).collect();
    format!("…{}", tail.into_iter().rev().collect::<String>())
}

fn id_of(headers: &HeaderMap, path: &str, body: &[u8]) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text("x-request-id").or_else(|| text("idempotency-key")).unwrap_or_else(|| {
        let mut hasher = DefaultHasher::new();
        (path, body).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    })
}
