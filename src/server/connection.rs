//! One client connection: which protocol it speaks, what hyper is told, how it ends.

use std::{
    io,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::TlsAcceptor;

use crate::{
    clock::{self, Alarm},
    proxy::HEADER_COUNT_MAX,
};

use super::{
    Server,
    answer::Streams,
    exchange::Exchanges,
    watch::{Connection, Parked, Watch, Watched},
};

/// A kept connection may be idle for this long. Longer than every known client keeps its own (agentkeepalive: 5 min),
/// since the first to close must be the client.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(330);

/// A connection that is idle for longer than this rests without buffers, where there are few of them …
const REST_AFTER: Duration = Duration::from_secs(1);
/// … and where there are many. To wake up costs a sixth of an exchange. Guess: most that are in use come back sooner.
const REST_AFTER_AMONG_MANY: Duration = Duration::from_millis(50);
/// So many of a thread are many: their buffers are 3 MiB.
const MANY: usize = 256;
/// Where there are very many, few come back soon, and what they hold meanwhile is never given back to the system.
const REST_AFTER_AMONG_VERY_MANY: Duration = Duration::from_millis(5);
/// So many are very many: their buffers are 24 MiB.
const VERY_MANY: usize = 2048;

/// HTTP/2: requests at once on one client connection. Ten times what clients ask for by themselves; more wait at the
/// client.
const STREAMS_MAX: u32 = 1000;
/// HTTP/2: streams a client may have reset before we have taken them on (RUSTSEC-2023-0034). More end the connection.
const RESETS_UNSEEN_MAX: usize = 20;
/// HTTP/2: streams a client may have made us reset, over a connection's life. More end it.
const RESETS_CAUSED_MAX: usize = 1024;
/// HTTP/1: how far a connection reads ahead of the body's reader. hyper's default is 417 KB a connection.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// HTTP/2: the same for one stream, and for a connection.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// HTTP/2: the longest frame we take.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// HTTP/2: the table that heads are compressed with, both ways.
const HEADER_TABLE_BYTES: u32 = 4096;
/// HTTP/2: what one answer may have waiting to be written, however large its client says that its window is.
const SEND_AHEAD_BYTES: usize = 64 * 1024;

/// HTTP/2: how often a quiet client is asked for a sign of life, and how long it has for it.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two looks at a preface that has begun.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);

impl Server {
    pub(super) async fn serve_tls(&self, stream: TcpStream, tls: TlsAcceptor, deadline: Instant) {
        match tokio::time::timeout_at(deadline, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.serve(stream, http2, deadline).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake with a client failed"),
            Err(_) => tracing::debug!("TLS handshake with a client took too long"),
        }
    }

    pub(super) async fn serve<S: Connection>(&self, stream: S, http2: bool, first_head_by: Instant) {
        // Boxed: an HTTP/1.1 connection, of which there may be thousands, must not reserve room for HTTP/2.
        if http2 {
            Box::pin(self.serve_http2(stream, first_head_by)).await;
        } else {
            self.serve_http1(stream, first_head_by).await;
        }
    }

    /// Serves HTTP/1.1. While a connection is idle for longer than a moment, nothing of hyper is kept for it: that would
    /// be its buffers and its state, several times what the connection itself takes.
    async fn serve_http1<S: Connection>(&self, mut stream: S, first_head_by: Instant) {
        let watch = Arc::<Watch>::default();
        loop {
            let parked = Parked::default();
            let mut conn = Box::pin(self.http1(stream, &watch, &parked));
            let end = self
                .drive(conn.as_mut(), |conn| conn.graceful_shutdown(), &watch, first_head_by, Some(Rest::default()))
                .await;
            drop(conn);
            match (end, parked.take()) {
                (End::Idle, Some(idle)) => stream = idle,
                _ => return,
            }
            tracing::trace!("a client connection rests");
            let used = tokio::time::timeout(KEEP_ALIVE_MAX, self.closing.run_until_cancelled(stream.tcp().readable()));
            let Ok(Some(Ok(()))) = used.await else { return };
        }
    }

    fn http1<S: Connection>(
        &self,
        stream: S,
        watch: &Arc<Watch>,
        parked: &Parked<S>,
    ) -> http1::UpgradeableConnection<TokioIo<Watched<S>>, Exchanges> {
        let head_bytes_max = self.head_bytes_max();
        let stream = Watched::new(stream, watch, &self.engine, Some(parked.clone()), &self.acceptors.limits);
        http1::Builder::new()
            .timer(TokioTimer::new())
            .auto_date_header(false)
            // Kept by the stream, with a timer that need not be set for each request.
            .header_read_timeout(None)
            .max_headers(HEADER_COUNT_MAX)
            .max_header_size(head_bytes_max)
            .max_buf_size(head_bytes_max.max(READ_AHEAD_BYTES))
            .serve_connection(TokioIo::new(stream), Exchanges::new(&self.engine, watch))
            .with_upgrades()
    }

    async fn serve_http2<S: Connection>(&self, stream: S, first_head_by: Instant) {
        let watch = Arc::<Watch>::default();
        let stream = Watched::new(stream, &watch, &self.engine, None, &self.acceptors.limits);
        let conn = pin!(
            http2::Builder::new(Streams { send_max: self.acceptors.limits.send_timeout })
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .max_concurrent_streams(STREAMS_MAX)
                .max_pending_accept_reset_streams(RESETS_UNSEEN_MAX)
                .max_local_error_reset_streams(RESETS_CAUSED_MAX)
                .max_header_list_size(u32::try_from(self.head_bytes_max()).unwrap_or(u32::MAX))
                .header_table_size(HEADER_TABLE_BYTES)
                .max_frame_size(FRAME_BYTES_MAX)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_send_buf_size(SEND_AHEAD_BYTES)
                .keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PONG_WITHIN)
                .serve_connection(TokioIo::new(stream), Exchanges::new(&self.engine, &watch))
        );
        self.drive(conn, |conn| conn.graceful_shutdown(), &watch, first_head_by, None).await;
    }

    /// Connections of this thread.
    fn neighbours(&self) -> usize {
        self.acceptors.workers.get(self.index).map_or(0, |worker| worker.open.load(Ordering::Relaxed))
    }

    fn head_bytes_max(&self) -> usize {
        usize::try_from(self.acceptors.limits.header_bytes_max).unwrap_or(usize::MAX)
    }

    /// Runs a connection to its end. The first head has its deadline from the start; later ones from their first byte.
    async fn drive<C>(
        &self,
        mut conn: Pin<&mut C>,
        close: fn(Pin<&mut C>),
        watch: &Watch,
        first_head_by: Instant,
        mut rest: Option<Rest>,
    ) -> End
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let mut first = Some(pin!(tokio::time::sleep_until(first_head_by)));
        let mut closing = pin!(self.closing.cancelled());
        let mut closes = Closes::NotYet;
        let mut run = |cx: &mut Context<'_>| {
            if let Poll::Ready(end) = conn.as_mut().poll(cx) {
                if let Err(error) = end {
                    tracing::debug!(%error, "client connection ended");
                }
                return Poll::Ready(End::Over);
            }
            if let Some(end) = rest.as_mut().and_then(|rest| rest.poll(watch, || self.neighbours(), cx)) {
                return Poll::Ready(end);
            }
            if watch.has_begun() {
                first = None;
            } else if first.as_mut().is_some_and(|first| first.as_mut().poll(cx).is_ready()) {
                tracing::debug!("no request head arrived in time");
                return Poll::Ready(End::Over);
            }
            // Told once to wake this task, it need not be asked each time.
            let asks = closes == Closes::NotYet || (closes == Closes::Listens && self.closing.is_cancelled());
            if asks && closing.as_mut().poll(cx).is_ready() {
                if !watch.has_begun() {
                    // Nothing was asked yet, and nothing will be answered.
                    return Poll::Ready(End::Over);
                }
                closes = Closes::Now;
                close(conn.as_mut());
                cx.waker().wake_by_ref();
            } else if asks {
                closes = Closes::Listens;
            }
            Poll::Pending
        };
        std::future::poll_fn(|cx| clock::turn(|| run(cx))).await
    }
}

