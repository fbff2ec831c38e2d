//! What is noted of an exchange while it runs, if it is recorded.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::{Method, StatusCode, Version, header, request, uri::Authority};

use crate::{
    config::Upstream,
    control::{cost::Usage, retry::Failure},
    fault::FaultKind,
    metrics::End,
    provider::demand,
};

use super::{Ending, context::Context, export::Queue, names};

/// Attempts that become events; later ones are only counted. A request that is refused for minutes has hundreds.
pub(super) const ATTEMPTS_MAX: usize = 64;

/// The span of one exchange; of one that is not recorded, nothing.
#[derive(Default)]
pub struct Span(Option<Box<Open>>);

struct Open {
    exchange: Exchange,
    queue: Arc<Queue>,
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Span(recorded)" } else { "Span" })
    }
}

/// An exchange, as far as it is known. Texts are copies: what they were read from is the connection's buffer.
pub(super) struct Exchange {
    pub(super) context: Context,
    pub(super) began: Instant,
    /// `began` by the calendar.
    pub(super) at: SystemTime,
    pub(super) method: Method,
    /// Without what must not be told.
    pub(super) path: String,
    pub(super) version: Version,
    pub(super) scheme: &'static str,
    /// Where the client believes it has sent its request.
    pub(super) host: Option<(String, Option<u16>)>,
    pub(super) asked: Option<Asked>,
    /// The first of them.
    pub(super) attempts: Vec<Attempt>,
    /// How many left.
    left: usize,
    /// The model, by the answer.
    pub(super) answered_by: Option<String>,
    pub(super) usage: Option<Usage>,
    pub(super) ended: Option<Ended>,
}

/// What it is about.
pub(super) struct Asked {
    /// The configured path prefix, unless it is that of all paths.
    pub(super) route: Option<String>,
    pub(super) operation: Option<&'static str>,
    pub(super) provider: Option<&'static str>,
    pub(super) model: Option<String>,
    /// Host and port of the upstream.
    pub(super) upstream: (String, u16),
    /// Time spent waiting before: for the client's body.
    waited: Duration,
}

pub(super) struct Attempt {
    pub(super) left: Instant,
    /// Time spent waiting before, since the one before was over.
    pub(super) waited: Duration,
    pub(super) heard: Option<(Instant, StatusCode)>,
    pub(super) failure: Option<Failure>,
    /// Time spent waiting so far, in all.
    waited_in_all: Duration,
}

/// [`Ending`], to keep.
pub(super) struct Ended {
    pub(super) at: Instant,
    pub(super) end: End,
    pub(super) status: u16,
    pub(super) fault: Option<FaultKind>,
    pub(super) account: Option<(String, String)>,
    pub(super) attempts: u32,
    pub(super) queued: Duration,
    pub(super) waited: Duration,
    pub(super) upstream: Duration,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
}

impl Span {
    pub(super) fn begin(queue: &Arc<Queue>, head: &request::Parts, now: Instant) -> Self {
        let Some(context) = Context::of(&head.headers, queue.sample) else { return Self(None) };
        let exchange = Exchange {
            context,
            began: now,
            at: SystemTime::now(),
            method: head.method.clone(),
            path: names::scrubbed(head.uri.path()),
            version: head.version,
            scheme: queue.scheme,
            host: host(head),
            asked: None,
            attempts: Vec::new(),
            left: 0,
            answered_by: None,
            usage: None,
            ended: None,
        };
        Self(Some(Box::new(Open { exchange, queue: Arc::clone(queue) })))
    }

