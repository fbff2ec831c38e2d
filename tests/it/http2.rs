//! HTTP/2 downstream by prior knowledge, and HTTP/2 upstream.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::Request;
use http_body_util::{BodyExt, Full};
use tidegate::config::{Algorithm, Http2, Upstream as Settings};

use crate::support::{
    Http2Client, Http2Step, Http2Upstream, Proxy, Reply, Step, Upstream, http2_ok, metric, soon, text, wait_until,
};

/// In front of an HTTP/2 upstream, one thread, so that all share one pool.
fn start(url: &str, change: impl FnOnce(&mut Settings)) -> Proxy {
    Proxy::configured(url, |config| {
        config.threads = 1;
        let settings = &mut config.upstreams[0];
        settings.http2 = Http2::Only;
        settings.limit.algorithm = Algorithm::Fixed;
        settings.ceiling = Some(200);
        settings.retry.backoff_base = Duration::from_millis(5);
        settings.retry.backoff_jitter = Duration::from_millis(1);
        change(settings);
    })
}

#[tokio::test]
async fn a_client_may_speak_http2_by_prior_knowledge() {
    let upstream = Upstream::start(|seen| {
        let headers = "connection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nx-end: 2\r\n";
        Reply::new(200, headers, &format!("{} {}", seen.line(), String::from_utf8_lossy(&seen.body)))
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    let response = client.send("GET", "/v1/models?a=b", &[("x-own", "1")], "").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-end"], "2");
    for hop in ["connection", "x-hop", "keep-alive", "transfer-encoding"] {
        assert!(!response.headers().contains_key(hop), "{hop}");
    }
    assert_eq!(text(response).await, "GET /v1/models?a=b HTTP/1.1 ");
    assert_eq!(client.post("/x", "body").await, (200, "POST /x HTTP/1.1 body".to_owned()));
    let first = &upstream.seen()[0];
    assert_eq!(first.header("host"), [upstream.addr.to_string()]);
    assert_eq!(first.header("x-own"), ["1"]);
    assert_eq!(first.header(":authority"), Vec::<&str>::new());
}

#[tokio::test]
async fn a_hundred_streams_of_one_connection_stay_below_the_ceiling() {
    let upstream =
        Upstream::start(|seen| Reply::ok(&String::from_utf8_lossy(&seen.body)).after(Duration::from_millis(5))).await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(7));
    let client = Http2Client::connect(proxy.addr).await;
    let mut running = Vec::new();
    for id in 0..100 {
        let client = client.clone();
        running.push(tokio::spawn(async move {
            assert_eq!(client.post("/x", &format!("request {id}")).await, (200, format!("request {id}")));
        }));
    }
    for one in running {
        one.await.unwrap();
    }
    assert_eq!((upstream.count(), upstream.in_flight_max()), (100, 7));
    proxy.idle().await;
}

#[tokio::test]
async fn trailers_of_a_chunked_answer_reach_an_http2_client() {
    let upstream = Upstream::start(|_| {
        Reply::raw(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 4\r\n\r\n",
        )
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    let response = client.send("GET", "/x", &[("te", "trailers")], "").await;
    let body = soon("the end", response.into_body().collect()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "4");
    assert_eq!(body.to_bytes(), "body");
}

#[tokio::test]
async fn a_stream_reset_by_the_client_frees_its_slot_and_leaves_its_neighbours_alone() {
    let upstream = Upstream::start(|seen| match seen.line() {
        line if line.contains("/silent") => Reply::ok("late").held(),
        line if line.contains("/stream") => {
            Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").then(Step::Hold)
        }
        _ => Reply::ok("fast"),
    })
    .await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    let client = Http2Client::connect(proxy.addr).await;
    for _ in 0..20 {
        let before = upstream.count();
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { client.post("/silent", "{}").await }
        });
        wait_until("one waits for its answer", || upstream.count() == before + 1).await;
        let queued = tokio::spawn({
            let client = client.clone();
            async move { client.post("/silent", "{}").await }
        });
        wait_until("one is queued", || proxy.view().queued == 1).await;
        queued.abort();
        wait_until("its place is free", || proxy.view().queued == 0).await;
        assert_eq!(proxy.view().in_flight, 1, "the neighbour is still there");
        waiting.abort();
        assert_eq!(client.post("/fast", "{}").await.1, "fast");
        let mut streaming = client.send("GET", "/stream", &[], "").await.into_body();
        let first = soon("the first piece", streaming.frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "first");
        drop(streaming);
        assert_eq!(client.post("/fast", "{}").await.1, "fast");
    }
    proxy.idle().await;
    assert_eq!(upstream.in_flight_max(), 1);
    assert_eq!(upstream.count(), 80, "what was queued never left");
}

#[tokio::test]
async fn answers_of_tidegates_own_are_proper_http2() {
    let upstream = Upstream::start(|_| Reply::ok("").held()).await;
    let proxy = Proxy::start(&upstream.url(), |settings| {
        settings.path_prefix = "/v1".to_owned();
        settings.ceiling = Some(1);
        settings.queue.depth_max = 1;
    });
    let client = Http2Client::connect(proxy.addr).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let client = client.clone();
        waiting.push(tokio::spawn(async move { client.post("/v1/x", "{}").await }));
    }
    wait_until("slot and queue are full", || proxy.view().in_flight == 1 && proxy.view().queued == 1).await;
    for (name, method, uri, status, kind) in [
        ("no route", "GET", "http://h/elsewhere", 404, "no_route"),
        ("queue full", "POST", "http://h/v1/messages", 429, "queue_full"),
        ("a method that is not forwarded", "CONNECT", "h:443", 405, "bad_method"),
    ] {
        let request = Request::builder().method(method).uri(uri).body(Full::<Bytes>::default()).unwrap();
        let response = client.request(request).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let kind_found = response.headers().get("x-tidegate-fault").map(|value| value.to_str().unwrap());
        assert_eq!((response.status().as_u16(), kind_found), (status, Some(kind)), "{name}");
        assert!(!response.headers().contains_key("connection"), "{name}");
        assert!(serde_json::from_str::<serde_json::Value>(&text(response).await).is_ok(), "{name}");
    }
    upstream.release(2);
    for one in waiting {
        assert_eq!(one.await.unwrap().0, 200, "the connection served all of that");
    }
}

