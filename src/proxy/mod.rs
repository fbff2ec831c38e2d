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
mod story;
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
    time::Duration,
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
    fault::Fault,
    gate::{Gate, Retired},
    metrics::Metrics,
    provider::presets::Preset,
    tasks::Tasks,
    traces::Traces,
    upstream::{ClientBody, Connector, Hold, Pool, Want},
};

pub use client::{AnswerToPanic, Client};
use record::Record;
pub use relay::{Cut, OutBody};
pub use request_body::BufferBudget;
use request_body::RequestBody;
pub use route::{Route, Snapshot};
use seen::{Seen, SeenAnswer};
use story::{Answer, Story};
pub use strict::HEADER_COUNT_MAX;
use turn::Turn;

/// What all threads share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub snapshot: ArcSwap<Snapshot>,
    /// What outlives the configuration it was made for.
    pub retired: Retired,
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Bytes that request bodies may take.
    pub buffers: Arc<BufferBudget>,
    /// Exchanges that still wait when this fires are answered instead of cut: the drain is over.
    pub refuse_waiting: CancellationToken,
    /// Not ready for new work: draining, or not started yet.
    pub draining: AtomicBool,
    /// Where spans go.
    pub traces: Traces,
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
    /// Not an async function: it would keep a second place for the head, since a future has one for everything that is
    /// passed to it and another where that is used. Thousands wait.
    pub fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        client: Arc<Client>,
    ) -> impl Future<Output = Result<Response<OutBody>, Infallible>> + Send + use<> {
        let (mut head, inner) = request.into_parts();
        async move {
            let snapshot = self.shared.snapshot.load_full();
            let mut record = Some(Record::of(&head, &self.shared.traces));
            let http1 = head.version <= http::Version::HTTP_11;
            match self.exchange(&mut head, inner, &client, &snapshot, &mut record).await {
                Ok(mut response) => {
                    if http1 && !self.shared.is_ready() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                        // While connections are still accepted: a client that keeps this one would find it closed later.
                        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok(response)
                }
                Err(fault) => Ok(self.refuse(&fault, &head, &snapshot, record)),
            }
        }
    }

    /// What becomes of an exchange without an answer of the upstream's.
    fn refuse(
        &self,
        fault: &Fault,
        head: &request::Parts,
        snapshot: &Snapshot,
        record: Option<Record>,
    ) -> Response<OutBody> {
        let preset = snapshot.route(&head.uri).map_or(Preset::Generic, |route| route.settings.preset);
        let http1 = head.version <= http::Version::HTTP_11;
        let response = fault.response(route::error_shape(head.uri.path(), preset), &head.method, http1);
        let Some(mut record) = record else { return response.map(|data| OutBody::own(data, None)) };
        if record.gate.is_none() {
            self.shared.metrics.fault_without_account(fault.kind());
        }
        record.refused_by(fault, response.status());
        let mut response = response;
        if snapshot.config.trace == Trace::Headers {
            record.write_trace(response.headers_mut());
        }
        response.map(|data| OutBody::own(data, Some(record)))
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
        let response = fault.response(preset.error_shape(), &Method::GET, true);
        // For its line in the log.
        Record::new().refused_by(&fault, response.status());
        response
    }

    /// The story of one exchange. Every way out that is not an answer of the upstream is a [`Fault`]. The head keeps its
    /// target.
    async fn exchange(
        &self,
        head: &mut request::Parts,
        inner: Incoming,
        client: &Client,
        snapshot: &Snapshot,
        record: &mut Option<Record>,
    ) -> Result<Response<OutBody>, Fault> {
        let Some(noted) = record.as_mut() else { return Err(Fault::BadBody) };
        let seen = Seen::of(&head.headers);
        if seen.secret {
            head::hide(&mut head.headers);
        }
        strict::request(head, &seen, snapshot.config.limits.header_bytes_max)?;
        let route = Arc::clone(snapshot.route(&head.uri)?);
        let settings = &route.settings;
        let upgrade = if seen.upgrade { head::upgrade_of(head, inner.is_end_stream()) } else { None };
        let asked = upgrade.is_some().then(|| head.extensions.remove::<OnUpgrade>()).flatten();
        let strip = if settings.strip_prefix { settings.path_prefix.trim_end_matches('/') } else { "" };
        let mut target = Uri::from(head::path(&head.uri, strip, &route.connector.base_path)?);
        let unheard =
            (head.version <= http::Version::HTTP_11 && !inner.is_end_stream()).then(|| Arc::clone(&client.unheard));
        let body_bytes_max = snapshot.config.limits.body_bytes_max.unwrap_or(u64::MAX);
        if inner.size_hint().lower() > body_bytes_max {
            return Err(Fault::LongBody);
        }
        let mut unread = Some(ClientBody { inner, unheard, left: body_bytes_max, for_trailers: head::for_trailers });

        // The body first: while it arrives, no slot is held.
        let mut body = RequestBody::read(
            &mut unread,
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
        noted.span.asked(noted.waited, settings, head.uri.path(), body.held());

        let gate = route.gate(head, body.held(), &self.shared.snapshot, snapshot.config.limits.accounts_max, client);
        noted.gate = Some(Arc::clone(&gate));
        let flow = snapshot.flow(&route, &head.headers, seen.own);
        let patience = if seen.patience { answer::client_patience(&head.headers) } else { None };
        let keyed = seen.idempotency_key;
        if seen.local {
            head::for_upstream(&mut head.headers, upgrade);
        } else if !seen.has_one_length() {
            head::one_length(&mut head.headers);
        }
        let http1 = head.version <= http::Version::HTTP_11;
        if !http1 {
            head::join_cookies(&mut head.headers);
        }

        let wait = settings.deadlines.total.into_iter().chain(patience).fold(settings.queue.wait_max, Duration::min);
        let (demand, tariff) = route.demand(&head.method, &seen.told, target.path(), body.held());
        noted.tariff = tariff;
        let turn = Turn::new(gate, flow, demand, noted.started + wait, wait);
        let want = if asked.is_some() { Want::Http1 } else { Want::Any };
        let mut story = Story {
            engine: self,
            route: &route,
            head,
            target: &mut target,
            turn,
            want,
            keyed,
            failures: 0,
            unreached_since: None,
            last: None,
            fields: Vec::new(),
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
            Answer::Good(response, hold, _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                record.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
                self.join(response, hold, asked, Box::new(record))
            }
            Answer::Good(response, mut hold, seen) => {
                let (mut head, inner) = response.into_parts();
                record.status = head.status.as_u16();
                let wanted = usage::is_wanted(settings, &mut hold);
                let reader = usage::reader(&head, &record.tariff, wanted, record.span.wants_model());
                answer::prepare(&mut head, seen);
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
        let seen = SeenAnswer::of(&head.headers);
        answer::prepare(&mut head, seen);
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

impl Shared {
    /// Ready for new work.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.draining.load(Ordering::Relaxed)
    }

    /// Every gate there is, those of upstreams that are no longer configured while somebody is in them.
    #[must_use]
    pub fn gates(&self) -> Vec<Arc<Gate>> {
        let mut gates: Vec<_> = self.snapshot.load().routes.iter().flat_map(|route| route.accounts.all()).collect();
        gates.extend(self.retired.in_use());
        gates
    }
}
