//! What a client can do with HTTP/2's windows, tables, counts and priorities: each has a bound that the proxy set itself,
//! and others go on meanwhile.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    Http2Client, Proxy, Reply, Upstream,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, POST, PRIORITY, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, frame, hostile, pour, read_frame,
    },
    soon, wait_until,
};

/// Reasons of RST_STREAM and GOAWAY (RFC 9113 7).
const PROTOCOL_ERROR: u8 = 1;
const FLOW_CONTROL_ERROR: u8 = 3;
const ENHANCE_YOUR_CALM: u8 = 11;
/// A GET in HPACK that leaves the dynamic table as it is.
const SPARING: &[u8] = &[0x82, 0x84, 0x86, 1, 1, b'h'];

/// A field that enters the dynamic table, and stands at its front (index 62) afterwards.
fn entering(name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![0x40, u8::try_from(name.len()).unwrap()];
    field.extend_from_slice(name.as_bytes());
    // Lengths from 127 on: the rest in groups of 7 bits (RFC 7541 5.1).
    let mut rest = value.len();
    if rest < 127 {
        field.push(rest as u8);
    } else {
        field.push(127);
        rest -= 127;
        while rest >= 128 {
            field.push((rest % 128) as u8 | 128);
            rest /= 128;
        }
        field.push(rest as u8);
    }
    field.extend_from_slice(value.as_bytes());
    field
}

/// A head of any length: HEADERS, and CONTINUATION for what does not fit.
fn head(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut pieces: Vec<_> = block.chunks(16_000).collect();
    let last = pieces.pop().unwrap();
    let kind = |first: bool| if first { HEADERS } else { CONTINUATION };
    let mut frames = Vec::new();
    for (nth, piece) in pieces.iter().enumerate() {
        frames.extend(frame(kind(nth == 0), if nth == 0 { END_STREAM } else { 0 }, stream, piece));
    }
    let ends = if pieces.is_empty() { END_STREAM } else { 0 };
    frames.extend(frame(kind(pieces.is_empty()), ends | END_HEADERS, stream, last));
    frames
}

/// The reason of the next GOAWAY; `None`: closed without one.
async fn goaway(stream: &mut TcpStream) -> Option<u8> {
    loop {
        let (kind, _, _, payload) = soon("a GOAWAY, or the end", read_frame(stream)).await?;
        if kind == GOAWAY {
            return payload.get(7).copied();
        }
    }
}

async fn others_go_on(proxy: &Proxy, name: &str) {
    let good = Http2Client::connect(proxy.addr).await;
    assert_eq!(good.post("/good", "{}").await, (200, "good".to_owned()), "{name}");
}

#[tokio::test]
async fn the_bounds_are_told_in_the_first_settings() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut stream = hostile(&proxy).await;
    let (mut told, mut window) = (BTreeMap::new(), 65_535);
    while told.is_empty() || window == 65_535 {
        let (kind, flags, id, payload) = soon("settings", read_frame(&mut stream)).await.unwrap();
        if kind == SETTINGS && flags == 0 {
            let number = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
            told = payload.chunks(6).map(|pair| (number(&pair[..2]), number(&pair[2..]))).collect();
        } else if kind == WINDOW_UPDATE && id == 0 {
            window += u32::from_be_bytes(payload.try_into().unwrap());
        }
    }
    // HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE.
    let want = [(1, 4096), (3, 1000), (4, 64 << 10), (5, 16 << 10), (6, 64 << 10)];
    for (key, value) in want {
        assert_eq!(told.get(&key), Some(&value), "{key} in {told:?}");
    }
    assert_eq!(window, 1 << 20, "all streams together");
}

#[tokio::test]
async fn a_head_that_a_few_bytes_blow_up_is_refused() {
    for (name, value, times) in [
        ("one large field, a thousand times", "x".repeat(4000), 1000),
        ("small ones, within the bytes but not within the count", "y".to_owned(), 1500),
    ] {
        let upstream = Upstream::start(|_| Reply::ok("good")).await;
        let proxy = Proxy::start(&upstream.url(), |_| {});
        let mut stream = hostile(&proxy).await;
        let first = [SPARING, &entering("a", &value)].concat();
        stream.write_all(&head(1, &first)).await.unwrap();
        wait_until("an honest head passes", || upstream.count() == 1).await;
        let again = [SPARING, &vec![0xBE; times]].concat();
        const STREAMS: u32 = 300;
        let bombs = (1..STREAMS).map(|nth| head(2 * nth + 1, &again));
        // Nobody reads until all are out. There is room for that many short answers in the connection's window.
        pour(&mut stream, bombs, false).await;
        let (mut ended, mut cut) = (HashSet::new(), None);
        while ended.len() < STREAMS as usize {
            let Some((kind, flags, id, payload)) = soon("an end", read_frame(&mut stream)).await else { break };
            match kind {
                GOAWAY => cut = payload.get(7).copied(),
                RST_STREAM => drop(ended.insert(id)),
                HEADERS | DATA if flags & END_STREAM != 0 => drop(ended.insert(id)),
                _ => {}
            }
        }
        println!("{name}: {} of {STREAMS} ended, then cut for {cut:?}", ended.len());
        assert!(ended.len() == STREAMS as usize || cut == Some(ENHANCE_YOUR_CALM), "{name}: {cut:?}");
        assert_eq!(upstream.count(), 1, "{name}: only the first, which is an honest one");
        others_go_on(&proxy, name).await;
    }
}

