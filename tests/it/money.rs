//! What answers cost: by configured prices, or as they say themselves; and what is left.

use tidegate::config::{Config, Upstream as Settings, file};

use crate::support::{Proxy, Reply, Upstream, metric, wait_until};

const JSON: &str = "content-type: application/json\r\n";
const OPENAI: &str = r#"{"id":"c","model":"gpt-5-2026","choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":200,"prompt_tokens_details":{"cached_tokens":600}}}"#;
const ANTHROPIC: &str = r#"{"type":"message","model":"claude-x","content":[],"usage":{"input_tokens":400,"cache_creation_input_tokens":0,"cache_read_input_tokens":600,"output_tokens":200}}"#;
const COHERE: &str = r#"{"id":"c","message":{},"usage":{"billed_units":{"input_tokens":460,"output_tokens":200},"tokens":{"input_tokens":5000,"output_tokens":900},"cached_tokens":64}}"#;
const XAI: &str = r#"{"usage":{"prompt_tokens":1000,"completion_tokens":50,"total_tokens":1200,"prompt_tokens_details":{"cached_tokens":600},"completion_tokens_details":{"reasoning_tokens":150}}}"#;
const BEDROCK: &str =
    r#"{"output":{},"usage":{"inputTokens":400,"outputTokens":200,"totalTokens":1200,"cacheReadInputTokens":600}}"#;
const OPENAI_EVENTS: &str = concat!(
    "data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"hi\"}}],\"usage\":null}\n\n",
    "data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":200,\"prompt_tokens_details\":{\"cached_tokens\":600}}}\n\n",
    "data: [DONE]\n\n"
);
const ANTHROPIC_EVENTS: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":400,\"cache_read_input_tokens\":600,\"output_tokens\":1}}}\n\n",
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":200}}\n\n",
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
);
/// 400 new input tokens at 1.25, 600 cached ones at 0.125, 200 output tokens at 10, in dollars for a million.
const COST: f64 = 0.002_575;

/// The same as configured in a file.
fn prices(settings: &mut Settings) {
    let text = "upstreams:
  - url: http://h
    prices:
      - { model: gpt-5*, input: 1.25, cached: 0.125, output: 10 }
      - { model: claude-x, input: 1.25, cached: 0.125, output: 10 }
      - { model: 'claude-y:0', input: 1.25, cached: 0.125, output: 10 }
      - { model: text-embedding-3*, input: 0.02, output: 0 }";
    settings.prices = parsed(text).prices;
}

fn parsed(text: &str) -> Settings {
    let Config { mut upstreams, .. } = file::parse(text, "f", &|_| None).unwrap();
    upstreams.remove(0)
}

