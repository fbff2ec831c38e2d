//! The life of an exchange, top to bottom.

mod answer;
mod client;
#[cfg(fuzzing)]
pub mod door;
mod head;
mod record;
mod relay;
mod request_body;
mod route;
mod seen;
mod strict;
mod turn;
mod upgrade;
mod usage;

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    config::Trace,
    control::{
        limit::Outcome,
        retry::{Facts, Failure, Verdict},
        signals::{Attribution, Signals},
    },
    fault::{Fault, Unreached},
    gate::{Gate, Permit},
    metrics::{End, Metrics},
    provider::{presets::Preset, signals},
    tasks::Tasks,
    upstream::{ClientBody, Connector, Failed, Hold, Pool, SendBody, Want},
};

use answer::Examined;
pub use client::{AnswerToPanic, Client};
use record::Record;
pub use relay::{Cut, OutBody};
pub use request_body::BufferBudget;
use request_body::RequestBody;
pub use route::{Route, Snapshot};
use seen::Seen;
pub use strict::HEADER_COUNT_MAX;
use turn::{Start, Turn};

/// What all threads share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Bytes that request bodies may take.
    pub buffers: Arc<BufferBudget>,
    /// Exchanges that still wait when this fires are answered instead of cut: the drain is over.
    pub refuse_waiting: CancellationToken,
    /// Not ready for new work: draining, or not started yet.
    pub draining: AtomicBool,
}

/// One per thread: the shared parts, and this thread's own connections.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    /// Connections and timers: what nobody waits for.
    background: Tasks,
    /// What a drain waits for: tunnels, here.
    exchanges: Tasks,
    pools: Mutex<Vec<Arc<Pool>>>,
}

