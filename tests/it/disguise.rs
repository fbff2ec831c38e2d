//! Refusals that do not look like one: 400, 402 and 403.

use std::time::Duration;

use crate::support::{Proxy, Reply, Step, Upstream, metric, wait_until};

const JSON: &str = "content-type: application/json\r\n";
const CHAT: &str = r#"{"messages":[],"model":"m"}"#;
const NO_CREDIT: &str = r#"{"error":{"code":402,"message":"Insufficient credits","metadata":{}}}"#;
const IN_FLIGHT: &str = r#"{"error":{"code":402,"metadata":{"limit_source":"openrouter_in_flight_budget"}}}"#;
const LOW: &str = r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the API."}}"#;
const BLOCKED: &str = r#"{"error":{"message":"…","code":"blocked_api_access"}}"#;
const KEY_LIMIT: &str = r#"{"error":{"code":403,"metadata":{"limit_source":"openrouter_key_limit"}}}"#;
const GITHUB: &str = r#"{"message":"API rate limit exceeded for user ID 1."}"#;
const UNSUPPORTED: &str =
    r#"{"error":{"message":"Unsupported parameter: 'parallel_tool_calls', 500 tokens per minute","type":"tokens"}}"#;

/// An answer whose length is not announced, with a trailer.
fn chunked(status: u16, headers: &str, body: &str) -> String {
    let size = body.len();
    format!(
        "HTTP/1.1 {status} Status\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n{headers}\r\n{size:x}\r\n{body}\r\n0\r\nx-sum: 7\r\n\r\n"
    )
}

#[tokio::test]
async fn a_spent_quota_under_another_status_passes_at_once_and_is_asked_for_once() {
    for (name, status, headers, body) in [
        ("OpenRouter", 402, JSON, NO_CREDIT),
        ("402 without a word", 402, "", ""),
        ("Anthropic", 400, JSON, LOW),
        ("Groq", 400, JSON, BLOCKED),
        ("OpenRouter, key", 403, "content-type: application/json; charset=utf-8\r\n", KEY_LIMIT),
    ] {
        let upstream =
            Upstream::start(move |_| Reply::new(status, &format!("x-request-id: r\r\n{headers}"), body)).await;
        let proxy = Proxy::start(&upstream.url(), |_| {});
        let first = proxy.post("/v1/chat/completions", "", CHAT).await;
        assert_eq!((first.status, first.text().as_str()), (status, body), "{name}");
        assert_eq!((first.header("x-request-id"), first.header("x-should-retry")), (Some("r"), None), "{name}");
        let second = proxy.post("/v1/chat/completions", "", CHAT).await;
        assert_eq!((second.status, second.header("x-tidegate-fault")), (429, Some("quota")), "{name}");
        assert_eq!(upstream.count(), 1, "{name}");
        let last = &proxy.admin("/status").await.json()["accounts"][0]["last_refusal"];
        assert_eq!((&last["attribution"], &last["status"]), (&"quota".into(), &status.into()), "{name}");
        let page = proxy.admin("/metrics").await.text();
        let bounced = metric(&page, "tidegate_attempts_total", &["outcome=\"bounced\""]);
        let quota = metric(&page, "tidegate_refusals_total", &["attribution=\"quota\""]);
        assert_eq!((bounced, quota), (Some(1.0), Some(1.0)), "{name}");
    }
}

