//! One request at the mock: limits, faults, answer.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;

use crate::clock;

use super::{
    State,
    body::{End, Held, MockBody, Timed},
    ledger::Cause,
    live::{self, Live},
    refuse::{self, plain, refuse},
    settings::{Latency, Settings},
    shapes::{self, Api, Asked},
    slot::{self, Slot, Work},
    websocket,
};

const BODY_BYTES_MAX: usize = 64 << 20;
const SETTINGS_BYTES_MAX: usize = 64 << 10;
/// Time for the rest of a refused request's body.
const DRAIN: Duration = Duration::from_millis(100);
const BYTES: &str = "/v1/bytes/";
const INVALID: &str = "invalid_request_error";
/// Share of the latency before a stream's first piece.
const FIRST_PIECE: f64 = 0.3;
const WELCOME: &str = "tidegate mock: POST /v1/chat/completions, /v1/responses, /v1/embeddings, /v1/messages, /v1/infer; \
                       GET /v1/models, /__ledger, /__settings\n";

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
    let n = state.next();
    let request_id = format!("req_{n:08}");
    let anthropic = Api::of(request.uri().path()).is_some_and(Api::is_anthropic);
    let mut response = route(&state, request, n, &request_id).await?;
    if let Ok(value) = HeaderValue::try_from(request_id) {
        let name = if anthropic { "request-id" } else { "x-request-id" };
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    Ok(response)
}

async fn route(state: &State, request: Request<Incoming>, n: u64, request_id: &str) -> io::Result<Response<MockBody>> {
    let path = request.uri().path().to_owned();
    match (request.method().as_str(), path.as_str()) {
        ("GET" | "HEAD", "/") => Ok(plain(StatusCode::OK, "text/plain", WELCOME.into())),
        ("GET", "/__ledger") => json(&state.snapshot()),
        ("DELETE", "/__ledger") | ("POST", "/__ledger/reset") => {
            state.ledger.lock().clear(clock::now());
            Ok(plain(StatusCode::NO_CONTENT, "text/plain", Bytes::new()))
        }
        ("GET", "/__settings") => json(&Live::from(&**state.settings.load())),
        ("PUT", "/__settings") => {
            let patch = Limited::new(request.into_body(), SETTINGS_BYTES_MAX).collect().await;
            let patch = patch.map_err(io::Error::other)?.to_bytes();
            match state.change(|settings| live::patched(settings, &patch)) {
                Ok(()) => json(&Live::from(&**state.settings.load())),
                Err(why) => Ok(refuse(false, 400, INVALID, None, &why, request_id)),
            }
        }
        ("POST" | "PUT", "/v1/echo") => {
            let kind = request.headers().get(header::CONTENT_TYPE).cloned();
            let mut response = Response::new(MockBody::Echo(request.into_body()));
            if let Some(kind) = kind {
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
            }
            Ok(response)
        }
        ("GET", path) if path.starts_with(BYTES) => Ok(match path.trim_start_matches(BYTES).parse() {
            Ok(count) => Response::new(MockBody::Filler(count)),
            Err(_) => refuse(false, 400, INVALID, None, "use /v1/bytes/N, N being a number", request_id),
        }),
        ("GET", "/v1/realtime") => Ok(websocket::upgrade(request, request_id)),
        (method, path) => match Api::of(path) {
            Some(api) if method == api.method() => answer(state, api, request, n, request_id).await,
            api => Ok(lost(api, path, request_id)),
        },
    }
}

/// There is nothing at this path, or not for this method.
fn lost(api: Option<Api>, path: &str, request_id: &str) -> Response<MockBody> {
    let allow = match path {
        "/" => Some("GET, HEAD"),
        "/__ledger" => Some("DELETE, GET"),
        "/__ledger/reset" => Some("POST"),
        "/__settings" => Some("GET, PUT"),
        "/v1/echo" => Some("POST, PUT"),
        "/v1/realtime" => Some("GET"),
        path if path.starts_with(BYTES) => Some("GET"),
        _ => api.map(Api::method),
    };
    if let Some(allow) = allow {
        let anthropic = api.is_some_and(Api::is_anthropic);
        let mut response = refuse(anthropic, 405, INVALID, None, &format!("use {allow}"), request_id);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        return response;
    }
    let (code, message) = match path.strip_prefix("/v1/models/") {
        Some(model) => ("model_not_found", format!("The model '{model}' does not exist")),
        None => ("unknown_url", format!("unknown path {path}; GET / lists the endpoints")),
    };
    refuse(false, 404, INVALID, Some(code), &message, request_id)
}

/// A request to one of the APIs. What it is answered with does not depend on when its body comes: it is let in or
/// refused by its head.
async fn answer(
    state: &State,
    api: Api,
    request: Request<Incoming>,
    n: u64,
    request_id: &str,
) -> io::Result<Response<MockBody>> {
    let (head, body) = request.into_parts();
    let settings = state.settings.load_full();
    let latency = match head.headers.get("x-mock-latency").map(|value| value.to_str().unwrap_or_default().parse()) {
        None => settings.latency,
        Some(Ok(own)) => own,
        Some(Err(why)) => {
            let why = format!("x-mock-latency: {why}");
            return Ok(refuse(api.is_anthropic(), 400, INVALID, None, &why, request_id));
        }
    };
    let account = state.account(slot::label_of(&head.headers));
    let entered = account.limits.lock().enter(&settings, clock::now());
    let mut response = match entered {
        Ok(()) => {
            let slot = Slot::taken(&account, &state.ledger);
            let call = Call { api, settings: &settings, head: &head, latency, n, request_id };
            work(state, &call, body, slot).await?
        }
        Err(refusal) => {
            state.ledger.lock().refused(&account.label, refusal.cause());
            if !head.headers.contains_key(header::EXPECT) {
                drain(body).await;
            }
            refuse::limited(&settings, api, refusal, request_id)
        }
    };
    account.limits.lock().write(settings.headers, response.headers_mut(), clock::now());
    Ok(response)
}