impl Engine {
    /// An engine without connections yet. A drain waits for `exchanges`, and not for `background`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, background: Tasks, exchanges: Tasks) -> Arc<Self> {
        Arc::new(Self { shared, background, exchanges, pools: Mutex::default() })
    }

    /// Answers one request. Never fails: what goes wrong becomes an answer.
    ///
    /// The request is boxed, since a future keeps room for every place a value passes through, and thousands wait.
    pub async fn handle(
        self: Arc<Self>,
        request: Box<Request<Incoming>>,
        client: Arc<Client>,
    ) -> Result<Response<OutBody>, Infallible> {
        let snapshot = self.shared.snapshot.load_full();
        let mut record = Some(Box::new(Record::new()));
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let http1 = request.version() <= http::Version::HTTP_11;
        let fault = match self.exchange(request, &client, &snapshot, &mut record).await {
            Ok(mut response) => {
                if http1 && !self.shared.is_ready() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    // While connections are still accepted: a client that keeps this one would find it closed later.
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                return Ok(response);
            }
            Err(fault) => fault,
        };
        let preset = snapshot.route(&uri).map_or(Preset::Generic, |route| route.settings.preset);
        let response = fault.response(route::error_shape(uri.path(), preset), &method, http1);
        let Some(mut record) = record else { return Ok(response.map(|data| OutBody::own(data, None))) };
        if record.gate.is_none() {
            self.shared.metrics.fault_without_account(fault.kind());
        }
        record.fault = Some(fault.kind());
        record.end = End::Fault;
        record.status = response.status().as_u16();
        let mut response = response;
        if snapshot.config.trace == Trace::Headers {
            record.write_trace(response.headers_mut());
        }
        Ok(response.map(|data| OutBody::own(data, Some(record))))
    }

    /// What a client gets for bytes that are no request, or none that is read to its end: `status` is 400, 414 or 431.
    #[must_use]
    pub fn answer_to_no_request(&self, status: u16) -> Response<Bytes> {
        let fault = match status {
            414 => Fault::LongTarget,
            431 => Fault::LongHead,
            _ => Fault::BadHead("it is not well-formed HTTP"),
        };
        self.shared.metrics.fault_without_account(fault.kind());
        // No path is known; most have one upstream.
        let snapshot = self.shared.snapshot.load();
        let preset = snapshot.routes.first().map_or(Preset::Generic, |route| route.settings.preset);
        fault.response(preset.error_shape(), &Method::GET, true)
    }

    /// The story of one exchange. Every way out that is not an answer of the upstream is a [`Fault`].
    async fn exchange(
        &self,
        mut request: Box<Request<Incoming>>,
        client: &Client,
        snapshot: &Snapshot,
        record: &mut Option<Box<Record>>,
    ) -> Result<Response<OutBody>, Fault> {
        let Some(noted) = record.as_mut() else { return Err(Fault::BadBody) };
        let seen = Seen::of(request.headers());
        if seen.secret {
            head::hide(request.headers_mut());
        }
        strict::request(&request, snapshot.config.limits.header_bytes_max)?;
        let route = Arc::clone(snapshot.route(request.uri())?);
        let settings = &route.settings;
        let upgrade = if seen.upgrade { head::upgrade_of(&request) } else { None };
        let asked = upgrade.is_some().then(|| hyper::upgrade::on(request.as_mut()));
        let strip = if settings.strip_prefix { settings.path_prefix.trim_end_matches('/') } else { "" };
        let path = head::path(request.uri(), strip, &route.connector.base_path)?;
        let (mut head, inner) = request.into_parts();
        let unheard =
            (head.version <= http::Version::HTTP_11 && !inner.is_end_stream()).then(|| Arc::clone(&client.unheard));
        let body_bytes_max = snapshot.config.limits.body_bytes_max.unwrap_or(u64::MAX);
        if inner.size_hint().lower() > body_bytes_max {
            return Err(Fault::LongBody);
        }
        let body = ClientBody { inner, unheard, left: body_bytes_max, for_trailers: head::for_trailers };

        // The body first: while it arrives, no slot is held.
        let mut body = RequestBody::read(
            body,
            &head.headers,
            snapshot.config.buffers.request_max_bytes,
            &self.shared.buffers,
            settings.deadlines.idle,
            client,
        )
        .await?;
        noted.waited = clock::now().saturating_duration_since(noted.started);
        noted.request_bytes = body.held().len() as u64;
        noted.upload = body.upload().cloned();

        let gate = route.gate(&head, body.held(), snapshot.config.limits.accounts_max, client);
        noted.gate = Some(Arc::clone(&gate));
        let flow = snapshot.flow(&route, &head.headers, seen.own);
        let patience = if seen.patience { answer::client_patience(&head.headers) } else { None };
        let keyed = seen.idempotency_key;
        if seen.local {
            head::for_upstream(&mut head.headers, upgrade);
        } else {
            head::one_length(&mut head.headers);
        }
        let http1 = head.version <= http::Version::HTTP_11;
        if !http1 {
            head::join_cookies(&mut head.headers);
        }
        head.uri = Uri::from(path);

        let wait = settings.deadlines.total.into_iter().chain(patience).fold(settings.queue.wait_max, Duration::min);
        let (demand, tariff) = route.demand(&head, body.held());
        noted.tariff = tariff;
        let turn = Turn::new(gate, flow, demand, noted.started + wait, wait);
        let want = if asked.is_some() { Want::Http1 } else { Want::Any };
        let mut story = Story {
            engine: self,
            route: &route,
            head: &mut head,
            turn,
            want,
            keyed,
            failures: 0,
            unreached_since: None,
            last: None,
        };
        let end_by = settings.deadlines.total.map(|total| noted.started + total);
        let answered = match end_by {
            Some(by) => tokio::time::timeout_at(by.into(), Box::pin(story.run(&mut body, noted)))
                .await
                .unwrap_or(Err(Fault::Deadline(settings.deadlines.total.unwrap_or_default()))),
            None => story.run(&mut body, noted).await,
        };
        let answer = match answered {
            Ok(answer) => answer,
            // The upstream's own last word says more than ours.
            Err(fault) => Answer::Examined(story.last.take().ok_or(fault)?, true),
        };
        drop(story);
        let Some(mut record) = record.take() else { return Err(Fault::BadBody) };
        record.head_goes_down();
        let trace = (snapshot.config.trace == Trace::Headers).then(|| {
            let mut headers = HeaderMap::new();
            record.write_trace(&mut headers);
            headers
        });
        let mut response = match answer {
            Answer::Examined(examined, spent) => examined.into_response(spent, settings.deadlines.idle, end_by, record),
            Answer::Good(good) if good.0.status() == StatusCode::SWITCHING_PROTOCOLS => {
                record.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
                let (response, hold) = *good;
                self.join(response, hold, asked, record)
            }
            Answer::Good(good) => {
                let (response, mut hold) = *good;
                let (mut head, inner) = response.into_parts();
                record.status = head.status.as_u16();
                let reader = usage::reader(&head, usage::is_wanted(settings, &mut hold));
                answer::prepare(&mut head);
                let claims = answer::length_of_absent(&head).filter(|_| http1);
                let body = OutBody::relay(Bytes::new(), inner, hold, settings.deadlines.idle, end_by, record);
                Response::from_parts(head, body.reading(reader).claiming(claims))
            }
        };
        response.headers_mut().extend(trace.unwrap_or_default());
        Ok(response)
    }

    /// 101: the connections are joined as soon as both sides are through with HTTP.
    fn join(
        &self,
        mut response: Response<Incoming>,
        hold: Hold,
        asked: Option<OnUpgrade>,
        record: Box<Record>,
    ) -> Response<OutBody> {
        let upstream = hyper::upgrade::on(&mut response);
        if let Some(client) = asked {
            upgrade::tunnel(&self.exchanges, client, upstream, hold.into_tunnel(), record);
        }
        let (mut head, _) = response.into_parts();
        answer::prepare(&mut head);
        Response::from_parts(head, OutBody::own(Bytes::new(), None))
    }

    /// This thread's connections to an upstream.
    fn pool(&self, connector: &Arc<Connector>) -> Arc<Pool> {
        let mut pools = self.pools.lock();
        if let Some(pool) = pools.iter().find(|pool| Arc::ptr_eq(pool.connector(), connector)) {
            return Arc::clone(pool);
        }
        // A connector that only we still hold belongs to a configuration that is gone.
        pools.retain(|pool| Arc::strong_count(pool.connector()) > 1);
        let pool = Pool::new(Arc::clone(connector), Arc::clone(&self.shared.metrics), self.background.clone());
        pools.push(Arc::clone(&pool));
        pool
    }
}