#[tokio::test]
async fn a_drain_lets_the_streams_of_a_connection_end() {
    let upstream = Upstream::start(|_| Reply::ok("done").held()).await;
    let proxy = Proxy::start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.post("/x", "{}").await }
    });
    wait_until("it is upstream", || upstream.count() == 1).await;
    let release = async {
        wait_until("it drains", || !proxy.app().shared.is_ready()).await;
        upstream.release(1);
    };
    let (cut, ()) = soon("the drain", async { tokio::join!(proxy.app().drain(), release) }).await;
    assert_eq!(cut, 0);
    assert_eq!(running.await.unwrap(), (200, "done".to_owned()));
}

#[tokio::test]
async fn requests_share_a_connection_upstream_and_host_becomes_authority() {
    let upstream = Http2Upstream::start(|seen| {
        let mut steps = http2_ok(seen.body.clone());
        steps.insert(0, Http2Step::Hold);
        steps
    })
    .await;
    let proxy = start(&upstream.url(), |_| {});
    let mut running = Vec::new();
    for id in 0..50 {
        let mut client = proxy.client().await;
        running.push(tokio::spawn(async move {
            client.post("/v1/x?a=b", "connection: keep-alive, x-hop\r\nx-hop: 1\r\n", &format!("request {id}")).await;
            assert_eq!(client.response().await.text(), format!("request {id}"));
        }));
    }
    wait_until("all are upstream at once", || upstream.in_flight() == 50).await;
    assert_eq!(upstream.connections(), 1);
    upstream.release(50);
    for one in running {
        one.await.unwrap();
    }
    for seen in upstream.seen() {
        assert_eq!(seen.head.uri.to_string(), format!("{}/v1/x?a=b", upstream.url()));
        for gone in ["host", "connection", "x-hop", "transfer-encoding"] {
            assert!(!seen.head.headers.contains_key(gone), "{gone}");
        }
    }
    proxy.idle().await;
}

#[tokio::test]
async fn an_upstream_that_allows_few_streams_gets_more_connections() {
    let upstream = Http2Upstream::with_streams(5, |seen| {
        let mut steps = http2_ok(seen.body.clone());
        steps.insert(0, Http2Step::Hold);
        steps
    })
    .await;
    let proxy = start(&upstream.url(), |_| {});
    upstream.release(1);
    assert_eq!(proxy.post("/x", "", "first").await.text(), "first");
    let mut running = Vec::new();
    for id in 0..20 {
        let mut client = proxy.client().await;
        running.push(tokio::spawn(async move {
            client.post("/x", "", &format!("request {id}")).await;
            assert_eq!(client.response().await.text(), format!("request {id}"));
        }));
    }
    wait_until("all are upstream at once", || upstream.in_flight() == 20).await;
    upstream.release(20);
    for one in running {
        one.await.unwrap();
    }
    assert_eq!(upstream.count(), 21, "none was sent twice");
}

