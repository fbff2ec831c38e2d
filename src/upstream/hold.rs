//! An attempt's hold on a connection and on its slot, and the three ways it ends.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::oneshot,
};

use crate::{clock::Alarm, gate::Permit};

use super::{SendBody, Upload, connect::Stream, pool::Pool};

/// HTTP/2: time between resetting an abandoned stream and freeing its slot. The reset is on its way by then; there is
/// no cheap answer to wait for, as there is with HTTP/1.1's close. Guess: a few round trips inside a data centre.
const RESET_LINGER: Duration = Duration::from_millis(50);

/// Bytes a peer may send over HTTP/1.1 that come to nothing: leading zeros of a chunk's size, interim answers. hyper
/// has no bound for these; a head and what is read ahead of a body's reader stay far below.
const UNHEARD_BYTES_MAX: i64 = 1024 * 1024;

/// Bytes that arrived over a connection since one of them last came to a head or to a piece of a body.
#[derive(Debug, Default)]
pub struct Unheard(AtomicI64);

impl Unheard {
    /// They came to something.
    pub fn heard(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The connection became a tunnel, where every byte counts.
    pub fn lift(&self) {
        self.0.store(i64::MIN, Ordering::Relaxed);
    }

    /// Counts what arrived; an error as soon as it is too much.
    pub fn count(&self, bytes: usize) -> io::Result<()> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.0.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= UNHEARD_BYTES_MAX {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the peer sends bytes without end that come to nothing"))
    }
}

/// A connection that speaks HTTP/1.1, for one attempt at a time.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<SendBody>,
    /// Tells the connection's task that the attempt was abandoned; its slot travels along.
    pub(super) abandon: oneshot::Sender<Option<Permit>>,
    pub(super) unheard: Arc<Unheard>,
    /// For the wait for response heads.
    pub(super) alarm: Alarm,
    pub(super) opened: Instant,
    pub(super) idle_since: Instant,
}

/// A connection that speaks HTTP/2, shared by many attempts.
#[derive(Clone)]
pub(super) struct Http2 {
    pub(super) sender: http2::SendRequest<SendBody>,
    pub(super) opened: Instant,
    pub(super) streams: Arc<Streams>,
    /// Since when the pool has seen no stream on it.
    pub(super) quiet_since: Option<Instant>,
}

/// How many streams a connection carries, and may carry.
pub(super) struct Streams {
    pub(super) open: AtomicUsize,
    pub(super) max: AtomicUsize,
}

/// One attempt's hold on its connection and on its slot. Dropped without [`finish`](Self::finish), the attempt counts
/// as abandoned: the connection (or the stream) is closed, and the slot comes back when the upstream has noticed.
pub struct Hold {
    pub(super) pool: Arc<Pool>,
    pub(super) conn: Option<Conn>,
    pub(super) permit: Option<Permit>,
    pub(super) upload: Option<Arc<Upload>>,
    /// The connection had served other attempts before.
    pub(super) reused: bool,
}

pub(super) enum Conn {
    Http1(Box<Http1>),
    Http2(Http2),
}

impl Hold {
    /// The attempt's slot.
    pub fn permit(&mut self) -> Option<&mut Permit> {
        self.permit.as_mut()
    }

    /// The connection speaks HTTP/1.1.
    #[must_use]
    pub fn is_http1(&self) -> bool {
        matches!(self.conn, Some(Conn::Http1(_)))
    }

    /// The connection had served other attempts before.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.reused
    }

    /// Something of the answer arrived.
    pub fn heard(&self) {
        if let Some(Conn::Http1(conn)) = &self.conn {
            conn.unheard.heard();
        }
    }

    /// The response has ended: the slot comes back, the connection is kept for the next.
    pub fn finish(mut self) {
        if self.upload.as_ref().is_some_and(|upload| !upload.is_done()) {
            // Answered before it had read the request: dropping `self` closes the connection, which nobody could use.
            return;
        }
        if let Some(Conn::Http1(conn)) = self.conn.take_if(|conn| matches!(conn, Conn::Http1(_))) {
            self.pool.put_back(conn);
        }
        drop(self.permit.take());
    }

    /// The connection became a tunnel: it is nobody's any more, and the slot is its user's.
    pub fn into_tunnel(mut self) -> Option<Permit> {
        if let Some(Conn::Http1(conn)) = self.conn.take() {
            conn.unheard.lift();
        }
        self.permit.take()
    }

    /// The connection failed by itself: nothing is left to close or to wait for.
    pub(super) fn failed(mut self) -> Option<Permit> {
        let permit = self.permit.take();
        // An HTTP/1.1 connection ends by itself; what is left of a stream is closed by dropping `self`.
        self.conn.take_if(|conn| matches!(conn, Conn::Http1(_)));
        permit
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        match self.conn.take() {
            None => {}
            Some(Conn::Http1(conn)) => {
                // The task is gone if the connection is: then the slot comes back right here.
                drop(conn.abandon.send(self.permit.take()));
            }
            Some(Conn::Http2(conn)) => {
                conn.streams.open.fetch_sub(1, Ordering::Relaxed);
                if let Some(permit) = self.permit.take() {
                    self.pool.tasks.spawn("reset linger", async move {
                        tokio::time::sleep(RESET_LINGER).await;
                        drop(permit);
                    });
                }
            }
        }
    }
}

/// The stream under a connection. When hyper lets go of it, it lands where the connection's task can still close it
/// politely.
pub(super) struct Io {
    stream: Option<Stream>,
    landing: Landing,
    /// Counts what HTTP/1.1 reads; HTTP/2's frames have their own bounds.
    unheard: Option<Arc<Unheard>>,
}

/// Where a stream lands when hyper lets go of it.
pub(super) type Landing = Arc<Mutex<Option<TcpStream>>>;

impl Io {
    pub(super) fn new(stream: Stream, unheard: Option<Arc<Unheard>>) -> (Self, Landing) {
        let landing = Landing::default();
        (Self { stream: Some(stream), landing: Arc::clone(&landing), unheard }, landing)
    }

    fn stream(&mut self) -> io::Result<&mut Stream> {
        self.stream.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        let tcp = match self.stream.take() {
            Some(Stream::Plain(tcp)) => tcp,
            Some(Stream::Tls(tls)) => tls.into_inner().0,
            None => return,
        };
        *self.landing.lock() = Some(tcp);
    }
}

macro_rules! on_stream {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut().stream() {
            Ok(Stream::Plain(tcp)) => {
                let $stream = Pin::new(tcp);
                $call
            }
            Ok(Stream::Tls(tls)) => {
                let $stream = Pin::new(tls.as_mut());
                $call
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = self.as_mut();
        let read = on_stream!(this, stream => stream.poll_read(cx, buf));
        if let (Poll::Ready(Ok(())), Some(unheard)) = (&read, &self.unheard) {
            unheard.count(buf.filled().len() - before)?;
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, stream => stream.poll_shutdown(cx))
    }
}
