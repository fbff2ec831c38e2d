//! Rates, quotas, pauses that are too long, and what answers say they used.

use std::time::{Duration, Instant};

use tidegate::{
    config::Trace,
    mock::{self, HeaderFamily, Latency, Settings},
    provider::presets::Preset,
};

use crate::support::{Client, Http2Client, Proxy, Reply, Upstream, metric, wait_until};

const RATE: &str = r#"{"error":{"message":"Rate limit reached for requests per min (RPM)","type":"requests"}}"#;
const SPENT: &str = r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#;
const CHAT: &str = r#"{"messages":[{"role":"user","content":"hi"}],"model":"m","max_tokens":5}"#;

/// Posts so many at once over a few HTTP/2 connections. Returns status and body of each.
async fn burst(proxy: &Proxy, count: usize, body: &'static str) -> Vec<(u16, String)> {
    let mut posts = Vec::new();
    for _ in 0..count.div_ceil(100) {
        let client = Http2Client::connect(proxy.addr).await;
        for _ in 0..count.min(100) {
            let client = client.clone();
            posts.push(tokio::spawn(async move { client.post("/v1/chat/completions", body).await }));
        }
    }
    let mut answers = Vec::new();
    for post in posts {
        answers.push(post.await.unwrap());
    }
    answers
}

#[tokio::test]
async fn a_spent_quota_is_told_to_a_thousand_by_asking_a_few_times() {
    let upstream = Upstream::start(|_| Reply::new(429, "", SPENT).after(Duration::from_millis(10))).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    for (status, body) in burst(&proxy, 1000, CHAT).await {
        assert_eq!(status, 429);
        let value: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value["error"]["code"], "insufficient_quota", "{body}");
        assert!(value["error"]["message"].as_str().unwrap().contains("quota"), "{body}");
    }
    // Ten at first; twice as many on a machine so busy that the first answers are a quarter of a second away.
    assert!(upstream.count() <= 20, "{} asked", upstream.count());
    let refused = proxy.post("/v1/chat/completions", "", CHAT).await;
    assert_eq!((refused.status, refused.header("x-tidegate-fault")), (429, Some("quota")));
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert!((1..=30).contains(&refused.header("retry-after").unwrap().parse::<u64>().unwrap()));
    let anthropic = proxy.post("/v1/messages", "", CHAT).await;
    assert_eq!((anthropic.status, &anthropic.json()["error"]["type"]), (429, &"rate_limit_error".into()));
    let other = proxy.post("/v1/chat/completions", "", r#"{"model":"another"}"#).await;
    assert_eq!((other.status, other.header("x-tidegate-fault")), (429, None), "another model may have some left");
    let status = proxy.admin("/status").await.json();
    let account = &status["accounts"][0];
    assert_eq!((&account["quota_spent"], &account["queued"]), (&true.into(), &0.into()), "{account}");
    let page = proxy.admin("/metrics").await.text();
    assert!(metric(&page, "tidegate_faults_total", &["kind=\"quota\""]) >= Some(980.0));
    assert!(proxy.view().paused.is_none());
}