/// When a kept connection has been idle for long enough to rest, or to end.
#[derive(Default)]
struct Rest {
    /// After how many heads nothing has come since when, and for how long it then does not rest.
    quiet: Option<(usize, std::time::Instant, Duration)>,
    alarm: Alarm,
}

impl Rest {
    /// One of so many `neighbours`.
    fn poll(&mut self, watch: &Watch, neighbours: impl FnOnce() -> usize, cx: &mut Context<'_>) -> Option<End> {
        let heads = watch.idle_after()?;
        let quiet = self.quiet.filter(|(after, ..)| *after == heads);
        let began = || (heads, clock::now(), rest_after(neighbours()));
        let (_, since, after) = *self.quiet.insert(quiet.unwrap_or_else(began));
        if self.alarm.poll_by(since + after, cx).is_pending() {
            return None;
        }
        if watch.is_clean() {
            return Some(End::Idle);
        }
        self.alarm.poll_by(since + KEEP_ALIVE_MAX, cx).is_ready().then_some(End::Over)
    }
}

fn rest_after(neighbours: usize) -> Duration {
    match neighbours {
        0..MANY => REST_AFTER,
        MANY..VERY_MANY => REST_AFTER_AMONG_MANY,
        VERY_MANY.. => REST_AFTER_AMONG_VERY_MANY,
    }
}

/// Why a connection is not driven any more.
enum End {
    Over,
    /// It is kept, and there is nothing to do.
    Idle,
}

/// Whether a connection is to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closes {
    NotYet,
    /// Not yet, and its task is woken when it is.
    Listens,
    Now,
}

/// Whether the client's first bytes are HTTP/2's preface. Nothing is taken from the stream.
pub(super) async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    // No method of HTTP/1 begins like this (RFC 9113 3.4).
    const PREFACE: &[u8] = b"PRI ";
    let mut start = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut start).await?;
        let Some(start) = start.get(..seen).filter(|start| !start.is_empty()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if start == PREFACE || !PREFACE.starts_with(start) {
            return Ok(start == PREFACE);
        }
        // "P" could still become POST or PRI; the rest is on its way.
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a connection ends that has answered one request, and when.
    async fn end_of(neighbours: usize) -> (bool, Duration) {
        let watch = Arc::<Watch>::default();
        drop(watch.begin(Some(0)));
        let (mut rest, began) = (Rest::default(), clock::now());
        let poll = |cx: &mut Context<'_>| rest.poll(&watch, || neighbours, cx).map_or(Poll::Pending, Poll::Ready);
        let end = std::future::poll_fn(poll).await;
        (matches!(end, End::Over), clock::now() - began)
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_may_hold_something_does_not_rest_but_ends_all_the_same() {
        for neighbours in [0, MANY, VERY_MANY] {
            let (over, after) = end_of(neighbours).await;
            assert!(over && after >= KEEP_ALIVE_MAX && after < KEEP_ALIVE_MAX + Duration::from_secs(1), "{after:?}");
        }
    }
}
