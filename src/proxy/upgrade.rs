//! 101: joins two connections. The slot travels along until either side has closed.

use std::{io, time::Duration};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy, split};

use crate::{gate::Permit, metrics::End, tasks::Tasks};

use super::record::Record;

/// After one side has closed its direction, the other may take this long to close its own.
const CLOSING_MAX: Duration = Duration::from_secs(5);

/// Joins both sides in a task of its own.
pub(super) fn tunnel(
    tasks: &Tasks,
    client: OnUpgrade,
    upstream: OnUpgrade,
    permit: Option<Permit>,
    mut record: Box<Record>,
) {
    tasks.spawn("tunnel", async move {
        let (client, upstream) = match tokio::try_join!(client, upstream) {
            Ok(joined) => joined,
            Err(error) => {
                tracing::debug!(%error, "a side left before the tunnel stood");
                drop(permit);
                return;
            }
        };
        let (mut client_read, mut client_write) = split(TokioIo::new(client));
        let (mut upstream_read, mut upstream_write) = split(TokioIo::new(upstream));
        let up = async {
            let sent = copy(&mut client_read, &mut upstream_write).await;
            // However it ended: the upstream must learn of it, or it would go on counting this tunnel.
            drop(upstream_write.shutdown().await);
            sent
        };
        let down = async {
            let received = copy(&mut upstream_read, &mut client_write).await;
            drop(client_write.shutdown().await);
            received
        };
        let (mut up, mut down) = (Box::pin(up), Box::pin(down));
        // After one side has closed the other has a moment to say goodbye; only then is the slot free.
        let (sent, received) = tokio::select! {
            sent = &mut up => (sent.ok(), within_a_moment(down).await),
            received = &mut down => (within_a_moment(up).await, received.ok()),
        };
        drop(permit);
        record.end = End::Upgraded;
        record.request_bytes = sent.unwrap_or(0);
        record.response_bytes = received.unwrap_or(0);
    });
}

async fn within_a_moment(direction: impl Future<Output = io::Result<u64>>) -> Option<u64> {
    tokio::time::timeout(CLOSING_MAX, direction).await.ok()?.ok()
}
