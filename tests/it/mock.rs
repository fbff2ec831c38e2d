//! The embedded mock is the judge of other tests; here it is judged itself, on raw sockets.

use std::{net::SocketAddr, time::Duration};

use tidegate::mock::{self, HeaderFamily, Latency, Mock, RetryAfterForm, Settings};

use crate::support::{Client, Proxy, Response, wait_until};

const INFER: &str = r#"{"input":"hi there"}"#;

fn start(change: impl FnOnce(&mut Settings)) -> Mock {
    let mut settings = Settings { latency: Latency::Fixed(Duration::ZERO), ..Settings::default() };
    change(&mut settings);
    mock::start_with("127.0.0.1:0".parse().unwrap(), settings).unwrap()
}

async fn post(addr: SocketAddr, path: &str, headers: &str, body: &str) -> Response {
    let mut client = Client::connect(addr).await;
    client.post(path, headers, body).await;
    client.response().await
}

#[tokio::test]
async fn two_hundred_at_once_meet_an_exact_ceiling() {
    let mock = start(|settings| {
        settings.ceiling = Some(50);
        settings.latency = Latency::Fixed(Duration::from_secs(3600));
    });
    let mut clients = Vec::new();
    for _ in 0..200 {
        let mut client = Client::connect(mock.addr()).await;
        client.post("/v1/infer", "", INFER).await;
        clients.push(client);
    }
    wait_until("all are let in or refused", || {
        let total = mock.ledger().total;
        total.accepted + total.refused.ceiling == 200
    })
    .await;
    let total = mock.ledger().total;
    assert_eq!((total.accepted, total.refused.ceiling), (50, 150));
    assert_eq!((total.in_flight, total.in_flight_max), (50, 50));
    drop(clients);
    wait_until("all have left", || mock.ledger().total.in_flight == 0).await;
    assert_eq!(mock.ledger().total.abandoned, 50);
}

#[tokio::test]
async fn a_slot_is_held_to_the_last_byte_and_freed_when_the_client_leaves() {
    let mock = start(|settings| settings.ceiling = Some(1));
    let stream = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"a b c d e f"}]}"#;
    let mut client = Client::connect(mock.addr()).await;
    client.post("/v1/chat/completions", "x-mock-latency: 1h\r\n", stream).await;
    wait_until("it has the slot", || mock.ledger().total.in_flight == 1).await;
    assert_eq!(post(mock.addr(), "/v1/infer", "", INFER).await.status, 429);
    drop(client);
    wait_until("the slot is free", || mock.ledger().total.in_flight == 0).await;
    // In the middle of the stream, too.
    let mut client = Client::connect(mock.addr()).await;
    client.post("/v1/chat/completions", "x-mock-latency: 3s\r\n", stream).await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(mock.ledger().total.in_flight, 1, "the head is no end");
    assert_eq!(post(mock.addr(), "/v1/infer", "", INFER).await.status, 429);
    drop(client);
    wait_until("the slot is free", || mock.ledger().total.in_flight == 0).await;
    assert_eq!(post(mock.addr(), "/v1/infer", "", INFER).await.status, 200);
    let total = mock.ledger().total;
    assert_eq!((total.abandoned, total.processed, total.in_flight_max), (2, 1, 1));
}

#[tokio::test]
async fn keys_have_limits_of_their_own() {
    let mock = start(|settings| settings.rpm = Some(1));
    for (headers, want) in [
        ("authorization: Bearer a\r\n", 200),
        ("authorization: Bearer a\r\n", 429),
        ("x-api-key: b\r\n", 200),
        ("x-api-key: b\r\n", 429),
        ("", 200),
    ] {
        assert_eq!(post(mock.addr(), "/v1/infer", headers, INFER).await.status, want, "{headers}");
    }
}

