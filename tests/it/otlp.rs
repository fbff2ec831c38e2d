//! Spans, as a collector gets them: what is decoded here is what was on the wire.

use std::{collections::BTreeMap, io::Read, sync::Arc, time::Duration};

use rustix::process::Signal;
use tidegate::config::Otlp;

use crate::support::{
    Folder, Issuer, Process, Proxy, Reply, Seen, Step, TlsUpstream, Upstream, metric, soon, wait_until,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

/// A field of a protobuf message: its number, and its bytes or its number.
#[derive(Debug, Clone)]
enum Field {
    Bytes(u64, Vec<u8>),
    Number(u64, u64),
}

/// The fields of a message, in their order. Written from the encoding's description, so that it is not our own exporter's
/// library that says the exporter is right.
fn fields(mut message: &[u8]) -> Vec<Field> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = message.split_first().unwrap();
            *message = rest;
            value |= u64::from(byte & 127) << shift;
            if byte & 128 == 0 {
                break;
            }
        }
        value
    }
    fn taken<'a>(message: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, rest) = message.split_at(count);
        *message = rest;
        taken
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let number = tag >> 3;
        found.push(match tag & 7 {
            0 => Field::Number(number, varint(&mut message)),
            1 => Field::Number(number, u64::from_le_bytes(taken(&mut message, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut message) as usize;
                Field::Bytes(number, taken(&mut message, length).to_vec())
            }
            5 => Field::Number(number, u64::from(u32::from_le_bytes(taken(&mut message, 4).try_into().unwrap()))),
            other => panic!("wire type {other}"),
        });
    }
    found
}

fn all(message: &[u8], wanted: u64) -> Vec<Vec<u8>> {
    let bytes = |field| match field {
        Field::Bytes(number, bytes) if number == wanted => Some(bytes),
        Field::Bytes(..) | Field::Number(..) => None,
    };
    fields(message).into_iter().filter_map(bytes).collect()
}

fn text(message: &[u8], wanted: u64) -> String {
    String::from_utf8(all(message, wanted).pop().unwrap_or_default()).unwrap()
}

