//! The stream under a client's connection, with the deadlines hyper does not keep: a later head in total, a client
//! that reads nothing, bytes that come to nothing. And with what hyper does not say (see [`insert`](super::insert)).

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

use bytes::{Buf, Bytes};
use http::{Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};
use tokio_rustls::server::TlsStream;

use crate::{
    clock,
    config::Limits,
    proxy::{Cut, Engine, OutBody, Unheard},
};

use super::insert::{self, Insert};

/// What clients are connected by.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes closing it a reset, which nobody takes for an end.
    fn reset_when_closed(&self);
}

impl Connection for TcpStream {
    fn reset_when_closed(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "a connection that breaks off will look ended");
        }
    }
}

impl Connection for TlsStream<TcpStream> {
    fn reset_when_closed(&self) {
        self.get_ref().0.reset_when_closed();
    }
}

/// What a connection's stream and its exchanges know of each other.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Heads that arrived whole.
    heads: AtomicUsize,
    /// Exchanges that are not over.
    open: AtomicUsize,
    /// The connection became a tunnel.
    tunnel: AtomicBool,
    /// An answer that ends with the connection broke off.
    broke: AtomicBool,
    /// The first line of a head that is being read has a `#`.
    fragment: AtomicBool,
    /// An HTTP/1.1 answer has ended with trailers that are not sent yet.
    has_trailers: AtomicBool,
    trailers: Mutex<Option<Bytes>>,
    /// What arrived since something last came to a head or to a piece of a body.
    pub(super) unheard: Arc<Unheard>,
}

impl Watch {
    /// A head has arrived.
    pub(super) fn begin(self: &Arc<Self>) -> Open {
        if self.has_trailers.load(Ordering::Relaxed) {
            // Another answer may follow before they are sent, and where they belong could not be told any more.
            drop(self.take_trailers());
        }
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.unheard.heard();
        Open(Arc::clone(self))
    }

    /// A first head has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.heads.load(Ordering::Relaxed) > 0
    }

    /// Whether the target of the head that has arrived has a fragment, which hyper leaves out of it. Not known of a
    /// head that came together with another's answer.
    pub(super) fn take_fragment(&self) -> bool {
        self.fragment.load(Ordering::Relaxed) && self.fragment.swap(false, Ordering::Relaxed)
    }

    /// From here on no byte belongs to HTTP.
    pub(super) fn becomes_tunnel(&self) {
        self.tunnel.store(true, Ordering::Relaxed);
        self.unheard.lift();
    }

    fn take_trailers(&self) -> Option<Bytes> {
        self.has_trailers.store(false, Ordering::Relaxed);
        self.trailers.lock().take()
    }

    /// Whether nothing is being answered.
    fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0 && !self.tunnel.load(Ordering::Relaxed)
    }

    /// Whether what is read now belongs to a head, of an exchange that is not the first.
    fn expects_head(&self) -> bool {
        self.has_begun() && self.is_idle()
    }
}

/// An exchange that is not over.
pub(super) struct Open(Arc<Watch>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How the client's connection tells the end of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// By the last chunk, which trailers may follow.
    Chunked,
    /// By its own end (HTTP/1.0).
    Close,
    /// By frames (HTTP/2).
    Frames,
    /// By a length.
    Length,
}

/// An answer, until it is gone.
pub(super) struct Answer {
    body: OutBody,
    open: Option<Open>,
    ending: Ending,
    /// It broke, and what came before is given time to leave.
    broken: Option<Cut>,
}

impl Answer {
    /// The answer to a request of this `version`. `to_head`: of method HEAD, so that no body goes down.
    pub(super) fn new(
        response: Response<OutBody>,
        version: Version,
        to_head: bool,
        open: Option<Open>,
    ) -> Response<Self> {
        let body = response.body();
        let ending = match version {
            Version::HTTP_2 => Ending::Frames,
            _ if to_head || body.is_end_stream() || body.size_hint().exact().is_some() => Ending::Length,
            Version::HTTP_11 if response.headers().contains_key(header::CONTENT_LENGTH) => Ending::Length,
            Version::HTTP_11 if [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&response.status()) => {
                Ending::Length
            }
            Version::HTTP_11 => Ending::Chunked,
            _ => Ending::Close,
        };
        response.map(|body| Self { body, open, ending, broken: None })
    }

