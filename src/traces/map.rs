//! An exchange in the words of OpenTelemetry's conventions for HTTP and for GenAI; what those have no word for begins with
//! `tidegate.`.

use std::{
    borrow::Cow,
    time::{Duration, Instant, SystemTime},
};

use http::{Method, Version};
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, Value,
    trace::{Event, SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::{control::retry::Failure, metrics::End};

use super::span::{Asked, Attempt, Ended, Exchange};

/// Name of an attempt's event.
const ATTEMPT: &str = "tidegate.attempt";

/// The span of an exchange.
pub(super) fn span(exchange: Exchange, scope: &InstrumentationScope) -> SpanData {
    let by_calendar = |instant: Instant| exchange.at + instant.saturating_duration_since(exchange.began);
    let ended = exchange.ended.as_ref();
    let end_time = ended.map_or(exchange.at, |ended| by_calendar(ended.at));
    let (status, error) = ended.map_or((Status::Unset, None), verdict);
    let mut events = SpanEvents::default();
    events.events = exchange
        .attempts
        .iter()
        .enumerate()
        .map(|(index, attempt)| event(index, attempt, exchange.asked.as_ref(), by_calendar(attempt.left)))
        .collect();
    let attempts = ended.map_or(0, |ended| ended.attempts as usize);
    events.dropped_count = u32::try_from(attempts.saturating_sub(events.events.len())).unwrap_or(u32::MAX);
    let state = exchange.context.state.parse().unwrap_or(TraceState::NONE);
    let context = &exchange.context;
    SpanData {
        span_context: SpanContext::new(context.trace, context.span, TraceFlags::SAMPLED, false, state),
        parent_span_id: context.parent.unwrap_or(SpanId::INVALID),
        parent_span_is_remote: context.parent.is_some(),
        span_kind: SpanKind::Server,
        name: name(&exchange),
        start_time: exchange.at,
        end_time,
        attributes: attributes(&exchange, error),
        dropped_attributes_count: 0,
        events,
        links: SpanLinks::default(),
        status,
        instrumentation_scope: scope.clone(),
    }
}

/// `chat gpt-5`, as the GenAI conventions have it; else `POST /prefix`, or `POST`, as those of HTTP have it.
fn name(exchange: &Exchange) -> Cow<'static, str> {
    let asked = exchange.asked.as_ref();
    if let Some((operation, model)) = asked.and_then(|asked| Some((asked.operation?, asked.model.as_ref()?))) {
        return format!("{operation} {model}").into();
    }
    let method = known(&exchange.method).unwrap_or("HTTP");
    match asked.and_then(|asked| asked.route.as_ref()) {
        Some(route) => format!("{method} {route}").into(),
        None => method.into(),
    }
}

/// The span's status, and `error.type`. What is wrong with a request (4xx) is no failure of its server.
fn verdict(ended: &Ended) -> (Status, Option<Cow<'static, str>>) {
    let what: Option<Cow<'static, str>> = match (ended.fault, ended.end) {
        (Some(fault), _) => Some(fault.label().into()),
        (None, End::Complete | End::Upgraded) if ended.status >= 500 => Some(ended.status.to_string().into()),
        (None, End::Complete | End::Upgraded) => None,
        (None, End::ClientLeft | End::Fault | End::IdleTimeout | End::UpstreamError) => Some(ended.end.label().into()),
    };
    let cut = matches!(ended.end, End::IdleTimeout | End::UpstreamError);
    let status = if cut {
        Status::error(ended.end.label())
    } else if ended.status >= 500 || (ended.status == 0 && ended.fault.is_some()) {
        Status::error("")
    } else {
        Status::Unset
    };
    (status, what)
}

