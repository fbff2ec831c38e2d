//! A client can leave at any moment. Whatever it held comes back, and nothing else is disturbed.

use std::{net::SocketAddr, time::Duration};

use crate::support::{Client, Proxy, Reply, Step, Upstream, wait_until};

/// Rounds of each state in the mixed test; all states together make some thousands of clients that leave.
const ROUNDS: usize = 100;
const AT_ONCE: usize = 6;

#[derive(Debug, Clone, Copy)]
enum Leaves {
    Collecting,
    Queued,
    InAMoment(u64),
    WaitingForTheHead,
    Streaming,
    Upgraded,
}

async fn leave(addr: SocketAddr, state: Leaves) {
    let mut client = Client::connect(addr).await;
    match state {
        Leaves::Collecting => {
            client.send("POST /fast HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\nhalf of").await;
        }
        Leaves::Queued | Leaves::WaitingForTheHead => client.post("/silent", "", "{}").await,
        Leaves::InAMoment(micros) => {
            client.post("/fast", "", "{}").await;
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
        Leaves::Streaming => {
            client.post("/stream", "", "{}").await;
            client.head().await;
        }
        Leaves::Upgraded => {
            client.send("GET /ws HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
            assert_eq!(client.head().await.0, 101);
        }
    }
}

async fn upstream() -> Upstream {
    Upstream::start(|seen| match seen.line() {
        line if line.contains("/silent") => Reply::ok("").held(),
        line if line.contains("/stream") => {
            Reply::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n").then(Step::Hold)
        }
        line if line.contains("/ws") => {
            Reply::raw("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                .then(Step::Echo)
        }
        _ => Reply::ok("fast").after(Duration::from_millis(1)),
    })
    .await
}

#[tokio::test]
async fn thousands_that_leave_in_every_state_leave_nothing_behind() {
    let upstream = upstream().await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(4));
    let states = [
        Leaves::Collecting,
        Leaves::Queued,
        Leaves::InAMoment(0),
        Leaves::InAMoment(500),
        Leaves::InAMoment(1_500),
        Leaves::Streaming,
        Leaves::Upgraded,
    ];
    let mut clients = Vec::new();
    for state in states {
        for _ in 0..AT_ONCE {
            let addr = proxy.addr;
            clients.push(tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    // Some states need an answer to be reached; if the others are in the way for long, so be it.
                    let _ = tokio::time::timeout(Duration::from_millis(500), leave(addr, state)).await;
                }
            }));
        }
    }
    for client in clients {
        client.await.unwrap();
    }
    proxy.idle().await;
    assert!(upstream.in_flight_max() <= 4, "{} were in flight upstream", upstream.in_flight_max());
    for _ in 0..8 {
        assert_eq!(proxy.get("/fast").await.text(), "fast");
    }
    wait_until("client connections are gone", || proxy.app().shared.metrics.downstream_connections.get() <= 8).await;
    assert_eq!(proxy.app().shared.metrics.buffered_bytes.get(), 0);
}

#[tokio::test]
async fn each_state_frees_what_it_held() {
    let upstream = upstream().await;
    for state in
        [Leaves::Collecting, Leaves::WaitingForTheHead, Leaves::InAMoment(0), Leaves::Streaming, Leaves::Upgraded]
    {
        let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
        leave(proxy.addr, state).await;
        assert_eq!(proxy.get("/fast").await.text(), "fast", "{state:?}");
        proxy.idle().await;
    }
}

#[tokio::test]
async fn one_that_hangs_up_while_queued_is_gone_soon_and_never_reaches_the_upstream() {
    let upstream = upstream().await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    let mut first = proxy.client().await;
    first.post("/silent", "", "").await;
    wait_until("the slot is taken", || upstream.count() == 1).await;
    let mut second = proxy.client().await;
    second.post("/never", "", "{}").await;
    wait_until("the second waits", || proxy.view().queued == 1).await;
    drop(second);
    wait_until("the second has left the queue", || proxy.view().queued == 0).await;
    upstream.release(1);
    assert_eq!(first.response().await.status, 200);
    proxy.idle().await;
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_slot_is_free_only_when_the_upstream_has_noticed_that_the_client_left() {
    let upstream = upstream().await;
    let proxy = Proxy::start(&upstream.url(), |settings| settings.ceiling = Some(1));
    for _ in 0..50 {
        let mut client = proxy.client().await;
        client.post("/stream", "", "").await;
        client.head().await;
        drop(client);
        // The next attempt leaves at once when the slot is free; were that too early, two would be seen upstream.
        assert_eq!(proxy.get("/fast").await.text(), "fast");
    }
    assert_eq!(upstream.in_flight_max(), 1);
}
