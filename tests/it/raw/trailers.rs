//! Trailers cross in both directions, on every pair of protocols, whether they were announced or not; what frames or
//! routes a message does not.

use http::HeaderMap;
use http_body_util::BodyExt;

use super::say;
use crate::support::{Http2Client, Http2Step, Http2Upstream, Proxy, Reply, Step, Upstream, http2_ok, soon};

/// What an answer with these header lines and trailers is on the wire.
fn chunked(lines: &str, body: &str, trailers: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\n{lines}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n{trailers}\r\n",
        body.len()
    )
}

#[tokio::test]
async fn of_an_answer_they_reach_every_client_that_can_have_them() {
    // Data that looks like the end of a body must not be taken for one.
    for body in ["hi", "0\r\n\r\n", "\r\n", "hi\n0\r\n\r\n"] {
        for announced in ["Trailer: X-Sum, X-Two\r\n", ""] {
            let answer =
                chunked(announced, body, "X-Sum: 1\r\nContent-Length: 9\r\nHost: evil\r\nX-Two: a\r\nX-Two: b\r\n");
            let upstream = Upstream::start(move |_| Reply::raw(answer.clone())).await;
            let proxy = Proxy::configured(&upstream.url(), |config| config.threads = 1);
            let mut client = proxy.client().await;
            for te in ["TE: trailers\r\n", "Connection: TE\r\nTE: trailers\r\n", ""] {
                client.send(format!("GET /x HTTP/1.1\r\nHost: h\r\n{te}\r\n")).await;
                let response = client.response().await;
                assert_eq!((response.text().as_str(), response.complete), (body, true), "{te}{announced}");
                assert_eq!(response.trailers, ["x-sum: 1", "x-two: a", "x-two: b"], "{te}{announced}");
            }
            let got = say(proxy.addr, b"HEAD /x HTTP/1.1\r\nHost: h\r\n\r\n").await;
            assert!(got.text.ends_with("\r\n\r\n") && !got.text.contains("x-sum"), "{}", got.text);
            let got = say(proxy.addr, b"GET /x HTTP/1.0\r\n\r\n").await;
            assert!(got.text.ends_with(&format!("\r\n\r\n{body}")) && got.closed, "{}", got.text);
            let client = Http2Client::connect(proxy.addr).await;
            let response = client.send("GET", "/x", &[], "").await;
            let whole = soon("the end", response.into_body().collect()).await.unwrap();
            let trailers = whole.trailers().unwrap().clone();
            assert_eq!((trailers.len(), whole.to_bytes().as_ref()), (3, body.as_bytes()));
            proxy.idle().await;
        }
    }
}

