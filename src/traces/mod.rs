//! Spans of exchanges, for an OpenTelemetry collector: `otlp` in the configuration, and in a binary built with the
//! feature of that name. Without the feature nothing is kept, and every call of this room comes to nothing.
//!
//! **One span per exchange, of kind server.** A client span is one attempt, by the HTTP conventions: each resend is one of
//! its own. What the client of an exchange waits for is more, the queue, all attempts and the body, and that is the
//! server's side of its request. Viewers pair it with the client span that is its parent. So `server.address` is where
//! the client believes it has sent its request, as the conventions have it for this kind; where an attempt went stands
//! in its event.
//!
//! **The header is not touched.** What goes upstream is the client's own `traceparent`. It is our span's parent, and its
//! sampled flag is obeyed; an exchange that brings none begins a trace, and is sampled by the configured share.
//!
//! **The way of a span:** [`Span`] collects what the request path knows anyhow (`span`), a bounded queue takes it when the
//! exchange has ended, and one task turns it into the conventions' words (`map`) and sends it in batches (`export`). What
//! finds the queue full, or a collector that does not take it, is dropped and counted.
//!
//! **What does not leave:** contents, headers, queries, credentials. Of a path, only segments that are plain words
//! (`names`), and the model's or deployment's name, which else the body tells; of an answer, the name of the model that
//! gave it. Neither is told if it may be an ARN.

#[cfg(feature = "otlp")]
mod context;
#[cfg(feature = "otlp")]
mod export;
#[cfg(feature = "otlp")]
mod map;
#[cfg(feature = "otlp")]
mod names;
#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod span;

use std::time::{Duration, Instant};

use crate::{fault::FaultKind, metrics::End};

#[cfg(feature = "otlp")]
pub use {export::Traces, span::Span};

#[cfg(not(feature = "otlp"))]
pub use off::{Span, Traces};

/// Why spans cannot be sent, known before any is.
#[derive(Debug, thiserror::Error)]
#[error("otlp: {0}")]
pub struct TracesError(pub String);

/// How an exchange ended.
#[derive(Debug, Clone, Copy)]
pub struct Ending<'a> {
    /// When.
    pub at: Instant,
    /// How.
    pub end: End,
    /// The status the client got; 0: none.
    pub status: u16,
    /// The fault Tidegate answered with.
    pub fault: Option<FaultKind>,
    /// Name of the upstream and label of the account, if it got that far.
    pub account: Option<(&'a str, &'a str)>,
    /// Attempts that left.
    pub attempts: u32,
    /// Time spent in the queue.
    pub queued: Duration,
    /// Time spent waiting, the queue and the client's body included.
    pub waited: Duration,
    /// Time between attempts leaving and their heads arriving.
    pub upstream: Duration,
    /// Body bytes that went up.
    pub request_bytes: u64,
    /// Body bytes that went down.
    pub response_bytes: u64,
}
