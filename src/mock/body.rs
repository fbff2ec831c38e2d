//! The body of an answer: pieces that leave at their times. Holds the slot to the last one.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::clock;

use super::{
    overload::{WorkClock, Working},
    slot::{Slot, Work},
};

/// What comes after the last piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The end.
    Clean,
    /// The connection breaks.
    Broken,
}

/// A body of the mock.
pub(super) enum MockBody {
    Full(Option<Bytes>),
    Timed(Timed),
    /// The request's body, sent back as it comes.
    Echo(Incoming),
    /// So many bytes.
    Filler(u64),
}

/// Pieces that leave at their times on the clock of work.
pub(super) struct Timed {
    pub(super) pieces: VecDeque<(Duration, Bytes)>,
    pub(super) end: End,
    pub(super) clock: Arc<WorkClock>,
    /// What is held to the last byte.
    pub(super) held: Option<Held>,
    pub(super) timer: Option<Pin<Box<Sleep>>>,
}

/// A request that is being answered.
pub(super) struct Held {
    pub(super) slot: Slot,
    pub(super) work: Work,
    pub(super) _working: Working,
}

/// An answer that breaks off breaks after what was sent has left.
const FLUSH: Duration = Duration::from_millis(20);

const FILLER: &[u8; 16 * 1024] = &[b'x'; 16 * 1024];

impl Timed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some((due, _)) = self.pieces.front() {
            while let Some(at) = self.clock.look_again(*due, clock::now()) {
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
                if timer.is_elapsed() {
                    timer.as_mut().reset(at.into());
                }
                ready!(timer.as_mut().poll(cx));
            }
            let piece = self.pieces.pop_front().map(|(_, piece)| piece).unwrap_or_default();
            if self.pieces.is_empty() && self.end == End::Clean {
                self.finish();
            }
            if self.pieces.is_empty() && self.end == End::Broken {
                self.timer = Some(Box::pin(tokio::time::sleep(FLUSH)));
            }
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        match self.end {
            End::Clean => {
                self.finish();
                Poll::Ready(None)
            }
            End::Broken => {
                if let Some(timer) = &mut self.timer {
                    ready!(timer.as_mut().poll(cx));
                }
                // The work was done; the answer is lost on the way.
                self.finish();
                Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())))
            }
        }
    }

    fn finish(&mut self) {
        if let Some(held) = self.held.take() {
            held.slot.processed(&held.work);
        }
    }
}

impl From<Bytes> for MockBody {
    fn from(data: Bytes) -> Self {
        Self::Full(Some(data))
    }
}

impl Body for MockBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Self::Full(data) => {
                Poll::Ready(data.take().filter(|data| !data.is_empty()).map(|data| Ok(Frame::data(data))))
            }
            Self::Timed(timed) => timed.poll(cx),
            Self::Echo(incoming) => Pin::new(incoming).poll_frame(cx).map_err(io::Error::other),
            Self::Filler(left) => {
                let count = (*left).min(FILLER.len() as u64);
                *left -= count;
                let piece = FILLER.get(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
                Poll::Ready((count > 0).then(|| Ok(Frame::data(Bytes::from_static(piece)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(data) => data.as_ref().is_none_or(Bytes::is_empty),
            Self::Timed(timed) => timed.pieces.is_empty() && timed.end == End::Clean,
            Self::Echo(incoming) => incoming.is_end_stream(),
            Self::Filler(left) => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(data) => SizeHint::with_exact(data.as_ref().map_or(0, Bytes::len) as u64),
            Self::Timed(_) => SizeHint::default(),
            Self::Echo(incoming) => incoming.size_hint(),
            Self::Filler(left) => SizeHint::with_exact(*left),
        }
    }
}