    /// HTTP/1: hyper is told that the body has ended, and the trailers go to the connection.
    fn leave_trailers(&self, frame: Frame<Bytes>) {
        if let (Ending::Chunked, Some(Open(watch)), Ok(trailers)) = (self.ending, &self.open, frame.into_trailers()) {
            *watch.trailers.lock() = (!trailers.is_empty()).then(|| insert::trailers(&trailers));
            watch.has_trailers.store(!trailers.is_empty(), Ordering::Relaxed);
        }
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
            if let (Ending::Close, Some(Open(watch))) = (self.ending, &self.open) {
                watch.broke.store(true, Ordering::Relaxed);
            }
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
        if self.ending == Ending::Frames {
            PIECES.try_with(|pieces| pieces.asked(frame.is_ready())).ok();
            return frame;
        }
        match frame {
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => {
                self.leave_trailers(frame);
                Poll::Ready(None)
            }
            frame @ (Poll::Ready(_) | Poll::Pending) => frame,
        }
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
pub(super) struct Watched<S: Connection> {
    stream: S,
    watch: Arc<Watch>,
    engine: Arc<Engine>,
    /// HTTP/1.1, where heads and bodies follow each other.
    http1: bool,
    /// Time for a head in total.
    head_max: Duration,
    /// Time in which the client must take something of what is sent.
    send_max: Duration,
    /// A later head that has begun: after how many others, and by when it must be whole.
    head: Option<(usize, Instant)>,
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Runs while the client takes nothing.
    send_timer: Option<Pin<Box<Sleep>>>,
    /// After how many heads everything that was to be said had been sent. What is said now, and no other head has come,
    /// answers none.
    said_all_after: Option<usize>,
    line: Line,
    target_bytes_max: usize,
    insert: Option<Box<Insert>>,
}

/// The first line of a head that is being read.
#[derive(Default)]
struct Line {
    /// Of the head after so many others.
    after: usize,
    bytes: usize,
    ended: bool,
}

impl<S: Connection> Watched<S> {
    pub(super) fn new(stream: S, watch: &Arc<Watch>, engine: &Arc<Engine>, http1: bool, limits: &Limits) -> Self {
        let head_bytes_max = usize::try_from(limits.header_bytes_max).unwrap_or(usize::MAX);
        Self {
            stream,
            watch: Arc::clone(watch),
            engine: Arc::clone(engine),
            http1,
            head_max: limits.header_timeout,
            send_max: limits.send_timeout,
            head: None,
            head_timer: None,
            send_timer: None,
            said_all_after: Some(0),
            line: Line::default(),
            target_bytes_max: head_bytes_max / 2,
            insert: None,
        }
    }

    /// `piece` arrived.
    fn arrived(&mut self, piece: &[u8]) -> io::Result<()> {
        self.watch.unheard.count(piece.len())?;
        let heads = self.watch.heads.load(Ordering::Relaxed);
        if self.watch.is_idle() {
            self.line_arrived(heads, piece);
        }
        if !piece.is_empty() && self.watch.expects_head() && self.head.is_none_or(|(after, _)| after != heads) {
            self.head = Some((heads, (clock::now() + self.head_max).into()));
            self.head_timer = None;
        }
        Ok(())
    }

    /// `piece` of a head arrived.
    fn line_arrived(&mut self, heads: usize, piece: &[u8]) {
        if self.line.after != heads {
            self.line = Line { after: heads, ..Line::default() };
        }
        if self.line.ended {
            return;
        }
        let mut end = memchr::memchr2(b'\n', b'#', piece);
        if end.is_some_and(|at| piece.get(at) == Some(&b'#')) {
            self.watch.fragment.store(true, Ordering::Relaxed);
            end = memchr::memchr(b'\n', piece);
        }
        self.line.ended = end.is_some();
        self.line.bytes += end.unwrap_or(piece.len());
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

    /// Whether what hyper writes now is not simply passed on.
    fn may_insert(&self) -> bool {
        self.http1
            && (self.insert.is_some() || self.watch.has_trailers.load(Ordering::Relaxed) || self.answers_no_request())
    }

    /// Everything that was asked has been answered, so that what comes now is hyper's own answer to what was no request.
    fn answers_no_request(&self) -> bool {
        self.watch.is_idle() && self.said_all_after == Some(self.watch.heads.load(Ordering::Relaxed))
    }

    /// What of hyper's bytes goes out as it is; `None`: what `insert` holds goes instead.
    fn place<'a>(&mut self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        if self.insert.is_some() {
            return None;
        }
        if self.answers_no_request() {
            let Some(status) = insert::hypers_own(bytes) else { return Some(bytes) };
            let heads = self.watch.heads.load(Ordering::Relaxed);
            let in_target = status == 431 && self.line.after == heads && self.line.bytes > self.target_bytes_max;
            let answer = self.engine.answer_to_no_request(if in_target { 414 } else { status });
            self.insert = Some(Box::new(Insert { bytes: insert::answer(&answer), replaces: bytes.len() }));
            return None;
        }
        if bytes == insert::LAST_LINE {
            let Some(trailers) = self.watch.take_trailers() else { return Some(bytes) };
            self.insert = Some(Box::new(Insert { bytes: trailers, replaces: bytes.len() }));
            return None;
        }
        // The last line is kept back, so that it comes again alone.
        Some(if insert::ends_body(bytes) { bytes.strip_suffix(insert::LAST_LINE).unwrap_or(bytes) } else { bytes })
    }

    fn poll_insert(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(insert) = &mut self.insert else { return Poll::Ready(Ok(0)) };
        while !insert.bytes.is_empty() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &insert.bytes)) {
                Ok(sent @ 1..) => insert.bytes.advance(sent),
                stopped => return Poll::Ready(stopped),
            }
        }
        let replaced = insert.replaces;
        self.insert = None;
        Poll::Ready(Ok(replaced))
    }

    fn poll_place(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.place(bytes) {
            Some(bytes) => Pin::new(&mut self.stream).poll_write(cx, bytes),
            None => self.poll_insert(cx),
        }
    }
}

