//! What an HTTP/2 client can do to the proxy frame by frame, and what an HTTP/2 upstream that goes away means.

use std::{sync::Arc, time::Duration};

use tidegate::config::{Algorithm, Http2};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::support::{
    Http2Client, Proxy, Reply, Upstream,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, OK, PING, POST, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, field, frame, hostile, pour, read_frame,
    },
    soon, wait_until,
};

#[tokio::test]
async fn floods_of_frames_are_cut_or_held_up_and_nobody_notices_them() {
    let head = [GET, &field("x-a", "1")[..]].concat();
    let opened = frame(HEADERS, END_HEADERS, 1, &[POST, &field("x-a", "1")[..]].concat());
    let unfinished = frame(HEADERS, END_STREAM, 1, &head);
    let more = field("x-filler", &"x".repeat(100)).repeat(100);
    let many = |bytes: Vec<u8>| {
        let times = (12 << 20) / bytes.len();
        (0..times).map(move |_| bytes.clone())
    };
    for (name, start, flood, cut_by) in [
        ("CONTINUATION", unfinished.clone(), frame(CONTINUATION, 0, 1, &more), Some(2 << 20)),
        ("empty CONTINUATION", unfinished, frame(CONTINUATION, 0, 1, &[]).repeat(1000), Some(2 << 20)),
        ("PING", vec![], frame(PING, 0, 0, b"12345678").repeat(1000), None),
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]).repeat(1000), None),
        ("empty DATA", opened.clone(), frame(DATA, 0, 1, &[]).repeat(1000), Some(2 << 20)),
        ("WINDOW_UPDATE of 0", opened, frame(WINDOW_UPDATE, 0, 1, &[0; 4]).repeat(1000), Some(2 << 20)),
    ] {
        for reads in [true, false] {
            let upstream = Upstream::start(|_| Reply::ok("good")).await;
            let proxy = Proxy::start(&upstream.url(), |_| {});
            let good = Http2Client::connect(proxy.addr).await;
            let mut stream = hostile(&proxy).await;
            stream.write_all(&start).await.unwrap();
            let mut served = 0;
            let poured = {
                let mut flooding = Box::pin(pour(&mut stream, many(flood.clone()), reads));
                loop {
                    tokio::select! {
                        poured = &mut flooding => break poured,
                        (status, body) = good.post("/good", "{}") => {
                            assert_eq!((status, body.as_str()), (200, "good"), "{name}");
                            served += 1;
                        }
                    }
                }
            };
            println!("{name}, reading {reads}: {poured} bytes in, {served} good ones served meanwhile");
            if let Some(cut_by) = cut_by {
                assert!(poured < cut_by, "{name}, reading {reads}: {poured} bytes, {served} served");
            } else if !reads {
                assert!(poured < 12 << 20, "{name}: answers pile up in the proxy, or nobody counts them");
            }
            assert_eq!(good.post("/good", "{}").await.1, "good", "{name}");
            drop(stream);
            wait_until("only the good one is left", || proxy.app().shared.metrics.downstream_connections.get() == 1)
                .await;
        }
    }
}

#[tokio::test]
async fn rapid_resets_are_cut_or_reach_hardly_anybody() {
    let upstream = Upstream::start(|seen| match seen.line().contains("/good") {
        true => Reply::ok("good"),
        false => Reply::ok("slow").after(Duration::from_millis(100)),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(50));
    let good = Http2Client::connect(proxy.addr).await;
    let mut stream = hostile(&proxy).await;
    let pairs = (0..20_000u32).map(|nth| {
        let id = 2 * nth + 1;
        let cancel = frame(RST_STREAM, 0, id, &[0, 0, 0, 8]);
        [frame(HEADERS, END_HEADERS | END_STREAM, id, GET), cancel].concat()
    });
    let mut flooding = Box::pin(pour(&mut stream, pairs, true));
    let poured = loop {
        tokio::select! {
            poured = &mut flooding => break poured,
            (status, body) = good.post("/good", "{}") => assert_eq!((status, body.as_str()), (200, "good")),
        }
    };
    drop(flooding);
    assert_eq!(good.post("/good", "{}").await.1, "good");
    drop(stream);
    proxy.idle().await;
    let reached = upstream.seen().iter().filter(|seen| seen.line().contains("/x")).count();
    println!("{poured} bytes in, {reached} reached the upstream");
    let cut = poured < 20_000 * (9 + GET.len() + 13);
    assert!(cut || reached < 2_000, "{poured} bytes poured, {reached} reached the upstream");
    wait_until("only the good one is left", || proxy.app().shared.metrics.downstream_connections.get() == 1).await;
}

#[tokio::test]
async fn streams_above_the_limit_are_refused_so_that_they_may_be_sent_again() {
    const ABOVE: usize = 100;
    let upstream = Upstream::start(|_| Reply::ok("").held()).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    let mut stream = hostile(&proxy).await;
    for nth in 0..1000 + ABOVE as u32 {
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * nth + 1, GET)).await.unwrap();
    }
    let mut refused = 0;
    while refused < ABOVE {
        let (kind, _, _, payload) = soon("a refusal", read_frame(&mut stream)).await.unwrap();
        assert_ne!(kind, GOAWAY, "{payload:?}");
        if kind == RST_STREAM {
            assert_eq!(payload, [0, 0, 0, 7], "REFUSED_STREAM");
            refused += 1;
        }
    }
    wait_until("the others wait", || proxy.view().queued == 999 && proxy.view().in_flight == 1).await;
    drop(stream);
    proxy.idle().await;
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_answered_and_not_passed_on() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    let long = "x".repeat(8 << 10);
    let names: Vec<_> = (0..9).map(|nth| format!("x-{nth}")).collect();
    let headers: Vec<_> = names.iter().map(|name| (name.as_str(), long.as_str())).collect();
    assert_eq!(client.send("GET", "/x", &headers, "").await.status(), 431);
    assert_eq!(upstream.count(), 0);
    assert_eq!(client.post("/x", "{}").await.1, "good");
}