fn hex(message: &[u8], wanted: u64) -> String {
    all(message, wanted).concat().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn number(message: &[u8], wanted: u64) -> u64 {
    let value = |field| match field {
        Field::Number(number, value) if number == wanted => Some(value),
        Field::Bytes(..) | Field::Number(..) => None,
    };
    fields(message).into_iter().find_map(value).unwrap_or_default()
}

type Attributes = BTreeMap<String, String>;

fn attributes(message: &[u8], wanted: u64) -> Attributes {
    let pair = |pair: Vec<u8>| {
        let value = fields(&all(&pair, 2).concat()).pop();
        let value = match value {
            Some(Field::Bytes(1, text)) => String::from_utf8(text).unwrap(),
            Some(Field::Number(2, flag)) => (flag == 1).to_string(),
            Some(Field::Number(3, number)) => number.to_string(),
            Some(Field::Number(4, bits)) => f64::from_bits(bits).to_string(),
            other => panic!("{other:?}"),
        };
        (text(&pair, 1), value)
    };
    all(message, wanted).into_iter().map(pair).collect()
}

#[derive(Debug, Clone)]
struct Span {
    resource: Attributes,
    trace: String,
    id: String,
    state: String,
    parent: String,
    name: String,
    kind: u64,
    start: u64,
    end: u64,
    attributes: Attributes,
    events: Vec<(String, u64, Attributes)>,
    status: u64,
    flags: u64,
}

impl Span {
    fn get(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

/// The spans of an `ExportTraceServiceRequest`.
fn spans(request: &[u8]) -> Vec<Span> {
    let mut found = Vec::new();
    for group in all(request, 1) {
        let resource = attributes(&all(&group, 1).concat(), 1);
        for scope in all(&group, 2) {
            assert_eq!(text(&all(&scope, 1).concat(), 1), "tidegate");
            for span in all(&scope, 2) {
                let event = |event: Vec<u8>| (text(&event, 2), number(&event, 1), attributes(&event, 3));
                found.push(Span {
                    resource: resource.clone(),
                    trace: hex(&span, 1),
                    id: hex(&span, 2),
                    state: text(&span, 3),
                    parent: hex(&span, 4),
                    name: text(&span, 5),
                    kind: number(&span, 6),
                    start: number(&span, 7),
                    end: number(&span, 8),
                    attributes: attributes(&span, 9),
                    events: all(&span, 11).into_iter().map(event).collect(),
                    status: number(&all(&span, 15).concat(), 3),
                    flags: number(&span, 16),
                });
            }
        }
    }
    found
}

/// An OTLP endpoint.
struct Collector(Arc<Upstream>);

impl Collector {
    async fn start() -> Self {
        Self::answering(|_| Reply::new(200, "content-type: application/x-protobuf\r\n", "")).await
    }

    async fn answering(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self(Arc::new(Upstream::start(script).await))
    }

    /// All spans so far, in the order of their beginning.
    fn spans(&self) -> Vec<Span> {
        let plain = |seen: &Seen| match seen.header("content-encoding").as_slice() {
            ["gzip"] => {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(seen.body.as_slice()).read_to_end(&mut plain).unwrap();
                plain
            }
            _ => seen.body.clone(),
        };
        let mut found: Vec<Span> = self.0.seen().iter().flat_map(|seen| spans(&plain(seen))).collect();
        found.sort_by_key(|span| span.start);
        found
    }

    async fn spans_once_there_are(&self, count: usize) -> Vec<Span> {
        wait_until("the collector has the spans", || self.spans().len() >= count).await;
        let spans = self.spans();
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    fn settings(&self) -> Otlp {
        otlp(&self.0.url())
    }
}

fn otlp(url: &str) -> Otlp {
    Otlp { endpoint: url.parse().unwrap(), sample: 1.0, headers: Vec::new(), service_name: "a proxy".to_owned() }
}

fn traced(url: &str, otlp: Otlp) -> Proxy {
    Proxy::configured(url, |config| {
        config.otlp = Some(otlp);
        config.upstreams[0].name = "up".to_owned();
        config.upstreams[0].retry.backoff_base = Duration::from_millis(20);
        config.upstreams[0].retry.backoff_jitter = Duration::from_millis(1);
    })
}

async fn dropped(proxy: &Proxy, reason: &str) -> f64 {
    let page = proxy.admin("/metrics").await.text();
    metric(&page, "tidegate_spans_dropped_total", &[&format!("reason=\"{reason}\"")]).unwrap()
}

#[tokio::test]
async fn one_span_per_exchange_with_its_attempts_as_events() {
    let collector = Collector::start().await;
    let upstream = Upstream::start(|seen| match seen.nth {
        0 => Reply::new(503, "", "busy"),
        1 => Reply::new(
            200,
            "content-type: application/json\r\n",
            r#"{"usage":{"prompt_tokens":9,"completion_tokens":12}}"#,
        ),
        _ => Reply::new(404, "", "none"),
    })
    .await;
    let proxy = traced(&upstream.url(), collector.settings());
    let headers = format!(
        "authorization: Bearer canary-key\r\ntraceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: vendor=1\r\ncookie: canary\r\n"
    );
    let body = r#"{"model":"gpt-5","messages":[{"role":"user","content":"canary-prompt"}]}"#;
    assert_eq!(proxy.post("/v1/chat/completions?key=canary-query", &headers, body).await.status, 200);
    let mut client = proxy.client().await;
    client.send(format!("GET /v1/threads/canary7/runs HTTP/1.1\r\nhost: {}\r\n\r\n", proxy.addr)).await;
    assert_eq!(client.response().await.status, 404);
    let found = collector.spans_once_there_are(2).await;

    let chat = &found[0];
    assert_eq!((chat.trace.as_str(), chat.parent.as_str(), chat.state.as_str()), (TRACE, SPAN, "vendor=1"));
    assert!(chat.id.len() == 16 && chat.id != SPAN);
    // Server; sampled, and its parent is remote; unset.
    assert_eq!((chat.name.as_str(), chat.kind, chat.flags, chat.status), ("chat gpt-5", 2, 0x301, 0));
    assert_eq!(chat.resource["service.name"], "a proxy");
    assert!(chat.end > chat.start, "{chat:?}");
    let (own, up) = (proxy.addr.port().to_string(), upstream.addr.port().to_string());
    for (key, want) in [
        ("http.request.method", "POST"),
        ("url.path", "/v1/chat/completions"),
        ("url.scheme", "http"),
        ("http.response.status_code", "200"),
        ("server.address", "localhost"),
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "gpt-5"),
        ("gen_ai.usage.input_tokens", "9"),
        ("gen_ai.usage.output_tokens", "12"),
        ("tidegate.upstream", "up"),
        ("tidegate.end", "complete"),
        ("tidegate.attempts", "2"),
        ("error.type", ""),
    ] {
        assert_eq!(chat.get(key), want, "{key} in {chat:#?}");
    }
    assert!(chat.get("tidegate.wait_ms").parse::<f64>().unwrap() >= 20.0, "{chat:#?}");
    let [(first, left, failed), (second, left_again, answered)] = chat.events.as_slice() else { panic!("{chat:#?}") };
    assert_eq!((first.as_str(), second.as_str()), ("tidegate.attempt", "tidegate.attempt"));
    assert!(chat.start <= *left && left < left_again && *left_again <= chat.end, "{chat:#?}");
    for (of, key, want) in [
        (failed, "tidegate.attempt.number", "1"),
        (failed, "tidegate.attempt.outcome", "overload"),
        (failed, "http.response.status_code", "503"),
        (failed, "server.address", "127.0.0.1"),
        (failed, "server.port", &up),
        (answered, "tidegate.attempt.number", "2"),
        (answered, "tidegate.attempt.outcome", "answered"),
        (answered, "http.response.status_code", "200"),
        (answered, "http.request.resend_count", "1"),
    ] {
        assert_eq!(of[key], want, "{key} in {chat:#?}");
    }
    assert!(answered["tidegate.attempt.wait_ms"].parse::<f64>().unwrap() >= 20.0, "{chat:#?}");

    let other = &found[1];
    assert!(other.trace.len() == 32 && other.trace != TRACE && other.parent.is_empty(), "{other:#?}");
    assert_eq!((other.name.as_str(), other.get("url.path"), other.status), ("GET", "/v1/threads/*/runs", 0));
    assert_eq!((other.get("http.response.status_code"), other.get("gen_ai.operation.name")), ("404", ""));
    assert_eq!((other.get("server.address"), other.get("server.port")), ("127.0.0.1", own.as_str()), "{other:#?}");
    assert_eq!(other.events[0].2["server.port"], up, "{other:#?}");
    assert!(!format!("{found:?}").contains("canary"), "{found:#?}");

    for seen in collector.0.seen() {
        assert_eq!(seen.line(), "POST /v1/traces HTTP/1.1");
        assert_eq!(seen.header("content-type"), ["application/x-protobuf"]);
    }
    // What went upstream is the client's own.
    assert_eq!(upstream.seen()[1].header("traceparent"), [format!("00-{TRACE}-{SPAN}-01")]);
}

#[tokio::test]
async fn the_time_in_the_queue_is_told() {
    let collector = Collector::start().await;
    let upstream = Upstream::start(|_| Reply::ok("fine").held()).await;
    let proxy = Proxy::configured(&upstream.url(), |config| {
        config.otlp = Some(collector.settings());
        config.upstreams[0].ceiling = Some(1);
    });
    let (mut first, mut second) = (proxy.client().await, proxy.client().await);
    first.get("/first").await;
    wait_until("the first is upstream", || upstream.in_flight() == 1).await;
    second.get("/second").await;
    wait_until("the second waits", || proxy.view().queued == 1).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    upstream.release(2);
    assert_eq!(first.response().await.status, 200);
    assert_eq!(second.response().await.status, 200);
    let found = collector.spans_once_there_are(2).await;
    let queued = |span: &Span| span.get("tidegate.queue_wait_ms").parse::<f64>().unwrap();
    assert_eq!((found[0].get("url.path"), found[1].get("url.path")), ("/first", "/second"));
    assert!(queued(&found[1]) >= 30.0 && queued(&found[0]) < queued(&found[1]), "{found:#?}");
}

#[tokio::test]
async fn a_stream_ends_its_span_with_its_last_byte_and_a_client_that_leaves_too() {
    let collector = Collector::start().await;
    let upstream = Upstream::start(|_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let event = "data: {\"model\":\"m-1\",\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5}}\n\n";
        Reply::raw(head)
            .then(Step::Send(format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()))
            .then(Step::Hold)
            .then(Step::Send(b"0\r\n\r\n".to_vec()))
    })
    .await;
    let proxy = traced(&upstream.url(), collector.settings());
    let body = r#"{"model":"m","stream":true}"#;
    let mut client = proxy.client().await;
    client.post("/v1/chat/completions", "", body).await;
    let head = client.head().await;
    let mut leaver = proxy.client().await;
    leaver.post("/v1/chat/completions", "", body).await;
    leaver.head().await;
    leaver.bytes().await;
    drop(leaver);
    let left = collector.spans_once_there_are(1).await.remove(0);
    assert_eq!((left.get("tidegate.end"), left.get("error.type")), ("client_left", "client_left"), "{left:#?}");
    assert_eq!((left.get("http.response.status_code"), left.status), ("200", 0));
    assert_eq!((left.get("gen_ai.response.model"), left.get("gen_ai.usage.input_tokens")), ("m-1", ""), "{left:#?}");
    upstream.release(2);
    assert!(client.rest_of(head).await.complete);
    let found = collector.spans_once_there_are(2).await;
    let whole = found.iter().find(|span| span.get("tidegate.end") == "complete").unwrap();
    assert_eq!((whole.get("gen_ai.usage.input_tokens"), whole.get("gen_ai.usage.output_tokens")), ("3", "5"));
    assert!(whole.end > left.end, "{found:#?}");
}

#[tokio::test]
async fn the_clients_flag_is_obeyed_and_so_is_the_share() {
    let collector = Collector::start().await;
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = traced(&upstream.url(), Otlp { sample: 0.0, ..collector.settings() });
    for flags in ["00", "01", "00"] {
        proxy.post("/x", &format!("traceparent: 00-{TRACE}-{SPAN}-{flags}\r\n"), "{}").await;
    }
    assert_eq!(proxy.get("/x").await.status, 200);
    assert_eq!(proxy.get("/no\u{7f}path").await.status, 400);
    soon("a drain", proxy.app().drain()).await;
    let found = collector.spans();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].trace.as_str(), found[0].name.as_str()), (TRACE, "POST"));
}