fn attributes(exchange: &Exchange, error: Option<Cow<'static, str>>) -> Vec<KeyValue> {
    let mut told = Told(Vec::with_capacity(30));
    // What else it was, `http.request.method_original`, would be the client's own text, of any length.
    told.add("http.request.method", known(&exchange.method).unwrap_or("_OTHER"));
    told.add("url.path", exchange.path.clone());
    told.add("url.scheme", exchange.scheme);
    told.add("network.protocol.name", "http");
    if let Some(version) = version(exchange.version) {
        told.add("network.protocol.version", version);
    }
    if let Some((host, port)) = &exchange.host {
        told.add("server.address", host.clone());
        told.maybe("server.port", port.map(i64::from));
    }
    told.maybe("error.type", error);
    if let Some(asked) = &exchange.asked {
        told.maybe("http.route", asked.route.clone());
        told.maybe("gen_ai.operation.name", asked.operation);
        told.maybe("gen_ai.provider.name", asked.provider);
        told.maybe("gen_ai.request.model", asked.model.clone());
    }
    told.maybe("gen_ai.response.model", exchange.answered_by.clone());
    if let Some(usage) = &exchange.usage {
        told.add("gen_ai.usage.input_tokens", i64::from(usage.input_tokens));
        told.add("gen_ai.usage.output_tokens", i64::from(usage.output_tokens));
        if usage.cached_tokens > 0 {
            told.add("gen_ai.usage.cache_read.input_tokens", i64::from(usage.cached_tokens));
        }
        if usage.cache_write_tokens > 0 {
            told.add("gen_ai.usage.cache_creation.input_tokens", i64::from(usage.cache_write_tokens));
        }
    }
    if let Some(ended) = &exchange.ended {
        told.maybe("http.response.status_code", (ended.status > 0).then(|| i64::from(ended.status)));
        told.add("http.request.body.size", whole(ended.request_bytes));
        told.add("http.response.body.size", whole(ended.response_bytes));
        if let Some((upstream, account)) = &ended.account {
            told.add("tidegate.upstream", upstream.clone());
            told.add("tidegate.account", account.clone());
        }
        told.add("tidegate.end", ended.end.label());
        told.maybe("tidegate.fault", ended.fault.map(crate::fault::FaultKind::label));
        told.add("tidegate.attempts", i64::from(ended.attempts));
        told.add("tidegate.queue_wait_ms", ms(ended.queued));
        told.add("tidegate.wait_ms", ms(ended.waited));
        told.add("tidegate.upstream_ms", ms(ended.upstream));
    }
    told.0
}

fn event(index: usize, attempt: &Attempt, asked: Option<&Asked>, at: SystemTime) -> Event {
    let mut told = Told(Vec::with_capacity(10));
    told.add("tidegate.attempt.number", index as i64 + 1);
    let outcome = match (attempt.failure, attempt.heard) {
        (Some(failure), _) => failure.label(),
        (None, Some(_)) => "answered",
        (None, None) => "unanswered",
    };
    told.add("tidegate.attempt.outcome", outcome);
    if let Some(Failure::Bounced(attribution)) = attempt.failure {
        told.add("tidegate.attempt.attribution", attribution.label());
    }
    told.add("tidegate.attempt.wait_ms", ms(attempt.waited));
    if index > 0 {
        told.add("http.request.resend_count", index as i64);
    }
    if let Some((when, status)) = attempt.heard {
        told.add("http.response.status_code", i64::from(status.as_u16()));
        told.add("tidegate.attempt.first_byte_ms", ms(when.saturating_duration_since(attempt.left)));
    }
    told.maybe("error.type", attempt.failure.map(Failure::label));
    if let Some(Asked { upstream: (host, port), .. }) = asked {
        told.add("server.address", host.clone());
        told.add("server.port", i64::from(*port));
    }
    Event::new(ATTEMPT, at, told.0, 0)
}

/// Attributes.
struct Told(Vec<KeyValue>);

impl Told {
    fn add(&mut self, key: &'static str, value: impl Into<Value>) {
        self.0.push(KeyValue::new(key, value));
    }

    fn maybe(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.add(key, value);
        }
    }
}

/// A method the conventions know: anybody may send any other.
fn known(method: &Method) -> Option<&'static str> {
    ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"]
        .into_iter()
        .find(|known| *known == method.as_str())
}

