//! What belongs to both ends crosses unchanged; what belongs to one connection stays there.

use super::{passed, run, say};
use crate::support::{Http2Client, Proxy, Reply, Step, Upstream, soon};

#[tokio::test]
async fn request_headers_cross_or_stay_as_they_should() {
    let get = |lines: &str| format!("GET /x HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
    run(vec![
        passed(
            "repeated, in order",
            get("X-A: 2\r\nX-B: 9\r\nX-A: 1\r\nX-A: 3, 4\r\n"),
            &["x-a: 2\r\nx-a: 1\r\nx-a: 3, 4\r\n", "x-b: 9\r\n"],
            &[],
        ),
        passed("empty", get("X-A:\r\nX-B: \r\n"), &["x-a: \r\n", "x-b: \r\n"], &[]),
        passed("two cookies stay two lines", get("Cookie: a=1\r\nCookie: b=2\r\n"), &["cookie: a=1\r\ncookie: b=2\r\n"], &[]),
        passed(
            "Connection names fields, on two lines",
            get("Connection: X-A, keep-alive\r\nConnection:x-b\r\nX-A: 1\r\nX-B: 2\r\nX-C: 3\r\n"),
            &["x-c: 3\r\n"],
            &["x-a", "x-b", "connection"],
        ),
        passed(
            "Connection names what must stay",
            "POST /x HTTP/1.1\r\nHost: h\r\nConnection: host, authorization, content-length, content-type\r\n\
             Authorization: Bearer k\r\nContent-Type: a/b\r\nContent-Length: 2\r\n\r\nhi",
            &["\r\nhost: 127.0.0.1:", "authorization: bearer k", "content-type: a/b", "content-length: 2", "\r\n\r\nhi"],
            &["\r\nconnection"],
        ),
        passed(
            "fields of one connection",
            get("Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: gzip\r\nProxy-Authorization: Basic eA==\r\n"),
            &["get /x"],
            &["keep-alive", "proxy-", "\r\nte:"],
        ),
        passed("TE: trailers", get("Connection: TE\r\nTE: gzip;q=0.5, trailers\r\n"), &["\r\nte: trailers\r\n"], &["gzip"]),
        passed("nothing is added", get(""), &["get /x"], &["via", "x-forwarded", "forwarded", "user-agent", "accept", "date"]),
        passed("capitals in the path stay", "GET /A%2fB/%7E?Q=%20&&=;a HTTP/1.1\r\nHost: h\r\n\r\n", &["get /A%2fB/%7E?Q=%20&&=;a http"], &[]),
        passed("dots in the path stay", "GET /a/../b/./c//d HTTP/1.1\r\nHost: h\r\n\r\n", &["get /a/../b/./c//d http"], &[]),
        passed("an empty query stays", "GET /a? HTTP/1.1\r\nHost: h\r\n\r\n", &["get /a? http"], &[]),
        passed("brackets in the query stay", "GET /a?b[]={c}&d=é HTTP/1.1\r\nHost: h\r\n\r\n", &["get /a?b[]={c}&d=é http"], &[]),
        passed("Content-Length: 0 stays", "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", &["content-length: 0\r\n"], &["transfer-encoding"]),
        passed("no framing stays none", "GET /x HTTP/1.1\r\nHost: h\r\n\r\n", &["get /x"], &["transfer-encoding", "content-length"]),
        passed(
            "an empty chunked body stays chunked",
            "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &["transfer-encoding: chunked", "\r\n\r\n0\r\n\r\n"],
            &["content-length"],
        ),
        passed(
            "request trailers",
            "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n",
            &["trailer: x-sum\r\n", "2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n"],
            &[],
        ),
    ])
    .await;
}

#[tokio::test]
async fn bytes_above_127_cross_in_both_directions() {
    let upstream = Upstream::start(|_| {
        Reply::raw(b"HTTP/1.1 200 OK\r\nx-answer: \xe9\xff\x80\r\ncontent-length: 0\r\n\r\n".to_vec())
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    client.send(b"GET /x HTTP/1.1\r\nHost: h\r\nX-Name: caf\xe9\xff\x80\r\nConnection: close\r\n\r\n").await;
    let (bytes, clean) = client.rest().await;
    let contains = |all: &[u8], part: &[u8]| all.windows(part.len()).any(|window| window == part);
    assert!(clean && contains(&bytes, b"x-answer: \xe9\xff\x80\r\n"), "{}", String::from_utf8_lossy(&bytes));
    assert!(contains(&upstream.seen()[0].raw_head, b"x-name: caf\xe9\xff\x80\r\n"), "{}", upstream.seen()[0].head);
}

#[tokio::test]
async fn response_headers_cross_or_stay_as_they_should() {
    let upstream = Upstream::start(|_| {
        Reply::raw(
            "HTTP/1.1 299 Quite Fine\r\nSet-Cookie: b=2\r\nSet-Cookie: a=1\r\nX-Empty:\r\nServer: s\r\n\
             Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
             Proxy-Connection: x\r\nProxy-Authenticate: Basic\r\nWWW-Authenticate: Bearer\r\nTE: x\r\nUpgrade: h2c\r\n\
             Content-Length: 2\r\nContent-Encoding: gzip\r\nVia: 1.1 cdn\r\n\r\nhi",
        )
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let got = say(proxy.addr, b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let text = got.text.to_lowercase();
    for has in [
        "http/1.1 299 quite fine\r\n",
        "set-cookie: b=2\r\nset-cookie: a=1\r\n",
        "x-empty: \r\n",
        "server: s\r\n",
        "date: thu, 01 jan 1970 00:00:00 gmt\r\n",
        "www-authenticate: bearer\r\n",
        "content-length: 2\r\n",
        "content-encoding: gzip\r\n",
        "via: 1.1 cdn\r\n",
        "\r\n\r\nhi",
    ] {
        assert!(text.contains(has), "{has:?} in {text}");
    }
    for lacks in ["x-hop", "keep-alive", "proxy-connection", "\r\nte:", "upgrade", "x-tidegate", "transfer-encoding"] {
        assert!(!text.contains(lacks), "{lacks:?} in {text}");
    }
    assert_eq!(text.matches("date:").count(), 1, "{text}");
}

#[tokio::test]
async fn a_client_is_asked_for_its_body_only_if_it_wants_to_be() {
    let upstream = Upstream::start(|_| Reply::ok("done")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    for (expect, asked) in
        [("", false), ("Expect: 100-continue\r\n", true), ("Expect: 100-Continue\r\n", true), ("Expect: x\r\n", false)]
    {
        for framing in ["Content-Length: 2\r\n", "Transfer-Encoding: chunked\r\n"] {
            let mut client = proxy.client().await;
            client.send(format!("POST /x HTTP/1.1\r\nHost: h\r\n{expect}{framing}\r\n")).await;
            if asked {
                assert_eq!(client.head().await.0, 100, "{expect}{framing}");
            }
            client.send(if framing.starts_with('C') { "hi" } else { "2\r\nhi\r\n0\r\n\r\n" }).await;
            assert_eq!(client.response().await.status, 200, "{expect}{framing}");
        }
    }
    assert!(upstream.seen().iter().all(|seen| seen.body == b"hi"));
    // HTTP/1.0 knows no 100.
    let mut client = proxy.client().await;
    client.send("POST /x HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi").await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_sends_all_before_it_reads() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge").await;
            tokio::spawn(async move {
                // Reads on, as a polite server does for a while.
                let mut piece = vec![0; 65536];
                while let Ok(1..) = stream.read(&mut piece).await {}
            });
        }
    });
    let proxy = Proxy::start(&url, |_| {});
    let mut seen = Vec::new();
    for _ in 0..5 {
        let mut client = proxy.client().await;
        let size = 8 << 20;
        client.send(format!("PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n")).await;
        let sent = client.stream.write_all(&vec![b'x'; size]).await;
        let bytes = soon("an answer", async {
            let mut piece = vec![0; 65536];
            let count = client.stream.read(&mut piece).await.unwrap_or(0);
            piece.truncate(count);
            piece
        })
        .await;
        seen.push((sent.is_ok(), String::from_utf8_lossy(&bytes).starts_with("HTTP/1.1 413")));
    }
    assert!(seen.iter().all(|(_, told)| *told), "(all sent, saw 413): {seen:?}");
}

#[tokio::test]
async fn uploads_that_break_off_are_never_whole_requests_upstream() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    for request_max_bytes in [1 << 20, 16] {
        let proxy = Proxy::configured(&upstream.url(), |config| config.buffers.request_max_bytes = request_max_bytes);
        for framing in [
            "Content-Length: 100\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n64\r\n",
            "Transfer-Encoding: chunked\r\n\r\n14\r\n01234567890123456789\r\n",
        ] {
            let mut client = proxy.client().await;
            client.send(format!("POST /x HTTP/1.1\r\nHost: h\r\n{framing}half of it")).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            drop(client);
            proxy.idle().await;
            assert_eq!(upstream.count(), 0, "{framing}, held up to {request_max_bytes}");
        }
    }
}

#[tokio::test]
async fn two_requests_in_one_packet_are_two_requests_in_order() {
    let upstream = Upstream::start(|seen| match seen.line() {
        line if line.contains("/1 ") => Reply::ok("first").after(std::time::Duration::from_millis(30)),
        _ => Reply::ok("second").then(Step::Wait(std::time::Duration::ZERO)),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    client.send("POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhiGET /2 HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "first");
    assert_eq!(client.response().await.text(), "second");
}

#[tokio::test]
async fn a_body_longer_than_allowed_is_a_413_however_it_comes() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let (ten, more) = ("x".repeat(10), "x".repeat(11));
    for request_max_bytes in [1 << 20, 4] {
        let proxy = Proxy::configured(&upstream.url(), |config| {
            config.buffers.request_max_bytes = request_max_bytes;
            config.limits.body_bytes_max = Some(10);
        });
        let post = |lines: String| format!("POST /x HTTP/1.1\r\nHost: h\r\n{lines}");
        for (name, bytes, status) in [
            ("allowed", post(format!("Content-Length: 10\r\n\r\n{ten}")), 200),
            ("allowed, chunked", post(format!("Transfer-Encoding: chunked\r\n\r\na\r\n{ten}\r\n0\r\n\r\n")), 200),
            ("announced", post(format!("Content-Length: 11\r\n\r\n{more}")), 413),
            ("announced and not sent", post("Content-Length: 11\r\n\r\n".to_owned()), 413),
            ("announced, asked for", post("Expect: 100-continue\r\nContent-Length: 11\r\n\r\n".to_owned()), 413),
            ("chunked", post(format!("Transfer-Encoding: chunked\r\n\r\nb\r\n{more}\r\n0\r\n\r\n")), 413),
            (
                "chunked, in two",
                post(format!("Transfer-Encoding: chunked\r\n\r\na\r\n{ten}\r\n1\r\nx\r\n0\r\n\r\n")),
                413,
            ),
            ("a chunk without end", post(format!("Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{more}")), 413),
        ] {
            let before = upstream.count();
            let got = say(proxy.addr, bytes.as_bytes()).await;
            assert_eq!(got.statuses, [status], "{name}, held up to {request_max_bytes}: {}", got.text);
            assert_eq!(got.closed, status == 413, "{name}: {}", got.text);
            assert_eq!(got.text.contains("x-tidegate-fault: long_body"), status == 413, "{name}: {}", got.text);
            assert_eq!(upstream.count() - before, usize::from(status == 200), "{name}, held up to {request_max_bytes}");
        }
        let client = Http2Client::connect(proxy.addr).await;
        for (body, status) in [(&ten, 200), (&more, 413)] {
            assert_eq!(client.send("POST", "/x", &[], body).await.status(), status, "HTTP/2");
        }
        proxy.idle().await;
    }
}
