//! The body of a request on its way up.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::clock;

use super::Unheard;

/// The body of one attempt: held in full, or passed through as it comes. Without `Debug`: prompts are not to be printed.
pub enum SendBody {
    /// Held in full. `chunked`: the client did not announce a length, so none is announced upstream.
    Buffered {
        /// What is left to send.
        data: Bytes,
        /// Sent after the data.
        trailers: Option<Box<HeaderMap>>,
        /// Whether the length is kept open.
        chunked: bool,
    },
    /// What was read already, then the rest as it comes.
    Streaming {
        /// Read while the gate was asked.
        prefix: Bytes,
        /// The rest.
        rest: ClientBody,
        /// How far it got, for whoever waits for the answer.
        upload: Arc<Upload>,
    },
}

/// A body as it comes from the client's connection, which learns here what came to something.
#[derive(Debug)]
pub struct ClientBody {
    /// The body.
    pub inner: Incoming,
    /// The connection's count; HTTP/2 has none.
    pub unheard: Option<Arc<Unheard>>,
    /// Bytes it may still have.
    pub left: u64,
    /// Takes out of its trailers what must not go upstream.
    pub for_trailers: fn(&mut HeaderMap),
}

/// Why a client's body does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It broke off, or is malformed.
    #[error("the client's body broke off")]
    Broken(#[source] hyper::Error),
    /// It is longer than it may be.
    #[error("the client's body is too long")]
    TooLong,
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(unheard) = &self.unheard {
            unheard.heard();
        }
        let Some(frame) = frame else { return Poll::Ready(None) };
        let mut frame = frame.map_err(BodyError::Broken)?;
        if let Some(data) = frame.data_ref() {
            self.left = self.left.checked_sub(data.len() as u64).ok_or(BodyError::TooLong)?;
        }
        if let Some(trailers) = frame.trailers_mut() {
            (self.for_trailers)(trailers);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How far a streamed body got.
#[derive(Debug)]
pub struct Upload {
    began: Instant,
    /// How long the client may be silent inside it.
    silence_max: Option<Duration>,
    /// Milliseconds from `began`, plus one, since the client is waited for; 0: it is not.
    waiting_ms: AtomicU64,
    silent: AtomicBool,
    touched: AtomicBool,
    done: AtomicBool,
    failed: AtomicBool,
    too_long: AtomicBool,
    /// Milliseconds from `began` to the last byte that moved.
    moved_ms: AtomicU64,
    bytes: AtomicU64,
}

impl Upload {
    /// Nothing has moved yet. `silence_max`: how long the client may be silent inside it.
    #[must_use]
    pub fn new(silence_max: Option<Duration>) -> Self {
        Self {
            began: clock::now(),
            silence_max,
            waiting_ms: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            done: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            too_long: AtomicBool::new(false),
            moved_ms: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// The whole body has been handed to the connection.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// Some of it has been taken from the client, so it cannot be sent again.
    #[must_use]
    pub fn is_touched(&self) -> bool {
        self.touched.load(Ordering::Relaxed)
    }

    /// It broke off, or was too long.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// It was longer than it may be.
    #[must_use]
    pub fn was_too_long(&self) -> bool {
        self.too_long.load(Ordering::Relaxed)
    }

    /// The client was silent inside it for too long.
    #[must_use]
    pub fn fell_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// When it is to be given up unless the client sends more by then; `None`: the client is not waited for.
    pub(super) fn silent_by(&self) -> Option<Instant> {
        let waiting = self.waiting_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.began + Duration::from_millis(waiting) + self.silence_max?)
    }

    pub(super) fn give_up(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }

    pub(super) fn silence_max(&self) -> Option<Duration> {
        self.silence_max
    }

    fn waits(&self) {
        let since = self.since_ms().saturating_add(1);
        if self.waiting_ms.load(Ordering::Relaxed) == 0 {
            self.waiting_ms.store(since, Ordering::Relaxed);
        }
    }

    fn since_ms(&self) -> u64 {
        u64::try_from(clock::now().saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// When it last moved.
    #[must_use]
    pub fn moved_at(&self) -> Instant {
        self.began + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed))
    }

    /// Bytes that moved.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn moved(&self, bytes: usize) {
        self.moved_ms.store(self.since_ms(), Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl SendBody {
    /// The names of the trailers it has, if it is held: hyper sends none over HTTP/1.1 that were not announced.
    pub(super) fn announcement(&self) -> Option<HeaderValue> {
        let Self::Buffered { trailers: Some(trailers), .. } = self else { return None };
        let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        HeaderValue::from_str(&names.join(", ")).ok().filter(|_| !names.is_empty())
    }
}

impl Body for SendBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Buffered { data, trailers, .. } => {
                if !data.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(std::mem::take(data)))));
                }
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(*trailers))))
            }
            Self::Streaming { prefix, rest, upload } => {
                if !prefix.is_empty() {
                    upload.moved(prefix.len());
                    return Poll::Ready(Some(Ok(Frame::data(std::mem::take(prefix)))));
                }
                // From the first poll on hyper may have asked the client for the body (100 Continue).
                upload.touched.store(true, Ordering::Relaxed);
                let Poll::Ready(frame) = Pin::new(&mut *rest).poll_frame(cx) else {
                    upload.waits();
                    return Poll::Pending;
                };
                upload.waiting_ms.store(0, Ordering::Relaxed);
                match &frame {
                    Some(Ok(frame)) => {
                        upload.moved(frame.data_ref().map_or(0, Bytes::len));
                        if rest.is_end_stream() {
                            upload.done.store(true, Ordering::Relaxed);
                        }
                    }
                    Some(Err(why)) => {
                        upload.too_long.store(matches!(why, BodyError::TooLong), Ordering::Relaxed);
                        upload.failed.store(true, Ordering::Relaxed);
                    }
                    None => upload.done.store(true, Ordering::Relaxed),
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Buffered { data, trailers, chunked } => data.is_empty() && trailers.is_none() && !chunked,
            Self::Streaming { prefix, rest, .. } => prefix.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Buffered { chunked: true, .. } => SizeHint::default(),
            Self::Buffered { data, .. } => SizeHint::with_exact(data.len() as u64),
            Self::Streaming { prefix, rest, .. } => plus(prefix.len(), rest.size_hint()),
        }
    }
}

/// `hint`, with `more` bytes before it.
pub(crate) fn plus(more: usize, hint: SizeHint) -> SizeHint {
    let more = more as u64;
    let mut sum = SizeHint::new();
    if let Some(upper) = hint.upper() {
        sum.set_upper(upper.saturating_add(more));
    }
    sum.set_lower(hint.lower().saturating_add(more));
    sum
}