fn asks(model: &str) -> String {
    format!(r#"{{"model":"{model}","messages":[]}}"#)
}

async fn spent(proxy: &Proxy) -> f64 {
    proxy.idle().await;
    metric(&proxy.admin("/metrics").await.text(), "tidegate_spend_usd_total", &[]).unwrap()
}

/// Chunked, with a cut inside the numbers.
fn streamed(kind: &str, text: &str) -> Reply {
    let (first, second) = text.split_at(text.len() * 2 / 3);
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n");
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    Reply::raw(format!("{head}{}{}0\r\n\r\n", chunk(first), chunk(second)))
}

#[tokio::test]
async fn answers_of_every_shape_cost_what_their_tokens_come_to() {
    for (name, path, model, reply) in [
        ("OpenAI", "/v1/chat/completions", "gpt-5-mini", Reply::new(200, JSON, OPENAI)),
        ("OpenAI, no length told", "/v1/chat/completions", "gpt-5", streamed("application/json", OPENAI)),
        ("OpenAI, events", "/v1/chat/completions", "gpt-5", streamed("text/event-stream", OPENAI_EVENTS)),
        ("Anthropic", "/v1/messages", "claude-x", Reply::new(200, JSON, ANTHROPIC)),
        ("Anthropic, events", "/v1/messages", "claude-x", streamed("text/event-stream", ANTHROPIC_EVENTS)),
        ("Cohere", "/v2/chat", "claude-x", Reply::new(200, JSON, COHERE)),
        ("xAI", "/v1/chat/completions", "gpt-5", Reply::new(200, JSON, XAI)),
        ("Bedrock", "/model/claude-y:0/converse", "", Reply::new(200, JSON, BEDROCK)),
        ("Bedrock, its colon escaped", "/model/claude-y%3A0/converse", "", Reply::new(200, JSON, BEDROCK)),
        ("the model in the path", "/openai/deployments/gpt-5/chat/completions", "mine", Reply::new(200, JSON, OPENAI)),
    ] {
        let upstream = Upstream::start(move |_| reply.clone()).await;
        let proxy = Proxy::start(&upstream.url(), prices);
        for n in 1..=3 {
            let answer = proxy.post(path, "content-type: application/json\r\n", &asks(model)).await;
            assert!(answer.status == 200 && answer.complete, "{name}: {answer:?}");
            let found = spent(&proxy).await;
            assert!((found - f64::from(n) * COST).abs() < 1e-12, "{name}, {n}: {found}");
        }
        let status = proxy.admin("/status").await.json();
        let account = &status["accounts"][0];
        assert_eq!(
            (account["spend"]["usd"].as_f64(), account["spend"]["unpriced_answers"].as_u64()),
            (Some(0.007_725), Some(0)),
            "{name}"
        );
        assert_eq!(status["upstreams"][0]["counts_spend"], true, "{name}");
    }
}

#[tokio::test]
async fn a_model_without_a_price_costs_nothing_and_is_counted() {
    let upstream = Upstream::start(|_| Reply::new(200, JSON, OPENAI)).await;
    let proxy = Proxy::start(&upstream.url(), prices);
    for body in [asks("o9"), asks(""), "{}".to_owned()] {
        assert_eq!(proxy.post("/v1/chat/completions", "", &body).await.status, 200);
    }
    assert!(spent(&proxy).await.abs() < 1e-12);
    let page = proxy.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_unpriced_total", &[]), Some(3.0));
    assert_eq!(proxy.admin("/status").await.json()["accounts"][0]["spend"]["unpriced_answers"], 3);
}

#[tokio::test]
async fn without_prices_nothing_is_spent_and_nothing_is_missing() {
    let upstream =
        Upstream::start(|_| Reply::new(200, "x-balance: 5\r\ncontent-type: application/json\r\n", OPENAI)).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    assert_eq!(proxy.post("/v1/chat/completions", "", &asks("gpt-5")).await.status, 200);
    assert!(spent(&proxy).await.abs() < 1e-12);
    let page = proxy.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_unpriced_total", &[]), Some(0.0));
    assert!(!page.contains("tidegate_balance_usd"), "nobody asked for it");
    let status = proxy.admin("/status").await.json();
    assert_eq!(
        (&status["upstreams"][0]["counts_spend"], &status["accounts"][0]["balance_usd"]),
        (&false.into(), &serde_json::Value::Null)
    );
}

#[tokio::test]
async fn what_an_answer_says_it_cost_wins() {
    let told = r#"{"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":200,"cost":0.000375}}"#;
    let upstream = Upstream::start(move |seen| match seen.nth {
        0 => Reply::new(200, JSON, told),
        _ => streamed("text/event-stream", &format!("data: {told}\n\ndata: [DONE]\n\n")),
    })
    .await;
    for change in [prices as fn(&mut Settings), |_| {}] {
        let proxy = Proxy::start(&upstream.url(), change);
        for _ in 0..2 {
            assert_eq!(proxy.post("/api/v1/chat/completions", "", &asks("gpt-5")).await.status, 200);
        }
        let found = spent(&proxy).await;
        assert!((found - 0.000_75).abs() < 1e-12, "{found}");
    }
}

/// 400 new input tokens, 1000 that were written to a cache and 600 that were read from it, 200 output tokens.
const WRITTEN: &str = r#"{"model":"claude-x","usage":{"input_tokens":400,"cache_creation_input_tokens":1000,"cache_read_input_tokens":600,"output_tokens":200}}"#;
/// The same; 700 of those written are kept for an hour.
const WRITTEN_APART: &str = r#"{"model":"claude-x","usage":{"input_tokens":400,"cache_creation_input_tokens":1000,"cache_read_input_tokens":600,"cache_creation":{"ephemeral_5m_input_tokens":300,"ephemeral_1h_input_tokens":700},"output_tokens":200}}"#;
const WRITTEN_EVENTS: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x\",\"usage\":{\"input_tokens\":400,\"cache_creation_input_tokens\":1000,\"cache_read_input_tokens\":600,\"cache_creation\":{\"ephemeral_5m_input_tokens\":300,\"ephemeral_1h_input_tokens\":700},\"output_tokens\":1}}}\n\n",
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"input_tokens\":400,\"cache_creation_input_tokens\":1000,\"cache_read_input_tokens\":600,\"output_tokens\":200}}\n\n",
);
/// OpenAI's, a part of the input.
const WRITTEN_WITHIN: &str = r#"{"usage":{"input_tokens":2000,"input_tokens_details":{"cached_tokens":600,"cache_write_tokens":1000},"output_tokens":200,"total_tokens":2200}}"#;

