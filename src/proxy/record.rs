//! What is known about one exchange: written down once, when it ends, however it ends.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, request};

use crate::{
    clock,
    control::{cost::Tariff, retry::Failure, signals::Attribution},
    fault::{Fault, FaultKind},
    gate::Gate,
    metrics::End,
    traces::{Ending, Span, Traces},
    upstream::Upload,
};

/// Refusals of one exchange that `trace: headers` shows; later ones are only counted.
const REFUSALS_SHOWN: usize = 8;

/// The record of an exchange. Dropping it counts and logs it.
#[derive(Debug)]
pub struct Record {
    /// When the request's head was complete.
    pub started: Instant,
    /// The gate it went through, once it is known.
    pub gate: Option<Arc<Gate>>,
    /// Attempts that left.
    pub attempts: u32,
    /// Why the first attempts that were refused were.
    refusals: [Option<Attribution>; REFUSALS_SHOWN],
    /// Time spent waiting: for slots, for pauses, between attempts, for the client's body.
    pub waited: Duration,
    /// Thereof in the gate's queue.
    pub queued: Duration,
    /// Time between attempts leaving and their heads arriving.
    pub upstream: Duration,
    /// The status the client got.
    pub status: u16,
    /// How it ends unless something else is noted: a client that leaves drops everything without a word.
    pub end: End,
    /// The fault Tidegate answered with.
    pub fault: Option<FaultKind>,
    /// Of a fault: what it was, in words. Before there is one: what was said about the last attempt that did not leave.
    pub reason: Option<Box<str>>,
    /// Body bytes of a request that was held.
    pub request_bytes: u64,
    /// A request that streamed.
    pub upload: Option<Arc<Upload>>,
    /// Body bytes that went down.
    pub response_bytes: u64,
    /// What a collector is told of it, if it is.
    pub span: Span,
    /// By which price it is paid for.
    pub tariff: Tariff,
}

impl Record {
    /// An exchange begins.
    #[must_use]
    pub fn new() -> Self {
        Self {
            started: clock::now(),
            gate: None,
            attempts: 0,
            refusals: [None; REFUSALS_SHOWN],
            waited: Duration::ZERO,
            queued: Duration::ZERO,
            upstream: Duration::ZERO,
            status: 0,
            end: End::ClientLeft,
            fault: None,
            reason: None,
            request_bytes: 0,
            upload: None,
            response_bytes: 0,
            span: Span::default(),
            tariff: Tariff::None,
        }
    }

    /// The same, of a request whose head is complete.
    #[must_use]
    pub fn of(head: &request::Parts, traces: &Traces) -> Self {
        let mut record = Self::new();
        record.span = traces.begin(head, record.started);
        record
    }

    /// An attempt leaves. Returns when.
    pub fn leaves(&mut self) -> Instant {
        self.attempts += 1;
        let began = clock::read_anew();
        self.span.leaves(began, self.waited);
        began
    }

    /// The attempt that left at `began` is answered, or failed without an answer.
    pub fn heard(&mut self, began: Instant, status: Option<StatusCode>) {
        let now = clock::now();
        self.upstream += now.saturating_duration_since(began);
        if let Some(status) = status {
            self.span.heard(now, status);
        }
    }

    /// It may be made again.
    pub fn failed(&mut self, failure: Failure) {
        self.span.failed(failure);
        match failure {
            Failure::Bounced(attribution) => self.refused(attribution),
            Failure::Overload => self.refused(Attribution::Overload),
            Failure::Broken | Failure::Server | Failure::TimedOut | Failure::Unreached => {}
        }
    }

    /// The upstream refused an attempt.
    fn refused(&mut self, attribution: Attribution) {
        if let Some(slot) = self.refusals.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(attribution);
        }
    }

    /// The response head goes down now: what is left of the time so far is Tidegate's own share.
    pub fn head_goes_down(&self) {
        if let Some(gate) = &self.gate {
            let so_far = clock::read_anew().saturating_duration_since(self.started);
            gate.metrics.overhead.observe(so_far.saturating_sub(self.waited + self.upstream).as_secs_f64());
        }
    }

    /// It ends with a fault that is answered with `status`.
    pub fn refused_by(&mut self, fault: &Fault, status: StatusCode) {
        let reason = match (fault, self.reason.take()) {
            (Fault::Unreachable(_), Some(said)) => format!("{fault}: {said}"),
            _ => fault.to_string(),
        };
        (self.end, self.fault, self.status) = (End::Fault, Some(fault.kind()), status.as_u16());
        self.reason = Some(reason.into());
    }

    /// Tidegate failed inside.
    pub fn panicked(&mut self) {
        (self.end, self.fault) = (End::Fault, Some(FaultKind::Internal));
    }

    /// `trace: headers`.
    pub fn write_trace(&self, headers: &mut HeaderMap) {
        headers.insert(HeaderName::from_static("x-tidegate-attempts"), HeaderValue::from(self.attempts));
        headers.insert(
            HeaderName::from_static("x-tidegate-queued-ms"),
            HeaderValue::from(u64::try_from(self.queued.as_millis()).unwrap_or(u64::MAX)),
        );
        let refused: Vec<&str> = self.refusals.iter().flatten().map(|attribution| attribution.label()).collect();
        if let Ok(refused) = HeaderValue::try_from(refused.join(", "))
            && !refused.is_empty()
        {
            headers.insert(HeaderName::from_static("x-tidegate-refused"), refused);
        }
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let timing = format!("queue;dur={:.1}, upstream;dur={:.1}", ms(self.queued), ms(self.upstream));
        if let Ok(timing) = HeaderValue::try_from(timing) {
            headers.append(HeaderName::from_static("server-timing"), timing);
        }
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if std::thread::panicking() && self.fault.is_none() {
            (self.end, self.fault) = (End::Fault, Some(FaultKind::Internal));
        }
        let now = clock::now();
        let request_bytes = self.upload.as_ref().map_or(self.request_bytes, |upload| upload.bytes());
        self.span.end(&Ending {
            at: now,
            end: self.end,
            status: self.status,
            fault: self.fault,
            account: self.gate.as_ref().map(|gate| (gate.upstream(), gate.account())),
            attempts: self.attempts,
            queued: self.queued,
            waited: self.waited,
            upstream: self.upstream,
            request_bytes,
            response_bytes: self.response_bytes,
        });
        let took = now.saturating_duration_since(self.started);
        if let Some(gate) = &self.gate {
            gate.metrics.exchange_ended(self.end);
            gate.metrics.exchange.observe(took.as_secs_f64());
            gate.metrics.relayed(request_bytes, self.response_bytes);
            if let Some(fault) = self.fault {
                gate.metrics.fault(fault);
            }
        }
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    upstream = self.gate.as_ref().map(|gate| gate.upstream()),
                    account = self.gate.as_ref().map(|gate| gate.account()),
                    end = self.end.label(),
                    status = self.status,
                    fault = self.fault.map(FaultKind::label),
                    reason = self.reason.as_deref().filter(|_| self.fault.is_some()),
                    attempts = self.attempts,
                    queued_ms = self.queued.as_millis() as u64,
                    took_ms = took.as_millis() as u64,
                    request_bytes,
                    response_bytes = self.response_bytes,
                    "exchange"
                )
            };
        }
        match self.end {
            // What the client gets of it is a failure all the same.
            End::Complete if self.status == 429 || self.status >= 500 => log!(info),
            End::Complete | End::Upgraded | End::ClientLeft => log!(debug),
            End::Fault | End::IdleTimeout | End::UpstreamError => log!(info),
        }
    }
}