/// What the first connection of [`Leaving`] does once it has its requests.
#[derive(Debug, Clone, Copy)]
struct Leave {
    requests: usize,
    /// GOAWAY: streams up to the nth are said to be processed, and for this reason.
    processed: usize,
    reason: u8,
    /// Those are answered; or else the connection is closed.
    answers: bool,
}

/// An upstream whose first connection goes away, and whose others answer. How many requests each connection got.
async fn leaving(leave: Leave) -> (String, Arc<parking_lot::Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let counts = Arc::clone(&requests);
    tokio::spawn(async move {
        for connection in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            counts.lock().push(0);
            let counts = Arc::clone(&counts);
            tokio::spawn(async move {
                let mut streams = Vec::new();
                stream.read_exact(&mut [0; 24]).await.unwrap();
                stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
                while let Some((kind, flags, id, _)) = read_frame(&mut stream).await {
                    if kind == SETTINGS && flags == 0 {
                        stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
                    }
                    if !matches!(kind, HEADERS | DATA) || flags & END_STREAM == 0 {
                        continue;
                    }
                    streams.push(id);
                    counts.lock()[connection] = streams.len();
                    if connection > 0 {
                        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, OK)).await.unwrap();
                    } else if streams.len() == leave.requests {
                        let last = leave.processed.checked_sub(1).map_or(0, |nth| streams[nth]);
                        let said = [&last.to_be_bytes()[..], &[0, 0, 0, leave.reason]].concat();
                        stream.write_all(&frame(GOAWAY, 0, 0, &said)).await.unwrap();
                        if !leave.answers {
                            return;
                        }
                        for id in &streams[..leave.processed] {
                            stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, *id, OK)).await.unwrap();
                        }
                    }
                }
            });
        }
    });
    (url, requests)
}

#[tokio::test]
async fn streams_that_a_goaway_left_out_are_sent_again_and_the_others_by_the_rules() {
    let (post, get) = ("POST", "GET");
    // NO_ERROR and ENHANCE_YOUR_CALM.
    for reason in [0, 11] {
        for (name, method, processed, answers, good, again) in [
            ("one of three is finished", post, 1, true, 3, 2),
            ("none of three was begun", post, 0, true, 3, 3),
            ("none was begun, and closed", post, 0, false, 3, 3),
            ("one is broken", post, 1, false, 2, 2),
            ("one GET is broken", get, 1, false, 3, 3),
        ] {
            let (url, requests) = leaving(Leave { requests: 3, processed, reason, answers }).await;
            let proxy = Proxy::configured(&url, |config| {
                config.threads = 1;
                let settings = &mut config.upstreams[0];
                settings.http2 = Http2::Only;
                settings.limit.algorithm = Algorithm::Fixed;
                settings.ceiling = Some(50);
                settings.retry.backoff_base = Duration::from_millis(5);
                settings.retry.backoff_jitter = Duration::from_millis(1);
            });
            let mut running = Vec::new();
            for _ in 0..3 {
                let mut client = proxy.client().await;
                client.send(format!("{method} /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{{}}")).await;
                running.push(tokio::spawn(async move { client.response().await.status }));
            }
            let mut statuses = Vec::new();
            for one in running {
                statuses.push(one.await.unwrap());
            }
            let found = statuses.iter().filter(|status| **status == 200).count();
            assert_eq!(found, good, "{name}, reason {reason}: {statuses:?}");
            let counts = requests.lock().clone();
            assert_eq!(counts.iter().skip(1).sum::<usize>(), again, "{name}, reason {reason}: {counts:?}");
            proxy.idle().await;
            // The connection that went away is not asked again.
            assert_eq!(proxy.get("/x").await.status, 200, "{name}, reason {reason}");
            assert_eq!(requests.lock()[0], 3, "{name}, reason {reason}");
        }
    }
}
