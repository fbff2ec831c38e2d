//! The embedded mock is the judge of other tests; here it is judged itself, on raw sockets.

use std::{net::SocketAddr, time::Duration};

use tidegate::mock::{self, HeaderFamily, Latency, Mock, RetryAfterForm, Says, Settings};

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
async fn keys_that_end_alike_are_two_keys_and_the_total_is_over_all_of_them() {
    let mock = start(|settings| settings.ceiling = Some(1));
    let mut clients = Vec::new();
    for key in ["sk-one-test", "sk-two-test"] {
        let mut client = Client::connect(mock.addr()).await;
        let headers = format!("authorization: Bearer {key}\r\nx-mock-latency: 1h\r\n");
        client.post("/v1/infer", &headers, INFER).await;
        clients.push(client);
    }
    wait_until("both have a slot", || mock.ledger().total.in_flight == 2).await;
    assert_eq!(post(mock.addr(), "/v1/infer", "x-api-key: sk-two-test\r\n", INFER).await.status, 429);
    let ledger = mock.ledger();
    assert_eq!((ledger.total.in_flight_max, ledger.per_key.len()), (2, 2), "{ledger:?}");
    assert!(ledger.per_key.values().all(|counts| counts.in_flight_max == 1), "{ledger:?}");
    let refused: Vec<u64> = ledger.per_key.values().map(|counts| counts.refused.ceiling).collect();
    assert_eq!(refused.iter().sum::<u64>(), 1, "told for the key it happened to");
}

#[tokio::test]
async fn a_slot_is_taken_by_the_head() {
    let mock = start(|settings| settings.ceiling = Some(1));
    let mut slow = Client::connect(mock.addr()).await;
    slow.send("POST /v1/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 20\r\n\r\n{\"input\":").await;
    wait_until("the upload has the slot", || mock.ledger().total.in_flight == 1).await;
    let mut second = Client::connect(mock.addr()).await;
    for _ in 0..2 {
        second.post("/v1/infer", "", INFER).await;
        assert_eq!(second.response().await.status, 429, "and the connection stays");
    }
    slow.send("\"hi there\"}").await;
    assert_eq!(slow.response().await.status, 200);
    second.post("/v1/infer", "", INFER).await;
    assert_eq!(second.response().await.status, 200);
    // Who leaves in the middle of the upload has left.
    slow.send("POST /v1/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 20\r\n\r\n{\"input\":").await;
    wait_until("the upload has the slot", || mock.ledger().total.in_flight == 1).await;
    drop(slow);
    wait_until("the slot is free", || mock.ledger().total.in_flight == 0).await;
    let total = mock.ledger().total;
    assert_eq!((total.accepted, total.processed, total.abandoned), (3, 2, 1));
}

#[tokio::test]
async fn tokens_refuse_after_the_body_and_too_many_for_good() {
    let mock = start(|settings| (settings.tpm, settings.ceiling) = (Some(100), Some(1)));
    let ask = async |path: &str, tokens: u32| {
        let body = format!(r#"{{"max_tokens":{tokens},"messages":[{{"role":"user","content":"hi"}}]}}"#);
        post(mock.addr(), path, "", &body).await
    };
    assert_eq!(ask("/v1/chat/completions", 59).await.status, 200);
    let refused = ask("/v1/chat/completions", 59).await;
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (429, Some("tokens")));
    assert!(refused.header("retry-after").is_some());
    for (path, pointer, value) in [
        ("/v1/chat/completions", "/error/code", "rate_limit_exceeded"),
        ("/v1/messages", "/error/type", "request_too_large"),
    ] {
        let refused = ask(path, 100).await;
        assert_eq!((refused.status, refused.header("retry-after")), (413, None), "{path}: {}", refused.head);
        assert_eq!(refused.json().pointer(pointer).unwrap(), value, "{path}");
    }
    assert_eq!(ask("/v1/chat/completions", 30).await.status, 200, "the slots came back");
    assert_eq!(post(mock.addr(), "/v1/infer", "", "{").await.status, 400);
    let total = mock.ledger().total;
    assert_eq!((total.refused.tokens, total.refused.too_large, total.refused.invalid), (1, 2, 1));
    assert_eq!((total.accepted, total.processed, total.in_flight), (2, 2, 0));
    // A word and the asked-for tokens each; "echo: hi" each.
    assert_eq!((total.charged_tokens, total.output_tokens), (91, 4));
}

#[tokio::test]
async fn a_burst_is_bounded_by_the_second_too() {
    let mock = start(|settings| (settings.rps, settings.burst) = (Some(1), Some(3)));
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(post(mock.addr(), "/v1/infer", "", INFER).await.status);
    }
    assert_eq!(statuses[..4], [200, 200, 200, 429], "{statuses:?}");
    let mock = start(|settings| (settings.rpm, settings.burst) = (Some(60), Some(2)));
    let first = post(mock.addr(), "/v1/infer", "", INFER).await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), Some("60"));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), Some("1"));
}

#[tokio::test]
async fn a_refusal_that_says_nothing_looks_the_same_for_every_limit() {
    let chat = r#"{"max_tokens":59,"messages":[{"role":"user","content":"hi"}]}"#;
    let mut seen = Vec::new();
    for (ceiling, rpm, tpm) in [(Some(1), None, None), (None, Some(1), None), (None, None, Some(100))] {
        let mock = start(|settings| {
            (settings.ceiling, settings.rpm, settings.tpm) = (ceiling, rpm, tpm);
            (settings.says, settings.headers) = (Says::Nothing, HeaderFamily::None);
        });
        let mut first = Client::connect(mock.addr()).await;
        first.post("/v1/chat/completions", "x-mock-latency: 1h\r\n", chat).await;
        wait_until("it is in", || mock.ledger().total.charged_tokens > 0).await;
        let refused = post(mock.addr(), "/v1/chat/completions", "", chat).await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, None));
        seen.push(refused.text());
        let kinds = mock.ledger().total.refused;
        assert_eq!(kinds.ceiling + kinds.requests + kinds.tokens, 1, "the ledger knows");
    }
    assert!(seen.iter().all(|text| *text == seen[0] && text.contains("Too Many Requests")), "{seen:?}");
}

