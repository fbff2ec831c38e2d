//! The admin listener: what it shows is true, bounded, and gives nothing of a request away.

use std::{collections::BTreeSet, time::Duration};

use crate::support::{Client, Proxy, Reply, Upstream, metric, wait_until};

const RATE: &str = r#"{"error":{"message":"Rate limit reached for requests per min (RPM)","type":"requests"}}"#;

/// Answers by path: refused once, failed once, or held.
async fn moody_upstream() -> Upstream {
    Upstream::start(|seen| match (seen.line(), seen.nth) {
        (_, 0) => Reply::new(429, "retry-after-ms: 50\r\nx-ratelimit-remaining-requests: 7000\r\n", RATE),
        (_, 1) => Reply::new(503, "", "busy"),
        (line, _) if line.contains("/held") => Reply::ok("done").held(),
        _ => Reply::new(200, "x-ratelimit-remaining-tokens: 9000\r\n", "fine"),
    })
    .await
}

fn fast(settings: &mut tidegate::config::Upstream) {
    settings.retry.backoff_base = Duration::from_millis(5);
    settings.retry.backoff_jitter = Duration::from_millis(1);
}

/// Label values by name, for all samples of a page.
fn labels(page: &str, name: &str) -> BTreeSet<String> {
    let start = format!("{name}=\"");
    let values = page.lines().filter(|line| !line.starts_with('#')).flat_map(|line| {
        line.match_indices(&start).filter_map(|(at, _)| line[at + start.len()..].split('"').next()).collect::<Vec<_>>()
    });
    values.map(str::to_owned).collect()
}

#[tokio::test]
async fn every_metric_of_the_contract_is_there_with_help_and_type() {
    let upstream = moody_upstream().await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        fast(settings);
        settings.ceiling = Some(2);
        settings.path_prefix = "/v1".to_owned();
    });
    assert_eq!(proxy.post("/v1/infer", "", "{}").await.text(), "fine");
    assert_eq!(proxy.get("/elsewhere").await.header("x-tidegate-fault"), Some("no_route"));
    proxy.app().shared.metrics.reloaded(true);
    let page = proxy.admin("/metrics").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let page = page.text();
    for (name, kind, labels) in [
        ("tidegate_exchanges_total", "counter", &["upstream", "account", "end"][..]),
        ("tidegate_attempts_total", "counter", &["upstream", "account", "outcome"]),
        ("tidegate_refusals_total", "counter", &["upstream", "account", "attribution"]),
        ("tidegate_retries_total", "counter", &["upstream", "account", "reason"]),
        ("tidegate_faults_total", "counter", &["upstream", "account", "kind"]),
        ("tidegate_limit_changes_total", "counter", &["upstream", "account", "reason"]),
        ("tidegate_pauses_total", "counter", &["upstream", "account", "reason"]),
        ("tidegate_relayed_bytes_total", "counter", &["upstream", "account", "direction"]),
        ("tidegate_tokens_total", "counter", &["upstream", "account", "kind"]),
        ("tidegate_spend_usd_total", "counter", &["upstream", "account"]),
        ("tidegate_config_reloads_total", "counter", &["result"]),
        ("tidegate_in_flight", "gauge", &["upstream", "account"]),
        ("tidegate_limit", "gauge", &["upstream", "account"]),
        ("tidegate_ceiling", "gauge", &["upstream", "account"]),
        ("tidegate_queue_depth", "gauge", &["upstream", "account"]),
        ("tidegate_paused_seconds", "gauge", &["upstream", "account"]),
        ("tidegate_upstream_remaining", "gauge", &["upstream", "account", "dimension"]),
        ("tidegate_buffered_bytes", "gauge", &[]),
        ("tidegate_connections", "gauge", &["side"]),
        ("tidegate_build_info", "gauge", &["version"]),
        ("tidegate_queue_wait_seconds", "histogram", &["upstream", "account"]),
        ("tidegate_first_byte_seconds", "histogram", &["upstream", "account"]),
        ("tidegate_exchange_seconds", "histogram", &["upstream", "account"]),
        ("tidegate_overhead_seconds", "histogram", &["upstream", "account"]),
    ] {
        assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}");
        assert!(page.contains(&format!("# HELP {name} ")), "{name} has no help");
        let sample = if kind == "histogram" { format!("{name}_count") } else { name.to_owned() };
        let line = page.lines().find(|line| line.split(['{', ' ']).next() == Some(sample.as_str()));
        let line = line.unwrap_or_else(|| panic!("{name} has no sample"));
        for label in labels {
            assert!(line.contains(&format!("{label}=\"")), "{name} has no label {label}: {line}");
        }
    }
}