#[tokio::test]
async fn a_post_that_was_surely_not_processed_is_sent_again_and_no_other() {
    for (name, reason, status, count) in [
        ("refused", Reason::REFUSED_STREAM, 200, 2),
        ("broken", Reason::INTERNAL_ERROR, 502, 1),
        ("cancelled", Reason::CANCEL, 502, 1),
    ] {
        let upstream = Http2Upstream::start(move |seen| match seen.nth {
            0 => vec![Http2Step::Reset(reason)],
            _ => http2_ok(seen.body.clone()),
        })
        .await;
        let proxy = start(&upstream.url(), |_| {});
        let response = proxy.post("/v1/infer", "", "the body").await;
        assert_eq!(response.status, status, "{name}: {response:?}");
        assert_eq!(upstream.count(), count, "{name}");
        if status == 200 {
            assert_eq!(response.text(), "the body", "{name}");
        } else {
            assert_eq!(response.header("x-tidegate-fault"), Some("upstream_protocol"), "{name}");
        }
        proxy.idle().await;
        assert_eq!(proxy.get("/x").await.status, 200, "{name}: the connection still serves");
        assert_eq!(upstream.connections(), 1, "{name}");
    }
}

#[tokio::test]
async fn trailers_pass_as_grpc_needs_them() {
    let upstream = Http2Upstream::start(|seen| {
        let trailers: &[_] = &[("grpc-status", "0"), ("grpc-message", "fine")];
        match seen.head.uri.path() {
            "/pkg.Service/Empty" => vec![Http2Step::Head(200, &[("grpc-status", "12")])],
            _ => vec![
                Http2Step::Head(200, &[("content-type", "application/grpc")]),
                Http2Step::Data(seen.body.clone()),
                Http2Step::Trailers(trailers),
            ],
        }
    })
    .await;
    let proxy = start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    let headers = [("te", "trailers"), ("content-type", "application/grpc")];
    let response = client.send("POST", "/pkg.Service/Call", &headers, "message").await;
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let body = soon("the end", response.into_body().collect()).await.unwrap();
    let trailers = body.trailers().unwrap().clone();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"0".parse().unwrap(), &"fine".parse().unwrap())
    );
    assert_eq!(body.to_bytes(), "message");
    assert_eq!(upstream.seen()[0].head.headers["te"], "trailers");
    let response = client.send("POST", "/pkg.Service/Empty", &headers, "message").await;
    assert_eq!(response.headers()["grpc-status"], "12");
    proxy.idle().await;
}

#[tokio::test]
async fn a_stream_that_breaks_inside_the_body_never_looks_finished() {
    let mut finished = Vec::new();
    for reason in [Reason::INTERNAL_ERROR, Reason::REFUSED_STREAM, Reason::CANCEL, Reason::NO_ERROR] {
        let upstream = Http2Upstream::start(move |_| {
            vec![Http2Step::Head(200, &[]), Http2Step::Data("half".into()), Http2Step::Hold, Http2Step::Reset(reason)]
        })
        .await;
        let proxy = start(&upstream.url(), |_| {});
        let mut client = proxy.client().await;
        client.post("/x", "", "{}").await;
        let head = client.head().await;
        upstream.release(1);
        let response = client.rest_of(head).await;
        assert_eq!((response.status, response.header("transfer-encoding")), (200, Some("chunked")), "{reason}");
        if response.complete {
            finished.push(format!("{reason}, HTTP/1.1 client"));
        }
        let client = Http2Client::connect(proxy.addr).await;
        let body = client.send("POST", "/x", &[], "{}").await.into_body();
        upstream.release(1);
        if soon("the end", body.collect()).await.is_ok() {
            finished.push(format!("{reason}, HTTP/2 client"));
        }
        proxy.idle().await;
        let page = proxy.admin("/metrics").await.text();
        let told = metric(&page, "tidegate_exchanges_total", &["end=\"upstream_error\""]);
        if told != Some(2.0) {
            finished.push(format!("{reason}, metrics: {told:?} upstream errors"));
        }
        assert_eq!(upstream.count(), 2, "{reason}");
    }
    assert!(finished.is_empty(), "half an answer looks whole: {finished:#?}");
}

