//! Peers that are slow, silent or endless, on both sides: what they cost is bounded, and others do not notice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt;
use tidegate::config::Upstream as Settings;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{Http2Client, Proxy, Reply, Step, Upstream, metric, soon, wait_until};

/// More than any of the bounds, and so little that loopback carries it in no time.
const ENDLESS_BYTES: usize = 64 << 20;
/// What a peer may get rid of before it is cut: the proxy's bound, and what the kernel holds on both sides.
const CUT_BY_BYTES: usize = 16 << 20;

fn fast(settings: &mut Settings) {
    settings.retry.backoff_base = Duration::from_millis(5);
    settings.retry.backoff_jitter = Duration::from_millis(1);
}

/// Writes `piece` over and over until the other side has had enough. How many bytes went.
async fn pour(stream: &mut (impl AsyncWriteExt + Unpin), piece: &[u8]) -> usize {
    let mut poured = 0;
    while poured < ENDLESS_BYTES {
        match tokio::time::timeout(Duration::from_secs(10), stream.write(piece)).await {
            Ok(Ok(count @ 1..)) => poured += count,
            _ => break,
        }
    }
    poured
}

/// An upstream whose answer begins with `start` and goes on with `piece` for as long as it is read.
async fn endless(start: &'static str, piece: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let poured = Arc::new(AtomicUsize::new(0));
    let sum = Arc::clone(&poured);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (piece, sum) = (piece.clone(), Arc::clone(&sum));
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(start.as_bytes()).await;
                sum.fetch_add(pour(&mut stream, &piece).await, Ordering::SeqCst);
            });
        }
    });
    (url, poured)
}

#[tokio::test]
async fn an_upstream_that_goes_on_for_ever_about_nothing_is_cut() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let extended = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;";
    let ended = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n";
    for (name, start, piece, status) in [
        ("zeros of a chunk size", chunked, "0".repeat(16384), 200),
        ("a chunk extension", extended, "x".repeat(16384), 200),
        ("trailers", ended, "x-trailer: 1\r\n".repeat(1000), 200),
        ("interim answers", "", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(400), 502),
        ("headers", "HTTP/1.1 200 OK\r\n", "x-header: 1\r\n".repeat(1000), 502),
        ("one header", "HTTP/1.1 200 OK\r\nx-header: ", "x".repeat(16384), 502),
    ] {
        let (url, poured) = endless(start, piece.into_bytes()).await;
        let proxy = Proxy::start(&url, fast);
        let mut client = proxy.client().await;
        client.post("/x", "", "{}").await;
        if status == 200 {
            // Whatever of it was on its way.
            let (rest, _) = client.rest().await;
            assert!(!rest.ends_with(b"0\r\n\r\n"), "{name}: half an answer looks whole");
        } else {
            assert_eq!(client.response().await.status, status, "{name}");
        }
        proxy.idle().await;
        wait_until("the upstream was cut", || poured.load(Ordering::SeqCst) > 0).await;
        assert!(poured.load(Ordering::SeqCst) < CUT_BY_BYTES, "{name}: {poured:?} bytes");
    }
}

