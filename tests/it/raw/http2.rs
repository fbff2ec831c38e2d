//! HTTP/2 in front of HTTP/1: what has two spellings there has one here.

use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};

use crate::support::{Http2Client, Proxy, Reply, Upstream, soon, text};

#[tokio::test]
async fn cookie_crumbs_become_one_line() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    let crumbs = [("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2"), ("x-a", "2"), ("cookie", "c=3")];
    assert_eq!(client.send("GET", "/x", &crumbs, "").await.status(), 200);
    let seen = &upstream.seen()[0];
    assert_eq!(seen.header("cookie"), ["a=1; b=2; c=3"]);
    assert_eq!(seen.header("x-a"), ["1", "2"]);
}

#[tokio::test]
async fn authority_and_host_are_judged_as_host_is() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    for (name, authority, hosts, want) in [
        ("authority", "tidegate.test", &[][..], 200),
        ("authority and an equal Host", "tidegate.test", &["tidegate.test"], 200),
        ("authority beats another Host", "tidegate.test", &["elsewhere.test"], 200),
        ("two Hosts", "tidegate.test", &["tidegate.test", "tidegate.test"], 400),
        ("an odd Host", "tidegate.test", &["a b"], 400),
        ("a user", "user@tidegate.test", &[], 400),
        ("a list", "a,b", &[], 400),
    ] {
        let before = upstream.count();
        let client = Http2Client::connect(proxy.addr).await;
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query("/x").build().unwrap();
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header("host", *host);
        }
        let response = client.request(request.body(Full::<Bytes>::default()).unwrap()).await;
        let status = response.map(|response| response.status().as_u16());
        assert_eq!(status.as_ref().ok(), Some(&want), "{name}: {status:?}");
        let seen = upstream.seen().split_off(before);
        assert_eq!(seen.len(), usize::from(want == 200), "{name}");
        assert!(seen.iter().all(|seen| seen.header("host") == [upstream.addr.to_string()]), "{name}");
    }
}

#[tokio::test]
async fn content_length_and_data_must_agree() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    for request_max_bytes in [1 << 20, 1] {
        let proxy = Proxy::configured(&upstream.url(), |config| config.buffers.request_max_bytes = request_max_bytes);
        for (name, length, data) in [
            ("too little", "10", &b"hello"[..]),
            ("too much", "2", b"hello"),
            ("none", "5", b""),
            ("no number", "+5", b"hello"),
        ] {
            let stream = tokio::net::TcpStream::connect(proxy.addr).await.unwrap();
            let (sender, conn) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(conn);
            let request = Request::post("http://h/x").header("content-length", length).body(()).unwrap();
            let (answer, mut body) = sender.ready().await.unwrap().send_request(request, data.is_empty()).unwrap();
            if !data.is_empty() {
                let _ = body.send_data(Bytes::from_static(data), true);
            }
            let status = soon("an answer or a reset", answer).await.map(|response| response.status().as_u16());
            assert!(!matches!(status, Ok(200..400)), "{name}: {status:?}");
            proxy.idle().await;
            assert_eq!(upstream.count(), 0, "{name}, held up to {request_max_bytes}");
        }
    }
}

#[tokio::test]
async fn equal_lengths_are_one() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    let twice = [("content-length", "2"), ("content-length", "2")];
    let response = client.send("POST", "/x", &twice, "hi").await;
    assert_eq!(response.status(), 200);
    assert_eq!(upstream.seen()[0].header("content-length"), ["2"]);
}

#[tokio::test]
async fn fields_of_a_connection_are_refused_or_stay_behind() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    for (name, value) in [
        ("connection", "x-a"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
    ] {
        let before = upstream.count();
        let stream = tokio::net::TcpStream::connect(proxy.addr).await.unwrap();
        let (sender, conn) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(conn);
        let request = Request::get("http://h/x").header(name, value).body(()).unwrap();
        // The client's own library may refuse to say it.
        if let Ok((answer, _)) = sender.ready().await.unwrap().send_request(request, true) {
            let _ = soon("an answer or a reset", answer).await;
        }
        for seen in upstream.seen().split_off(before) {
            assert!(seen.header(name).is_empty(), "{name} in {}", seen.head);
        }
    }
}

#[tokio::test]
async fn targets_are_paths_here_too() {
    let upstream = Upstream::start(|_| Reply::ok("fine")).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    let request = Request::builder().method("OPTIONS").uri("http://h/*").body(Full::<Bytes>::default()).unwrap();
    assert_eq!(client.request(request).await.unwrap().status(), 200);
    let long = format!("http://h/{}", "a".repeat(40_000));
    let request = Request::builder().uri(long).body(Full::<Bytes>::default()).unwrap();
    let response = client.request(request).await.unwrap();
    assert_eq!(response.status(), 414);
    assert!(text(response).await.contains("target"));
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn what_frames_or_routes_a_message_is_no_trailer() {
    for status in [200, 500] {
        let upstream = Upstream::start(move |_| {
            Reply::raw(format!(
                "HTTP/1.1 {status} Status\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n4\r\nbody\r\n0\r\n\
                 connection: x-hop\r\nx-hop: 1\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\nhost: evil\r\n\
                 x-sum: 4\r\n\r\n"
            ))
        })
        .await;
        let proxy = Proxy::start(&upstream.url(), |settings| settings.retry.attempts_max = 1);
        let client = Http2Client::connect(proxy.addr).await;
        let response = client.send("GET", "/x", &[("te", "trailers")], "").await;
        assert_eq!(response.status(), status);
        let body = soon("the end", response.into_body().collect()).await.unwrap();
        let mut names: Vec<_> = body.trailers().unwrap().keys().map(ToString::to_string).collect();
        names.sort_unstable();
        assert_eq!(names, ["x-sum"], "{status}");
        assert_eq!(body.to_bytes(), "body");
    }
}