#[tokio::test]
async fn counters_tell_what_happened() {
    let upstream = moody_upstream().await;
    let proxy = Proxy::start(&upstream.url(), fast);
    assert_eq!(proxy.post("/v1/infer", "", "{}").await.text(), "fine");
    proxy.idle().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = Proxy::start(&format!("http://{nobody}"), |settings| {
        fast(settings);
        settings.retry.attempts_max = 1;
    });
    assert_eq!(away.get("/x").await.status, 502);
    let (page, away) = (proxy.admin("/metrics").await.text(), away.admin("/metrics").await.text());
    for (page, name, label, want) in [
        (&page, "tidegate_exchanges_total", "end=\"complete\"", 1.0),
        (&page, "tidegate_exchanges_total", "end=\"fault\"", 0.0),
        (&page, "tidegate_attempts_total", "outcome=\"accepted\"", 1.0),
        (&page, "tidegate_attempts_total", "outcome=\"bounced\"", 1.0),
        (&page, "tidegate_attempts_total", "outcome=\"overloaded\"", 1.0),
        (&page, "tidegate_refusals_total", "attribution=\"rate\"", 1.0),
        (&page, "tidegate_refusals_total", "attribution=\"overload\"", 1.0),
        (&page, "tidegate_refusals_total", "attribution=\"quota\"", 0.0),
        (&page, "tidegate_retries_total", "", 2.0),
        (&page, "tidegate_pauses_total", "reason=\"retry_after\"", 1.0),
        (&page, "tidegate_faults_total", "", 0.0),
        (&page, "tidegate_relayed_bytes_total", "direction=\"request\"", 2.0),
        (&page, "tidegate_relayed_bytes_total", "direction=\"response\"", 4.0),
        (&page, "tidegate_upstream_remaining", "dimension=\"requests\"", 7000.0),
        (&page, "tidegate_upstream_remaining", "dimension=\"tokens\"", 9000.0),
        (&page, "tidegate_first_byte_seconds_count", "", 3.0),
        (&page, "tidegate_queue_wait_seconds_count", "", 3.0),
        (&page, "tidegate_exchange_seconds_count", "", 1.0),
        (&page, "tidegate_overhead_seconds_count", "", 1.0),
        (&away, "tidegate_exchanges_total", "end=\"fault\"", 1.0),
        (&away, "tidegate_faults_total", "kind=\"unreachable\"", 1.0),
        (&away, "tidegate_attempts_total", "", 1.0),
    ] {
        assert_eq!(metric(page, name, &[label]), Some(want), "{name} {label}\n{page}");
    }
}

#[tokio::test]
async fn histograms_reach_from_50_microseconds_to_ten_minutes() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    assert_eq!(proxy.get("/x").await.status, 200);
    let page = proxy.admin("/metrics").await.text();
    for name in ["queue_wait", "first_byte", "exchange", "overhead"] {
        let start = format!("tidegate_{name}_seconds_bucket{{");
        let bounds = page.lines().filter(|line| line.starts_with(&start)).filter_map(|line| {
            line.split_once("le=\"").and_then(|(_, rest)| rest.split('"').next()).and_then(|le| le.parse::<f64>().ok())
        });
        let bounds: Vec<f64> = bounds.filter(|bound| bound.is_finite()).collect();
        assert!(bounds[0] <= 0.000_05 && bounds[bounds.len() - 1] >= 600.0, "{name}: {bounds:?}");
    }
}

