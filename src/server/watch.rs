//! The stream under a client's connection, with the deadlines hyper does not keep: a later head in total, a client
//! that reads nothing, bytes that come to nothing. And with what hyper does not say (see [`insert`](super::insert)).

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use memchr::memmem;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};
use tokio_rustls::server::TlsStream;

use crate::{
    clock::{self, Alarm},
    config::Limits,
    proxy::{Client, Engine},
};

use super::insert::{self, Insert};

/// What a head ends with. Of one that ends otherwise, or in another piece than it began, nothing is concluded.
const HEAD_END: &[u8] = b"\r\n\r\n";
/// To prepare the search takes as long as to search a head.
static HEAD_END_FINDER: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(HEAD_END));

/// What clients are connected by.
pub(super) trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes closing it a reset, which nobody takes for an end.
    fn reset_when_closed(&self);

    /// The socket.
    fn tcp(&self) -> &TcpStream;
}

impl Connection for TcpStream {
    fn reset_when_closed(&self) {
        if let Err(error) = self.set_zero_linger() {
            tracing::debug!(%error, "a connection that breaks off will look ended");
        }
    }

    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Connection for TlsStream<TcpStream> {
    fn reset_when_closed(&self) {
        self.get_ref().0.reset_when_closed();
    }

    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// Where the stream of a connection is left when hyper lets go of it, so that the connection can go on later.
#[derive(Debug)]
pub(super) struct Parked<S>(Arc<Mutex<Option<S>>>);

impl<S> Clone for Parked<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> Default for Parked<S> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<S> Parked<S> {
    pub(super) fn take(&self) -> Option<S> {
        self.0.lock().take()
    }
}

/// The length of a body that did not tell it.
const UNTOLD: u64 = u64::MAX;

/// What a connection's stream and its exchanges know of each other.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Heads that arrived whole.
    heads: AtomicUsize,
    /// Bytes of the body of the last of them; [`UNTOLD`] if it did not tell.
    body: AtomicU64,
    /// Exchanges that are not over.
    open: AtomicUsize,
    /// Everything that arrived was answered, and everything that was to be said has been sent.
    is_clean: AtomicBool,
    /// The connection became a tunnel.
    tunnel: AtomicBool,
    /// An answer that ends with the connection broke off.
    broke: AtomicBool,
    /// The first line of a head that is being read has a `#`.
    fragment: AtomicBool,
    /// An HTTP/1.1 answer has ended with trailers that are not sent yet.
    has_trailers: AtomicBool,
    trailers: Mutex<Option<Bytes>>,
    pub(super) client: Arc<Client>,
}

impl Watch {
    /// A head has arrived, of a request with a body of so many bytes.
    pub(super) fn begin(self: &Arc<Self>, body: Option<u64>) -> Open {
        self.body.store(body.unwrap_or(UNTOLD), Ordering::Relaxed);
        if self.has_trailers.load(Ordering::Relaxed) {
            // Another answer may follow before they are sent, and where they belong could not be told any more.
            drop(self.take_trailers());
        }
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.client.unheard.heard();
        Open(Arc::clone(self))
    }

    /// A first head has arrived.
    pub(super) fn has_begun(&self) -> bool {
        self.heads.load(Ordering::Relaxed) > 0
    }

    /// After how many heads nothing is being answered and no other has come, if so.
    pub(super) fn idle_after(&self) -> Option<usize> {
        self.expects_head().then(|| self.heads.load(Ordering::Relaxed))
    }

    /// Whether nothing is held that came or is to go.
    pub(super) fn is_clean(&self) -> bool {
        self.is_clean.load(Ordering::Relaxed)
    }

    /// Whether the target of the head that has arrived has a fragment, which hyper leaves out of it. Not known of a
    /// head that came together with another's answer.
    pub(super) fn take_fragment(&self) -> bool {
        self.fragment.load(Ordering::Relaxed) && self.fragment.swap(false, Ordering::Relaxed)
    }

    /// From here on no byte belongs to HTTP.
    pub(super) fn becomes_tunnel(&self) {
        self.tunnel.store(true, Ordering::Relaxed);
        self.client.unheard.lift();
    }

    /// An HTTP/1.1 answer has ended; these are to follow it.
    pub(super) fn leave_trailers(&self, trailers: &HeaderMap) {
        *self.trailers.lock() = (!trailers.is_empty()).then(|| insert::trailers(trailers));
        self.has_trailers.store(!trailers.is_empty(), Ordering::Relaxed);
    }

