//! The stream under a client's connection, with the deadlines hyper does not keep: a later head in total, a client
//! that reads nothing, bytes that come to nothing.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use crate::{
    clock,
    proxy::{Cut, OutBody, Unheard},
};

/// What a connection's stream and its exchanges know of each other.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Heads that arrived whole.
    heads: AtomicUsize,
    /// Exchanges that are not over.
    open: AtomicUsize,
    /// The connection became a tunnel.
    tunnel: AtomicBool,
    /// What arrived since something last came to a head or to a piece of a body.
    pub(super) unheard: Arc<Unheard>,
}

impl Watch {
    /// A head has arrived.
    pub(super) fn begin(self: &Arc<Self>) -> Open {
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.unheard.heard();
        Open(Arc::clone(self))
    }

    /// A first head has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.heads.load(Ordering::Relaxed) > 0
    }

    /// From here on no byte belongs to HTTP.
    pub(super) fn becomes_tunnel(&self) {
        self.tunnel.store(true, Ordering::Relaxed);
        self.unheard.lift();
    }

    /// Whether what is read now belongs to a head, of an exchange that is not the first.
    fn expects_head(&self) -> bool {
        self.has_begun() && self.open.load(Ordering::Relaxed) == 0 && !self.tunnel.load(Ordering::Relaxed)
    }
}

/// An exchange that is not over.
pub(super) struct Open(Arc<Watch>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer, until it is gone.
pub(super) struct Answer {
    body: OutBody,
    /// It broke, and what came before is given time to leave.
    broken: Option<Cut>,
    _open: Option<Open>,
}

impl Answer {
    pub(super) fn new(body: OutBody, open: Option<Open>) -> Self {
        Self { body, broken: None, _open: open }
    }

    /// On an error hyper drops what it has not written yet, the head as well (1.12, `proto/h1/dispatch.rs`). A client
    /// would find its connection closed without a byte, take it for a stale one, and might send a POST again. Of a
    /// body that is not ready it writes what it has.
    fn breaks<T>(&mut self, cut: Cut, cx: &Context<'_>) -> Poll<T> {
        self.broken = Some(cut);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if let Some(cut) = self.broken.take() {
            return Poll::Ready(Some(Err(cut)));
        }
        let body = &mut self.body;
        let frame = match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut *body).poll_frame(cx))) {
            Ok(Poll::Ready(Some(Err(cut)))) => self.breaks(cut, cx),
            Ok(frame) => frame,
            // Over for this exchange alone: the connection resets the stream, or itself if it has no streams.
            Err(_) => {
                let cut = body.panicked();
                self.breaks(cut, cx)
            }
        };
        // Only HTTP/2's streams have it.
        PIECES.try_with(|pieces| pieces.asked(frame.is_ready())).ok();
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

tokio::task_local! {
    static PIECES: Arc<Pieces>;
}

/// The pieces of an HTTP/2 answer: how many were asked for, and whether the last one asked for was there. If so, the
/// next is asked for as soon as the client has room.
#[derive(Default)]
struct Pieces {
    asked: AtomicUsize,
    given: AtomicBool,
}

impl Pieces {
    fn asked(&self, given: bool) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.given.store(given, Ordering::Relaxed);
    }
}

/// Runs the answers of an HTTP/2 connection, each until its client has taken nothing of it for `send_max`, twice at most.
/// A stream without a window is no business of the connection's, and hyper waits for it without end.
#[derive(Clone)]
pub(super) struct Streams {
    pub(super) send_max: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let max = self.send_max;
        TokioExecutor::new().execute(async move {
            let pieces = Arc::<Pieces>::default();
            let mut stream = std::pin::pin!(PIECES.scope(Arc::clone(&pieces), stream));
            loop {
                let before = pieces.asked.load(Ordering::Relaxed);
                if tokio::time::timeout(max, &mut stream).await.is_ok() {
                    return;
                }
                if pieces.given.load(Ordering::Relaxed) && pieces.asked.load(Ordering::Relaxed) == before {
                    tracing::debug!("a client takes nothing of an answer");
                    return;
                }
            }
        });
    }
}

/// A client's stream under watch.
pub(super) struct Watched<S> {
    stream: S,
    watch: Arc<Watch>,
    /// HTTP/1.1, where heads and bodies follow each other.
    http1: bool,
    head_max: Duration,
    send_max: Duration,
    /// A later head that has begun: after how many others, and by when it must be whole.
    head: Option<(usize, Instant)>,
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the client takes nothing.
    send_timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Watched<S> {
    /// `head_max`: time for a head in total. `send_max`: time in which the client must take something of what is sent.
    pub(super) fn new(stream: S, watch: &Arc<Watch>, http1: bool, head_max: Duration, send_max: Duration) -> Self {
        Self {
            stream,
            watch: Arc::clone(watch),
            http1,
            head_max,
            send_max,
            head: None,
            head_timer: None,
            send_timer: None,
        }
    }

    /// `bytes` arrived.
    fn arrived(&mut self, bytes: usize) -> io::Result<()> {
        self.watch.unheard.count(bytes)?;
        let heads = self.watch.heads.load(Ordering::Relaxed);
        if bytes > 0 && self.watch.expects_head() && self.head.is_none_or(|(after, _)| after != heads) {
            self.head = Some((heads, (clock::now() + self.head_max).into()));
            self.head_timer = None;
        }
        Ok(())
    }

    /// Nothing arrived.
    fn poll_head_timer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let heads = self.watch.heads.load(Ordering::Relaxed);
        let Some((_, by)) = self.head.filter(|(after, _)| *after == heads && self.watch.expects_head()) else {
            self.head_timer = None;
            return Poll::Pending;
        };
        let timer = self.head_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(by)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a request head took too long")))
    }

    /// Gives `sent` on; in its place an error, if nothing could be sent for too long.
    fn poll_send_timer<T>(&mut self, cx: &mut Context<'_>, sent: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if sent.is_ready() {
            self.send_timer = None;
            return sent;
        }
        let max = self.send_max;
        let timer = self.send_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(max)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        match read {
            _ if !this.http1 => read,
            Poll::Ready(Ok(())) => Poll::Ready(this.arrived(buf.filled().len() - before)),
            Poll::Ready(Err(_)) => read,
            Poll::Pending => this.poll_head_timer(cx),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.poll_send_timer(cx, sent)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.poll_send_timer(cx, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS may still have something to write; a plain stream never has.
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        if flushed.is_ready() { flushed } else { this.poll_send_timer(cx, flushed) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
