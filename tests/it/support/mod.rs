//! What the tests stand on: a scripted upstream, a raw client, a running proxy. Real sockets on loopback, port 0.

mod client;
pub mod frames;
mod http2;
mod process;
mod proxy;
mod tls;
mod upstream;

use std::time::{Duration, Instant};

pub use client::{Client, Response};
pub use http2::{Http2Client, Http2Seen, Http2Step, Http2Upstream, http2_ok, text};
pub use process::{Folder, Process, metric};
pub use proxy::Proxy;
pub use tls::{Identity, Issuer, TlsUpstream};
pub use upstream::{Reply, Seen, Step, Upstream};

/// Far longer than anything takes on a busy machine; only a hang gets there.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition instead of for a time.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "still not so after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails the test if `future` takes longer than [`PATIENCE`].
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("still not done after {PATIENCE:?}: {what}"),
    }
}