#[tokio::test]
async fn beyond_the_knee_all_are_slower_from_the_first_byte_to_the_last() {
    const WORK: Duration = Duration::from_millis(400);
    let mock = start(|settings| (settings.knee, settings.latency) = (Some(2), Latency::Fixed(WORK)));
    let stream = r#"{"stream":true,"messages":[{"role":"user","content":"a b c d"}]}"#;
    let ask = |nth: u32| {
        let (addr, key) = (mock.addr(), format!("x-api-key: {nth}\r\n"));
        tokio::spawn(async move {
            let mut client = Client::connect(addr).await;
            client.post("/v1/chat/completions", &key, stream).await;
            let head = client.head().await;
            let first = tidegate::clock::now();
            assert!(client.rest_of(head).await.complete);
            (first, tidegate::clock::now())
        })
    };
    let began = tidegate::clock::now();
    let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
    for task in (0..8).map(ask).collect::<Vec<_>>() {
        let (first, last) = task.await.unwrap();
        firsts.push(first - began);
        lasts.push(last - began);
    }
    // 8, whatever their keys, share the time of 2: so much work takes so long, however their beginnings are spread.
    let (first, last) = (firsts.into_iter().max().unwrap(), lasts.into_iter().max().unwrap());
    assert!(first >= WORK.mul_f64(0.3 * 8.0 / 2.0) && last >= WORK * 8 / 2, "{first:?} {last:?}");
    let total = mock.ledger().total;
    assert!((total.service_seconds_total - 3.2).abs() < 0.01, "work is counted unstretched: {total:?}");
}

#[tokio::test]
async fn settings_change_while_requests_are_in_flight() {
    let mock = start(|settings| settings.ceiling = Some(2));
    let change = async |body: &str| {
        let mut client = Client::connect(mock.addr()).await;
        let length = body.len();
        client.send(format!("PUT /__settings HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n{body}")).await;
        client.response().await
    };
    let held = async |count: u32| {
        let mut client = Client::connect(mock.addr()).await;
        client.post("/v1/infer", "x-mock-latency: 1h\r\n", INFER).await;
        wait_until("it is in", || mock.ledger().total.in_flight == count).await;
        client
    };
    let clients = [held(1).await, held(2).await];
    assert_eq!(change(r#"{"ceiling":1}"#).await.json()["ceiling"], 1);
    assert_eq!(mock.ledger().total.in_flight, 2, "both stay");
    assert_eq!(post(mock.addr(), "/v1/infer", "", INFER).await.status, 429);
    assert_eq!(change(r#"{"ceiling":3,"latency":"1ms"}"#).await.status, 200);
    assert_eq!(post(mock.addr(), "/v1/infer", "", INFER).await.status, 200);
    let shown = change(r#"{"ceiling":null,"rpm":1}"#).await.json();
    assert_eq!((&shown["ceiling"], &shown["rpm"], &shown["latency"]), (&().into(), &1.into(), &"1ms".into()));
    for want in [200, 429] {
        assert_eq!(post(mock.addr(), "/v1/infer", "", INFER).await.status, want);
    }
    for wrong in [r#"{"rpm":0}"#, r#"{"speed":1}"#, "no"] {
        assert_eq!(change(wrong).await.status, 400, "{wrong}");
    }
    let mut client = Client::connect(mock.addr()).await;
    client.get("/__settings").await;
    assert_eq!(client.response().await.json(), shown);
    drop(clients);
}

#[tokio::test]
async fn one_model_and_so_many_bytes_are_what_was_asked_for() {
    let mock = start(|_| {});
    let mut client = Client::connect(mock.addr()).await;
    client.get("/v1/models/mock-2").await;
    let model = client.response().await.json();
    assert_eq!((model["id"].as_str(), model["object"].as_str()), (Some("mock-2"), Some("model")));
    client.get("/v1/models").await;
    assert_eq!(client.response().await.json()["data"][1], model);
    client.get("/v1/bytes/5").await;
    assert_eq!(client.response().await.text(), "xxxxx");
    client.get("/v1/bytes/abc").await;
    assert_eq!(client.response().await.status, 400);
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
        ("unknown model", "/v1/models/mock-3", "", "{}", 404, "invalid_request_error"),
        ("only GET", "/v1/models/mock-1", "", "{}", 405, "invalid_request_error"),
        ("Anthropic, no JSON", "/v1/messages", "", "{", 400, "invalid_request_error"),
        (
            "a time beyond all clocks",
            "/v1/infer",
            "x-mock-latency: 500000000000y\r\n",
            INFER,
            400,
            "invalid_request_error",
        ),
        ("no time at all", "/v1/infer", "x-mock-latency: soon\r\n", INFER, 400, "invalid_request_error"),
    ] {
        let response = post(free.addr(), path, headers, body).await;
        let id = if path == "/v1/messages" { "request-id" } else { "x-request-id" };
        assert!(response.header(id).is_some(), "{name}: {}", response.head);
        assert_eq!(response.header("allow"), (status == 405).then_some("GET"), "{name}");
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
    assert_eq!(ledger.total.accepted, 1, "those that failed on purpose were not");
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