#[tokio::test]
async fn every_family_of_headers_tells_what_remains() {
    for (family, name, value) in [
        (HeaderFamily::Openai, "x-ratelimit-remaining-requests", "1"),
        (HeaderFamily::Openai, "x-ratelimit-limit-requests", "2"),
        (HeaderFamily::Openai, "x-ratelimit-limit-tokens", "1000"),
        (HeaderFamily::Anthropic, "anthropic-ratelimit-requests-remaining", "1"),
        (HeaderFamily::Anthropic, "anthropic-ratelimit-tokens-limit", "1000"),
        (HeaderFamily::Ietf, "ratelimit-policy", "\"requests\";q=2;w=60"),
    ] {
        let mock = start(|settings| {
            settings.headers = family;
            (settings.rpm, settings.tpm) = (Some(2), Some(1000));
            settings.fixed_window = true;
        });
        let response = post(mock.addr(), "/v1/infer", "", INFER).await;
        assert_eq!((response.status, response.header(name)), (200, Some(value)), "{family:?}: {}", response.head);
        post(mock.addr(), "/v1/infer", "", INFER).await;
        let refused = post(mock.addr(), "/v1/infer", "", INFER).await;
        assert_eq!(refused.status, 429, "{family:?}");
        let remaining = match family {
            HeaderFamily::Openai => refused.header("x-ratelimit-remaining-requests").map(str::to_owned),
            HeaderFamily::Anthropic => refused.header("anthropic-ratelimit-requests-remaining").map(str::to_owned),
            HeaderFamily::Ietf | HeaderFamily::None => {
                let value = refused.header("ratelimit").unwrap();
                value.split(';').find_map(|part| part.trim().strip_prefix("r=")).map(str::to_owned)
            }
        };
        assert_eq!(remaining.as_deref(), Some("0"), "{family:?}: {}", refused.head);
    }
    let mock = start(|settings| (settings.headers, settings.rpm) = (HeaderFamily::None, Some(2)));
    let head = post(mock.addr(), "/v1/infer", "", INFER).await.head.to_lowercase();
    assert!(!head.contains("ratelimit"), "{head}");
}

