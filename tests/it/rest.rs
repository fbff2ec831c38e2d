//! Connections that are idle for a moment rest without hyper. Nobody may notice.

use std::time::Duration;

use tidegate::config::{Config, ListenTls};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::support::{Client, Issuer, Process, Proxy, Reply, Upstream, metric, soon, wait_until};

/// Longer than a connection is kept ready among [`MANY`].
const MOMENT: Duration = Duration::from_millis(150);
/// More of one thread than its buffers are kept for.
const MANY: usize = 260;
const GET: &str = "GET /x HTTP/1.1\r\nhost: h\r\n\r\n";

/// A proxy with one thread and many connections, that hold nothing up.
async fn crowded(upstream: &Upstream, change: impl FnOnce(&mut Config)) -> (Proxy, Vec<Client>) {
    let proxy = Proxy::configured(&upstream.url(), |config| {
        config.threads = 1;
        change(config);
    });
    let mut others = Vec::new();
    for _ in 0..MANY {
        others.push(proxy.client().await);
    }
    connections(&proxy, MANY).await;
    (proxy, others)
}

/// Waits until so many clients are connected.
async fn connections(proxy: &Proxy, count: usize) {
    for _ in 0..200 {
        let page = proxy.admin("/metrics").await.text();
        if metric(&page, "tidegate_connections", &["side=\"downstream\""]) == Some(count as f64) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("there are not {count} connections");
}

/// Reads so many answers, each of which is `good`.
async fn answered(stream: &mut (impl AsyncRead + Unpin), count: usize) {
    let (mut read, mut piece) = (String::new(), [0; 4096]);
    while read.matches("\r\n\r\ngood").count() < count {
        let bytes = soon("an answer", stream.read(&mut piece)).await.unwrap();
        assert_ne!(bytes, 0, "the connection ended after {read:?}");
        read.push_str(std::str::from_utf8(&piece[..bytes]).unwrap());
    }
    assert_eq!((read.matches("HTTP/1.1 200 ").count(), read.matches("good").count()), (count, count), "{read}");
}

/// Uses a connection in every way after it has rested.
async fn used_again(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    for pieces in [&[GET][..], &[GET], &["G", "ET /x HTTP/1.1\r\n", "host: h\r\n", "\r\n"], &[GET, GET], &[GET]] {
        for piece in pieces {
            stream.write_all(piece.as_bytes()).await.unwrap();
            tokio::time::sleep(MOMENT).await;
        }
        answered(stream, pieces.concat().matches("GET").count()).await;
    }
    stream.write_all(GET.repeat(3).as_bytes()).await.unwrap();
    answered(stream, 3).await;
    tokio::time::sleep(MOMENT).await;
    stream.write_all(b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbo").await.unwrap();
    tokio::time::sleep(MOMENT).await;
    stream.write_all(b"dy").await.unwrap();
    answered(stream, 1).await;
}

#[tokio::test]
async fn a_connection_that_rested_is_used_again() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let (proxy, _others) = crowded(&upstream, |_| {}).await;
    let mut client = proxy.client().await;
    used_again(&mut client.stream).await;
    assert_eq!(upstream.count(), 10);
}

#[tokio::test]
async fn one_that_is_idle_for_a_while_does_rest() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let args = ["--upstream", &upstream.url(), "--listen", "127.0.0.1:0", "--admin", "off", "--log-level", "trace"];
    let process = Process::start(&args, &[]);
    let mut client = process.client().await;
    for times in 1..=2 {
        client.get("/x").await;
        assert_eq!(client.response().await.text(), "good");
        wait_until("it rests", || process.err().matches("a client connection rests").count() == times).await;
    }
}

#[tokio::test]
async fn the_beginning_of_another_request_is_not_lost() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let (proxy, _others) = crowded(&upstream, |_| {}).await;
    let post = "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 4\r\n\r\nbody";
    let chunked = "POST /x HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    for first in [GET, post, chunked] {
        for cut in [1, 10, GET.len() - 1] {
            let mut client = proxy.client().await;
            client.send(format!("{first}{}", &GET[..cut])).await;
            answered(&mut client.stream, 1).await;
            tokio::time::sleep(MOMENT).await;
            client.send(&GET[cut..]).await;
            answered(&mut client.stream, 1).await;
        }
    }
}

#[tokio::test]
async fn so_is_one_with_tls() {
    let issuer = Issuer::new();
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let own = issuer.identity("localhost");
    let tls = ListenTls { cert: own.cert.clone(), key: own.key.clone(), client_ca: None };
    let (proxy, _others) = crowded(&upstream, |config| config.tls = Some(tls)).await;
    used_again(&mut issuer.connect(proxy.addr, &["http/1.1"], None).await.unwrap()).await;
    assert_eq!(upstream.count(), 10);
}

#[tokio::test]
async fn nor_is_what_comes_while_an_answer_is_under_way() {
    let upstream = Upstream::start(|_| Reply::ok("good").held()).await;
    let (proxy, _others) = crowded(&upstream, |_| {}).await;
    let mut client = proxy.client().await;
    client.send(GET).await;
    wait_until("it is at the upstream", || upstream.count() == 1).await;
    client.send(&GET[..9]).await;
    tokio::time::sleep(MOMENT).await;
    upstream.release(1);
    answered(&mut client.stream, 1).await;
    tokio::time::sleep(MOMENT).await;
    client.send(&GET[9..]).await;
    upstream.release(1);
    answered(&mut client.stream, 1).await;
}

#[tokio::test]
async fn what_is_no_request_gets_its_answer_after_a_rest_too() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let (proxy, _others) = crowded(&upstream, |_| {}).await;
    let mut client = proxy.client().await;
    client.get("/x").await;
    assert_eq!(client.response().await.text(), "good");
    tokio::time::sleep(MOMENT).await;
    client.send("NO REQUEST AT ALL\r\n\r\n").await;
    let answer = client.response().await;
    assert_eq!((answer.status, answer.header("x-tidegate-fault")), (400, Some("bad_head")));
}

#[tokio::test]
async fn a_client_that_leaves_while_its_connection_rests_is_gone() {
    let upstream = Upstream::start(|_| Reply::ok("good")).await;
    let (proxy, _others) = crowded(&upstream, |_| {}).await;
    let mut client = proxy.client().await;
    client.get("/x").await;
    assert_eq!(client.response().await.text(), "good");
    tokio::time::sleep(MOMENT).await;
    drop(client);
    let mut other = proxy.client().await;
    other.get("/x").await;
    assert_eq!(other.response().await.text(), "good");
    connections(&proxy, MANY + 1).await;
}
