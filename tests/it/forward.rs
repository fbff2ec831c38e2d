//! What crosses the proxy, byte for byte, and what does not.

use std::time::Duration;

use crate::support::{Client, Proxy, Reply, Step, Upstream, soon, wait_until};

#[tokio::test]
async fn path_query_and_headers_cross_and_hop_by_hop_ones_do_not() {
    let upstream =
        Upstream::start(|_| Reply::new(200, "x-kept: 1\r\nconnection: x-gone\r\nx-gone: 2\r\n", "fine")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    client
        .send(
            "POST /v1//chat/%7Ex?a=b%20c&key HTTP/1.1\r\nHost: localhost:8080\r\nAuthorization: Bearer k\r\n\
             X-Twice: one\r\nX-Twice: two\r\nX-Empty:\r\nConnection: close, X-Private\r\nX-Private: 1\r\n\
             X-Tidegate-Flow: team\r\nContent-Length: 2\r\n\r\nhi",
        )
        .await;
    let response = client.response().await;
    assert_eq!(response.status, 200);
    assert_eq!(response.text(), "fine");
    assert_eq!(response.header("x-kept"), Some("1"));
    assert_eq!(response.header("x-gone"), None);

    let seen = &upstream.seen()[0];
    assert_eq!(seen.line(), "POST /v1//chat/%7Ex?a=b%20c&key HTTP/1.1");
    assert_eq!(seen.header("host"), [upstream.addr.to_string()]);
    assert_eq!(seen.header("authorization"), ["Bearer k"]);
    assert_eq!(seen.header("x-twice"), ["one", "two"]);
    assert_eq!(seen.header("x-empty"), [""]);
    assert_eq!(seen.header("content-length"), ["2"]);
    assert_eq!(seen.body, b"hi");
    for gone in ["x-private", "x-tidegate-flow", "connection", "via", "x-forwarded-for", "transfer-encoding"] {
        assert!(seen.header(gone).is_empty(), "{gone} in {}", seen.head);
    }
}

#[tokio::test]
async fn a_base_path_and_a_stripped_prefix_make_the_upstreams_path() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::start(&format!("{}/base", upstream.url()), |settings| {
        settings.path_prefix = "/openai".to_owned();
        settings.strip_prefix = true;
    });
    assert_eq!(proxy.get("/openai/v1/models?x=1").await.status, 200);
    let stranger = proxy.get("/openai-eu/v1/models").await;
    assert_eq!((stranger.status, stranger.header("x-tidegate-fault")), (404, Some("no_route")));
    assert_eq!(upstream.seen()[0].line(), "GET /base/v1/models?x=1 HTTP/1.1");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn answers_without_a_body_end_where_they_should() {
    let upstream = Upstream::start(|seen| match seen.line() {
        line if line.starts_with("HEAD") => Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"),
        line if line.contains("/304") => Reply::raw("HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n"),
        line if line.contains("/204") => Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        _ => Reply::ok("next"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    let mut client = proxy.client().await;
    client.send("HEAD /x HTTP/1.1\r\nhost: h\r\n\r\n").await;
    let head = client.response_to_head().await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("1234")));
    client.get("/304").await;
    let not_modified = client.response().await;
    assert_eq!((not_modified.status, not_modified.header("etag")), (304, Some("\"x\"")));
    client.get("/204").await;
    let none = client.response().await;
    assert_eq!((none.status, none.header("content-length")), (204, None));
    // Each slot came back, on a ceiling of one, and the connection still speaks in turn.
    client.get("/next").await;
    assert_eq!(client.response().await.text(), "next");
    proxy.idle().await;
}

#[tokio::test]
async fn stream_events_arrive_one_by_one_and_the_slot_is_held_to_the_last() {
    let upstream = Upstream::start(|_| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut reply = Reply::raw(head).then(Step::Hold);
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            reply = reply.then(Step::Send(chunk.into_bytes())).then(Step::Hold);
        }
        reply.then(Step::Send(b"0\r\n\r\n".to_vec()))
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    let mut client = proxy.client().await;
    client.post("/v1/chat/completions", "", "{}").await;
    let (status, head) = client.head().await;
    assert_eq!(status, 200, "{head}");
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        upstream.release(1);
        // Nothing else will come until the next release, so this event cannot have waited for company.
        let mut got = Vec::new();
        while !String::from_utf8_lossy(&got).contains(event) {
            let more = client.bytes().await;
            assert!(!more.is_empty(), "the stream ended early: {got:?}");
            got.extend(more);
        }
        assert_eq!(proxy.view().in_flight, 1);
    }
    upstream.release(1);
    assert!(client.bytes().await.ends_with(b"0\r\n\r\n"));
    proxy.idle().await;
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let upstream = Upstream::start(|seen| {
        assert_eq!(seen.header("content-length"), [(8 << 20).to_string()]);
        Reply::raw(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", seen.body.len()))
            .then(Step::Send(seen.body.clone()))
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let body: Vec<u8> = (0..8u32 << 20).map(|n| (n % 251) as u8).collect();
    let mut client = proxy.client().await;
    client.send(format!("PUT /upload HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len())).await;
    client.send(&body).await;
    let response = client.response().await;
    assert_eq!(response.status, 200);
    assert!(response.body == body, "the body came back changed");
    proxy.idle().await;
}

#[tokio::test]
async fn a_chunked_request_stays_chunked_and_keeps_its_trailers() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    client
        .send(
            "POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
             3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n",
        )
        .await;
    assert_eq!(client.response().await.status, 200);
    let seen = &upstream.seen()[0];
    assert_eq!(seen.header("transfer-encoding"), ["chunked"]);
    assert!(seen.header("content-length").is_empty());
    assert_eq!(seen.body, b"abcde");
    assert!(String::from_utf8_lossy(&seen.raw_body).to_lowercase().ends_with("0\r\nx-sum: 5\r\n\r\n"));
}

#[tokio::test]
async fn response_trailers_reach_a_client_that_asked_for_them() {
    let upstream = Upstream::start(|seen| {
        assert_eq!(seen.header("te"), ["trailers"]);
        Reply::raw(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 3\r\n\r\n",
        )
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    client.send("GET /x HTTP/1.1\r\nhost: h\r\nte: trailers\r\nconnection: te\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(response.body, b"abc");
    assert_eq!(response.trailers, ["x-sum: 3"]);
}

#[tokio::test]
async fn expect_is_answered_when_the_body_is_wanted_and_never_unasked() {
    let upstream = Upstream::start(|_| Reply::ok("done").held()).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    // The only slot is taken, so a large upload is not asked for yet.
    let mut first = proxy.client().await;
    first.get("/first").await;
    wait_until("the first one is in flight", || upstream.count() == 1).await;
    let mut client = proxy.client().await;
    let length = 5 << 20;
    client
        .send(format!("PUT /big HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"))
        .await;
    wait_until("the second one waits", || proxy.view().queued == 1).await;
    let mut byte = [0];
    let unasked = tokio::time::timeout(Duration::from_millis(100), client.stream.peek(&mut byte)).await;
    assert!(unasked.is_err(), "the client was asked for its body before anybody wanted it");
    upstream.release(2);
    assert_eq!(first.response().await.text(), "done");
    let (status, _) = client.head().await;
    assert_eq!(status, 100);
    client.send(vec![b'x'; length]).await;
    assert_eq!(client.response().await.text(), "done");
    let seen = upstream.seen();
    assert!(seen.iter().all(|seen| seen.header("expect").is_empty()), "Expect was answered here");
    assert_eq!(seen[1].body.len(), length);
    proxy.idle().await;
}

#[tokio::test]
async fn an_early_answer_reaches_the_client_while_the_upload_still_runs() {
    // Answers after the head, without reading on.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut piece = [0; 1024];
            let _ = stream.read(&mut piece).await;
            let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge").await;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    });
    let proxy = Proxy::start(&url, |_| {});
    let mut client = proxy.client().await;
    client.send("PUT /x HTTP/1.1\r\nhost: h\r\ncontent-length: 50000000\r\n\r\nsome of it").await;
    let (status, _) = client.head().await;
    assert_eq!(status, 413);
    drop(client);
    proxy.idle().await;
}

#[tokio::test]
async fn a_websocket_handshake_joins_both_sides_and_the_slot_travels_along() {
    let upstream = Upstream::start(|seen| {
        assert_eq!(seen.header("upgrade"), ["websocket"]);
        assert_eq!(seen.header("sec-websocket-key"), ["k"]);
        Reply::raw("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly")
            .then(Step::Echo)
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    let mut client = proxy.client().await;
    client
        .send(
            "GET /v1/realtime HTTP/1.1\r\nhost: h\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-key: k\r\n\r\n",
        )
        .await;
    let (status, head) = client.head().await;
    assert_eq!(status, 101, "{head}");
    assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
    assert_eq!(client.bytes().await, b"early");
    for message in ["one", "two"] {
        client.send(message).await;
        assert_eq!(client.bytes().await, message.as_bytes());
    }
    assert_eq!(proxy.view().in_flight, 1);
    drop(client);
    proxy.idle().await;
}

#[tokio::test]
async fn two_upstreams_share_one_listener() {
    let one = Upstream::start(|_| Reply::ok("one")).await;
    let two = Upstream::start(|_| Reply::ok("two")).await;
    let two_url = two.url();
    let proxy = Proxy::configured(&one.url(), |config| {
        let mut second = config.upstreams[0].clone();
        second.name = "second".to_owned();
        second.url = two_url.parse().unwrap();
        second.path_prefix = "/two".to_owned();
        config.upstreams.push(second);
    });
    assert_eq!(proxy.get("/x").await.text(), "one");
    assert_eq!(proxy.get("/two/x").await.text(), "two");
    assert_eq!(proxy.get("/twofold").await.text(), "one");
}

#[tokio::test]
async fn connections_to_the_upstream_are_kept() {
    let upstream = Upstream::start(|_| Reply::ok("x")).await;
    let proxy = Proxy::configured(&upstream.url(), |config| config.threads = 1);
    let mut client = proxy.client().await;
    for _ in 0..50 {
        client.get("/x").await;
        assert_eq!(client.response().await.status, 200);
    }
    assert!(upstream.seen().iter().all(|seen| seen.connection == 0));
}

#[tokio::test]
async fn a_slow_reader_makes_the_upstream_wait() {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n").await;
        while let Ok(more) = stream.write(&[b'x'; 64 * 1024]).await {
            count.fetch_add(more, Ordering::SeqCst);
        }
    });
    let proxy = Proxy::start(&url, |_| {});
    let mut client = proxy.client().await;
    client.get("/large").await;
    assert_eq!(client.head().await.0, 200);
    // Nobody reads: the upstream gets rid of what fits into the buffers between, and then of nothing more.
    let mut last = usize::MAX;
    while last != written.load(Ordering::SeqCst) {
        last = written.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(last < 24 << 20, "{} MiB were taken from the upstream", last >> 20);
    drop(client);
    soon("the slot comes back", proxy.idle()).await;
}

#[tokio::test]
async fn http_1_0_is_served_and_its_connection_closed() {
    let upstream =
        Upstream::start(|_| Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"))
            .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = Client::connect(proxy.addr).await;
    client.send("GET /x HTTP/1.0\r\n\r\n").await;
    let (bytes, clean) = client.rest().await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(clean && text.starts_with("HTTP/1.0 200") && text.ends_with("\r\n\r\nhi"), "{text}");
}