#[tokio::test]
async fn a_client_that_goes_on_for_ever_about_nothing_is_cut() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let post = "POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    for (name, start, piece) in [
        ("zeros of a chunk size", post.to_owned(), "0".repeat(16384)),
        ("a chunk extension", format!("{post}5;"), "x".repeat(16384)),
        ("trailers", format!("{post}5\r\nfirst\r\n0\r\n"), "x-trailer: 1\r\n".repeat(1000)),
        ("headers", "GET /x HTTP/1.1\r\nhost: h\r\n".to_owned(), "x-header: 1\r\n".repeat(1000)),
        ("one header", "GET /x HTTP/1.1\r\nhost: h\r\nx-header: ".to_owned(), "x".repeat(16384)),
        ("a target", "GET /".to_owned(), "x".repeat(16384)),
        ("blank lines", String::new(), "\r\n".repeat(8192)),
    ] {
        let proxy = Proxy::start(&upstream.url(), fast);
        let mut client = proxy.client().await;
        client.send(start).await;
        let poured = pour(&mut client.stream, piece.as_bytes()).await;
        assert!(poured < CUT_BY_BYTES, "{name}: {poured} bytes");
        wait_until("the connection is closed", || proxy.app().shared.metrics.downstream_connections.get() == 0).await;
        proxy.idle().await;
        assert_eq!(proxy.get("/good").await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn bodies_with_far_more_framing_than_data_are_not_taken_for_nothing() {
    // More framing than the bound on what comes to nothing.
    let chunks = format!("{}1\r\nx\r\n", "0".repeat(100)).repeat(12_000) + "0\r\n\r\n";
    let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
    let upstream = Upstream::start(move |_| Reply::raw(answer.clone())).await;
    let proxy = Proxy::start(&upstream.url(), fast);
    let mut client = proxy.client().await;
    let request = format!("POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
    let (mut read, mut write) = client.stream.split();
    let mut got = Vec::new();
    let receive = async {
        let mut piece = vec![0; 16384];
        while !got.ends_with(b"\r\n0\r\n\r\n") {
            match read.read(&mut piece).await {
                Ok(count @ 1..) => got.extend_from_slice(&piece[..count]),
                _ => break,
            }
        }
    };
    let _ = soon("both directions", async { tokio::join!(write.write_all(request.as_bytes()), receive) }).await;
    assert!(got.ends_with(b"\r\n0\r\n\r\n"), "{} bytes", got.len());
    assert_eq!(upstream.seen()[0].body.len(), 12_000);
}

#[tokio::test]
async fn five_hundred_slow_heads_are_cut_in_total_time_and_nobody_notices_them() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let proxy = Proxy::configured(&upstream.url(), |config| config.limits.header_timeout = Duration::from_secs(2));
    let mut slow = Vec::new();
    for nth in 0..500 {
        let mut client = proxy.client().await;
        // Half of them were good once: a second head has no more time than the first.
        if nth % 2 == 0 {
            client.get("/once").await;
            assert_eq!(client.response().await.status, 200);
        }
        slow.push(tokio::spawn(async move {
            // Each byte comes well within the time; the head as a whole does not.
            for byte in b"GET /slow HTTP/1.1\r\nhost: h\r\nx-slow: and so on and on and on".iter().cycle() {
                if client.stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                let mut answer = [0; 512];
                match tokio::time::timeout(Duration::from_millis(200), client.stream.read(&mut answer)).await {
                    Ok(Ok(1..)) | Err(_) => {}
                    Ok(Ok(0) | Err(_)) => return,
                }
            }
        }));
    }
    let mut good = proxy.client().await;
    let mut served = 0;
    while slow.iter().any(|one| !one.is_finished()) {
        good.get("/good").await;
        assert_eq!(good.response().await.text(), "good");
        served += 1;
        assert!(served < 5_000, "{} are still there", slow.iter().filter(|one| !one.is_finished()).count());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(served > 10, "{served}");
    assert_eq!(upstream.seen().iter().filter(|seen| seen.line().contains("/slow")).count(), 0);
}

#[tokio::test]
async fn a_kept_connection_may_be_silent_for_longer_than_a_head_may_take() {
    let upstream = Upstream::start(|seen| match seen.line().contains("slow") {
        true => Reply::ok("good").after(Duration::from_millis(700)),
        false => Reply::ok("good"),
    })
    .await;
    let proxy = Proxy::configured(&upstream.url(), |config| config.limits.header_timeout = Duration::from_millis(300));
    let mut client = proxy.client().await;
    for path in ["/first", "/slow", "/last"] {
        client.post(path, "", "{}").await;
        assert_eq!(client.response().await.text(), "good", "{path}");
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
    // Two at once: the second head lies there while the first is served.
    client.send("GET /slow HTTP/1.1\r\nhost: h\r\n\r\nGET /slow HTTP/1.1\r\nhost: h\r\n").await;
    assert_eq!(client.response().await.text(), "good");
    client.send("\r\n").await;
    assert_eq!(client.response().await.text(), "good");
}

#[tokio::test]
async fn a_tunnel_outlives_the_header_deadline_and_carries_more_than_any_head() {
    let upstream = Upstream::start(|_| {
        Reply::raw("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .then(Step::Echo)
    })
    .await;
    let proxy = Proxy::configured(&upstream.url(), |config| config.limits.header_timeout = Duration::from_millis(200));
    let mut client = proxy.client().await;
    client.send("GET /ws HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.0, 101);
    for _ in 0..30 {
        client.send(vec![b'x'; 100_000]).await;
        let mut back = 0;
        while back < 100_000 {
            let piece = client.bytes().await;
            assert!(!piece.is_empty(), "the tunnel was cut");
            back += piece.len();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_gives_its_slot_back() {
    let (url, poured) = endless("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n", vec![b'x'; 65536]).await;
    let proxy = Proxy::configured(&url, |config| {
        config.limits.send_timeout = Duration::from_millis(500);
        config.upstreams[0].ceiling = Some(1);
    });
    let mut client = proxy.client().await;
    client.get("/x").await;
    let _ = client.head().await;
    proxy.idle().await;
    wait_until("the upstream was let go", || poured.load(Ordering::SeqCst) > 0).await;
    assert!(poured.load(Ordering::SeqCst) < CUT_BY_BYTES, "{poured:?} bytes were taken for a client that reads none");
    wait_until("and so was the client", || proxy.app().shared.metrics.downstream_connections.get() == 0).await;
    drop(client);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_gives_its_slot_back_and_its_neighbours_go_on() {
    let (url, poured) = endless("HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n", vec![b'x'; 65536]).await;
    let proxy = Proxy::configured(&url, |config| config.limits.send_timeout = Duration::from_millis(500));
    let client = Http2Client::connect(proxy.addr).await;
    let unread = client.send("GET", "/x", &[], "").await;
    proxy.idle().await;
    wait_until("the upstream was let go", || poured.load(Ordering::SeqCst) > 0).await;
    assert!(poured.load(Ordering::SeqCst) < CUT_BY_BYTES, "{poured:?} bytes were taken for a client that reads none");
    let mut neighbour = client.send("GET", "/x", &[], "").await.into_body();
    let first = soon("a piece of another answer", neighbour.frame()).await.unwrap().unwrap();
    assert!(first.into_data().unwrap().starts_with(b"x"));
    assert!(soon("the end", unread.into_body().collect()).await.is_err(), "half an answer looks whole");
}

#[tokio::test]
async fn a_slow_reader_is_not_a_stalled_one() {
    let upstream = Upstream::start(|_| Reply::new(200, "", &"x".repeat(8 << 20))).await;
    let proxy = Proxy::configured(&upstream.url(), |config| config.limits.send_timeout = Duration::from_secs(3));
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut stream = socket.connect(proxy.addr).await.unwrap();
    stream.write_all(b"GET /x HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut got = 0;
    let mut piece = vec![0; 256 * 1024];
    let began = std::time::Instant::now();
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        got += count;
        if began.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert!(got > 8 << 20, "{got} bytes");
}

#[tokio::test]
async fn a_body_that_stops_coming_is_a_fault_whether_it_is_held_or_streamed() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    for (name, request_max) in [("held", 1 << 20), ("streamed", 16)] {
        for framing in ["content-length: 1000", "transfer-encoding: chunked"] {
            let proxy = Proxy::configured(&upstream.url(), |config| {
                config.buffers.request_max_bytes = request_max;
                config.upstreams[0].deadlines.idle = Some(Duration::from_millis(300));
                config.upstreams[0].deadlines.first_byte = None;
            });
            let mut client = proxy.client().await;
            client.send(format!("POST /x HTTP/1.1\r\nhost: h\r\n{framing}\r\n\r\n20\r\nhalf of it and no more")).await;
            let response = client.response().await;
            let fault = response.header("x-tidegate-fault");
            assert_eq!((response.status, fault), (408, Some("request_timeout")), "{name}, {framing}");
            proxy.idle().await;
        }
    }
    assert_eq!(upstream.count(), 0, "none was whole");
}

#[tokio::test]
async fn a_held_body_that_drips_is_a_fault_though_it_never_stops() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    let proxy = Proxy::configured(&upstream.url(), |config| {
        config.upstreams[0].deadlines.idle = Some(Duration::from_millis(400));
    });
    let mut client = proxy.client().await;
    client.send("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 100000\r\n\r\n").await;
    let (mut read, mut write) = client.stream.split();
    let drip = async {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 1024];
    let read = tokio::select! {
        () = drip => 0,
        read = soon("an answer", read.read(&mut answer)) => read.unwrap(),
    };
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request_timeout"), "{answer}");
    wait_until("nothing is held", || proxy.app().shared.metrics.buffered_bytes.get() == 0).await;
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_held_body_that_is_slow_but_comes_is_fine() {
    let upstream = Upstream::start(|seen| Reply::ok(&seen.body.len().to_string())).await;
    let proxy = Proxy::configured(&upstream.url(), |config| {
        config.upstreams[0].deadlines.idle = Some(Duration::from_millis(500));
    });
    let mut client = proxy.client().await;
    client.send("POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 200000\r\n\r\n").await;
    // Longer than the longest silence, and several times as fast as it must be.
    for _ in 0..10 {
        client.send(vec![b'x'; 20_000]).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(client.response().await.text(), "200000");
}

#[tokio::test]
async fn an_answer_head_that_drips_is_cut_in_total_time() {
    let drip: Vec<_> = "HTTP/1.1 200 OK\r\nx-slow: and so on and on and on and on"
        .bytes()
        .flat_map(|byte| [Step::Send(vec![byte]), Step::Wait(Duration::from_millis(100))])
        .collect();
    let upstream = Upstream::start(move |_| Reply(drip.clone())).await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        settings.deadlines.first_byte = Some(Duration::from_millis(500));
    });
    let response = proxy.post("/x", "", "{}").await;
    assert_eq!((response.status, response.header("x-tidegate-fault")), (504, Some("first_byte_timeout")));
    proxy.idle().await;
}

#[tokio::test]
async fn connections_above_the_cap_wait_until_there_is_room() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let proxy = Proxy::configured(&upstream.url(), |config| {
        config.threads = 1;
        config.limits.connections_max = 3;
    });
    let mut inside = Vec::new();
    for _ in 0..3 {
        let mut client = proxy.client().await;
        client.get("/x").await;
        assert_eq!(client.response().await.text(), "good");
        inside.push(client);
    }
    let mut outside = proxy.client().await;
    outside.get("/x").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let page = proxy.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_connections", &["side=\"downstream\""]), Some(3.0));
    assert_eq!(upstream.count(), 3);
    drop(inside.pop());
    assert_eq!(outside.response().await.text(), "good");
    assert_eq!(upstream.count(), 4);
}

#[tokio::test]
async fn bodies_above_the_cap_on_what_is_held_are_streamed() {
    let upstream = Upstream::start(|seen| match seen.nth {
        0 => Reply::ok("").held(),
        _ => Reply::ok(&seen.body.len().to_string()),
    })
    .await;
    let proxy = Proxy::configured(&upstream.url(), |config| {
        config.buffers.request_max_bytes = 100_000;
        config.buffers.total_max_bytes = 100_000;
    });
    let mut first = proxy.client().await;
    first.post("/x", "", &"x".repeat(90_000)).await;
    wait_until("it is upstream", || upstream.count() == 1).await;
    let page = proxy.admin("/metrics").await.text();
    assert_eq!(metric(&page, "tidegate_buffered_bytes", &[]), Some(90_000.0));
    assert_eq!(proxy.post("/x", "", &"x".repeat(50_000)).await.text(), "50000");
    assert_eq!(proxy.app().shared.metrics.buffered_bytes.get(), 90_000, "the second was not held");
    upstream.release(1);
    assert_eq!(first.response().await.status, 200);
    wait_until("nothing is held", || proxy.app().shared.metrics.buffered_bytes.get() == 0).await;
}