#[tokio::test]
async fn what_is_written_to_a_cache_has_prices_of_its_own() {
    const NO_PRICE: &str = "";
    const ONE: &str = ", cache_write: 2.5";
    const BOTH: &str = ", cache_write: 2.5, cache_write_1h: 4";
    // In dollars for a million: new input 2, read from a cache 0.2, output 10.
    let rest = 400.0 * 2.0 + 600.0 * 0.2 + 200.0 * 10.0;
    for (name, reply, prices, written) in [
        ("not told apart", Reply::new(200, JSON, WRITTEN), BOTH, 1000.0 * 2.5),
        ("told apart", Reply::new(200, JSON, WRITTEN_APART), BOTH, 300.0 * 2.5 + 700.0 * 4.0),
        ("events", streamed("text/event-stream", WRITTEN_EVENTS), BOTH, 300.0 * 2.5 + 700.0 * 4.0),
        ("OpenAI", Reply::new(200, JSON, WRITTEN_WITHIN), BOTH, 1000.0 * 2.5),
        ("no price for an hour", Reply::new(200, JSON, WRITTEN_APART), ONE, 1000.0 * 2.5),
        ("no price: that of input", Reply::new(200, JSON, WRITTEN_APART), NO_PRICE, 1000.0 * 2.0),
    ] {
        let upstream = Upstream::start(move |_| reply.clone()).await;
        let text = format!(
            "upstreams: [{{ url: http://h, prices: [{{ model: '*', input: 2, cached: 0.2, output: 10{prices} }}] }}]"
        );
        let proxy = Proxy::start(&upstream.url(), |settings| settings.prices = parsed(&text).prices);
        assert_eq!(proxy.post("/v1/messages", "", &asks("claude-x")).await.status, 200);
        let (found, want) = (spent(&proxy).await, (rest + written) / 1e6);
        assert!((found - want).abs() < 1e-12, "{name}: {found}, not {want}");
    }
}

#[tokio::test]
async fn what_is_fetched_again_was_paid_for_before() {
    let told = r#"{"id":"resp_1","usage":{"input_tokens":1000,"output_tokens":200,"cost":0.000375}}"#;
    for reply in
        [Reply::new(200, JSON, OPENAI), Reply::new(200, JSON, told), streamed("text/event-stream", OPENAI_EVENTS)]
    {
        let upstream = Upstream::start(move |_| reply.clone()).await;
        for change in [prices as fn(&mut Settings), |_| {}] {
            let proxy = Proxy::start(&upstream.url(), change);
            for path in ["/v1/responses/resp_1", "/openai/deployments/gpt-5/responses/resp_1"] {
                assert_eq!(proxy.get(path).await.status, 200);
            }
            assert!(spent(&proxy).await.abs() < 1e-12);
            let page = proxy.admin("/metrics").await.text();
            assert_eq!(metric(&page, "tidegate_unpriced_total", &[]), Some(0.0), "nor is a price missing");
        }
    }
}

#[tokio::test]
async fn failures_cost_nothing() {
    let failed = OPENAI.replace("\"id\"", "\"error\":{},\"id\"");
    let upstream = Upstream::start(move |seen| match seen.nth {
        0 => Reply::new(500, JSON, &failed),
        _ => Reply::new(400, JSON, &failed),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), prices);
    for status in [500, 400] {
        assert_eq!(proxy.post("/v1/chat/completions", "", &asks("gpt-5")).await.status, status);
    }
    assert!(spent(&proxy).await.abs() < 1e-12);
}

#[tokio::test]
async fn the_balance_is_what_the_header_last_said_as_a_number() {
    let said = ["12.50", "-0.25", "$7", "none", ""];
    let upstream = Upstream::start(move |seen| {
        let value = said.get(seen.nth).copied().unwrap_or("3");
        let line = if value.is_empty() { String::new() } else { format!("x-credits: {value}\r\n") };
        Reply::new(if seen.nth == 1 { 404 } else { 200 }, &line, "{}")
    })
    .await;
    let text = "upstreams: [{ url: http://h, balance: { header: X-Credits } }]";
    let proxy = Proxy::start(&upstream.url(), |settings| settings.balance = parsed(text).balance);
    assert!(!proxy.admin("/metrics").await.text().contains("tidegate_balance_usd"), "nothing was said yet");
    for want in [12.5, -0.25, -0.25, -0.25, -0.25, 3.0] {
        proxy.post("/v1/chat/completions", "", &asks("m")).await;
        let page = proxy.admin("/metrics").await.text();
        assert_eq!(metric(&page, "tidegate_balance_usd", &[]), Some(want), "{page}");
        assert_eq!(proxy.admin("/status").await.json()["accounts"][0]["balance_usd"], want);
    }
    // Elsewhere from now on, and what was said before is no news; then nobody asks for it any more.
    let text = "upstreams: [{ url: http://h, balance: { header: X-Left } }]";
    for balance in [parsed(text).balance, None] {
        let mut config = (*proxy.app().shared.snapshot.load().config).clone();
        config.upstreams[0].balance = balance;
        proxy.app().reload(config).unwrap();
        assert!(!proxy.admin("/metrics").await.text().contains("tidegate_balance_usd"));
    }
}