#[tokio::test]
async fn nothing_of_a_request_is_shown_anywhere() {
    let upstream = moody_upstream().await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        fast(settings);
        settings.account.split_by_model = true;
    });
    for headers in [
        "authorization: Bearer sk-credential\r\n",
        "x-api-key: sk-credential\r\n",
        "api-key: sk-credential\r\nx-tidegate-flow: the-flow\r\n",
        "",
    ] {
        let response =
            proxy.post("/v1/the-path/chat/completions?key=the-query", headers, r#"{"model":"the-model"}"#).await;
        assert_eq!(response.status, 200, "{response:?}");
    }
    let unnamed = Proxy::start(&upstream.url(), |_| {});
    assert_eq!(unnamed.get("/the-path").await.status, 200);
    for proxy in [&proxy, &unnamed] {
        let (metrics, status) = (proxy.admin("/metrics").await.text(), proxy.admin("/status").await);
        for secret in ["sk-credential", "the-path", "the-query", "the-model", "the-flow", "Bearer"] {
            assert!(!metrics.contains(secret), "/metrics shows {secret}");
            assert!(!status.text().contains(secret), "/status shows {secret}");
        }
        let mut accounts = labels(&metrics, "account");
        for account in status.json()["accounts"].as_array().unwrap() {
            accounts.insert(account["account"].as_str().unwrap().to_owned());
        }
        let hash = |label: &str| {
            label.len() == 8 && label.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        assert!(!accounts.is_empty());
        assert!(accounts.iter().all(|label| label == "default" || hash(label)), "{accounts:?}");
    }
}

#[tokio::test]
async fn at_most_64_accounts_have_a_label_of_their_own() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(3));
    let mut client = proxy.client().await;
    for key in 0..80 {
        client.post("/x", &format!("authorization: Bearer key-{key}\r\n"), "{}").await;
        assert_eq!(client.response().await.status, 200);
    }
    let page = proxy.admin("/metrics").await.text();
    let accounts = labels(&page, "account");
    assert!(accounts.contains("other"), "{accounts:?}");
    assert_eq!(accounts.iter().filter(|label| *label != "other").count(), 64, "{accounts:?}");
    assert_eq!(metric(&page, "tidegate_exchanges_total", &["end=\"complete\""]), Some(80.0), "none is lost");
    assert_eq!(metric(&page, "tidegate_ceiling", &["account=\"other\""]), Some(16.0 * 3.0), "they add up");
    assert_eq!(proxy.gates().len(), 80, "each still has a ceiling of its own");
}

