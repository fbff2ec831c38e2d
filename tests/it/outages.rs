//! An upstream's connections and absences: what of them a client notices.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
};

use crate::support::{Proxy, Reply, Step, Upstream, metric, wait_until};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood";

/// An upstream whose every connection answers one request, reads the next, and closes. How many requests it has read.
async fn closes_on_the_second() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                if let Ok(1..) = stream.read(&mut request).await {
                    count.fetch_add(1, Ordering::SeqCst);
                    stream.write_all(OK).await.unwrap();
                }
                if let Ok(1..) = stream.read(&mut request).await {
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (url, requests)
}

#[tokio::test]
async fn a_kept_connection_that_closes_on_a_request_costs_a_get_nothing_and_a_post_is_delivered_once() {
    let (url, requests) = closes_on_the_second().await;
    let proxy = Proxy::configured(&url, |config| {
        config.threads = 1;
        // Far longer than anybody waits here: only a retry without a wait gets through.
        config.upstreams[0].retry.backoff_base = Duration::from_secs(60);
    });
    let mut client = proxy.client().await;
    for nth in 0..8 {
        client.get("/x").await;
        assert_eq!(client.response().await.text(), "good", "GET {nth}");
        // The first goes over a fresh connection, each later one breaks a kept one and goes again over a fresh one.
        assert_eq!(requests.load(Ordering::SeqCst), 1 + 2 * nth, "GET {nth}");
    }
    for nth in 0..6 {
        let before = requests.load(Ordering::SeqCst);
        client.post("/x", "", "{}").await;
        let response = client.response().await;
        let fault = response.header("x-tidegate-fault");
        // They take turns: one breaks the kept connection, the next has a fresh one.
        let want = if nth % 2 == 0 { (502, Some("upstream_protocol")) } else { (200, None) };
        assert_eq!((response.status, fault), want, "POST {nth}");
        assert_eq!(requests.load(Ordering::SeqCst), before + 1, "POST {nth}");
    }
    proxy.idle().await;
}

/// Answers everything at `addr`.
fn serve(addr: SocketAddr) -> JoinHandle<()> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(addr).unwrap();
    let listener = socket.listen(1024).unwrap();
    tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut request = vec![0; 4096];
                while let Ok(1..) = stream.read(&mut request).await {
                    stream.write_all(OK).await.unwrap();
                }
            });
        }
    })
}

#[tokio::test]
async fn an_upstream_that_comes_back_is_used_at_once() {
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = Proxy::start(&format!("http://{addr}"), |settings| {
        settings.retry.attempts_max = 2;
        settings.retry.backoff_base = Duration::from_millis(5);
        settings.retry.backoff_jitter = Duration::from_millis(1);
    });
    for round in 0..3 {
        let upstream = serve(addr);
        let came_back = Instant::now();
        let mut running = Vec::new();
        for _ in 0..20 {
            let mut client = proxy.client().await;
            client.get("/x").await;
            running.push(tokio::spawn(async move { client.response().await.text() }));
        }
        for one in running {
            assert_eq!(one.await.unwrap(), "good", "round {round}");
        }
        // A tenth of it is what it takes; what must not show is a pause or a backoff that outlasts the outage.
        assert!(came_back.elapsed() < Duration::from_secs(5), "round {round}: {:?}", came_back.elapsed());
        upstream.abort();
        let _ = upstream.await;
        wait_until("it is away", || proxy.app().shared.metrics.upstream_connections.get() == 0).await;
        for _ in 0..30 {
            let response = proxy.post("/x", "", "{}").await;
            assert_eq!((response.status, response.header("x-tidegate-fault")), (502, Some("unreachable")));
        }
    }
}

#[tokio::test]
async fn what_came_before_a_break_reaches_the_client() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\nx-request-id: r\r\n";
    for (name, answer, part) in [
        ("a length, no body", format!("{HEAD}content-length: 5\r\n\r\n"), ""),
        ("a length, a part", format!("{HEAD}content-length: 9\r\n\r\npart"), "part"),
        ("chunks, none", format!("{HEAD}transfer-encoding: chunked\r\n\r\n"), ""),
        ("chunks, one", format!("{HEAD}transfer-encoding: chunked\r\n\r\n4\r\npart\r\n"), "part"),
    ] {
        let upstream = Upstream::start(move |_| Reply::raw(answer.clone()).then(Step::Close)).await;
        let proxy = Proxy::start(&upstream.url(), |_| {});
        // An empty end on a kept connection is what clients take for a stale one, and send a POST again.
        for _ in 0..10 {
            let mut client = proxy.client().await;
            client.post("/x", "", "{}").await;
            let (said, _) = client.rest().await;
            let said = String::from_utf8_lossy(&said);
            assert!(said.starts_with("HTTP/1.1 200") && said.contains("x-request-id: r"), "{name}: {said:?}");
            assert!(said.contains(part) && !said.ends_with("0\r\n\r\n"), "{name}: {said:?}");
        }
        proxy.idle().await;
    }
}

#[tokio::test]
async fn server_errors_that_pass_are_counted_as_failures_of_the_upstream() {
    for (status, outcome) in
        [(500, "failed"), (501, "failed"), (502, "failed"), (504, "failed"), (404, "ignored"), (503, "overloaded")]
    {
        let upstream = Upstream::start(move |_| Reply::new(status, "", "{}")).await;
        let proxy = Proxy::start(&upstream.url(), |settings| settings.retry.attempts_max = 1);
        for _ in 0..3 {
            assert_eq!(proxy.post("/v1/chat/completions", "", "{}").await.status, status);
        }
        proxy.idle().await;
        let page = proxy.admin("/metrics").await.text();
        let label = format!("outcome=\"{outcome}\"");
        assert_eq!(metric(&page, "tidegate_attempts_total", &[&label]), Some(3.0), "{status}\n{page}");
        assert_eq!(metric(&page, "tidegate_attempts_total", &[]), Some(3.0), "{status}: nothing else");
    }
}