/// Reads what is on its way already, so that the connection can be used again after the refusal.
async fn drain(mut body: Incoming) {
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    // What takes longer is not waited for: the refusal is to come at once.
    drop(tokio::time::timeout(DRAIN, all).await);
}

/// A request that was let in.
struct Call<'a> {
    api: Api,
    settings: &'a Settings,
    head: &'a Parts,
    latency: Latency,
    n: u64,
    request_id: &'a str,
}

/// Reads its body, charges its tokens, and answers it.
async fn work(state: &State, call: &Call<'_>, body: Incoming, slot: Slot) -> io::Result<Response<MockBody>> {
    let Call { api, head, request_id, .. } = *call;
    let anthropic = api.is_anthropic();
    let body = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            slot.refused(Cause::Invalid);
            return Ok(refuse(anthropic, 413, INVALID, None, "body too large", request_id));
        }
        Err(error) => return Err(io::Error::other(error)),
    };
    let asked = match Asked::read(api, head.uri.path(), &body) {
        Ok(asked) => asked,
        Err(why) => {
            slot.refused(Cause::Invalid);
            return Ok(refuse(anthropic, 400, INVALID, None, &why, request_id));
        }
    };
    if let Err(refusal) = slot.charge(asked.tokens) {
        slot.refused(refusal.cause());
        return Ok(refuse::limited(call.settings, api, refusal, request_id));
    }
    let id = id_of(&head.headers, head.uri.path(), &body);
    let attempt = state.ledger.lock().attempt(&id);
    let output_tokens = asked.output_tokens();
    let service = call.latency.draw(output_tokens, &mut state.rng.lock());
    let fault = fault_of(state, call.settings, &head.headers, attempt);
    serve(state, call, &asked, slot, Work { id, service, output_tokens }, fault).await
}

async fn serve(
    state: &State,
    call: &Call<'_>,
    asked: &Asked,
    slot: Slot,
    work: Work,
    fault: Option<Fault>,
) -> io::Result<Response<MockBody>> {
    let Call { api, n, request_id, .. } = *call;
    match fault {
        Some(Fault::Quota) => {
            slot.refused(Cause::Quota);
            return Ok(refuse::spent(api.is_anthropic(), request_id));
        }
        Some(Fault::Status(status)) => {
            slot.refused(Cause::Fault);
            return Ok(refuse(api.is_anthropic(), status, "server_error", None, "failed on purpose", request_id));
        }
        Some(Fault::ResetBefore) => {
            slot.refused(Cause::Fault);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Some(Fault::Stall) => {
            std::future::pending::<()>().await;
        }
        Some(Fault::ResetInside) | None => {}
    }
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let end = if fault == Some(Fault::ResetInside) { End::Broken } else { End::Clean };
    let (working, began) = state.clock.begin(clock::now());
    let service = work.service;
    let held = Some(Held { slot, work, _working: working });
    let timed = |pieces| MockBody::Timed(Timed { pieces, end, clock: Arc::clone(&state.clock), held, timer: None });
    if asked.stream && matches!(api, Api::Chat | Api::Messages | Api::Responses) {
        let pieces = shapes::stream(api, asked, n, created);
        let steps = u32::try_from(pieces.len().saturating_sub(1)).unwrap_or(u32::MAX).max(1);
        let first = service.mul_f64(FIRST_PIECE);
        let gap = service.saturating_sub(first) / steps;
        let kept = if end == End::Clean { pieces.len() } else { pieces.len() / 2 };
        let pieces: VecDeque<_> =
            (0u32..).zip(pieces).map(|(nth, piece)| (began + first + gap * nth, piece)).take(kept).collect();
        state.clock.reach(began + first).await;
        let mut response = Response::new(timed(pieces));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        return Ok(response);
    }
    state.clock.reach(began + service).await;
    let data = Bytes::from(shapes::answer(api, asked, n, created).to_string());
    let length = data.len();
    let kept = if end == End::Clean { data } else { data.slice(..length / 2) };
    let mut response = Response::new(timed(VecDeque::from([(began + service, kept)])));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn fault_of(state: &State, settings: &Settings, headers: &HeaderMap, attempt: u32) -> Option<Fault> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(name) = text("x-mock-fault") {
        let times = text("x-mock-fail-first").and_then(|times| times.parse::<u32>().ok());
        return Fault::named(name).filter(|_| times.is_none_or(|times| attempt <= times));
    }
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

fn id_of(headers: &HeaderMap, path: &str, body: &[u8]) -> String {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text("x-request-id").or_else(|| text("idempotency-key")).unwrap_or_else(|| {
        let mut hasher = DefaultHasher::new();
        (path, body).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    })
}

fn json(value: &impl serde::Serialize) -> io::Result<Response<MockBody>> {
    let page = serde_json::to_vec(value).map_err(io::Error::other)?;
    Ok(plain(StatusCode::OK, "application/json", page.into()))
}
