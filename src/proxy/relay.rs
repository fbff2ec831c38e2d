//! The response body on its way down. Holds the slot to the last byte; watches for silence; counts.
//!
//! There is no channel and no task in between: a slow client slows the upstream read, and memory stays flat. This is
//! the only hand-written response body.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::{clock, metrics::End, provider::usage::UsageScanner, upstream::Hold};

use super::{head, record::Record};

/// The body of an answer.
pub enum OutBody {
    /// Held in full.
    Full {
        /// What is left to send.
        data: Bytes,
        /// What follows it.
        trailers: Option<Box<HeaderMap>>,
        /// Its length is told ahead.
        announced: bool,
        /// Counted when the answer is gone.
        record: Option<Box<Record>>,
    },
    /// Passed on as it comes.
    Relay(Box<Relay>),
}

/// A response body passed on as it comes.
pub struct Relay {
    /// Read before it was decided to pass the rest on.
    prefix: Bytes,
    inner: Incoming,
    /// Looks for what the answer used.
    reader: Option<UsageScanner>,
    // Before the record, so that the record sees the slot already returned.
    hold: Option<Hold>,
    /// The body says truly when it has ended. HTTP/2's also says so of a stream that was reset (h2 0.4), which must
    /// never look like an end, so there only its last poll or its announced length counts.
    honest: bool,
    ended: bool,
    /// Bytes it says it has; it has none.
    claims: Option<u64>,
    idle_max: Option<Duration>,
    end_by: Option<Instant>,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    record: Record,
}

/// Why a body was cut.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    /// A mistake in Tidegate itself.
    #[error("Tidegate failed inside")]
    Internal,
    /// The upstream reset the stream before its end.
    #[error("the upstream reset the stream before its end")]
    Short,
    /// The upstream was silent for too long, or the exchange took too long in all.
    #[error("the upstream was silent for too long")]
    Silence,
    /// The upstream broke off.
    #[error("the upstream broke off")]
    Upstream(#[source] hyper::Error),
}

impl OutBody {
    /// An answer of Tidegate's own. Without a record nothing is counted.
    #[must_use]
    pub fn own(data: Bytes, record: Option<Record>) -> Self {
        match record {
            Some(record) => Self::held(data, None, true, record),
            None => Self::Full { data, trailers: None, announced: true, record: None },
        }
    }

    /// An answer of the upstream that was read in full. `announced`: it had told its length ahead; one that had not
    /// goes down the way it came.
    #[must_use]
    pub fn held(data: Bytes, trailers: Option<Box<HeaderMap>>, announced: bool, mut record: Record) -> Self {
        record.response_bytes = data.len() as u64;
        Self::Full { data, trailers, announced, record: Some(Box::new(record)) }
    }

    /// An answer passed on as it comes, after `prefix`.
    #[must_use]
    pub fn relay(
        prefix: Bytes,
        inner: Incoming,
        hold: Hold,
        idle_max: Option<Duration>,
        end_by: Option<Instant>,
        record: Record,
    ) -> Self {
        let last = clock::now();
        let honest = hold.is_http1();
        let hold = Some(hold);
        let mut relay = Relay {
            prefix,
            inner,
            reader: None,
            hold,
            honest,
            ended: false,
            claims: None,
            idle_max,
            end_by,
            last,
            timer: None,
            record,
        };
        if relay.is_over() {
            relay.complete();
        }
        Self::Relay(Box::new(relay))
    }

    /// It panicked: nothing more comes of it, and its slot comes back.
    pub fn panicked(&mut self) -> Cut {
        let broken = std::mem::replace(self, Self::own(Bytes::new(), None));
        match broken {
            Self::Full { record: Some(mut record), .. } => record.panicked(),
            Self::Full { record: None, .. } => {}
            Self::Relay(mut relay) => relay.record.panicked(),
        }
        Cut::Internal
    }

    /// With a length that HTTP/1 is to tell though no body follows: hyper leaves it out of a 304 unless the body has it.
    #[must_use]
    pub(super) fn claiming(mut self, length: Option<u64>) -> Self {
        if let Self::Relay(relay) = &mut self {
            relay.claims = length;
        }
        self
    }