    /// An answer that ends with the connection broke off.
    pub(super) fn breaks(&self) {
        self.broke.store(true, Ordering::Relaxed);
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
pub(super) struct Open(pub(super) Arc<Watch>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client's stream under watch.
pub(super) struct Watched<S: Connection> {
    /// Always there until it is dropped.
    stream: Option<S>,
    watch: Arc<Watch>,
    engine: Arc<Engine>,
    /// HTTP/1.1, where heads and bodies follow each other, and where the stream goes while nothing does.
    http1: Option<Parked<S>>,
    /// Time for a head in total.
    head_max: Duration,
    /// Time in which the client must take something of what is sent.
    send_max: Duration,
    /// A later head that has begun: after how many others, and by when it must be whole.
    head: Option<(usize, std::time::Instant)>,
    alarm: Alarm,
    /// Runs while the client takes nothing.
    send_timer: Option<Pin<Box<Sleep>>>,
    /// After how many heads everything that was to be said had been sent. What is said now, and no other head has come,
    /// answers none.
    said_all_after: Option<usize>,
    line: Line,
    /// After how many heads a head came, and how many bytes after its end; `None`: where it ends is not known.
    followed: (usize, Option<u64>),
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
    /// `http1`: it speaks HTTP/1.1, and may rest there.
    pub(super) fn new(
        stream: S,
        watch: &Arc<Watch>,
        engine: &Arc<Engine>,
        http1: Option<Parked<S>>,
        limits: &Limits,
    ) -> Self {
        let head_bytes_max = usize::try_from(limits.header_bytes_max).unwrap_or(usize::MAX);
        Self {
            stream: Some(stream),
            watch: Arc::clone(watch),
            engine: Arc::clone(engine),
            http1,
            head_max: limits.header_timeout,
            send_max: limits.send_timeout,
            head: None,
            alarm: Alarm::default(),
            send_timer: None,
            said_all_after: Some(watch.heads.load(Ordering::Relaxed)),
            line: Line::default(),
            followed: (0, None),
            target_bytes_max: head_bytes_max / 2,
            insert: None,
        }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut S>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// `piece` arrived.
    fn arrived(&mut self, piece: &[u8]) -> io::Result<()> {
        self.watch.client.unheard.count(piece.len())?;
        self.watch.is_clean.store(false, Ordering::Relaxed);
        let heads = self.watch.heads.load(Ordering::Relaxed);
        if self.watch.is_idle() {
            let is_first = self.followed.0 != heads || heads == 0 && self.line.bytes == 0;
            let end = HEAD_END_FINDER.find(piece).filter(|_| is_first);
            self.followed = (heads, end.map(|end| (piece.len() - end - HEAD_END.len()) as u64));
            self.line_arrived(heads, piece);
        } else if let Some(followed) = &mut self.followed.1 {
            *followed = followed.saturating_add(piece.len() as u64);
        }
        if !piece.is_empty() && self.watch.expects_head() && self.head.is_none_or(|(after, _)| after != heads) {
            self.head = Some((heads, clock::now() + self.head_max));
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

    /// Whether everything that arrived belonged to the last request: what came of another, hyper holds.
    fn holds_nothing(&self, heads: usize) -> bool {
        let (after, followed) = self.followed;
        after + 1 == heads && followed.is_some_and(|bytes| bytes == self.watch.body.load(Ordering::Relaxed))
    }

    /// Nothing arrived.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.watch.expects_head() {
            return Poll::Pending;
        }
        let heads = self.watch.heads.load(Ordering::Relaxed);
        let Some((_, by)) = self.head.filter(|(after, _)| *after == heads) else { return Poll::Pending };
        ready!(self.alarm.poll_by(by, cx));
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
        self.http1.is_some()
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
        let (Some(insert), Some(stream)) = (&mut self.insert, &mut self.stream) else { return Poll::Ready(Ok(0)) };
        let mut stream = Pin::new(stream);
        while !insert.bytes.is_empty() {
            match ready!(stream.as_mut().poll_write(cx, &insert.bytes)) {
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
            Some(bytes) => self.stream()?.poll_write(cx, bytes),
            None => self.poll_insert(cx),
        }
    }
}

impl<S: Connection> Drop for Watched<S> {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        if self.watch.broke.load(Ordering::Relaxed) {
            stream.reset_when_closed();
        } else if let Some(parked) = &self.http1 {
            *parked.0.lock() = Some(stream);
        }
    }
}

impl<S: Connection> AsyncRead for Watched<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = this.stream()?.poll_read(cx, buf);
        match read {
            _ if this.http1.is_none() => read,
            Poll::Ready(Ok(())) => Poll::Ready(this.arrived(buf.filled().get(before..).unwrap_or_default())),
            Poll::Ready(Err(_)) => read,
            Poll::Pending => this.poll_patience(cx),
        }
    }
}

impl<S: Connection> AsyncWrite for Watched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = if this.may_insert() { this.poll_place(cx, buf) } else { this.stream()?.poll_write(cx, buf) };
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
                (Some(first), Some(_)) if this.insert.is_none() => this.stream()?.poll_write(cx, first),
                (first, _) => this.poll_place(cx, first.map_or(&[], |first| first)),
            }
        } else {
            this.stream()?.poll_write_vectored(cx, bufs)
        };
        this.poll_send_timer(cx, sent)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS may still have something to write; a plain stream never has.
        let this = self.get_mut();
        let flushed = this.stream()?.poll_flush(cx);
        // hyper flushes when it has nothing left to write.
        if this.http1.is_some() && flushed.is_ready() {
            let heads = this.watch.heads.load(Ordering::Relaxed);
            this.said_all_after = this.watch.is_idle().then_some(heads);
            let is_clean = this.said_all_after.is_some() && this.holds_nothing(heads);
            this.watch.is_clean.store(is_clean, Ordering::Relaxed);
        }
        if flushed.is_ready() { flushed } else { this.poll_send_timer(cx, flushed) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream()?.poll_shutdown(cx)
    }
}