#[tokio::test]
async fn of_an_answer_that_comes_in_pieces_they_come_last() {
    let pieces: Vec<_> = (0..200).map(|nth| format!("{:x}\r\n{}\r\n", nth + 1, "x".repeat(nth + 1))).collect();
    let upstream = Upstream::start(move |seen| {
        let mut steps = vec![Step::Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec())];
        for piece in &pieces {
            steps.push(Step::Send(piece.clone().into_bytes()));
        }
        if seen.line().contains("/slow") {
            steps.push(Step::Wait(std::time::Duration::from_millis(30)));
        }
        steps.push(Step::Send(b"0\r\nX-Sum: 1\r\n\r\n".to_vec()));
        Reply(steps)
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let mut client = proxy.client().await;
    // Two at once: the second answer begins behind the trailers of the first.
    client.send("GET /x HTTP/1.1\r\nHost: h\r\n\r\nGET /slow HTTP/1.1\r\nHost: h\r\n\r\nBAD\r\n\r\n").await;
    for _ in 0..2 {
        let response = client.response().await;
        assert_eq!((response.body.len(), response.complete), (200 * 201 / 2, true));
        assert_eq!(response.trailers, ["x-sum: 1"]);
    }
    assert_eq!(client.response().await.header("x-tidegate-fault"), Some("bad_head"));
}

#[tokio::test]
async fn of_an_http2_answer_they_reach_an_http1_client() {
    let upstream = Http2Upstream::start(|seen| match seen.head.uri.path() {
        // A length leaves no room for trailers in HTTP/1.1.
        "/length" => vec![
            Http2Step::Head(200, &[("content-length", "2")]),
            Http2Step::Data("hi".into()),
            Http2Step::Trailers(&[("x-sum", "1")]),
        ],
        "/none" => vec![Http2Step::Head(200, &[]), Http2Step::Trailers(&[("x-sum", "1")])],
        _ => vec![Http2Step::Head(200, &[]), Http2Step::Data("hi".into()), Http2Step::Trailers(&[("x-sum", "1")])],
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.http2 = tidegate::config::Http2::Only);
    let mut client = proxy.client().await;
    for (path, body, trailers) in [
        ("/x", "hi", &["x-sum: 1"][..]),
        ("/length", "hi", &[]),
        ("/none", "", &["x-sum: 1"]),
        ("/x", "hi", &["x-sum: 1"]),
    ] {
        client.get(path).await;
        let response = client.response().await;
        assert_eq!(
            (response.text().as_str(), response.trailers),
            (body, trailers.iter().map(ToString::to_string).collect())
        );
    }
}

#[tokio::test]
async fn of_a_request_they_reach_the_upstream() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    for request_max_bytes in [1 << 20, 1] {
        let proxy = Proxy::configured(&upstream.url(), |config| config.buffers.request_max_bytes = request_max_bytes);
        for announced in ["Trailer: X-Sum\r\n", ""] {
            // Of a body that streams nobody knows ahead what follows, and hyper sends only what was announced.
            let lost = announced.is_empty() && request_max_bytes == 1;
            let mut client = proxy.client().await;
            client
                .send(format!(
                    "POST /x HTTP/1.1\r\nHost: h\r\n{announced}Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n\
                     0\r\nX-Sum: 1\r\nContent-Length: 9\r\nHost: evil\r\n\r\n"
                ))
                .await;
            assert_eq!(client.response().await.status, 200);
            let seen = upstream.seen().pop().unwrap();
            let want = if lost { "2\r\nhi\r\n0\r\n\r\n" } else { "2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n" };
            assert_eq!(String::from_utf8_lossy(&seen.raw_body), want, "{announced}, held up to {request_max_bytes}");
            assert!(seen.header("x-sum").is_empty(), "{}", seen.head);
        }
    }
}

#[tokio::test]
async fn of_an_http2_request_they_reach_both_kinds_of_upstream() {
    let http1 = Upstream::start(|_| Reply::ok("fine")).await;
    let http2 = Http2Upstream::start(|_| http2_ok("fine")).await;
    for request_max_bytes in [1 << 20, 1] {
        for (url, protocol) in
            [(http1.url(), tidegate::config::Http2::Auto), (http2.url(), tidegate::config::Http2::Only)]
        {
            let proxy = Proxy::configured(&url, |config| {
                config.buffers.request_max_bytes = request_max_bytes;
                config.upstreams[0].http2 = protocol;
            });
            for length in [None, Some("2")] {
                let stream = tokio::net::TcpStream::connect(proxy.addr).await.unwrap();
                let (sender, conn) = h2::client::handshake(stream).await.unwrap();
                tokio::spawn(conn);
                let mut request = http::Request::post("http://h/x").header("trailer", "x-sum");
                if let Some(length) = length {
                    request = request.header("content-length", length);
                }
                let (answer, mut body) =
                    sender.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
                body.send_data("hi".into(), false).unwrap();
                let mut trailers = HeaderMap::new();
                for (name, value) in [("x-sum", "1"), ("content-length", "9"), ("host", "evil"), ("authorization", "x")]
                {
                    trailers.insert(name, value.parse().unwrap());
                }
                body.send_trailers(trailers).unwrap();
                assert_eq!(soon("an answer", answer).await.unwrap().status(), 200, "{protocol:?} {length:?}");
            }
        }
    }
    for seen in http1.seen() {
        let raw = String::from_utf8_lossy(&seen.raw_body).into_owned();
        let streamed_with_length = seen.header("content-length") == ["2"];
        let want = if streamed_with_length { "hi" } else { "2\r\nhi\r\n0\r\nx-sum: 1\r\n\r\n" };
        assert_eq!(raw, want, "{}", seen.head);
    }
    assert_eq!(
        http1.seen().iter().filter(|seen| seen.header("content-length") == ["2"]).count(),
        1,
        "the streamed one"
    );
    assert_eq!(http2.seen().len(), 4);
    for seen in http2.seen() {
        assert_eq!(seen.trailers.keys().map(ToString::to_string).collect::<Vec<_>>(), ["x-sum"], "{:?}", seen.head);
    }
}