#[tokio::test]
async fn what_tidegate_answers_itself_has_a_span_too() {
    let collector = Collector::start().await;
    let proxy = traced("http://127.0.0.1:9", Otlp { service_name: "x".to_owned(), ..collector.settings() });
    let mut client = proxy.client().await;
    client.send("CONNECT a.b:1 HTTP/1.1\r\nhost: a.b:1\r\n\r\n").await;
    let (status, _) = client.head().await;
    let found = collector.spans_once_there_are(1).await;
    assert_eq!(found[0].get("http.response.status_code"), status.to_string());
    assert_eq!((found[0].get("tidegate.end"), found[0].get("error.type")), ("fault", "bad_method"), "{found:#?}");
    assert!(found[0].events.is_empty() && found[0].get("tidegate.upstream").is_empty(), "{found:#?}");
}

#[tokio::test]
async fn a_collector_that_is_away_or_silent_delays_nothing_and_what_it_misses_is_counted() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = traced(&upstream.url(), otlp(&format!("http://{away}")));
    for _ in 0..5 {
        assert_eq!(proxy.get("/x").await.status, 200);
    }
    soon("the loss is counted", async {
        while dropped(&proxy, "export_failed").await < 5.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!((dropped(&proxy, "export_failed").await, dropped(&proxy, "queue_full").await), (5.0, 0.0));

    // One that takes the first batch and says nothing: the queue fills, and nothing else happens.
    let silent = Collector::answering(|_| Reply::ok("").held()).await;
    let proxy = traced(&upstream.url(), silent.settings());
    let mut client = proxy.client().await;
    client.get("/x").await;
    client.response().await;
    wait_until("the collector has the first batch", || silent.0.in_flight() == 1).await;
    for _ in 0..2060 {
        client.get("/x").await;
        assert_eq!(client.response().await.status, 200);
    }
    let full = dropped(&proxy, "queue_full").await;
    assert!((1.0..=13.0).contains(&full), "{full}: 2048 wait, and the batch being sent");
    // And the drain ends, though the collector never answers.
    drop(client);
    soon("a drain", proxy.app().drain()).await;
}

#[tokio::test]
async fn a_collector_that_is_short_of_room_gets_the_spans_again() {
    let collector = Collector::answering(|seen| match seen.nth {
        0 => Reply::new(503, "", "later"),
        _ => Reply::ok(""),
    })
    .await;
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = traced(&upstream.url(), collector.settings());
    proxy.get("/x").await;
    wait_until("they came twice", || collector.0.count() == 2).await;
    let found = collector.spans();
    assert_eq!(found[0].id, found[1].id, "{found:#?}");
    assert_eq!(dropped(&proxy, "export_failed").await, 0.0);
}

#[tokio::test]
async fn the_binary_sends_what_waits_before_it_ends() {
    let collector = Collector::start().await;
    let upstream = Upstream::start(|_| Reply::ok("fine").held()).await;
    let folder = Folder::new();
    let file = folder.write(
        "c.yaml",
        &format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\notlp: {{ headers: {{ x-key: '${{KEY}}' }} }}\nupstreams: [{{ url: '{}' }}]\n",
            upstream.url()
        ),
    );
    let base = format!("{}/base/", collector.0.url());
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", base.as_str()),
        ("OTEL_SERVICE_NAME", "from the environment"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,team=ml,service.name=x"),
        (
            "OTEL_EXPORTER_OTLP_HEADERS",
            "x-key=other,x-team=ml,content-length=3,content-type=text/plain,content-encoding=br,host=elsewhere,\
             transfer-encoding=chunked,connection=upgrade",
        ),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        // Ours is HTTP, whatever others here use.
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("KEY", "canary%20key"),
    ];
    let process = Process::start(&["--config", &file, "--log-level", "trace"], &env);
    let mut client = process.client().await;
    client.get("/x").await;
    wait_until("the request is upstream", || upstream.in_flight() == 1).await;
    process.signal(Signal::TERM);
    wait_until("it drains", || process.err().contains("draining")).await;
    upstream.release(1);
    assert_eq!(client.response().await.text(), "fine");
    let ended = process.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(!ended.err.contains("canary"), "{}", ended.err);
    let found = collector.spans();
    assert_eq!(found.len(), 1, "{found:#?}");
    let resource = &found[0].resource;
    assert_eq!(resource["service.name"], "from the environment");
    assert_eq!((resource["deployment.environment.name"].as_str(), resource["team"].as_str()), ("test", "ml"));
    let seen = collector.0.seen().remove(0);
    assert_eq!((seen.line(), seen.header("x-key")), ("POST /base/v1/traces HTTP/1.1", vec!["canary%20key"]));
    // The file comes before the variable, and what belongs to the export is in neither's hands.
    let (length, own) = (seen.body.len().to_string(), collector.0.addr.to_string());
    for (name, want) in [
        ("x-team", vec!["ml"]),
        ("content-encoding", vec!["gzip"]),
        ("content-type", vec!["application/x-protobuf"]),
        ("content-length", vec![length.as_str()]),
        ("host", vec![own.as_str()]),
        ("transfer-encoding", vec![]),
        ("connection", vec![]),
    ] {
        assert_eq!(seen.header(name), want, "{name} in {}", seen.head);
    }
}