    /// It is known where the request goes, and what it asks for. `waited`: time spent waiting until here.
    pub fn asked(&mut self, waited: Duration, settings: &Upstream, path: &str, body: &[u8]) {
        let Some(Open { exchange, .. }) = self.0.as_deref_mut() else { return };
        let operation = names::operation(&exchange.method, path);
        let url = &settings.url;
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 });
        exchange.asked = Some(Asked {
            route: (settings.path_prefix != "/").then(|| settings.path_prefix.clone()),
            operation,
            provider: names::provider(settings.preset),
            model: operation.and_then(|_| demand::model(path, body)).and_then(names::model),
            upstream: (url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(), port),
            waited,
        });
    }

    /// An attempt leaves. `waited`: all the time spent waiting until here.
    pub fn leaves(&mut self, now: Instant, waited: Duration) {
        let Some(Open { exchange, .. }) = self.0.as_deref_mut() else { return };
        exchange.left += 1;
        if exchange.left > ATTEMPTS_MAX {
            return;
        }
        let before = exchange.attempts.last().map(|attempt| attempt.waited_in_all);
        let before = before.or_else(|| exchange.asked.as_ref().map(|asked| asked.waited)).unwrap_or_default();
        exchange.attempts.push(Attempt {
            left: now,
            waited: waited.saturating_sub(before),
            heard: None,
            failure: None,
            waited_in_all: waited,
        });
    }

    /// Its response head is here.
    pub fn heard(&mut self, now: Instant, status: StatusCode) {
        if let Some(attempt) = self.last() {
            attempt.heard = Some((now, status));
        }
    }

    /// It failed.
    pub fn failed(&mut self, failure: Failure) {
        if let Some(attempt) = self.last() {
            attempt.failure = Some(failure);
        }
    }

    /// It is worth knowing which model answers: it is recorded, and about one.
    #[must_use]
    pub fn wants_model(&self) -> bool {
        let asked = self.0.as_ref().and_then(|open| open.exchange.asked.as_ref());
        asked.is_some_and(|asked| asked.operation.is_some())
    }

    /// The answer said which model gave it.
    pub fn answered_by(&mut self, model: &str) {
        if let Some(open) = &mut self.0 {
            open.exchange.answered_by = names::model(model.into());
        }
    }

    /// The answer said what it used.
    pub fn used(&mut self, usage: &Usage) {
        if let Some(open) = &mut self.0 {
            open.exchange.usage = Some(*usage);
        }
    }

    /// The exchange has ended. Nothing is noted afterwards.
    pub fn end(&mut self, ending: &Ending<'_>) {
        let Some(open) = self.0.take() else { return };
        let Open { mut exchange, queue } = *open;
        let Ending {
            at, end, status, fault, attempts, queued, waited, upstream, request_bytes, response_bytes, ..
        } = *ending;
        let account = ending.account.map(|(upstream, account)| (upstream.to_owned(), account.to_owned()));
        exchange.ended = Some(Ended {
            at,
            end,
            status,
            fault,
            account,
            attempts,
            queued,
            waited,
            upstream,
            request_bytes,
            response_bytes,
        });
        queue.take(exchange);
    }

    /// The last attempt that left, unless that is one too many to be noted.
    fn last(&mut self) -> Option<&mut Attempt> {
        let exchange = &mut self.0.as_deref_mut()?.exchange;
        if exchange.left > ATTEMPTS_MAX { None } else { exchange.attempts.last_mut() }
    }
}

fn host(head: &request::Parts) -> Option<(String, Option<u16>)> {
    let told = || head.headers.get(header::HOST)?.to_str().ok()?.parse().ok();
    let authority: Authority = head.uri.authority().cloned().or_else(told)?;
    let host = authority.host().trim_matches(['[', ']']);
    (!host.is_empty()).then(|| (host.to_owned(), authority.port_u16()))
}

/// What reaches the queue of a span that `noted` filled.
#[cfg(test)]
pub(super) fn recorded(request: &http::Request<()>, now: Instant, noted: impl FnOnce(&mut Span)) -> Exchange {
    let (queue, mut receiver) = super::export::queue_alone();
    let (head, ()) = request.clone().into_parts();
    noted(&mut Span::begin(&queue, &head, now));
    receiver.try_recv().unwrap()
}