#[tokio::test]
async fn every_form_of_retry_after_is_spelled_as_asked() {
    let seconds = |value: &str| value.parse::<f64>().ok();
    let date = |value: &str| {
        let then = httpdate::parse_http_date(value).ok()?;
        Some(then.duration_since(std::time::SystemTime::now()).ok()?.as_secs_f64())
    };
    let millis = |value: &str| value.parse::<u64>().ok().map(|millis| millis as f64 / 1000.0);
    type Read<'a> = &'a dyn Fn(&str) -> Option<f64>;
    let forms: [(Option<RetryAfterForm>, &str, Read<'_>); 6] = [
        (None, "retry-after", &seconds),
        (Some(RetryAfterForm::Seconds), "retry-after", &seconds),
        (Some(RetryAfterForm::Fraction), "retry-after", &seconds),
        (Some(RetryAfterForm::Date), "retry-after", &date),
        (Some(RetryAfterForm::Ms), "retry-after-ms", &millis),
        (Some(RetryAfterForm::XMs), "x-ms-retry-after-ms", &millis),
    ];
    for (form, name, read) in forms {
        let mock = start(|settings| (settings.rpm, settings.retry_after) = (Some(2), form));
        for _ in 0..2 {
            assert_eq!(post(mock.addr(), "/v1/infer", "", INFER).await.status, 200);
        }
        let refused = post(mock.addr(), "/v1/infer", "", INFER).await;
        assert_eq!(refused.status, 429, "{form:?}");
        let wait = refused.header(name).and_then(read).unwrap_or_else(|| panic!("{form:?}: {}", refused.head));
        assert!((25.0..=32.0).contains(&wait), "{form:?}: {wait} s for half of a minute");
        let others =
            ["retry-after", "retry-after-ms", "x-ms-retry-after-ms"].into_iter().filter(|other| *other != name);
        assert!(others.clone().all(|other| refused.header(other).is_none()), "{form:?}: {}", refused.head);
    }
    let mock = start(|settings| (settings.rpm, settings.retry_after) = (Some(1), Some(RetryAfterForm::None)));
    post(mock.addr(), "/v1/infer", "", INFER).await;
    let head = post(mock.addr(), "/v1/infer", "", INFER).await.head;
    assert!(!head.contains("retry-after"), "{head}");
}

#[tokio::test]
async fn errors_have_the_shape_of_their_api() {
    let mock = start(|settings| settings.rpm = Some(1));
    let chat = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let messages = r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#;
    post(mock.addr(), "/v1/chat/completions", "", chat).await;
    let openai = post(mock.addr(), "/v1/chat/completions", "", chat).await;
    assert_eq!(openai.json().pointer("/error/code").unwrap(), "rate_limit_exceeded");
    assert!(openai.json()["error"]["message"].is_string() && openai.header("x-request-id").is_some());
    let anthropic = post(mock.addr(), "/v1/messages", "", messages).await;
    let json = anthropic.json();
    assert_eq!((anthropic.status, &json["type"]), (429, &"error".into()));
    assert_eq!(json.pointer("/error/type").unwrap(), "rate_limit_error");
    assert_eq!(json["request_id"].as_str(), anthropic.header("request-id"));

    let free = start(|_| {});
    for (name, path, headers, body, status, kind) in [
        ("OpenAI, spent", "/v1/chat/completions", "x-mock-fault: quota\r\n", chat, 429, "insufficient_quota"),
        ("Anthropic, spent", "/v1/messages", "x-mock-fault: quota\r\n", messages, 429, "rate_limit_error"),
        ("Anthropic, overloaded", "/v1/messages", "x-mock-fault: 529\r\n", messages, 529, "overloaded_error"),
        ("Anthropic, no max_tokens", "/v1/messages", "", chat, 400, "invalid_request_error"),
        ("OpenAI, no JSON", "/v1/chat/completions", "", "{", 400, "invalid_request_error"),
        ("OpenAI, failed", "/v1/responses", "x-mock-fault: 503\r\n", INFER, 503, "server_error"),
        ("unknown path", "/v1/nothing", "", "{}", 404, "invalid_request_error"),
    ] {
        let response = post(free.addr(), path, headers, body).await;
        assert_eq!(response.status, status, "{name}");
        assert_eq!(response.json().pointer("/error/type").unwrap(), kind, "{name}: {}", response.text());
    }
}

#[tokio::test]
async fn the_ledger_knows_duplicates_and_fails_the_first_so_many_attempts() {
    let mock = start(|_| {});
    let id = "x-request-id: once\r\n";
    let failing = format!("{id}x-mock-fault: 503\r\nx-mock-fail-first: 2\r\n");
    for want in [503, 503, 200] {
        assert_eq!(post(mock.addr(), "/v1/infer", &failing, INFER).await.status, want);
    }
    let ledger = mock.ledger();
    assert_eq!((ledger.total.processed, ledger.total.refused.fault, ledger.duplicates_total), (1, 2, 0));
    assert_eq!(post(mock.addr(), "/v1/infer", id, INFER).await.status, 200);
    let mut client = Client::connect(mock.addr()).await;
    client.get("/__ledger").await;
    let page = client.response().await.json();
    assert_eq!((&page["duplicates_total"], &page["duplicates"][0]), (&1.into(), &"once".into()), "{page}");
    client.send("DELETE /__ledger HTTP/1.1\r\nhost: h\r\n\r\n").await;
    assert_eq!(client.response().await.status, 204);
    assert_eq!(mock.ledger().total.processed, 0);
}

#[tokio::test]
async fn embeddings_come_as_numbers_or_as_base64_of_the_same_numbers() {
    let mock = start(|_| {});
    let ask = async |format: &str| {
        let body = format!(r#"{{"model":"m","input":["one","two"],"encoding_format":"{format}"}}"#);
        post(mock.addr(), "/v1/embeddings", "", &body).await.json()
    };
    let (floats, coded) = (ask("float").await, ask("base64").await);
    for index in 0..2 {
        let numbers = floats["data"][index]["embedding"].as_array().unwrap();
        let text = coded["data"][index]["embedding"].as_str().unwrap();
        let bytes = from_base64(text);
        assert_eq!(bytes.len(), 4 * numbers.len());
        for (number, bytes) in numbers.iter().zip(bytes.chunks(4)) {
            let decoded = f32::from_le_bytes(bytes.try_into().unwrap());
            assert!((number.as_f64().unwrap() - f64::from(decoded)).abs() < 1e-6, "{number} {decoded}");
        }
    }
    assert_ne!(floats["data"][0]["embedding"], floats["data"][1]["embedding"]);
}

fn from_base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits =
            group.iter().enumerate().fold(0u32, |bits, (at, byte)| bits | u32::from(digit(*byte)) << (18 - 6 * at));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    bytes
}

#[tokio::test]
async fn a_reset_before_or_inside_the_answer_breaks_the_connection() {
    let mock = start(|_| {});
    let chat = r#"{"stream":true,"messages":[{"role":"user","content":"a b c d"}]}"#;
    let mut client = Client::connect(mock.addr()).await;
    client.post("/v1/infer", "x-mock-fault: reset-before\r\n", INFER).await;
    assert_eq!(client.rest().await.0, b"", "no answer at all");
    assert_eq!(mock.ledger().total.processed, 0);
    for (nth, path, body) in [(1, "/v1/infer", INFER), (2, "/v1/chat/completions", chat)] {
        let response = post(mock.addr(), path, "x-mock-fault: reset-inside\r\n", body).await;
        assert!(response.status == 200 && !response.complete && !response.body.is_empty(), "{path}: {response:?}");
        wait_until("the work counts as done", || mock.ledger().total.processed == nth).await;
    }
    assert_eq!(mock.ledger().total.in_flight, 0);
}

#[tokio::test]
async fn streams_end_as_their_api_ends_them() {
    let mock = start(|_| {});
    let input = r#"{"stream":true,"input":"a b","messages":[{"role":"user","content":"a b"}],"max_tokens":9}"#;
    for (path, last) in [
        ("/v1/chat/completions", "data: [DONE]"),
        ("/v1/messages", "\"type\":\"message_stop\""),
        ("/v1/responses", "\"type\":\"response.completed\""),
    ] {
        let response = post(mock.addr(), path, "", input).await;
        assert!(response.header("content-type").unwrap().starts_with("text/event-stream"), "{path}");
        let text = response.text();
        let events: Vec<&str> = text.trim_end().split("\n\n").collect();
        assert!(response.complete && events[events.len() - 1].contains(last), "{path}: {text}");
        assert!(text.contains("a ") && events.len() > 3, "{path}: {text}");
    }
}

/// The blocking side of tungstenite in a thread: the async one needs traits that are no dependency here.
async fn say_hello(addr: SocketAddr) -> Result<String, String> {
    use tokio_tungstenite::tungstenite::{Message, client};
    let talk = move || {
        let stream = std::net::TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut socket, response) =
            client(format!("ws://{addr}/v1/realtime"), stream).map_err(|error| format!("handshake: {error}"))?;
        assert_eq!(response.status(), 101);
        socket.send(Message::text("hello")).map_err(|error| format!("send: {error}"))?;
        let answer = socket.read().map_err(|error| format!("read: {error}"))?;
        Ok(answer.into_text().unwrap().to_string())
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

#[tokio::test]
async fn a_websocket_talks_through_the_proxy() {
    use tokio_tungstenite::tungstenite::accept;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let mut socket = accept(listener.accept().unwrap().0).unwrap();
        let said = socket.read().unwrap();
        socket.send(said).unwrap();
        // Until the other side closes.
        while socket.read().is_ok() {}
    });
    let proxy = Proxy::start(&url, |_| {});
    assert_eq!(say_hello(proxy.addr).await, Ok("hello".to_owned()));
    tokio::task::spawn_blocking(move || server.join().unwrap()).await.unwrap();
    proxy.idle().await;
}