#[tokio::test]
async fn half_an_answer_is_not_taken_for_a_whole_refusal() {
    for reason in [Reason::INTERNAL_ERROR, Reason::CANCEL, Reason::NO_ERROR] {
        let upstream = Http2Upstream::start(move |_| {
            vec![Http2Step::Head(500, &[]), Http2Step::Data("ha".into()), Http2Step::Hold, Http2Step::Reset(reason)]
        })
        .await;
        let proxy = start(&upstream.url(), |_| {});
        let mut client = proxy.client().await;
        client.post("/x", "", "{}").await;
        wait_until("it is upstream", || upstream.in_flight() == 1).await;
        upstream.release(1);
        let response = client.response().await;
        let fault = response.header("x-tidegate-fault");
        assert_eq!((response.status, fault), (502, Some("upstream_protocol")), "{reason}: {response:?}");
    }
}

#[tokio::test]
async fn an_upload_the_client_resets_is_never_a_whole_request_upstream() {
    let upstream = Upstream::start(|_| Reply::ok("")).await;
    // Held bodies, and streamed ones.
    for request_max_bytes in [1 << 20, 1024] {
        let proxy = Proxy::configured(&upstream.url(), |config| config.buffers.request_max_bytes = request_max_bytes);
        // So that a connection is there and nothing keeps the next request from leaving at once.
        for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
            let stream = tokio::net::TcpStream::connect(proxy.addr).await.unwrap();
            let (mut sender, conn) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(conn);
            for _ in 0..20 {
                assert_eq!(proxy.get("/warm").await.status, 200);
                let before = upstream.count();
                let request = Request::post("http://h/upload").body(()).unwrap();
                let (answer, mut body) = sender.clone().ready().await.unwrap().send_request(request, false).unwrap();
                body.send_data(Bytes::from(vec![b'x'; 8192]), false).unwrap();
                if request_max_bytes == 1024 {
                    wait_until("the upload has begun", || upstream.open() > 0 && proxy.view().in_flight == 1).await;
                }
                body.send_reset(reason);
                drop(answer);
                proxy.idle().await;
                let after: Vec<_> = upstream.seen()[before..].iter().map(|seen| seen.line().to_owned()).collect();
                assert!(after.is_empty(), "{reason}, held up to {request_max_bytes}: {after:?}");
                sender = sender.ready().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_resets_its_stream_upstream_and_no_other() {
    let upstream = Http2Upstream::start(|seen| match seen.head.uri.path() {
        "/held" => [vec![Http2Step::Hold], http2_ok("late")].concat(),
        "/stream" => vec![Http2Step::Head(200, &[]), Http2Step::Data("first".into()), Http2Step::Hold],
        _ => http2_ok("fast"),
    })
    .await;
    let proxy = start(&upstream.url(), |settings| settings.ceiling = Some(2));
    let mut stays = proxy.client().await;
    stays.post("/held", "", "{}").await;
    wait_until("one is upstream", || upstream.in_flight() == 1).await;
    for path in ["/held", "/stream"] {
        let resets = upstream.resets().len();
        let mut leaves = proxy.client().await;
        leaves.post(path, "", "{}").await;
        wait_until("the other one too", || upstream.in_flight() == 2).await;
        drop(leaves);
        wait_until("its stream is reset", || upstream.resets().len() == resets + 1).await;
        assert_eq!(proxy.post("/fast", "", "{}").await.text(), "fast", "{path}: the slot is free again");
    }
    upstream.release(1);
    assert_eq!(stays.response().await.text(), "late");
    assert_eq!((upstream.connections(), upstream.in_flight_max()), (1, 2));
    proxy.idle().await;
}

#[tokio::test]
async fn bodies_larger_than_every_window_pass_in_both_directions() {
    let upstream = Http2Upstream::start(|seen| http2_ok(seen.body.clone())).await;
    let proxy = start(&upstream.url(), |_| {});
    let client = Http2Client::connect(proxy.addr).await;
    // Above `buffers.request_max` the body is streamed instead of held.
    for size in [1 << 20, 9 << 20] {
        let body = "0123456789abcdef".repeat(size / 16);
        let (status, echoed) = client.post("/x", &body).await;
        assert!(status == 200 && echoed == body, "{size}: {status}, {} bytes", echoed.len());
    }
    proxy.idle().await;
}