#[tokio::test]
async fn whoever_waits_for_a_rate_is_told_at_once_that_the_quota_is_spent() {
    let upstream = Upstream::start(|_| Reply::new(429, "", SPENT).held()).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.rpm = Some(1));
    let addr = proxy.addr;
    let mut waiting = Vec::new();
    for n in 0..20 {
        waiting.push(tokio::spawn(async move {
            let mut client = Client::connect(addr).await;
            client.post("/v1/chat/completions", "", CHAT).await;
            client.response().await.json()["error"]["code"].clone()
        }));
        wait_until("one asks, the others wait", || {
            let view = proxy.view();
            view.in_flight == 1 && view.queued == n
        })
        .await;
    }
    let began = Instant::now();
    upstream.release(1);
    for code in waiting {
        assert_eq!(code.await.unwrap(), "insufficient_quota");
    }
    assert_eq!((upstream.count(), proxy.view().queued), (1, 0));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn whoever_cannot_wait_for_the_end_of_a_pause_is_told_at_once() {
    let upstream = Upstream::start(|seen| match seen.nth {
        0 => Reply::new(429, "retry-after: 30\r\n", RATE).held(),
        1 => Reply::ok("").held(),
        _ => Reply::ok("fine"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(2));
    let began = Instant::now();
    let mut clients = Vec::new();
    for n in 0..2 {
        let mut client = proxy.client().await;
        client.post("/x", "", "{}").await;
        clients.push(client);
        wait_until("in the order of arrival", || upstream.count() == n + 1).await;
    }
    for n in 0..3 {
        let mut client = proxy.client().await;
        client.post("/v1/messages", "x-stainless-timeout: 20\r\n", "{}").await;
        clients.push(client);
        wait_until("they wait", || proxy.view().queued == n + 1).await;
    }
    upstream.release(1);
    for client in &mut clients[2..] {
        let told = client.response().await;
        assert_eq!((told.status, told.header("x-tidegate-fault")), (429, Some("cannot_wait")));
        assert_eq!(told.json()["error"]["type"], "rate_limit_error");
        assert!(told.text().contains("Retry-After") && told.text().contains("paused for 3"), "{}", told.text());
        let after: u64 = told.header("retry-after").unwrap().parse().unwrap();
        assert!((29..=34).contains(&after), "{after}");
        assert_eq!(told.header("x-should-retry"), None, "coming back later helps");
    }
    let newcomer = proxy.post("/v1/messages", "x-stainless-timeout: 20\r\n", "{}").await;
    assert_eq!(newcomer.header("x-tidegate-fault"), Some("cannot_wait"));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    upstream.release(1);
    assert_eq!(clients[1].response().await.status, 200);
    wait_until("the refused one waits", || proxy.view().queued == 1).await;
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn tokens_are_counted_from_json_and_from_streams() {
    let settings = Settings { latency: Latency::Fixed(Duration::ZERO), ..Settings::default() };
    let mock = mock::start_with("127.0.0.1:0".parse().unwrap(), settings).unwrap();
    let proxy = Proxy::start(&format!("http://{}", mock.addr()), |_| {});
    let answer = proxy.post("/v1/chat/completions", "", CHAT).await.json();
    let stream = r#"{"model":"m","max_tokens":7,"stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let streamed = proxy.post("/v1/messages", "", stream).await;
    assert_eq!(streamed.status, 200);
    let of = |pointer: &str| answer.pointer(pointer).and_then(serde_json::Value::as_f64).unwrap();
    let counted = |page: &str, kind: &str| metric(page, "tidegate_tokens_total", &[&format!("kind=\"{kind}\"")]);
    let told: Vec<f64> = streamed
        .text()
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event.pointer("/usage/output_tokens").and_then(serde_json::Value::as_f64))
        .collect();
    proxy.idle().await;
    let page = proxy.admin("/metrics").await.text();
    assert!(counted(&page, "input") > Some(of("/usage/prompt_tokens")), "{page}");
    assert_eq!(counted(&page, "output"), Some(of("/usage/completion_tokens") + told.last().unwrap()), "{page}");
    assert_eq!(counted(&page, "cached"), Some(0.0));
}

/// What a stored response says it used was used when it was made.
const STORED: &str = r#"{"id":"resp_1","model":"m","usage":{"input_tokens":9000,"output_tokens":5000}}"#;

#[tokio::test]
async fn what_is_fetched_uses_no_tokens_and_teaches_no_budget() {
    let upstream = Upstream::start(|_| Reply::new(200, "content-type: application/json\r\n", STORED)).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.tpm = Some(1000));
    let mut client = proxy.client().await;
    for nth in 0..20 {
        let (method, body) = [("GET", ""), ("HEAD", ""), ("GET", CHAT)][nth % 3];
        // One that had to wait for tokens would be told at once that it cannot.
        let head = format!("{method} /v1/models/m HTTP/1.1\r\nhost: h\r\nx-stainless-timeout: 2\r\n");
        client
            .send(format!("{head}content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
            .await;
        let answer = if method == "HEAD" { client.response_to_head().await } else { client.response().await };
        assert_eq!(answer.status, 200, "{nth}: {answer:?}");
    }
    let left = || proxy.view().rates[0].left.unwrap();
    assert!(left() > 999.0, "{} left", left());
    // Some 20 tokens up, at most 5 down: by what the fetched answers say it would be thousands.
    assert_eq!(proxy.post("/v1/chat/completions", "", CHAT).await.status, 200);
    assert!((900.0..999.0).contains(&left()), "{} left", left());
    proxy.idle().await;
    let page = proxy.admin("/metrics").await.text();
    let counted = |kind: &str| metric(&page, "tidegate_tokens_total", &[&format!("kind=\"{kind}\"")]);
    assert_eq!((counted("input"), counted("output")), (Some(9000.0), Some(5000.0)), "of the one that was made");
}

#[tokio::test]
async fn what_is_fetched_does_not_wait_for_tokens() {
    let spent = "x-ratelimit-limit-tokens: 1000\r\nx-ratelimit-remaining-tokens: 0\r\nx-ratelimit-reset-tokens: 1m\r\n";
    let upstream = Upstream::start(move |seen| Reply::new(200, if seen.nth == 0 { spent } else { "" }, "{}")).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.preset = Preset::Openai);
    assert_eq!(proxy.post("/v1/responses", "", "{}").await.status, 200);
    let told = proxy.post("/v1/responses", "x-stainless-timeout: 2\r\n", "{}").await;
    assert_eq!((told.status, told.header("x-tidegate-fault")), (429, Some("cannot_wait")), "there are none left");
    let mut client = proxy.client().await;
    for _ in 0..5 {
        client.send("GET /v1/responses/resp_1 HTTP/1.1\r\nhost: h\r\nx-stainless-timeout: 2\r\n\r\n").await;
        assert_eq!(client.response().await.status, 200);
    }
    let told = proxy.post("/v1/responses", "x-stainless-timeout: 2\r\n", "{}").await;
    assert_eq!(told.status, 429, "fetching proved nothing about tokens");
}

#[tokio::test]
async fn the_trace_tells_what_an_exchange_was_refused_for() {
    let upstream = Upstream::start(|seen| match seen.nth {
        0 => Reply::new(429, "retry-after-ms: 20\r\n", RATE),
        1 => Reply::new(429, "", r#"{"error":{"message":"Number of concurrent requests exceeded"}}"#),
        2 => Reply::new(503, "retry-after-ms: 20\r\n", "busy"),
        _ => Reply::ok("fine"),
    })
    .await;
    let proxy = Proxy::configured(&upstream.url(), |config| config.trace = Trace::Headers);
    let answer = proxy.post("/x", "", "{}").await;
    assert_eq!((answer.status, answer.header("x-tidegate-attempts")), (200, Some("4")), "{answer:?}");
    assert_eq!(answer.header("x-tidegate-refused"), Some("rate, ceiling, overload"));
    let answer = proxy.post("/x", "", "{}").await;
    assert_eq!(answer.header("x-tidegate-refused"), None);
}

#[tokio::test]
async fn a_reported_rate_is_kept_without_a_single_refusal() {
    sixty(None, 0).await;
}

/// The mock then names a limit of 20 that its bucket of 5 never holds: that only the first refusals can tell.
#[tokio::test]
async fn a_reported_rate_is_kept_with_a_bucket_smaller_than_its_limit() {
    sixty(Some(5), 6).await;
}

async fn sixty(burst: Option<u32>, refused_max: u64) {
    let latency = Latency::Fixed(Duration::from_millis(20));
    let settings = Settings { rps: Some(20), burst, headers: HeaderFamily::Openai, latency, ..Settings::default() };
    let mock = mock::start_with("127.0.0.1:0".parse().unwrap(), settings).unwrap();
    let proxy = Proxy::start(&format!("http://{}", mock.addr()), |_| {});
    let began = Instant::now();
    for (status, _) in self::burst(&proxy, 60, CHAT).await {
        assert_eq!(status, 200);
    }
    let total = mock.ledger().total;
    assert_eq!(total.accepted, 60, "{total:?}");
    assert!(total.refused.requests <= refused_max, "{total:?}");
    assert!(began.elapsed() > Duration::from_millis(1900), "{:?}", began.elapsed());
    let pace = metric(&proxy.admin("/metrics").await.text(), "tidegate_pace_per_second", &[]).unwrap();
    assert!((15.0..=25.0).contains(&pace), "{pace}");
    let account = proxy.admin("/status").await.json()["accounts"][0].clone();
    assert!((15.0..=25.0).contains(&account["pace_per_second"].as_f64().unwrap()), "{account}");
    let rate = &account["rates"][0];
    assert_eq!((&rate["dimension"], &rate["source"]), (&"requests".into(), &"reported".into()), "{account}");
}