#[tokio::test]
async fn a_websocket_talks_to_the_mock_through_the_proxy() {
    let mock = start(|_| {});
    let proxy = Proxy::start(&format!("http://{}", mock.addr()), |_| {});
    assert_eq!(say_hello(proxy.addr).await, Ok("hello".to_owned()));
    proxy.idle().await;
}

#[tokio::test]
async fn a_burst_through_the_proxy_loses_nothing_and_doubles_nothing() {
    let mock = start(|settings| {
        settings.ceiling = Some(10);
        settings.latency = Latency::Fixed(Duration::from_millis(10));
    });
    let proxy = Proxy::start(&format!("http://{}", mock.addr()), |settings| settings.ceiling = Some(10));
    let mut clients = Vec::new();
    for id in 0..200 {
        let addr = proxy.addr;
        clients.push(tokio::spawn(async move {
            post(addr, "/v1/infer", &format!("x-request-id: r{id}\r\n"), INFER).await.status
        }));
    }
    for client in clients {
        assert_eq!(client.await.unwrap(), 200);
    }
    let ledger = mock.ledger();
    assert_eq!((ledger.total.processed, ledger.duplicates_total, ledger.total.refused.ceiling), (200, 0, 0));
    assert_eq!(ledger.total.in_flight_max, 10);
}
