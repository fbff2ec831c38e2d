//! The request body: read whole before a slot is asked for, or passed through as it comes.
//!
//! A body that is held costs no slot while it arrives, can be sent again, and lets a hang-up of its client be noticed
//! while it queues.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::BodyExt;
use prometheus::IntGauge;

use super::Client;
use crate::{
    clock::{self, Alarm},
    fault::Fault,
    upstream::{BodyError, ClientBody, SendBody, Upload},
};

/// A body of unknown length is waited for this long between its pieces. What is complete by then is held; what is
/// not is a conversation (gRPC, long uploads) and must flow. Guess: longer than any sender that has its data pauses.
const UNANNOUNCED_PAUSE: Duration = Duration::from_millis(50);

/// A body that is held must come at least so fast, beyond a silence it may begin with: whoever drips would hold memory
/// for ever. Guess: a tenth of what a slow telephone has.
const HELD_BYTES_PER_SECOND_MIN: u64 = 16 * 1024;

/// A body up to this size is copied before it waits: it would keep a read buffer of 8 KiB from being used again.
const COMPACT_BYTES_MAX: usize = 8 * 1024;

/// Bytes of request bodies that the whole process may hold.
#[derive(Debug)]
pub struct BufferBudget {
    used: AtomicU64,
    max: AtomicU64,
    gauge: IntGauge,
}