#[tokio::test]
async fn accounts_that_share_a_label_are_one_row_and_the_one_in_trouble_is_first() {
    let upstream = Upstream::start(|seen| match seen.line() {
        line if line.contains("/bad") => Reply::new(503, "", "busy"),
        line if line.contains("/held") => Reply::ok("done").held(),
        _ => Reply::ok("fine"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        (settings.ceiling, settings.retry.attempts_max) = (Some(3), 1);
    });
    let mut client = proxy.client().await;
    for key in 0..70 {
        client.post("/x", &format!("authorization: Bearer key-{key}\r\n"), "{}").await;
        assert_eq!(client.response().await.status, 200);
    }
    client.post("/bad", "authorization: Bearer key-69\r\n", "{}").await;
    assert_eq!(client.response().await.status, 503);
    client.post("/held", "authorization: Bearer key-68\r\n", "{}").await;
    wait_until("it is upstream", || upstream.in_flight() == 1).await;
    let status = proxy.admin("/status").await.json();
    let accounts = status["accounts"].as_array().unwrap();
    assert_eq!(accounts.len(), 65, "64 and the rest of them");
    let other = &accounts[0];
    assert_eq!((&other["account"], &other["accounts"]), (&"other".into(), &6.into()), "{other}");
    assert_eq!((&other["state"], &status["health"]["state"]), (&"upstream".into(), &"upstream".into()), "{other}");
    assert!(other["says"].as_str().unwrap().ends_with(" (one of 6 accounts)"), "{other}");
    assert_eq!((&other["in_flight"], &other["ceiling"]), (&1.into(), &18.into()), "{other}");
    assert_eq!(
        (&other["last_refusal"]["status"], &other["totals"]["attempts"]["overloaded"]),
        (&503.into(), &1.into())
    );
    let labels: Vec<_> = accounts[1..].iter().map(|account| account["account"].as_str().unwrap()).collect();
    assert!(labels.is_sorted(), "{labels:?}");
    let answered = accounts.iter().map(|account| account["totals"]["exchanges"]["complete"].as_u64().unwrap());
    assert_eq!(answered.sum::<u64>(), 71, "none is counted twice");
    upstream.release(1);
    assert_eq!(client.response().await.text(), "done");
}

#[tokio::test]
async fn status_and_gauges_say_what_the_gate_says() {
    let upstream = moody_upstream().await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        fast(settings);
        settings.name = "api".to_owned();
        settings.ceiling = Some(2);
    });
    assert_eq!(proxy.post("/x", "", "{}").await.text(), "fine");
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = proxy.client().await;
        client.post("/held", "", "{}").await;
        clients.push(client);
    }
    wait_until("two are upstream and three wait", || {
        upstream.in_flight() == 2 && proxy.view().in_flight == 2 && proxy.view().queued == 3
    })
    .await;
    let view = proxy.view();
    let status = proxy.admin("/status").await;
    assert_eq!(status.header("content-type"), Some("application/json"));
    let status = status.json();
    assert_eq!((&status["ready"], &status["version"]), (&true.into(), &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(status["connections"]["downstream"], 5, "{status}");
    // Each thread keeps its own, so the first one may be idle beside the two in use.
    assert!((2..=3).contains(&status["connections"]["upstream"].as_u64().unwrap()), "{status}");
    assert_eq!(status["accounts"].as_array().unwrap().len(), 1);
    let account = &status["accounts"][0];
    for (field, want) in [
        ("upstream", serde_json::json!("api")),
        ("account", serde_json::json!("default")),
        ("limit", serde_json::json!(view.limit)),
        ("ceiling", serde_json::json!(2)),
        ("in_flight", serde_json::json!(2)),
        ("queued", serde_json::json!(3)),
        ("paused_seconds", serde_json::json!(0.0)),
        ("paused_for", serde_json::Value::Null),
        (
            "remaining",
            serde_json::json!({ "requests": 7000, "input_tokens": null, "output_tokens": null, "tokens": 9000 }),
        ),
    ] {
        assert_eq!(account[field], want, "{field}: {account}");
    }
    assert_eq!(account["last_refusal"]["status"], 503, "{account}");
    assert_eq!(account["last_refusal"]["attribution"], "overload", "{account}");
    let page = proxy.admin("/metrics").await.text();
    for (name, want) in [
        ("tidegate_in_flight", 2.0),
        ("tidegate_queue_depth", 3.0),
        ("tidegate_ceiling", 2.0),
        ("tidegate_limit", f64::from(view.limit)),
        ("tidegate_paused_seconds", 0.0),
    ] {
        let labels = ["upstream=\"api\"", "account=\"default\""];
        assert_eq!(metric(&page, name, &labels), Some(want), "{name}");
    }
    let upstream_connections = metric(&page, "tidegate_connections", &["side=\"upstream\""]);
    assert_eq!(upstream_connections, status["connections"]["upstream"].as_f64());
    assert_eq!(metric(&page, "tidegate_connections", &["side=\"downstream\""]), Some(5.0));
    upstream.release(5);
    for mut client in clients {
        assert_eq!(client.response().await.text(), "done");
    }
    proxy.idle().await;
    wait_until("no buffer is held", || proxy.app().shared.metrics.buffered_bytes.get() == 0).await;
    let page = proxy.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_in_flight", &[]), Some(0.0));
    assert_eq!(metric(&page, "tidegate_queue_depth", &[]), Some(0.0));
}

#[tokio::test]
async fn a_pause_is_shown_with_the_time_that_is_left_and_its_reason() {
    let upstream = Upstream::start(|seen| match seen.nth {
        0 => Reply::new(429, "retry-after: 20\r\n", RATE),
        _ => Reply::ok("fine"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    client.post("/x", "", "{}").await;
    wait_until("the account is paused", || proxy.view().paused.is_some()).await;
    let account = proxy.admin("/status").await.json()["accounts"][0].clone();
    let left = account["paused_seconds"].as_f64().unwrap();
    assert!((15.0..=22.0).contains(&left), "{account}");
    assert_eq!(account["paused_for"], "retry_after");
    assert_eq!(account["last_refusal"]["attribution"], "rate");
    let shown = metric(&proxy.admin("/metrics").await.text(), "tidegate_paused_seconds", &[]).unwrap();
    assert!(shown <= left && shown > left - 5.0, "{shown} after {left}");
}

#[tokio::test]
async fn ready_until_the_drain_and_alive_to_the_end() {
    let upstream = moody_upstream().await;
    let proxy = Proxy::start(&upstream.url(), fast);
    assert_eq!((proxy.admin("/healthz").await.status, proxy.admin("/readyz").await.status), (200, 200));
    assert_eq!(proxy.get("/x").await.status, 200);
    let mut client = proxy.client().await;
    client.get("/held").await;
    wait_until("the request is upstream", || upstream.in_flight() == 1).await;
    let drain = async { proxy.app().drain().await };
    let look = async {
        wait_until("it drains", || !proxy.app().shared.is_ready()).await;
        assert_eq!((proxy.admin("/healthz").await.status, proxy.admin("/readyz").await.status), (200, 503));
        assert_eq!(proxy.admin("/status").await.json()["ready"], false);
        upstream.release(1);
        assert_eq!(client.response().await.text(), "done");
    };
    let (cut, ()) = tokio::join!(drain, look);
    assert_eq!(cut, 0);
}

#[tokio::test]
async fn which_methods_and_paths_there_are() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    for (method, path, status, allow) in [
        ("GET", "/", 200, None),
        ("GET", "/status", 200, None),
        ("GET", "/status?x=1", 200, None),
        ("GET", "/metrics", 200, None),
        ("GET", "/nowhere", 404, None),
        ("GET", "/metrics/", 404, None),
        ("GET", "/drain", 405, Some("POST")),
        ("PUT", "/drain", 405, Some("POST")),
        ("POST", "/metrics", 405, Some("GET")),
    ] {
        let mut client = Client::connect(proxy.admin).await;
        client.send(format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")).await;
        let response = client.response().await;
        assert_eq!((response.status, response.header("allow")), (status, allow), "{method} {path}");
    }
    assert!(!proxy.app().drain_asked.is_cancelled());
    let mut client = Client::connect(proxy.admin).await;
    for origin in ["http://evil.test", "null", "http://localhost:1"] {
        client.post("/drain", &format!("origin: {origin}\r\n"), "").await;
        assert_eq!(client.response().await.status, 403, "a page in a browser, {origin}");
        assert!(!proxy.app().drain_asked.is_cancelled(), "{origin}");
    }
    client.post("/drain", "", "").await;
    assert_eq!(client.response().await.status, 202);
    assert!(proxy.app().drain_asked.is_cancelled());
    let mut client = Client::connect(proxy.admin).await;
    client.send("HEAD /status HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(client.response_to_head().await.status, 200);
    assert_eq!(upstream.count(), 0, "nothing of it goes upstream");
}

#[tokio::test]
async fn what_was_is_there_for_whoever_looks_late() {
    let upstream = Upstream::start(|seen| match seen.nth {
        0 => Reply::new(429, "retry-after: 2\r\n", RATE),
        _ => Reply::ok("fine"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.name = "api".to_owned());
    assert_eq!(proxy.post("/x", "", "{}").await.text(), "fine");
    let soon = crate::support::soon("a point of the history", async {
        loop {
            let page = proxy.admin("/history?upstream=api&account=default").await.json();
            if !page["points"].as_array().unwrap().is_empty() {
                return page;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let page = soon.await;
    let columns: Vec<_> = page["columns"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let column = |name: &str| columns.iter().position(|known| *known == name).unwrap();
    let sum = |name: &str| -> u64 {
        page["points"].as_array().unwrap().iter().map(|point| point[column(name)].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("answers"), sum("refused_rate"), sum("faults")), (1, 1, 0), "{page}");
    let events: Vec<_> = page["events"].as_array().unwrap().iter().map(|event| &event["kind"]).collect();
    assert!(events.contains(&&serde_json::json!("pause")), "{page}");
    assert_eq!(
        proxy.admin("/history").await.json()["points"].as_array().unwrap().len(),
        page["points"].as_array().unwrap().len()
    );
    for path in
        ["/history?upstream=api&account=nobody", "/history?since=18446744073709551615", "/history?since=x&upstream="]
    {
        assert_eq!(proxy.admin(path).await.status, 200, "{path}");
    }
    let status = proxy.admin("/status").await.json();
    assert_eq!(
        status["health"],
        serde_json::json!({ "state": "idle", "says": "Healthy: idle", "in_flight": 0, "queued": 0 })
    );
    assert_eq!(status["accounts"][0]["totals"]["refusals"]["rate"], 1, "{status}");
}

#[tokio::test]
async fn a_sentence_says_what_holds_an_account_back() {
    let upstream = Upstream::start(|seen| match seen.nth {
        0 => Reply::new(429, "retry-after: 20\r\n", RATE),
        _ => Reply::ok("fine"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    client.post("/x", "", "{}").await;
    wait_until("the account is paused", || proxy.view().paused.is_some() && proxy.view().queued == 1).await;
    let status = proxy.admin("/status").await.json();
    let says = status["accounts"][0]["says"].as_str().unwrap();
    assert!(says.starts_with("the upstream asked to wait, ") && says.ends_with(" s left; 1 waiting"), "{says}");
    assert_eq!((&status["accounts"][0]["state"], &status["health"]["state"]), (&"paused".into(), &"paused".into()));
}

#[tokio::test]
async fn the_page_is_small() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let page = proxy.admin("/").await.text();
    assert!(page.len() <= 100 << 10, "{} bytes", page.len());
}

#[tokio::test]
async fn the_page_may_talk_to_nobody_but_this_port() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let page = proxy.admin("/").await;
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    for word in ["http://", "https://", "src=", "@import"] {
        assert!(!page.text().contains(word), "the page refers to something outside: {word}");
    }
    assert!(page.text().contains("status"));
}