impl<S: Connection> Drop for Watched<S> {
    fn drop(&mut self) {
        if self.watch.broke.load(Ordering::Relaxed) {
            self.stream.reset_when_closed();
        }
    }
}

impl<S: Connection> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        match read {
            _ if !this.http1 => read,
            Poll::Ready(Ok(())) => Poll::Ready(this.arrived(buf.filled().get(before..).unwrap_or_default())),
            Poll::Ready(Err(_)) => read,
            Poll::Pending => this.poll_head_timer(cx),
        }
    }
}

impl<S: Connection> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent =
            if this.may_insert() { this.poll_place(cx, buf) } else { Pin::new(&mut this.stream).poll_write(cx, buf) };
        this.poll_send_timer(cx, sent)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = if this.may_insert() {
            // One after the other: what matters is the last one alone.
            let mut parts = bufs.iter().filter(|part| !part.is_empty());
            match (parts.next(), parts.next()) {
                (Some(first), Some(_)) if this.insert.is_none() => Pin::new(&mut this.stream).poll_write(cx, first),
                (first, _) => this.poll_place(cx, first.map_or(&[], |first| first)),
            }
        } else {
            Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
        };
        this.poll_send_timer(cx, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS may still have something to write; a plain stream never has.
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        // hyper flushes when it has nothing left to write.
        if this.http1 && flushed.is_ready() {
            let heads = this.watch.heads.load(Ordering::Relaxed);
            this.said_all_after = this.watch.is_idle().then_some(heads);
        }
        if flushed.is_ready() { flushed } else { this.poll_send_timer(cx, flushed) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