impl BufferBudget {
    /// `gauge` follows what is used.
    #[must_use]
    pub fn new(max_bytes: u64, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), max: AtomicU64::new(max_bytes), gauge })
    }

    /// Changes the bound; what is held stays.
    pub fn set_max(&self, max_bytes: u64) {
        self.max.store(max_bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= max)
        });
        if taken.is_ok() {
            self.gauge.add(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        taken.is_ok()
    }
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
struct Share {
    budget: Arc<BufferBudget>,
    bytes: u64,
}

impl Share {
    fn grow(&mut self, bytes: u64) -> bool {
        let grown = self.budget.take(bytes);
        if grown {
            self.bytes += bytes;
        }
        grown
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.gauge.sub(i64::try_from(self.bytes).unwrap_or(i64::MAX));
    }
}

/// A client's request body. Without `Debug`: prompts are not to be printed.
pub(super) struct RequestBody {
    kind: Kind,
    _share: Option<Share>,
}

enum Kind {
    Buffered { data: Bytes, trailers: Option<Box<HeaderMap>>, chunked: bool },
    Streaming { unsent: Option<SendBody>, upload: Arc<Upload> },
}

impl RequestBody {
    /// Reads a body of up to `max_bytes` whole, as far as the budget allows; takes any other as it is.
    ///
    /// By reference, since a future keeps a place for whatever is passed to it.
    pub(super) async fn read(
        unread: &mut Option<ClientBody>,
        headers: &HeaderMap,
        max_bytes: u64,
        budget: &Arc<BufferBudget>,
        silence_max: Option<Duration>,
        client: &Client,
    ) -> Result<Self, Fault> {
        let Some(body) = unread.as_mut().filter(|body| !body.is_end_stream()) else {
            return Ok(Self::buffered(Bytes::new(), None, false, None));
        };
        let mut share = Share { budget: Arc::clone(budget), bytes: 0 };
        match body.size_hint().exact() {
            Some(length) if length <= max_bytes && share.grow(length) => {
                let mut alarm = std::mem::take(&mut *client.alarm.lock());
                let read = Self::announced(body, length, share, silence_max, &mut alarm).await;
                *client.alarm.lock() = alarm;
                read
            }
            // Reading it would ask the client for it (100 Continue), long before the upstream takes it.
            Some(_) => Self::streaming(Bytes::new(), unread.take(), silence_max),
            None if headers.contains_key(header::EXPECT) => Self::streaming(Bytes::new(), unread.take(), silence_max),
            None => Box::pin(Self::unannounced(unread, max_bytes, share, silence_max)).await,
        }
    }

    async fn announced(
        body: &mut ClientBody,
        length: u64,
        share: Share,
        silence_max: Option<Duration>,
        alarm: &mut Alarm,
    ) -> Result<Self, Fault> {
        let mut read = Pieces::default();
        let pace = Pace { began: clock::now(), silence_max };
        let mut bytes = 0;
        loop {
            let frame = match pace.next_by(bytes) {
                Some(by) => alarm.within(by, body.frame()).await.ok_or(Fault::RequestTimeout)?,
                None => body.frame().await,
            };
            match frame {
                Some(Ok(frame)) => {
                    bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
                    read.add(frame, length);
                }
                Some(Err(why)) => return Err(fault(&why)),
                None => break,
            }
            if body.is_end_stream() {
                break;
            }
        }
        let (data, trailers) = read.whole();
        // Over HTTP/1.1 nothing can follow a body that told its length.
        let chunked = trailers.is_some();
        Ok(Self::buffered(data, trailers, chunked, Some(share)))
    }

    async fn unannounced(
        unread: &mut Option<ClientBody>,
        max_bytes: u64,
        mut share: Share,
        silence_max: Option<Duration>,
    ) -> Result<Self, Fault> {
        let body = unread.as_mut().ok_or(Fault::BadBody)?;
        let mut read = Pieces::default();
        let pace = Pace { began: clock::now(), silence_max };
        // One that drips, with shorter pauses, is a conversation too.
        while pace.next_by(share.bytes).is_none_or(|by| clock::now() < by)
            && let Ok(frame) = tokio::time::timeout(UNANNOUNCED_PAUSE, body.frame()).await
        {
            match frame {
                Some(Ok(frame)) => {
                    let more = frame.data_ref().map_or(0, Bytes::len) as u64;
                    let room = share.bytes + more <= max_bytes && share.grow(more);
                    read.add(frame, 0);
                    if !room {
                        break;
                    }
                }
                Some(Err(why)) => return Err(fault(&why)),
                None => {
                    let (data, trailers) = read.whole();
                    return Ok(Self::buffered(data, trailers, true, Some(share)));
                }
            }
        }
        let (prefix, trailers) = read.whole();
        if body.is_end_stream() {
            return Ok(Self::buffered(prefix, trailers, true, Some(share)));
        }
        Self::streaming(prefix, unread.take(), silence_max)
    }

    fn buffered(data: Bytes, trailers: Option<Box<HeaderMap>>, chunked: bool, share: Option<Share>) -> Self {
        Self { kind: Kind::Buffered { data, trailers, chunked }, _share: share }
    }

    fn streaming(prefix: Bytes, rest: Option<ClientBody>, silence_max: Option<Duration>) -> Result<Self, Fault> {
        let rest = rest.ok_or(Fault::BadBody)?;
        let upload = Arc::new(Upload::new(silence_max));
        let unsent = SendBody::Streaming { prefix, rest, upload: Arc::clone(&upload) };
        Ok(Self { kind: Kind::Streaming { unsent: Some(unsent), upload }, _share: None })
    }

    /// The bytes held; empty for a body that streams.
    #[must_use]
    pub(super) fn held(&self) -> &[u8] {
        match &self.kind {
            Kind::Buffered { data, .. } => data,
            Kind::Streaming { .. } => &[],
        }
    }

    /// Gives up what the body shares with the connection's read buffer, for a body that is going to wait.
    pub(crate) fn compact(&mut self) {
        if let Kind::Buffered { data, .. } = &mut self.kind
            && data.len() <= COMPACT_BYTES_MAX
        {
            *data = Bytes::copy_from_slice(data);
        }
    }

    /// For a body that streams: how far it got.
    #[must_use]
    pub(super) fn upload(&self) -> Option<&Arc<Upload>> {
        match &self.kind {
            Kind::Buffered { .. } => None,
            Kind::Streaming { upload, .. } => Some(upload),
        }
    }

    /// Whether another attempt could send it.
    #[must_use]
    pub(super) fn is_replayable(&self) -> bool {
        match &self.kind {
            Kind::Buffered { .. } => true,
            Kind::Streaming { unsent, .. } => unsent.is_some(),
        }
    }

    /// The body for the next attempt; `None`: it streamed already.
    pub(super) fn next(&mut self) -> Option<SendBody> {
        match &mut self.kind {
            Kind::Buffered { data, trailers, chunked } => {
                Some(SendBody::Buffered { data: data.clone(), trailers: trailers.clone(), chunked: *chunked })
            }
            Kind::Streaming { unsent, .. } => unsent.take(),
        }
    }

    /// An attempt that wrote nothing gives its body back.
    pub(super) fn give_back(&mut self, body: SendBody) {
        if let Kind::Streaming { unsent, upload } = &mut self.kind
            && !upload.is_touched()
        {
            *unsent = Some(body);
        }
    }
}

/// How fast a body that is held must come.
struct Pace {
    began: Instant,
    silence_max: Option<Duration>,
}

impl Pace {
    /// When the next piece must be there, after `bytes`; `None`: whenever it likes.
    fn next_by(&self, bytes: u64) -> Option<Instant> {
        let silence_max = self.silence_max?;
        let earned = Duration::from_millis(bytes.saturating_mul(1000) / HELD_BYTES_PER_SECOND_MIN);
        Some((clock::now() + silence_max).min(self.began + silence_max + earned))
    }
}

fn fault(why: &BodyError) -> Fault {
    match why {
        BodyError::Broken(_) => Fault::BadBody,
        BodyError::TooLong => Fault::LongBody,
    }
}

/// Pieces of a body on their way to one.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    more: BytesMut,
    trailers: Option<Box<HeaderMap>>,
}

impl Pieces {
    /// `expected`: bytes of the whole body, if known.
    fn add(&mut self, frame: http_body::Frame<Bytes>, expected: u64) {
        match frame.into_data() {
            Ok(data) if self.first.is_empty() && self.more.is_empty() => self.first = data,
            Ok(data) => {
                if self.more.is_empty() {
                    let expected = usize::try_from(expected).unwrap_or(0);
                    self.more.reserve(expected.max(self.first.len() + data.len()));
                    self.more.extend_from_slice(&std::mem::take(&mut self.first));
                }
                self.more.extend_from_slice(&data);
            }
            Err(frame) => self.trailers = frame.into_trailers().ok().filter(|all| !all.is_empty()).map(Box::new),
        }
    }

    fn whole(self) -> (Bytes, Option<Box<HeaderMap>>) {
        let data = if self.more.is_empty() { self.first } else { self.more.freeze() };
        (data, self.trailers)
    }
}