#[tokio::test]
async fn a_collector_behind_tls_is_verified_and_the_variable_alone_is_enough() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    for (trusted, is_known) in [(&issuer, true), (&stranger, false)] {
        let collector = TlsUpstream::start(&issuer.identity("localhost"), &["h2", "http/1.1"], None).await;
        let (url, roots) = (collector.url(), trusted.file());
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("SSL_CERT_FILE", roots.to_str().unwrap())];
        let args = ["--upstream", &upstream.url(), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let process = Process::start(&args, &env);
        let mut client = process.client().await;
        client.get("/x").await;
        assert_eq!(client.response().await.text(), "fine");
        if is_known {
            wait_until("the collector is asked", || collector.seen().len() == 1).await;
        } else {
            let failed = ["reason=\"export_failed\""];
            process
                .admin_says("/metrics", |page| {
                    metric(&page.text(), "tidegate_spans_dropped_total", &failed) == Some(1.0)
                })
                .await;
            assert!(process.err().contains("the collector does not take spans"), "{}", process.err());
            assert!(collector.seen().is_empty());
        }
    }
}

#[tokio::test]
async fn the_model_that_answered_is_told() {
    const EVENTS: &str = "content-type: text/event-stream\r\n";
    const JSON: &str = "content-type: application/json\r\n";
    let collector = Collector::start().await;
    let anthropic = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x-2026\",\"usage\":{\"input_tokens\":4,\"cache_creation_input_tokens\":3,\"output_tokens\":1}}}\n\n";
    let openai = "data: {\"id\":\"c\",\"model\":\"gpt-5-2026\",\"choices\":[{\"delta\":{}}]}\n\ndata: [DONE]\n\n";
    let packed = {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packer, br#"{"model":"packed","usage":{"prompt_tokens":1}}"#).unwrap();
        packer.finish().unwrap()
    };
    let head = format!("HTTP/1.1 200 OK\r\n{JSON}content-encoding: gzip\r\ncontent-length: {}\r\n\r\n", packed.len());
    let asked = [
        ("/v1/messages", Reply::new(200, EVENTS, anthropic), "claude-x-2026"),
        ("/v1/chat/completions", Reply::new(200, EVENTS, openai), "gpt-5-2026"),
        (
            "/v1beta/models/gemini-3:generateContent",
            Reply::new(200, JSON, r#"{"candidates":[],"modelVersion":"gemini-3-001"}"#),
            "gemini-3-001",
        ),
        ("/v1/responses", Reply::raw([head.into_bytes(), packed].concat()), "packed"),
        // What is told is bounded, and no account number.
        ("/v1/chat/completions", Reply::new(200, JSON, r#"{"model":"arn:aws:bedrock:us-east-1:1:x"}"#), ""),
        // Not about a model, whatever stands in it; and nothing that was made.
        ("/v1/files", Reply::new(200, JSON, r#"{"model":"canary"}"#), ""),
        ("/v1/chat/completions", Reply::new(404, JSON, r#"{"model":"canary"}"#), ""),
    ];
    let replies: Vec<Reply> = asked.iter().map(|(_, reply, _)| reply.clone()).collect();
    let upstream = Upstream::start(move |seen| replies[seen.nth].clone()).await;
    let text = "upstreams: [{ url: http://h, prices: [{ model: '*', input: 1, output: 1 }] }]";
    let prices = tidegate::config::file::parse(text, "f", &|_| None).unwrap().upstreams.remove(0).prices;
    let proxy = Proxy::configured(&upstream.url(), |config| {
        config.otlp = Some(collector.settings());
        // What is packed is read only for money, or for a budget.
        config.upstreams[0].prices = prices;
    });
    for (path, ..) in &asked {
        proxy.post(path, "", r#"{"model":"m"}"#).await;
    }
    let found = collector.spans_once_there_are(asked.len()).await;
    for ((path, _, want), span) in asked.iter().zip(&found) {
        assert_eq!(span.get("gen_ai.response.model"), *want, "{path}: {span:#?}");
    }
    assert_eq!(found[0].get("gen_ai.usage.cache_creation.input_tokens"), "3");
    assert!(!format!("{found:?}").contains("canary"), "{found:#?}");
}
