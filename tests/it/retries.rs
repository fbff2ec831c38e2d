//! What is sent again, when, and what never is.

use std::time::{Duration, Instant};

use tidegate::config::RetryPost;

use crate::support::{Client, Proxy, Reply, Step, Upstream, metric, wait_until};

const RATE: &str = r#"{"error":{"message":"Rate limit reached for requests per min (RPM)","type":"requests"}}"#;

fn fast(settings: &mut tidegate::config::Upstream) {
    settings.retry.backoff_base = Duration::from_millis(20);
    settings.retry.backoff_jitter = Duration::from_millis(5);
}

#[tokio::test]
async fn a_refusal_is_not_seen_and_retry_after_is_kept_by_the_whole_account() {
    let upstream = Upstream::start(|seen| match seen.nth {
        0 => Reply::new(429, "retry-after: 1\r\n", RATE),
        _ => Reply::ok(&String::from_utf8_lossy(&seen.body)),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let began = Instant::now();
    let mut first = proxy.client().await;
    first.post("/v1/infer", "", "first").await;
    wait_until("the refusal was heard", || proxy.view().paused.is_some()).await;
    assert_eq!(proxy.post("/v1/infer", "", "second").await.text(), "second");
    assert_eq!(first.response().await.text(), "first");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    let bodies: Vec<_> = upstream.seen().iter().map(|seen| String::from_utf8_lossy(&seen.body).into_owned()).collect();
    assert_eq!(bodies, ["first", "first", "second"], "the refused one kept its place");
}

#[tokio::test]
async fn every_spelling_of_retry_after_pauses() {
    let date = || {
        let then = std::time::SystemTime::now() + Duration::from_millis(2500);
        format!("retry-after: {}\r\ndate: {}\r\n", http_date(then), http_date(std::time::SystemTime::now()))
    };
    for headers in [
        "retry-after: 1\r\n".to_owned(),
        "retry-after: 0.6\r\n".to_owned(),
        "retry-after-ms: 600\r\n".to_owned(),
        "x-ms-retry-after-ms: 600\r\n".to_owned(),
        date(),
    ] {
        let sent = headers.clone();
        let upstream = Upstream::start(move |seen| match seen.nth {
            0 => Reply::new(429, &sent, RATE),
            _ => Reply::ok("fine"),
        })
        .await;
        let proxy = Proxy::start(&upstream.url(), |_| {});
        let began = Instant::now();
        assert_eq!(proxy.post("/x", "", "{}").await.text(), "fine", "{headers}");
        assert!(began.elapsed() >= Duration::from_millis(600), "{headers}: {:?}", began.elapsed());
    }
}

fn http_date(time: std::time::SystemTime) -> String {
    httpdate::fmt_http_date(time)
}

#[tokio::test]
async fn remaining_zero_on_a_good_answer_pauses_before_anything_is_refused() {
    let upstream = Upstream::start(|seen| match seen.nth {
        0 => Reply::new(200, "x-ratelimit-limit: 1\r\nx-ratelimit-remaining: 0\r\nx-ratelimit-reset: 1\r\n", ""),
        _ => Reply::ok(""),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    assert_eq!(proxy.get("/x").await.status, 200);
    let began = Instant::now();
    assert_eq!(proxy.get("/x").await.status, 200);
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_spent_quota_passes_at_once_and_unchanged() {
    let body = r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","code":"insufficient_quota"}}"#;
    let upstream = Upstream::start(move |_| Reply::new(429, "x-request-id: r\r\n", body)).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let response = proxy.post("/v1/chat/completions", "", "{}").await;
    assert_eq!((response.status, response.text().as_str()), (429, body));
    assert_eq!(response.header("x-request-id"), Some("r"));
    assert_eq!(response.header("x-tidegate-fault"), None);
    assert_eq!(upstream.count(), 1);
    assert!(proxy.view().paused.is_none(), "others are not held up");
}

#[tokio::test]
async fn a_wait_longer_than_the_client_has_ends_at_once_with_the_upstreams_answer() {
    let upstream = Upstream::start(|_| Reply::new(429, "retry-after: 3600\r\n", RATE)).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let response = proxy.post("/v1/chat/completions", "", "{}").await;
    assert_eq!((response.status, response.header("retry-after")), (429, Some("3600")));
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn refusals_that_outlast_the_wait_end_with_the_last_of_them() {
    let upstream = Upstream::start(|_| Reply::new(429, "retry-after-ms: 200\r\nx-request-id: r\r\n", RATE)).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.queue.wait_max = Duration::from_millis(700));
    let response = proxy.post("/v1/chat/completions", "", "{}").await;
    assert_eq!((response.status, response.text().as_str()), (429, RATE));
    assert_eq!(response.header("x-request-id"), Some("r"));
    assert_eq!(response.header("x-should-retry"), Some("false"));
    assert!(upstream.count() >= 2, "{}", upstream.count());
}

#[tokio::test]
async fn which_statuses_are_tried_again_for_which_methods() {
    let post = "POST";
    for (name, method, status, headers, policy, want) in [
        ("503 POST", post, 503, "", RetryPost::Refused, 4),
        ("529 POST", post, 529, "", RetryPost::Refused, 4),
        ("500 POST", post, 500, "", RetryPost::Refused, 1),
        ("500 POST, told to retry", post, 500, "x-should-retry: true\r\n", RetryPost::Refused, 4),
        ("503 POST, told not to", post, 503, "x-should-retry: false\r\n", RetryPost::Refused, 1),
        ("502 GET", "GET", 502, "", RetryPost::Refused, 4),
        ("504 PUT", "PUT", 504, "", RetryPost::Refused, 4),
        ("500 POST, keyed", post, 500, "", RetryPost::Keyed, 4),
        ("500 PATCH, always", "PATCH", 500, "", RetryPost::Always, 4),
        ("400 GET", "GET", 400, "", RetryPost::Always, 1),
        ("404 GET", "GET", 404, "", RetryPost::Always, 1),
    ] {
        let upstream = Upstream::start(move |_| Reply::new(status, headers, "why")).await;
        let proxy = Proxy::start(&upstream.url(), |settings| {
            fast(settings);
            settings.retry.post = policy;
        });
        let mut client = proxy.client().await;
        client
            .send(format!("{method} /x HTTP/1.1\r\nhost: h\r\nidempotency-key: \"k\"\r\ncontent-length: 2\r\n\r\nhi"))
            .await;
        let response = client.response().await;
        assert_eq!((response.status, response.text().as_str()), (status, "why"), "{name}");
        assert_eq!(upstream.count(), want, "{name}");
        assert!(upstream.seen().iter().all(|seen| seen.body == b"hi"), "{name}");
        if want > 1 {
            assert_eq!(response.header("x-should-retry"), Some("false"), "{name}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_is_away_for_a_moment_costs_a_moment() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = Proxy::start(&format!("http://127.0.0.1:{port}"), |settings| {
        settings.retry.backoff_base = Duration::from_millis(300);
    });
    let addr = proxy.addr;
    let waiting = tokio::spawn(async move {
        let mut client = Client::connect(addr).await;
        client.post("/x", "", "{}").await;
        client.response().await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nback").await;
        tokio::time::sleep(Duration::from_secs(30)).await;
    });
    assert_eq!(waiting.await.unwrap().text(), "back");
}

#[tokio::test]
async fn an_upstream_that_stays_away_is_a_fault_after_all_attempts() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = Proxy::start(&format!("http://127.0.0.1:{port}"), fast);
    let response = proxy.post("/v1/messages", "", "{}").await;
    assert_eq!((response.status, response.header("x-tidegate-fault")), (502, Some("unreachable")));
    assert_eq!(response.json().pointer("/error/type").unwrap(), "api_error");
    proxy.idle().await;
}

#[tokio::test]
async fn a_post_that_may_have_been_processed_is_never_sent_twice() {
    for end in [Step::Close, Step::Reset] {
        let step = end.clone();
        let upstream = Upstream::start(move |_| Reply(vec![step.clone()])).await;
        let proxy = Proxy::start(&upstream.url(), fast);
        let response = proxy.post("/v1/chat/completions", "", "{}").await;
        assert_eq!((response.status, response.header("x-tidegate-fault")), (502, Some("upstream_protocol")), "{end:?}");
        assert_eq!(upstream.count(), 1, "{end:?}");
        // A GET may be.
        let response = proxy.get("/v1/models").await;
        assert_eq!(response.status, 502);
        assert_eq!(upstream.count(), 5, "{end:?}");
    }
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_meanwhile_is_not_noticed_by_anybody() {
    let upstream = Upstream::start(|_| Reply::ok("x").then(Step::Close)).await;
    let proxy = Proxy::configured(&upstream.url(), |config| config.threads = 1);
    let mut client = proxy.client().await;
    for n in 1..=30 {
        client.post("/x", "", "{}").await;
        assert_eq!(client.response().await.status, 200);
        assert_eq!(upstream.count(), n, "sent exactly once");
        wait_until("the connection is closed", || upstream.open() == 0).await;
        // A moment for the close to arrive: whether it does before the next request is a race nobody can win.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_silent_upstream_is_a_timeout_and_is_asked_again_only_if_that_was_configured() {
    for (post, key, asked) in [
        (RetryPost::Refused, "", 1),
        (RetryPost::Keyed, "", 1),
        (RetryPost::Keyed, "idempotency-key: k\r\n", 2),
        (RetryPost::Always, "", 2),
    ] {
        for method in ["GET", "POST"] {
            let upstream = Upstream::start(|seen| match seen.nth {
                0 => Reply::ok("").held(),
                _ => Reply::ok("at last"),
            })
            .await;
            let proxy = Proxy::start(&upstream.url(), |settings| {
                fast(settings);
                settings.retry.post = post;
                settings.deadlines.first_byte = Some(Duration::from_millis(150));
            });
            let mut client = proxy.client().await;
            client.send(format!("{method} /x HTTP/1.1\r\nhost: h\r\n{key}content-length: 0\r\n\r\n")).await;
            let response = client.response().await;
            let want = if asked == 1 { (504, Some("first_byte_timeout")) } else { (200, None) };
            assert_eq!((response.status, response.header("x-tidegate-fault")), want, "{method} {post:?} {key}");
            assert_eq!(upstream.count(), asked, "{method} {post:?} {key}");
            proxy.idle().await;
        }
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_given_up_when_connecting_may_take_no_longer() {
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // Its queue is full, so that what else knocks hears nothing.
    let hole = tokio::net::TcpSocket::new_v4().unwrap();
    hole.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let hole = hole.listen(1).unwrap();
    let addr = hole.local_addr().unwrap();
    let mut knocking = tokio::task::JoinSet::new();
    for _ in 0..4 {
        knocking.spawn(tokio::net::TcpStream::connect(addr));
    }
    for (url, status) in [(format!("http://{away}"), 502), (format!("http://{addr}"), 504)] {
        let proxy = Proxy::start(&url, |settings| {
            settings.deadlines.connect = Duration::from_millis(300);
            // The first retry fits in, the second does not.
            settings.retry.backoff_base = Duration::from_millis(200);
            settings.retry.backoff_jitter = Duration::ZERO;
        });
        let response = proxy.get("/x").await;
        assert_eq!((response.status, response.header("x-tidegate-fault")), (status, Some("unreachable")), "{url}");
        let page = proxy.admin("/metrics").await.text();
        let retries = metric(&page, "tidegate_retries_total", &["reason=\"unreached\""]).unwrap_or(0.0);
        assert_eq!(retries, if status == 502 { 1.0 } else { 0.0 }, "{url}");
    }
}

#[tokio::test]
async fn half_an_answer_never_ends_cleanly_and_is_never_completed_by_another_attempt() {
    for (name, half, end) in [
        ("length, close", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", Step::Close),
        ("length, reset", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", Step::Reset),
        ("chunked, close", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", Step::Close),
        ("chunk torn", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf", Step::Close),
        ("garbage chunk", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n", Step::Hold),
    ] {
        let end = end.clone();
        let upstream =
            Upstream::start(move |_| Reply::raw(half).then(Step::Wait(Duration::from_millis(20))).then(end.clone()))
                .await;
        let proxy = Proxy::start(&upstream.url(), fast);
        let mut client = proxy.client().await;
        client.get("/x").await;
        let (status, _) = client.head().await;
        assert_eq!(status, 200, "{name}");
        let (rest, _) = client.rest().await;
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(rest.contains("half") && !rest.ends_with("0\r\n\r\n"), "{name}: {rest:?}");
        assert_eq!(upstream.count(), 1, "{name}");
        proxy.idle().await;
    }
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_cut() {
    let upstream = Upstream::start(|_| {
        Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").then(Step::Hold)
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.deadlines.idle = Some(Duration::from_millis(200)));
    let mut client = proxy.client().await;
    client.get("/x").await;
    let response = client.response().await;
    assert!(!response.complete && response.body == b"first", "{response:?}");
    proxy.idle().await;
}

#[tokio::test]
async fn an_upstream_that_does_not_speak_http_is_a_fault() {
    for garbage in ["SSH-2.0-OpenSSH_9.2\r\n", "HTTP/3.0 200 OK\r\n\r\n", "\r\n\r\n\r\n", "HTTP/1.1 99 Low\r\n\r\n"] {
        let upstream = Upstream::start(move |_| Reply::raw(garbage).then(Step::Close)).await;
        let proxy = Proxy::start(&upstream.url(), fast);
        let response = proxy.post("/x", "", "{}").await;
        assert_eq!(
            (response.status, response.header("x-tidegate-fault")),
            (502, Some("upstream_protocol")),
            "{garbage}"
        );
        proxy.idle().await;
    }
}

#[tokio::test]
async fn an_unasked_101_is_a_fault() {
    let upstream = Upstream::start(|_| {
        Reply::raw("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), fast);
    assert_eq!(proxy.post("/x", "", "{}").await.status, 502);
    proxy.idle().await;
}