/// What the client gets in the end.
enum Answer {
    /// What was read already; the flag says that it failed, and that retries were made and did not help.
    Examined(Box<Examined>, bool),
    /// Everything else.
    Good(Box<(Response<Incoming>, Hold)>),
}

/// The attempts of one exchange.
struct Story<'a> {
    engine: &'a Engine,
    route: &'a Route,
    head: &'a mut request::Parts,
    turn: Turn,
    want: Want,
    keyed: bool,
    /// Failed attempts; refusals (429) are not among them.
    failures: u32,
    /// Since when the upstream could not be reached, without an answer in between.
    unreached_since: Option<Instant>,
    /// The last answer that was not passed on.
    last: Option<Box<Examined>>,
}

impl Story<'_> {
    async fn run(&mut self, body: &mut RequestBody, record: &mut Record) -> Result<Answer, Fault> {
        let pool = self.engine.pool(&self.route.connector);
        loop {
            let again = record.attempts > 0;
            let began = clock::now();
            let permit = match self.turn.at_once() {
                Ok(Start::Leaves(permit)) => Ok(permit),
                Ok(Start::Waits(place)) => tokio::select! {
                    permit = self.turn.permit(self.head, body, place, again) => permit,
                    () = self.engine.shared.refuse_waiting.cancelled() => Err(Fault::Draining),
                },
                Err(fault) => Err(fault),
            };
            let waited = clock::now().saturating_duration_since(began);
            record.queued += waited;
            record.waited += waited;
            self.turn.gate.metrics.queue_wait.observe(waited.as_secs_f64());
            let permit = permit?;
            let send = body.next().ok_or(Fault::BadBody)?;

            record.attempts += 1;
            let began = clock::read_anew();
            let first_byte_max = self.route.settings.deadlines.first_byte;
            let sent = pool.send(self.request(send), permit, self.want, first_byte_max).await;
            record.upstream += clock::now().saturating_duration_since(began);
            let trouble = match sent {
                Ok((response, mut hold)) => match self.heard(&response, &mut hold)? {
                    Heard::Good => return Ok(Answer::Good(Box::new((response, hold)))),
                    Heard::Suspect(failure) => match Box::pin(self.examined(failure, response, hold)).await {
                        Examination::Passed(examined) => return Ok(Answer::Examined(examined, false)),
                        Examination::Trouble(trouble) => trouble,
                    },
                },
                Err(failed) => Box::new(self.failed(failed, body)?),
            };
            match trouble.failure {
                Failure::Bounced(attribution) => record.refused(attribution),
                Failure::Overload => record.refused(Attribution::Overload),
                Failure::Broken | Failure::Server | Failure::TimedOut | Failure::Unreached => {}
            }
            let verdict = self.verdict(&trouble, body.is_replayable(), began);
            let Verdict::Retry { after } = verdict else {
                return match trouble.cause {
                    Cause::Answer(answer) => Ok(Answer::Examined(answer, record.attempts > 1)),
                    Cause::Fault(fault) => Err(fault),
                };
            };
            self.turn.gate.metrics.retried(trouble.failure);
            tracing::debug!(
                upstream = self.turn.gate.upstream(),
                account = self.turn.gate.account(),
                reason = trouble.failure.label(),
                after_ms = after.as_millis() as u64,
                "attempt is made again"
            );
            if let Cause::Answer(answer) = trouble.cause {
                self.last = answer.set_aside().map(Box::new);
            }
            if !after.is_zero() {
                let refused = self.engine.shared.refuse_waiting.run_until_cancelled(tokio::time::sleep(after));
                Box::pin(refused).await.ok_or(Fault::Draining)?;
                record.waited += after;
            }
        }
    }

    fn request(&self, body: SendBody) -> Request<SendBody> {
        let mut request = Request::new(body);
        request.method_mut().clone_from(&self.head.method);
        request.uri_mut().clone_from(&self.head.uri);
        request.headers_mut().clone_from(&self.head.headers);
        request
    }

    /// A response head arrived.
    fn heard(&self, response: &Response<Incoming>, hold: &mut Hold) -> Result<Heard, Fault> {
        let status = response.status();
        if let Some(permit) = hold.permit() {
            permit.gate().metrics.first_byte.observe(permit.age().as_secs_f64());
        }
        if !strict::answer(response, &self.head.headers) {
            return Err(Fault::UpstreamProtocol);
        }
        self.route.note_balance(&self.turn.gate, response.headers());
        let said = signals::from_head(self.route.settings.preset, status, response.headers(), SystemTime::now);
        let failure = answer::failure_of(status, &said);
        if failure.is_some() || answer::may_refuse(response, &said) {
            return Ok(Heard::Suspect(failure));
        }
        if let Some(permit) = hold.permit() {
            permit.observe(answer::outcome_of(status), Some((status.as_u16(), &said)));
        }
        Ok(Heard::Good)
    }

    /// Reads the body of an answer that may lead to another attempt. `failure`: what its head says.
    async fn examined(&self, failure: Option<Failure>, response: Response<Incoming>, hold: Hold) -> Examination {
        let reused = hold.reused();
        let Some(examined) = Examined::read(failure, self.route.settings.preset, response, hold).await else {
            return Examination::Trouble(Box::new(Trouble {
                failure: Failure::Broken,
                signals: Signals::default(),
                reused,
                cause: Cause::Fault(Fault::UpstreamProtocol),
            }));
        };
        let examined = Box::new(examined);
        match examined.failure {
            None => Examination::Passed(examined),
            Some(failure) => Examination::Trouble(Box::new(Trouble {
                failure,
                signals: examined.signals,
                reused: false,
                cause: Cause::Answer(examined),
            })),
        }
    }

    /// No response head arrived.
    fn failed(&self, failed: Failed, body: &mut RequestBody) -> Result<Trouble, Fault> {
        let observe = |permit: Option<Permit>, outcome| {
            if let Some(mut permit) = permit {
                permit.observe(outcome, None);
            }
        };
        let (failure, reused, fault) = match failed {
            Failed::Unsent { request, permit, why } => {
                body.give_back(request.into_body());
                // A name that does not resolve and a certificate that does not verify are no matter of load.
                let load = matches!(why, Unreached::Connect | Unreached::Timeout);
                observe(permit, if load { Outcome::Overloaded } else { Outcome::Ignored });
                (Failure::Unreached, false, Fault::Unreachable(why))
            }
            Failed::Unprocessed { permit } => {
                observe(permit, Outcome::Ignored);
                (Failure::Unreached, false, Fault::UpstreamProtocol)
            }
            Failed::Sent { permit, reused, error } => {
                observe(permit, Outcome::Ignored);
                if let Some(upload) = body.upload().filter(|upload| upload.has_failed()) {
                    return Err(if upload.was_too_long() { Fault::LongBody } else { Fault::BadBody });
                }
                tracing::debug!(upstream = self.turn.gate.upstream(), %error, "attempt broke");
                (Failure::Broken, reused, Fault::UpstreamProtocol)
            }
            Failed::Silent { .. } if body.upload().is_some_and(|upload| upload.fell_silent()) => {
                return Err(Fault::RequestTimeout);
            }
            Failed::Silent { after } => (Failure::TimedOut, false, Fault::FirstByteTimeout(after)),
        };
        Ok(Trouble { failure, signals: Signals::default(), reused, cause: Cause::Fault(fault) })
    }

    /// `began`: when the attempt did.
    fn verdict(&mut self, trouble: &Trouble, replayable: bool, began: Instant) -> Verdict {
        if !matches!(trouble.failure, Failure::Bounced(_)) {
            self.failures += 1;
        }
        let mut remaining = self.turn.remaining();
        if let Cause::Fault(Fault::Unreachable(_)) = trouble.cause {
            // An upstream that is away is away for all: its clients are told while they still can turn elsewhere.
            let since = *self.unreached_since.get_or_insert(began);
            let connect_max = self.route.settings.deadlines.connect;
            remaining = remaining.min(connect_max.saturating_sub(clock::now().saturating_duration_since(since)));
        } else {
            self.unreached_since = None;
        }
        self.turn.gate.verdict(&Facts {
            failure: trouble.failure,
            replayable,
            idempotent: head::is_idempotent(&self.head.method),
            keyed: self.keyed,
            reused: trouble.reused,
            failures: self.failures,
            signals: trouble.signals,
            remaining,
        })
    }
}

/// What a response head tells.
enum Heard {
    /// The answer is passed on.
    Good,
    /// It may lead to another attempt: the failure it is, if its head says so.
    Suspect(Option<Failure>),
}

/// What the body of such an answer tells.
enum Examination {
    Passed(Box<Examined>),
    Trouble(Box<Trouble>),
}

/// An attempt that may be made again.
struct Trouble {
    failure: Failure,
    signals: Signals,
    reused: bool,
    cause: Cause,
}

/// What the client gets if it is not made again.
enum Cause {
    Answer(Box<Examined>),
    Fault(Fault),
}

impl Shared {
    /// Ready for new work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }

    /// Every gate there is.
    #[must_use]
    pub fn gates(&self) -> Vec<Arc<Gate>> {
        self.snapshot.load().routes.iter().flat_map(|route| route.accounts.all()).collect()
    }
}
