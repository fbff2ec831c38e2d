//! Names whose addresses change, and connections that grow old.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tidegate::{
    config::{Config, Http2},
    upstream::{Ages, Ways},
};

use crate::support::{Http2Step, Http2Upstream, Proxy, Reply, Upstream, http2_ok, soon, wait_until};

const NAME: &str = "http://api.test";
const LONG: Duration = Duration::from_secs(3600);

/// What the name means at the moment; `None`: nothing.
type Named = Arc<Mutex<Option<SocketAddr>>>;

/// One thread, so that there is one pool.
fn start(named: &Named, idle_max: Duration, age_max: Duration, change: impl FnOnce(&mut Config)) -> Proxy {
    let named = Arc::clone(named);
    let resolve = move |host: String, port: u16| -> tidegate::upstream::Resolving {
        assert_eq!((host.as_str(), port), ("api.test", 80));
        let found = *named.lock();
        Box::pin(async move { found.map(|one| vec![one]).ok_or_else(|| io::Error::other("no such name")) })
    };
    let ages = Ages { idle_max, age_max, sweep_every: Duration::from_millis(20) };
    Proxy::by(Ways { resolve: Arc::new(resolve), ages }, NAME, |config| {
        config.threads = 1;
        change(config);
    })
}

fn connections(proxy: &Proxy) -> i64 {
    proxy.app().shared.metrics.upstream_connections.get()
}

async fn answering(what: &'static str) -> Upstream {
    Upstream::start(move |seen| match seen.line().contains("/held") {
        true => Reply::ok(what).held(),
        false => Reply::ok(what),
    })
    .await
}

#[tokio::test]
async fn a_changed_address_is_used_by_the_next_connection() {
    let (old, new) = (answering("old").await, answering("new").await);
    let named = Named::new(Mutex::new(Some(old.addr)));
    let proxy = start(&named, LONG, LONG, |_| {});
    assert_eq!(proxy.get("/x").await.text(), "old");
    *named.lock() = Some(new.addr);
    let mut busy = proxy.client().await;
    busy.get("/held").await;
    wait_until("the kept connection is in use", || old.in_flight() == 1).await;
    assert_eq!(proxy.get("/x").await.text(), "new");
    old.release(1);
    assert_eq!(busy.response().await.text(), "old", "what runs is left alone");
}

#[tokio::test]
async fn a_kept_connection_holds_on_to_a_former_address_for_its_age_at_most() {
    let (old, new) = (answering("old").await, answering("new").await);
    let named = Named::new(Mutex::new(Some(old.addr)));
    let proxy = start(&named, LONG, Duration::from_millis(300), |_| {});
    assert_eq!(proxy.get("/x").await.text(), "old");
    *named.lock() = Some(new.addr);
    // Never idle for long: its age alone ends it.
    let asked = async { while proxy.get("/x").await.text() != "new" {} };
    soon("the new address", asked).await;
    wait_until("the old one is let go", || old.open() == 0).await;
    let after = old.count();
    for _ in 0..20 {
        assert_eq!(proxy.get("/x").await.text(), "new");
    }
    assert_eq!(old.count(), after);
}

#[tokio::test]
async fn an_idle_connection_is_closed_by_us() {
    let upstream = answering("here").await;
    let named = Named::new(Mutex::new(Some(upstream.addr)));
    for (idle_max, age_max) in [(Duration::from_millis(100), LONG), (LONG, Duration::from_millis(100))] {
        let proxy = start(&named, idle_max, age_max, |_| {});
        assert_eq!(proxy.get("/x").await.text(), "here");
        wait_until("nobody asks, and it is closed", || upstream.open() == 0 && connections(&proxy) == 0).await;
        assert_eq!(proxy.get("/x").await.text(), "here");
    }
}

#[tokio::test]
async fn http2_connections_grow_old_and_idle_too_but_their_streams_end_in_peace() {
    let script = |what: &'static str| {
        move |seen: &crate::support::Http2Seen| match seen.head.uri.path() {
            "/held" => vec![Http2Step::Hold, Http2Step::Head(200, &[]), Http2Step::Data(what.into())],
            _ => http2_ok(what),
        }
    };
    let (old, new) = (Http2Upstream::start(script("old")).await, Http2Upstream::start(script("new")).await);
    let named = Named::new(Mutex::new(Some(old.addr)));
    let only = |config: &mut Config| config.upstreams[0].http2 = Http2::Only;
    let proxy = start(&named, LONG, Duration::from_millis(300), only);
    let mut busy = proxy.client().await;
    busy.get("/held").await;
    wait_until("it is under way", || old.in_flight() == 1).await;
    *named.lock() = Some(new.addr);
    let asked = async { while proxy.get("/x").await.text() != "new" {} };
    soon("the new address", asked).await;
    assert_eq!(old.connections(), 1);
    old.release(1);
    assert_eq!(busy.response().await.text(), "old");
    wait_until("none is left once all are old", || connections(&proxy) == 0).await;

    let proxy = start(&named, Duration::from_millis(100), LONG, only);
    assert_eq!(proxy.get("/x").await.text(), "new");
    wait_until("nobody asks, and it is closed", || connections(&proxy) == 0).await;
    assert_eq!(proxy.get("/x").await.text(), "new");
}

#[tokio::test]
async fn a_name_that_means_nothing_for_a_while_is_no_lasting_trouble() {
    let upstream = answering("here").await;
    let named = Named::default();
    let proxy = start(&named, LONG, LONG, |config| config.upstreams[0].retry.attempts_max = 1);
    let refused = proxy.get("/x").await;
    assert_eq!((refused.status, refused.header("x-tidegate-fault")), (502, Some("unreachable")));
    assert!(refused.text().contains("does not resolve"), "{}", refused.text());
    *named.lock() = Some(upstream.addr);
    assert_eq!(proxy.get("/x").await.text(), "here");
}