#[tokio::test]
async fn whoever_waits_is_told_of_a_402() {
    let upstream = Upstream::start(|_| Reply::raw(chunked(402, JSON, NO_CREDIT)).held()).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    let mut first = proxy.client().await;
    first.post("/v1/chat/completions", "", CHAT).await;
    wait_until("one asks", || upstream.count() == 1).await;
    let mut second = proxy.client().await;
    second.post("/v1/chat/completions", "", CHAT).await;
    wait_until("one waits", || proxy.view().queued == 1).await;
    upstream.release(1);
    assert_eq!(first.response().await.text(), NO_CREDIT);
    assert_eq!(second.response().await.header("x-tidegate-fault"), Some("quota"));
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_rate_or_a_ceiling_under_another_status_is_not_seen() {
    for (name, first, attribution) in [
        ("GitHub, primary", Reply::new(403, "x-ratelimit-limit: 60\r\nx-ratelimit-remaining: 0\r\n", GITHUB), "rate"),
        ("GitHub, secondary, chunked", Reply::raw(chunked(403, "retry-after: 1\r\n", GITHUB)), "rate"),
        ("OpenRouter", Reply::new(402, &format!("{JSON}retry-after: 1\r\n"), IN_FLIGHT), "ceiling"),
    ] {
        let upstream = Upstream::start(move |seen| match seen.nth {
            0 => first.clone(),
            _ => Reply::ok("fine"),
        })
        .await;
        let proxy = Proxy::start(&upstream.url(), |_| {});
        let answer = proxy.post("/x", "", CHAT).await;
        assert_eq!((answer.status, answer.text().as_str(), upstream.count()), (200, "fine", 2), "{name}");
        let page = proxy.admin("/metrics").await.text();
        let label = format!("attribution=\"{attribution}\"");
        assert_eq!(metric(&page, "tidegate_refusals_total", &[&label]), Some(1.0), "{name}");
    }
}

#[tokio::test]
async fn any_other_error_passes_byte_for_byte() {
    let tellers = "x-ratelimit-remaining: 0\r\nretry-after: 1\r\n";
    let forbidden = r#"{"message":"Resource not accessible by integration"}"#;
    let told = format!("{JSON}{tellers}");
    for (name, wire, is_chunked, body) in [
        ("short JSON", Reply::new(400, JSON, UNSUPPORTED), false, UNSUPPORTED),
        ("JSON that is none", Reply::new(400, JSON, "{\"error"), false, "{\"error"),
        ("nothing", Reply::new(403, JSON, ""), false, ""),
        ("a 403 in words of limits", Reply::new(403, JSON, UNSUPPORTED), false, UNSUPPORTED),
        ("a 403 beside an empty counter", Reply::new(403, &told, forbidden), false, forbidden),
        ("the same, chunked", Reply::raw(chunked(403, &told, forbidden)), true, forbidden),
        (
            "a bill, chunked and empty",
            {
                let head = "HTTP/1.1 402 Status\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nwww-authenticate: L402\r\n\r\n";
                Reply::raw(format!("{head}0\r\nx-sum: 7\r\n\r\n"))
            },
            true,
            "",
        ),
        ("a bill", Reply::new(402, "www-authenticate: L402\r\n", "pay"), false, "pay"),
        ("a bill, chunked", Reply::raw(chunked(402, "www-authenticate: L402\r\n", "pay")), true, "pay"),
    ] {
        let upstream = Upstream::start(move |_| wire.clone()).await;
        let proxy = Proxy::start(&upstream.url(), |settings| settings.queue.wait_max = Duration::from_secs(60));
        let mut client = proxy.client().await;
        client.post("/x", "te: trailers\r\n", CHAT).await;
        let answer = client.response().await;
        assert!(answer.complete && answer.text() == body, "{name}: {answer:?}");
        let length = (!is_chunked).then(|| body.len().to_string());
        assert_eq!(answer.header("content-length"), length.as_deref(), "{name}");
        assert_eq!(answer.header("transfer-encoding"), is_chunked.then_some("chunked"), "{name}");
        assert_eq!(answer.trailers, if is_chunked { vec!["x-sum: 7"] } else { vec![] }, "{name}");
        for ours in ["x-should-retry", "x-tidegate-fault"] {
            assert_eq!(answer.header(ours), None, "{name}");
        }
        assert_eq!(upstream.count(), 1, "{name}");
        let page = proxy.admin("/metrics").await.text();
        assert_eq!(metric(&page, "tidegate_attempts_total", &["outcome=\"ignored\""]), Some(1.0), "{name}");
        assert!(proxy.admin("/status").await.json()["accounts"][0]["last_refusal"].is_null(), "{name}");
    }
}

#[tokio::test]
async fn what_is_large_or_streams_is_not_waited_for() {
    let large = "x".repeat(20_000);
    for (name, head) in [
        ("no length", format!("HTTP/1.1 400 Status\r\n{JSON}transfer-encoding: chunked\r\n\r\n")),
        ("a long one", format!("HTTP/1.1 403 Status\r\n{JSON}content-length: 20000\r\n\r\n")),
        ("no JSON", "HTTP/1.1 400 Status\r\ncontent-length: 20000\r\n\r\n".to_owned()),
        (
            "events",
            "HTTP/1.1 402 Status\r\ncontent-type: text/event-stream\r\ncontent-length: 20000\r\n\r\n".to_owned(),
        ),
        ("a very long one", "HTTP/1.1 402 Status\r\ncontent-length: 200000\r\n\r\n".to_owned()),
    ] {
        let wire = head.clone();
        let is_chunked = head.contains("chunked");
        let body = if is_chunked { format!("4e20\r\n{large}\r\n0\r\n\r\n") } else { large.clone() };
        let upstream =
            Upstream::start(move |_| Reply::raw(wire.clone()).then(Step::Hold).then(Step::Send(body.clone().into())))
                .await;
        let proxy = Proxy::start(&upstream.url(), |_| {});
        let mut client = proxy.client().await;
        client.post("/x", "", CHAT).await;
        let head = client.head().await;
        assert_eq!(upstream.in_flight(), 1, "{name}: the upstream has not sent the body yet");
        if !name.starts_with("a very") {
            upstream.release(1);
            let answer = client.rest_of(head).await;
            assert!(answer.complete && answer.text() == large, "{name}");
        }
    }
}

#[tokio::test]
async fn a_slow_body_passes_as_it_comes() {
    let first = format!("HTTP/1.1 402 Status\r\n{JSON}transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    let upstream = Upstream::start(move |_| {
        Reply::raw(first.clone()).then(Step::Hold).then(Step::Send(b"4\r\nlast\r\n0\r\n\r\n".to_vec()))
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    client.post("/x", "", CHAT).await;
    let head = client.head().await;
    upstream.release(1);
    assert_eq!(client.rest_of(head).await.text(), "firstlast");
    proxy.idle().await;
}