#[tokio::test]
async fn more_fields_than_http1_may_have_are_too_many_here_too() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    for (count, status) in [(220, 200), (225, 431)] {
        let fields = vec![("x-a", "1"); count];
        let answer = client.send("GET", "/x", &fields, "").await;
        assert_eq!(answer.status(), status, "{count}");
        if status == 431 {
            assert_eq!(answer.headers()["x-tidegate-fault"], "long_head");
        }
    }
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn windows_of_zero_stall_nobody_else_and_not_for_ever() {
    let upstream = Upstream::start(|seen| match seen.line().contains("/good") {
        true => Reply::ok("good"),
        false => Reply::ok(&"x".repeat(100_000)),
    })
    .await;
    let proxy = Proxy::configured(&upstream.url(), |config| {
        config.limits.send_timeout = Duration::from_millis(500);
        config.upstreams[0].ceiling = Some(300);
    });
    let mut stream = hostile(&proxy).await;
    // Of every stream: no byte of an answer's body may be sent.
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await.unwrap();
    const STREAMS: u32 = 200;
    for nth in 0..STREAMS {
        stream.write_all(&head(2 * nth + 1, GET)).await.unwrap();
    }
    others_go_on(&proxy, "while they stall").await;
    let mut reset = HashSet::new();
    while reset.len() < STREAMS as usize {
        let (kind, _, id, _) = soon("all are given up", read_frame(&mut stream)).await.unwrap();
        if kind == RST_STREAM {
            reset.insert(id);
        }
    }
    proxy.idle().await;
    // The connection itself is as good as before.
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xFF, 0xFF])).await.unwrap();
    stream.write_all(&head(2 * STREAMS + 1, GET)).await.unwrap();
    loop {
        let (kind, _, id, _) = soon("an answer", read_frame(&mut stream)).await.unwrap();
        assert_ne!(kind, GOAWAY);
        if kind == HEADERS && id == 2 * STREAMS + 1 {
            break;
        }
    }
}