    /// With a reader for what is still to come.
    #[must_use]
    pub(super) fn reading(mut self, reader: Option<UsageScanner>) -> Self {
        if let Self::Relay(relay) = &mut self {
            relay.reader = reader;
        }
        self
    }
}

impl Relay {
    /// Nothing more will come, and nothing is missing.
    fn is_over(&self) -> bool {
        let announced = self.inner.size_hint().exact() == Some(0);
        self.prefix.is_empty() && (self.ended || announced || (self.honest && self.inner.is_end_stream()))
    }

    fn complete(&mut self) {
        self.ended = true;
        if let Some(mut hold) = self.hold.take() {
            // Before the slot comes back: the next attempt may be admitted by what is learnt here.
            if let Some(usage) = self.reader.as_ref().and_then(UsageScanner::usage)
                && let Some(permit) = hold.permit()
            {
                tracing::debug!(
                    upstream = permit.gate().upstream(),
                    account = permit.gate().account(),
                    ?usage,
                    "usage read"
                );
                permit.finish(&usage);
                self.record.span.used(&usage);
                permit.gate().metrics.billed(self.record.tariff.bill(&usage));
            }
            hold.finish();
            self.record.end = End::Complete;
        }
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if !self.prefix.is_empty() {
            let prefix = std::mem::take(&mut self.prefix);
            self.record.response_bytes += prefix.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(prefix))));
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                self.last = clock::now();
                if let Some(hold) = &self.hold {
                    hold.heard();
                }
                if let Some(trailers) = frame.trailers_mut() {
                    head::for_trailers(trailers);
                    // Nothing comes after them.
                    self.complete();
                }
                if let Some(data) = frame.data_ref() {
                    self.record.response_bytes += data.len() as u64;
                    if let Some(reader) = &mut self.reader {
                        reader.feed(data);
                    }
                }
                // hyper asks `is_end_stream` and may never poll again.
                if self.is_over() {
                    self.complete();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.record.end = End::UpstreamError;
                // An error, never an end: the client must see that something is missing.
                drop(self.hold.take());
                Poll::Ready(Some(Err(Cut::Upstream(error))))
            }
            // hyper takes HTTP/2's reset with NO_ERROR for an end, also in the middle (1.12, `body/incoming.rs`).
            Poll::Ready(None) if !self.honest && !self.inner.is_end_stream() => {
                self.record.end = End::UpstreamError;
                drop(self.hold.take());
                Poll::Ready(Some(Err(Cut::Short)))
            }
            Poll::Ready(None) => {
                self.complete();
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_silence(cx),
        }
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        loop {
            let silent_by = self.idle_max.map(|max| self.last + max);
            let Some(by) = silent_by.into_iter().chain(self.end_by).min() else { return Poll::Pending };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(by.into())));
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if clock::now() >= by {
                self.record.end = End::IdleTimeout;
                drop(self.hold.take());
                return Poll::Ready(Some(Err(Cut::Silence)));
            }
            // Something moved since the timer was set.
            timer.as_mut().reset(by.into());
        }
    }
}

/// However it ends: also of an answer that breaks off it is known who gave it.
impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(model) = self.reader.as_ref().and_then(UsageScanner::model) {
            self.record.span.answered_by(model);
        }
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Full { data, trailers, .. } => {
                let data = std::mem::take(data);
                let frame = if data.is_empty() {
                    trailers.take().map(|trailers| Frame::trailers(*trailers))
                } else {
                    Some(Frame::data(data))
                };
                Poll::Ready(frame.map(Ok))
            }
            Self::Relay(relay) => relay.poll_inner(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            // What was not announced ends when it is polled, or hyper would announce that it is empty.
            Self::Full { data, trailers, announced, .. } => *announced && data.is_empty() && trailers.is_none(),
            Self::Relay(relay) => relay.claims.is_none() && relay.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full { data, announced: true, .. } => SizeHint::with_exact(data.len() as u64),
            Self::Full { .. } => SizeHint::default(),
            Self::Relay(relay) => match relay.claims {
                Some(length) => SizeHint::with_exact(length),
                None => crate::upstream::plus(relay.prefix.len(), relay.inner.size_hint()),
            },
        }
    }
}
