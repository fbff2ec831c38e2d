//! An answer on its way down: how its end is told, what becomes of it when it breaks, and of a client that takes nothing.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;

use crate::proxy::{Cut, OutBody};

use super::watch::Open;

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
            watch.leave_trailers(&trailers);
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
                watch.breaks();
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