/// The configuration of the only upstream, with another balance.
fn with_balance(proxy: &Proxy, header: Option<&str>) -> Config {
    let mut config = (*proxy.app().shared.snapshot.load().config).clone();
    let text = header.map(|header| format!("upstreams: [{{ url: http://h, balance: {{ header: {header} }} }}]"));
    config.upstreams[0].balance = text.and_then(|text| parsed(&text).balance);
    config
}

#[tokio::test]
async fn an_answer_that_was_asked_for_before_a_reload_says_nothing_of_the_balance_after_it() {
    let upstream = Upstream::start(|seen| {
        let reply = Reply::new(200, "x-left: 5\r\nx-credits: 7\r\n", "{}");
        if seen.line().contains("/held") { reply.held() } else { reply }
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    for (round, now) in [None, Some("X-Credits"), Some("X-Left")].into_iter().enumerate() {
        // By way of another, so that the last round asks for the same header anew.
        let before = if now == Some("X-Left") { "X-Credits" } else { "X-Left" };
        proxy.app().reload(with_balance(&proxy, Some(before))).unwrap();
        assert_eq!(proxy.post("/x", "", "{}").await.status, 200);
        let page = proxy.admin("/metrics").await.text();
        let known = metric(&page, "tidegate_balance_usd", &["account=\"default\""]);
        assert_eq!(known, Some(if before == "X-Left" { 5.0 } else { 7.0 }), "{page}");

        let mut held = proxy.client().await;
        held.post("/held", "", "{}").await;
        wait_until("it is upstream", || upstream.in_flight() == 1).await;
        // And one whose account is seen for the first time only after the reload.
        let mut late = proxy.client().await;
        let head = "POST /x HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 2\r\n";
        late.send(format!("{head}authorization: Bearer {round}\r\n\r\n")).await;
        assert_eq!(late.head().await.0, 100, "its exchange has begun");

        proxy.app().reload(with_balance(&proxy, now)).unwrap();
        let news = match now {
            Some("X-Credits") => {
                assert_eq!(proxy.post("/x", "", "{}").await.status, 200);
                Some(7.0)
            }
            _ => None,
        };
        upstream.release(1);
        assert_eq!(held.response().await.status, 200);
        late.send("{}").await;
        assert_eq!(late.response().await.status, 200);

        let page = proxy.admin("/metrics").await.text();
        assert_eq!(metric(&page, "tidegate_balance_usd", &[]), news, "{now:?}: {page}");
        let status = proxy.admin("/status").await.json();
        let told: Vec<_> =
            status["accounts"].as_array().unwrap().iter().filter_map(|a| a["balance_usd"].as_f64()).collect();
        assert_eq!(told, Vec::from_iter(news), "{now:?}: {status}");
    }
}

#[tokio::test]
async fn accounts_that_share_a_label_tell_of_the_least_balance() {
    let upstream = Upstream::start(|seen| {
        let left = if seen.nth == 70 { 4 } else { 10 };
        Reply::new(200, &format!("x-left: {left}\r\n"), "{}")
    })
    .await;
    let text = "upstreams: [{ url: http://h, balance: { header: X-Left } }]";
    let proxy = Proxy::start(&upstream.url(), |settings| settings.balance = parsed(text).balance);
    for nth in 0..75 {
        proxy.post("/x", &format!("authorization: Bearer {nth}\r\n"), "{}").await;
    }
    let page = proxy.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_balance_usd", &["account=\"other\""]), Some(4.0), "{page}");
}

#[tokio::test]
async fn prices_are_taken_while_it_runs() {
    let upstream = Upstream::start(|_| Reply::new(200, JSON, OPENAI)).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    assert_eq!(proxy.post("/v1/chat/completions", "", &asks("gpt-5")).await.status, 200);
    let mut config = (*proxy.app().shared.snapshot.load().config).clone();
    prices(&mut config.upstreams[0]);
    proxy.app().reload(config).unwrap();
    assert_eq!(proxy.post("/v1/chat/completions", "", &asks("gpt-5")).await.status, 200);
    let found = spent(&proxy).await;
    assert!((found - COST).abs() < 1e-12, "only what came after: {found}");
}