#[tokio::test]
async fn windows_that_overflow_end_the_stream_or_the_connection() {
    let upstream = Upstream::start(|seen| match seen.line().contains("/good") {
        true => Reply::ok("good"),
        false => Reply::ok("").held(),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let most = 0x7FFF_FFFFu32.to_be_bytes();
    let opened = || frame(HEADERS, END_HEADERS | END_STREAM, 1, GET);
    for (name, overflow, only_stream, reason) in [
        ("a stream's", frame(WINDOW_UPDATE, 0, 1, &most), true, FLOW_CONTROL_ERROR),
        ("the connection's", frame(WINDOW_UPDATE, 0, 0, &most), false, FLOW_CONTROL_ERROR),
        // Found where frames are read, before anybody asks what it means.
        ("a setting", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), false, PROTOCOL_ERROR),
    ] {
        let mut stream = hostile(&proxy).await;
        stream.write_all(&opened()).await.unwrap();
        wait_until("it is under way", || upstream.in_flight() == 1).await;
        stream.write_all(&overflow).await.unwrap();
        if only_stream {
            let found = loop {
                let (kind, _, _, payload) = soon("a reset", read_frame(&mut stream)).await.unwrap();
                assert_ne!(kind, GOAWAY, "{name}");
                if kind == RST_STREAM {
                    break payload[3];
                }
            };
            assert_eq!(found, reason, "{name}");
        } else {
            assert_eq!(goaway(&mut stream).await, Some(reason), "{name}");
        }
        proxy.idle().await;
        wait_until("the upstream is let go", || upstream.in_flight() == 0).await;
        others_go_on(&proxy, name).await;
    }
}

#[tokio::test]
async fn more_data_than_the_window_is_an_error_and_not_held() {
    let upstream = Upstream::start(|seen| match seen.line().contains("/good") {
        true => Reply::ok("good"),
        false => Reply::ok("").held(),
    })
    .await;
    // The body streams, and no slot is free to stream it through.
    let proxy = Proxy::configured(&upstream.url(), |config| {
        config.buffers.request_max_bytes = 1;
        config.upstreams[0].ceiling = Some(1);
    });
    let mut first = proxy.client().await;
    first.get("/first").await;
    wait_until("the slot is taken", || upstream.in_flight() == 1).await;
    let mut stream = hostile(&proxy).await;
    // `content-length: 99999999`, by the name's number in the static table.
    let length = [&[0x0f, 0x0d, 8], &b"99999999"[..]].concat();
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &[POST, &length].concat())).await.unwrap();
    wait_until("it waits", || proxy.view().queued == 1).await;
    for _ in 0..5 {
        stream.write_all(&frame(DATA, 0, 1, &vec![b'x'; 16 << 10])).await.unwrap();
    }
    let reason = loop {
        let (kind, _, _, payload) = soon("an error", read_frame(&mut stream)).await.unwrap();
        match kind {
            RST_STREAM => break payload[3],
            GOAWAY => break payload[7],
            _ => {}
        }
    };
    assert_eq!(reason, FLOW_CONTROL_ERROR);
    wait_until("it waits no more", || proxy.view().queued == 0).await;
    upstream.release(1);
    assert_eq!(first.response().await.status, 200);
    others_go_on(&proxy, "more than the window").await;
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn priorities_and_frames_nobody_knows_are_read_and_forgotten() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let ids = || (0..u32::MAX).step_by(2).map(|even| even + 1);
    let priorities = ids().map(|id| {
        let (depends_on, weight) = (id.saturating_sub(2).to_be_bytes(), [9]);
        frame(PRIORITY, 0, id, &[&depends_on[..], &weight].concat())
    });
    let unknown = ids().map(|_| frame(0xEE, 0xFF, 0, &[0; 1000]));
    let both: [(_, Vec<_>); 2] =
        [("PRIORITY", priorities.take(200_000).collect()), ("unknown", unknown.take(4_000).collect())];
    for (name, frames) in both {
        let whole = frames.iter().map(Vec::len).sum::<usize>();
        let mut stream = hostile(&proxy).await;
        let pieces: Vec<_> = frames.chunks(1000).map(<[_]>::concat).collect();
        let poured = {
            let good = Http2Client::connect(proxy.addr).await;
            let mut flooding = Box::pin(pour(&mut stream, pieces.into_iter(), true));
            loop {
                tokio::select! {
                    poured = &mut flooding => break poured,
                    (status, body) = good.post("/good", "{}") => assert_eq!((status, &body[..]), (200, "good")),
                }
            }
        };
        println!("{name}: {poured} of {whole} bytes in");
        assert_eq!(proxy.view().queued, 0, "{name}");
        others_go_on(&proxy, name).await;
    }
}

#[tokio::test]
async fn streams_the_proxy_is_made_to_reset_are_counted_and_the_connection_is_cut() {
    let upstream = Upstream::start(|seen| match seen.line().contains("/good") {
        true => Reply::ok("good"),
        false => Reply::ok("slow").after(Duration::from_millis(100)),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(50));
    let mut stream = hostile(&proxy).await;
    // Each is asked for in full, and then broken by a frame that is an error of the stream's alone.
    let made = (0..20_000u32).map(|nth| {
        let id = 2 * nth + 1;
        [frame(HEADERS, END_HEADERS | END_STREAM, id, GET), frame(WINDOW_UPDATE, 0, id, &[0; 4])].concat()
    });
    let good = Http2Client::connect(proxy.addr).await;
    let mut flooding = Box::pin(pour(&mut stream, made, true));
    let poured = loop {
        tokio::select! {
            poured = &mut flooding => break poured,
            (status, body) = good.post("/good", "{}") => assert_eq!((status, &body[..]), (200, "good")),
        }
    };
    drop(flooding);
    drop(stream);
    proxy.idle().await;
    let reached = upstream.seen().iter().filter(|seen| seen.line().contains("/x")).count();
    println!("{poured} bytes in, {reached} reached the upstream");
    assert!(poured < 20_000 * (9 + GET.len() + 13), "not cut after {poured} bytes");
    assert!(reached < 2_000, "{reached}");
    wait_until("only the good one is left", || proxy.app().shared.metrics.downstream_connections.get() == 1).await;
}
