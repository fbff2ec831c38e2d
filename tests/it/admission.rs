//! Ceiling, queue, accounts, flows.

use std::time::{Duration, Instant};

use tidegate::config::AccountBy;

use crate::support::{Client, Proxy, Reply, Upstream, wait_until};

#[tokio::test]
async fn never_more_in_flight_than_the_ceiling_and_everybody_gets_their_own_answer() {
    let upstream =
        Upstream::start(|seen| Reply::ok(&String::from_utf8_lossy(&seen.body)).after(Duration::from_millis(5))).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(7));
    let mut clients = Vec::new();
    for id in 0..300 {
        let addr = proxy.addr;
        clients.push(tokio::spawn(async move {
            let mut client = Client::connect(addr).await;
            client.post("/v1/infer", "", &format!("request {id}")).await;
            let response = client.response().await;
            assert_eq!((response.status, response.text()), (200, format!("request {id}")));
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(upstream.in_flight_max(), 7);
    assert_eq!(upstream.count(), 300, "nothing was sent twice");
    proxy.idle().await;
}

#[tokio::test]
async fn credentials_are_accounts_with_a_ceiling_each() {
    let upstream = Upstream::start(|_| Reply::ok("").held()).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(2));
    let mut clients = Vec::new();
    for key in ["a", "a", "a", "b", "b", "b"] {
        let mut client = proxy.client().await;
        client.post("/x", &format!("authorization: Bearer {key}\r\n"), "").await;
        clients.push(client);
    }
    wait_until("two of each are in flight", || upstream.in_flight() == 4).await;
    let mut views: Vec<_> = proxy.gates().iter().map(|gate| (gate.view().in_flight, gate.view().queued)).collect();
    views.sort_unstable();
    assert_eq!(views, [(2, 1), (2, 1)]);
    upstream.release(6);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    for gate in proxy.gates() {
        assert_eq!(gate.account().len(), 8, "a label is 8 hex digits, never the key: {}", gate.account());
    }
}

#[tokio::test]
async fn one_account_for_all_or_one_per_header_value_or_per_model() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    for (by, split_by_model, want) in [
        (AccountBy::Upstream, false, 1),
        (AccountBy::Header("x-team".parse().unwrap()), false, 2),
        (AccountBy::Upstream, true, 3),
    ] {
        let proxy = Proxy::start(&upstream.url(), |settings| {
            settings.account.by = by.clone();
            settings.account.split_by_model = split_by_model;
        });
        for (key, team, model) in [("a", "red", "m1"), ("b", "red", "m2"), ("c", "blue", "m3")] {
            let headers = format!("authorization: Bearer {key}\r\nx-team: {team}\r\n");
            proxy.post("/x", &headers, &format!("{{\"model\":\"{model}\"}}")).await;
        }
        assert_eq!(proxy.gates().len(), want, "{by:?} {split_by_model}");
    }
}

#[tokio::test]
async fn a_flow_with_many_waiting_does_not_hold_up_another() {
    let upstream = Upstream::start(|_| Reply::ok("").held()).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    let mut clients = Vec::new();
    for n in 0..10 {
        let mut client = proxy.client().await;
        client.post("/batch", "x-tidegate-flow: batch\r\n", "").await;
        clients.push(client);
        wait_until("in the order of arrival", || proxy.view().queued + 1 == n + 1).await;
    }
    let mut late = proxy.client().await;
    late.post("/chat", "x-tidegate-flow: chat\r\n", "").await;
    wait_until("all wait", || proxy.view().queued == 10).await;
    upstream.release(3);
    assert_eq!(late.response().await.status, 200);
    upstream.release(20);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    let order: Vec<_> = upstream.seen().iter().map(|seen| seen.line().to_owned()).collect();
    assert!(order[..3].iter().any(|line| line.contains("/chat")), "{order:?}");
}

#[tokio::test]
async fn a_full_queue_says_so_in_the_shape_of_the_api_with_a_time_to_come_back() {
    let upstream = Upstream::start(|_| Reply::ok("").held()).await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        settings.ceiling = Some(1);
        settings.queue.depth_max = 2;
    });
    let mut clients = Vec::new();
    for n in 0..3 {
        let mut client = proxy.client().await;
        client.post("/x", "", "").await;
        clients.push(client);
        wait_until("one after the other", || proxy.view().in_flight as usize + proxy.view().queued == n + 1).await;
    }
    for (path, pointer) in [("/v1/chat/completions", "/error/code"), ("/v1/messages", "/error/type")] {
        let refused = proxy.post(path, "", "{}").await;
        assert_eq!((refused.status, refused.header("x-tidegate-fault")), (429, Some("queue_full")));
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=59).contains(&seconds));
        let millis: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
        assert!(millis.div_ceil(1000) == seconds, "{millis} ms and {seconds} s");
        assert!(refused.json().pointer(pointer).is_some(), "{}", refused.text());
    }
    upstream.release(3);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
}

#[tokio::test]
async fn waiting_too_long_ends_with_a_reason_and_the_clients_own_patience_counts() {
    let upstream = Upstream::start(|_| Reply::ok("").held()).await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        settings.ceiling = Some(1);
        settings.queue.wait_max = Duration::from_millis(300);
    });
    let mut first = proxy.client().await;
    first.get("/x").await;
    wait_until("the slot is taken", || upstream.count() == 1).await;
    for (header, at_least, at_most) in [("", 300, 10_000), ("x-stainless-read-timeout: 0.1\r\n", 50, 10_000)] {
        let began = Instant::now();
        let late = proxy.post("/v1/responses", header, "{}").await;
        assert_eq!((late.status, late.header("x-tidegate-fault")), (503, Some("queue_timeout")));
        assert_eq!(late.header("x-should-retry"), Some("false"));
        assert!(late.header("retry-after").is_some());
        let took = began.elapsed().as_millis();
        assert!(took >= at_least && took < at_most, "{header}: {took} ms");
    }
    upstream.release(1);
    assert_eq!(first.response().await.status, 200);
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn an_unknown_ceiling_is_found_and_no_refusal_is_seen() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let held = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&held);
    // An upstream that counts by itself: the fourth at once is refused.
    let upstream = Upstream::start(move |seen| {
        if counted.fetch_add(1, Ordering::SeqCst) >= 3 {
            counted.fetch_sub(1, Ordering::SeqCst);
            return Reply::new(429, "", r#"{"error":{"message":"Number of concurrent requests exceeded"}}"#);
        }
        let counted = std::sync::Arc::clone(&counted);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            counted.fetch_sub(1, Ordering::SeqCst);
        });
        Reply::ok(&String::from_utf8_lossy(&seen.body)).after(Duration::from_millis(31))
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let clients: Vec<_> = (0..60)
        .map(|id| {
            let addr = proxy.addr;
            tokio::spawn(async move {
                let mut client = Client::connect(addr).await;
                client.post("/x", "", &format!("{id}")).await;
                let response = client.response().await;
                assert_eq!((response.status, response.text()), (200, format!("{id}")));
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert!(proxy.view().limit <= 4, "{:?}", proxy.view());
    let page = proxy.admin("/metrics").await.text();
    assert!(page.contains("attribution=\"ceiling\""), "{page}");
}