fn version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        _ => None,
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn whole(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use http::{Request, StatusCode};

    use super::*;
    use crate::{
        clock,
        config::Config,
        control::{cost::Usage, signals::Attribution},
        fault::FaultKind,
        traces::{Ending, span::recorded},
    };

    const MS: Duration = Duration::from_millis(1);

    fn ending(now: Instant, end: End, status: u16, fault: Option<FaultKind>) -> Ending<'static> {
        Ending {
            at: now,
            end,
            status,
            fault,
            account: Some(("openai", "1a2b3c4d")),
            attempts: 0,
            queued: Duration::ZERO,
            waited: Duration::ZERO,
            upstream: Duration::ZERO,
            request_bytes: 0,
            response_bytes: 0,
        }
    }

    fn told(attributes: &[KeyValue]) -> Vec<(String, String)> {
        attributes.iter().map(|pair| (pair.key.to_string(), pair.value.to_string())).collect()
    }

    fn value(attributes: &[KeyValue], key: &str) -> Option<String> {
        told(attributes).into_iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    fn scope() -> InstrumentationScope {
        InstrumentationScope::builder("tidegate").build()
    }

    #[test]
    fn an_exchange_with_a_retry_has_all_its_attributes() {
        let settings = Config::for_upstream("https://api.openai.com").unwrap().upstreams.remove(0);
        let now = clock::now();
        let request = Request::post("/v1/chat/completions?key=canary")
            .header("host", "127.0.0.1:8080")
            .header("authorization", "Bearer canary")
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .header("tracestate", "vendor=1")
            .body(())
            .unwrap();
        let exchange = recorded(&request, now, |span| {
            span.asked(5 * MS, &settings, "/v1/chat/completions", br#"{"model":"gpt-5","messages":"canary"}"#);
            span.leaves(now + 12 * MS, 12 * MS);
            span.heard(now + 20 * MS, StatusCode::TOO_MANY_REQUESTS);
            span.failed(Failure::Bounced(Attribution::Rate));
            span.leaves(now + 1020 * MS, 1012 * MS);
            span.heard(now + 1100 * MS, StatusCode::OK);
            assert!(span.wants_model());
            span.answered_by("gpt-5-2026");
            span.used(&Usage {
                input_tokens: 9,
                output_tokens: 12,
                cached_tokens: 4,
                cache_write_tokens: 3,
                ..Usage::default()
            });
            span.end(&Ending {
                attempts: 2,
                queued: 7 * MS,
                waited: 1012 * MS,
                upstream: 88 * MS,
                request_bytes: 37,
                response_bytes: 1000,
                ..ending(now + 1500 * MS, End::Complete, 200, None)
            });
        });
        let at = exchange.at;
        let span = span(exchange, &scope());
        assert_eq!(span.name, "chat gpt-5");
        assert_eq!((span.span_kind.clone(), span.status.clone()), (SpanKind::Server, Status::Unset));
        assert_eq!((span.start_time, span.end_time), (at, at + 1500 * MS));
        assert_eq!(span.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((span.parent_span_id.to_string().as_str(), span.parent_span_is_remote), ("00f067aa0ba902b7", true));
        assert_eq!(span.span_context.trace_state().header(), "vendor=1");
        assert!(!format!("{span:?}").contains("canary"), "{span:?}");
        let want = [
            ("http.request.method", "POST"),
            ("url.path", "/v1/chat/completions"),
            ("url.scheme", "http"),
            ("network.protocol.name", "http"),
            ("network.protocol.version", "1.1"),
            ("server.address", "127.0.0.1"),
            ("server.port", "8080"),
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "openai"),
            ("gen_ai.request.model", "gpt-5"),
            ("gen_ai.response.model", "gpt-5-2026"),
            ("gen_ai.usage.input_tokens", "9"),
            ("gen_ai.usage.output_tokens", "12"),
            ("gen_ai.usage.cache_read.input_tokens", "4"),
            ("gen_ai.usage.cache_creation.input_tokens", "3"),
            ("http.response.status_code", "200"),
            ("http.request.body.size", "37"),
            ("http.response.body.size", "1000"),
            ("tidegate.upstream", "openai"),
            ("tidegate.account", "1a2b3c4d"),
            ("tidegate.end", "complete"),
            ("tidegate.attempts", "2"),
            ("tidegate.queue_wait_ms", "7"),
            ("tidegate.wait_ms", "1012"),
            ("tidegate.upstream_ms", "88"),
        ];
        assert_eq!(told(&span.attributes), want.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let [first, second] = span.events.events.as_slice() else { panic!("{:?}", span.events) };
        assert_eq!((first.name.as_ref(), first.timestamp), ("tidegate.attempt", at + 12 * MS));
        let want = [
            ("tidegate.attempt.number", "1"),
            ("tidegate.attempt.outcome", "refused"),
            ("tidegate.attempt.attribution", "rate"),
            ("tidegate.attempt.wait_ms", "7"),
            ("http.response.status_code", "429"),
            ("tidegate.attempt.first_byte_ms", "8"),
            ("error.type", "refused"),
            ("server.address", "api.openai.com"),
            ("server.port", "443"),
        ];
        assert_eq!(told(&first.attributes), want.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let want = [
            ("tidegate.attempt.number", "2"),
            ("tidegate.attempt.outcome", "answered"),
            ("tidegate.attempt.wait_ms", "1000"),
            ("http.request.resend_count", "1"),
            ("http.response.status_code", "200"),
            ("tidegate.attempt.first_byte_ms", "80"),
            ("server.address", "api.openai.com"),
            ("server.port", "443"),
        ];
        assert_eq!(told(&second.attributes), want.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }

    #[test]
    fn how_it_ended_is_told_as_the_conventions_have_it() {
        let request = Request::get("/x").body(()).unwrap();
        let now = clock::now();
        for (end, status, fault, want, error) in [
            (End::Complete, 200, None, Status::Unset, None),
            (End::Complete, 404, None, Status::Unset, None),
            (End::Complete, 500, None, Status::error(""), Some("500")),
            (End::Upgraded, 101, None, Status::Unset, None),
            (End::ClientLeft, 0, None, Status::Unset, Some("client_left")),
            (End::ClientLeft, 200, None, Status::Unset, Some("client_left")),
            (End::IdleTimeout, 200, None, Status::error("idle_timeout"), Some("idle_timeout")),
            (End::UpstreamError, 200, None, Status::error("upstream_error"), Some("upstream_error")),
            (End::Fault, 429, Some(FaultKind::QueueFull), Status::Unset, Some("queue_full")),
            (End::Fault, 503, Some(FaultKind::Unreachable), Status::error(""), Some("unreachable")),
            (End::Fault, 0, Some(FaultKind::Internal), Status::error(""), Some("internal")),
        ] {
            let exchange = recorded(&request, now, |span| span.end(&ending(now, end, status, fault)));
            let span = span(exchange, &scope());
            assert_eq!(
                (&span.status, value(&span.attributes, "error.type").as_deref()),
                (&want, error),
                "{end:?} {status}"
            );
            let code = value(&span.attributes, "http.response.status_code");
            assert_eq!(code, (status > 0).then(|| status.to_string()), "{end:?}");
            assert_eq!((span.name.as_ref(), span.parent_span_id), ("GET", SpanId::INVALID));
        }
    }

    #[test]
    fn an_account_number_in_the_path_is_told_nowhere() {
        let settings = Config::for_upstream("http://127.0.0.1:1").unwrap().upstreams.remove(0);
        let path = "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Ainference-profile%2Fabc/converse";
        let request = Request::post(path).body(()).unwrap();
        let now = clock::now();
        let exchange = recorded(&request, now, |span| {
            span.asked(Duration::ZERO, &settings, path, b"{}");
            span.answered_by("arn:aws:bedrock:us-east-1:123456789012:inference-profile/abc");
            span.end(&ending(now, End::Complete, 200, None));
        });
        let span = span(exchange, &scope());
        assert_eq!(span.name, "POST");
        assert_eq!(value(&span.attributes, "gen_ai.operation.name").as_deref(), Some("chat"));
        assert!(!format!("{span:?}").contains("123456789012"), "{span:?}");
    }

    #[test]
    fn methods_prefixes_and_refusals_without_end_stay_bounded() {
        let mut settings = Config::for_upstream("http://127.0.0.1:1").unwrap().upstreams.remove(0);
        settings.path_prefix = "/openai".to_owned();
        let method = format!("BREW-{}", "X".repeat(4096));
        let request = Request::builder().method(method.as_str()).uri("/openai/v1/x").body(()).unwrap();
        let now = clock::now();
        let exchange = recorded(&request, now, |span| {
            span.asked(Duration::ZERO, &settings, "/openai/v1/x", b"");
            for nth in 0..100 {
                span.leaves(now + nth * MS, nth * MS);
                span.failed(if nth < 64 { Failure::Overload } else { Failure::Broken });
            }
            span.end(&Ending { attempts: 100, ..ending(now, End::ClientLeft, 0, None) });
        });
        let span = span(exchange, &scope());
        assert_eq!(span.name, "HTTP /openai");
        assert_eq!(value(&span.attributes, "http.request.method").as_deref(), Some("_OTHER"));
        assert!(!format!("{:?}", span.attributes).contains("BREW"), "{:?}", span.attributes);
        assert_eq!(value(&span.attributes, "http.route").as_deref(), Some("/openai"));
        assert_eq!((span.events.events.len(), span.events.dropped_count), (64, 36));
        let last = &span.events.events[63].attributes;
        assert_eq!(value(last, "tidegate.attempt.outcome").as_deref(), Some("overload"));
        assert_eq!(value(last, "tidegate.attempt.wait_ms").as_deref(), Some("1"));
    }
}
