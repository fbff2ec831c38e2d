//! The connections of one thread to one upstream: check out, send, give back.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    clock::{self, Alarm},
    fault::Unreached,
    gate::Permit,
    metrics::Metrics,
    tasks::Tasks,
};

use super::{
    Ages, Connector, SendBody,
    answered::Answered,
    connect::{self, NotReached, Stream},
    hold::{Conn, Hold, Http1, Http2, Io, Landing, Streams, Unheard},
};

/// Idle connections kept per thread and upstream.
const IDLE_COUNT_MAX: usize = 256;
/// Streams on one HTTP/2 connection, whatever more the upstream allows: one broken connection ends all of them.
const STREAMS_MAX: usize = 100;
/// Time a connection has to become ready after its last response ended; it takes one turn of its task.
const READY_MAX: Duration = Duration::from_secs(1);
/// What an upstream that has not told its number of streams is taken to allow; a number nobody would choose, so that
/// being told can be noticed.
const STREAMS_UNTOLD: usize = 97;
/// Time an upstream has to send the settings that every connection begins with (RFC 9113 3.4).
const SETTINGS_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether they have come; loopback takes a fraction of it.
const SETTINGS_LOOK: Duration = Duration::from_millis(1);
/// HTTP/1.1: how far a connection reads ahead of the body's reader, and the longest head. hyper's default is 417 KB.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// HTTP/1.1: fields of an answer's head, for the same reason as on the clients' side not 256.
const HEADER_COUNT_MAX: usize = 224;
/// HTTP/2: the longest head; hyper's default is a quarter of what HTTP/1.1 takes here.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// HTTP/2 windows: a stream may run this far ahead of its reader …
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// … and all streams of a connection together this far.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// An HTTP/2 connection with streams on it is asked for a sign of life this often.
const PING_EVERY: Duration = Duration::from_secs(20);

/// What a request needs of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Whatever the upstream speaks.
    Any,
    /// HTTP/1.1, since it asks for an upgrade.
    Http1,
}

/// Why an attempt got no response head.
pub enum Failed {
    /// Nothing of it was written. The request comes back as it was.
    Unsent {
        /// To be sent again.
        request: Box<Request<SendBody>>,
        /// Still held.
        permit: Option<Permit>,
        /// Why.
        why: NotReached,
    },
    /// The upstream said that it did not process it (HTTP/2 `REFUSED_STREAM`, `GOAWAY`).
    Unprocessed {
        /// Still held.
        permit: Option<Permit>,
    },
    /// It was, or may have been, written.
    Sent {
        /// Still held.
        permit: Option<Permit>,
        /// The connection had served other attempts before.
        reused: bool,
        /// What hyper says about it.
        error: hyper::Error,
    },
    /// It was written, and no response head came in time. The attempt is abandoned; its slot comes back when the
    /// upstream has noticed.
    Silent {
        /// How long it was waited for.
        after: Duration,
    },
}

/// Waits for the response head of an attempt that was sent.
pub(super) type Sending = Pin<Box<dyn Future<Output = Result<(Response<Incoming>, Hold), Failed>> + Send>>;

/// The connections of one thread to one upstream.
pub struct Pool {
    pub(super) connector: Arc<Connector>,
    pub(super) tasks: Tasks,
    metrics: Arc<Metrics>,
    #[expect(clippy::vec_box, reason = "each moves between here and those who hold it, once per attempt")]
    idle: Mutex<Vec<Box<Http1>>>,
    http2: Mutex<Vec<Http2>>,
    /// One connect at a time while the upstream may turn out to speak HTTP/2, where one connection serves all.
    dialing: tokio::sync::Mutex<()>,
    /// An HTTP/1.1 answer to ALPN was seen, so connects need not wait for each other.
    only_http1: std::sync::atomic::AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("connector", &self.connector).finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool, swept by a task until `tasks` stop.
    #[must_use]
    pub fn new(connector: Arc<Connector>, metrics: Arc<Metrics>, tasks: Tasks) -> Arc<Self> {
        let only_http1 = !connector.may_speak_http2();
        let pool = Arc::new(Self {
            connector,
            metrics,
            idle: Mutex::default(),
            http2: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            only_http1: only_http1.into(),
            tasks,
        });
        let (swept, stopping, ages) = (Arc::downgrade(&pool), pool.tasks.stopping(), pool.connector.ways.ages);
        pool.tasks.spawn("pool sweep", async move {
            while stopping.run_until_cancelled(tokio::time::sleep(ages.sweep_every)).await.is_some() {
                let Some(pool) = swept.upgrade() else { return };
                let now = clock::now();
                let stale: Vec<_> = pool.idle.lock().extract_if(.., |conn| !conn.is_of_use(now, ages)).collect();
                drop(stale);
                // Those who still use one keep it open.
                pool.http2.lock().retain_mut(|conn| conn.is_of_use(now, ages));
            }
        });
        pool
    }

    /// How to reach the upstream.
    #[must_use]
    pub fn connector(&self) -> &Arc<Connector> {
        &self.connector
    }

    /// Sends one attempt; the future waits for its response head. Kept connections that turn out to be closed before
    /// anything was written are passed over unseen. Dropping the future abandons the attempt.
    ///
    /// Not an async function: what is sent at once needs no place in what waits for the answer.
    pub fn send(
        self: &Arc<Self>,
        request: Request<SendBody>,
        permit: Permit,
        want: Want,
        first_byte_max: Option<Duration>,
    ) -> Sending {
        let Some(conn) = self.ready_now(want) else {
            return Box::pin(Arc::clone(self).send_somewhere(request, permit, want, first_byte_max));
        };
        self.send_on(conn, true, request, permit, want, first_byte_max)
    }

    /// On a kept connection if there is one. Each turn uses one up, and at last a fresh one is opened.
    pub(super) async fn send_somewhere(
        self: Arc<Self>,
        request: Request<SendBody>,
        permit: Permit,
        want: Want,
        first_byte_max: Option<Duration>,
    ) -> Result<(Response<Incoming>, Hold), Failed> {
        match self.check_out(want, &permit).await {
            Ok((conn, reused)) => self.send_on(conn, reused, request, permit, want, first_byte_max).await,
            Err(why) => {
                let request = Box::new(request);
                Err(Failed::Unsent { request, permit: Some(permit), why })
            }
        }
    }

    fn send_on(
        self: &Arc<Self>,
        conn: Conn,
        reused: bool,
        mut request: Request<SendBody>,
        mut permit: Permit,
        want: Want,
        first_byte_max: Option<Duration>,
    ) -> Sending {
        permit.sending();
        let upload = match request.body() {
            SendBody::Buffered { .. } => None,
            SendBody::Streaming { upload, .. } => Some(Arc::clone(upload)),
        };
        let hold = |conn| Hold { pool: Arc::clone(self), conn: Some(conn), permit: Some(permit), upload, reused };
        match conn {
            Conn::Http1(mut conn) => {
                conn.unheard.heard();
                self.for_http1(&mut request);
                let answer = conn.sender.try_send_request(request);
                Box::pin(Answered::new(hold(Conn::Http1(conn)), answer, want, first_byte_max))
            }
            Conn::Http2(mut conn) => {
                self.for_http2(&mut request);
                let answer = conn.sender.try_send_request(request);
                Box::pin(Answered::new(hold(Conn::Http2(conn)), answer, want, first_byte_max))
            }
        }
    }

    /// A connection that can take a request now: a kept one (then the flag is set), or a fresh one.
    async fn check_out(self: &Arc<Self>, want: Want, permit: &Permit) -> Result<(Conn, bool), NotReached> {
        if let Some(conn) = self.kept(want).await {
            return Ok((conn, true));
        }
        if want == Want::Http1 || self.only_http1.load(Ordering::Relaxed) {
            return self.dial(want, permit).await.map(|conn| (conn, false));
        }
        let _dialing = self.dialing.lock().await;
        // Whoever held the lock may have opened what everybody can use.
        match self.kept(want).await {
            Some(conn) => Ok((conn, true)),
            None => self.dial(want, permit).await.map(|conn| (conn, false)),
        }
    }

    /// A kept connection, if there is one that can take a request at once.
    fn ready_now(&self, want: Want) -> Option<Conn> {
        let now = clock::now();
        if want == Want::Any
            && !self.only_http1.load(Ordering::Relaxed)
            && let Some(conn) = self.shared(now)
        {
            return Some(Conn::Http2(conn));
        }
        let is_ready = |conn: &mut Box<Http1>| conn.is_of_use(now, self.connector.ways.ages) && conn.sender.is_ready();
        self.idle.lock().pop_if(is_ready).map(Conn::Http1)
    }

    async fn kept(&self, want: Want) -> Option<Conn> {
        let now = clock::now();
        if want == Want::Any
            && let Some(conn) = self.shared(now)
        {
            return Some(Conn::Http2(conn));
        }
        loop {
            let mut conn = self.idle.lock().pop()?;
            if !conn.is_of_use(now, self.connector.ways.ages) {
                continue;
            }
            // Its task may not have had its turn since the last response ended.
            if conn.sender.is_ready()
                || matches!(tokio::time::timeout(READY_MAX, conn.sender.ready()).await, Ok(Ok(())))
            {
                return Some(Conn::Http1(conn));
            }
        }
    }

    fn shared(&self, now: std::time::Instant) -> Option<Http2> {
        let mut conns = self.http2.lock();
        let conn = conns.iter_mut().find(|conn| {
            !conn.sender.is_closed()
                && now.saturating_duration_since(conn.opened) < self.connector.ways.ages.age_max
                && conn.streams.open.load(Ordering::Relaxed) < conn.streams.max.load(Ordering::Relaxed)
        })?;
        conn.streams.open.fetch_add(1, Ordering::Relaxed);
        conn.quiet_since = None;
        Some(conn.clone())
    }

    async fn dial(self: &Arc<Self>, want: Want, permit: &Permit) -> Result<Conn, NotReached> {
        let began = clock::now();
        let connected = self.connector.connect(want == Want::Http1).await?;
        let opened = clock::now();
        permit.gate().note_connect(opened.saturating_duration_since(began));
        if connected.http2 {
            self.start_http2(connected.stream).await
        } else {
            self.start_http1(connected.stream).await
        }
    }

    async fn start_http1(self: &Arc<Self>, stream: Stream) -> Result<Conn, NotReached> {
        self.only_http1.store(true, Ordering::Relaxed);
        let unheard = Arc::<Unheard>::default();
        let (io, landing) = Io::new(stream, Some(Arc::clone(&unheard)));
        let (sender, conn) = http1::Builder::new()
            .max_headers(HEADER_COUNT_MAX)
            .max_buf_size(READ_AHEAD_BYTES)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| NotReached::saying(Unreached::Closed, &error))?;
        let (abandon, abandoned) = oneshot::channel();
        let conn = Box::pin(conn.with_upgrades());
        self.spawn_counted("upstream http/1 connection", run_http1(conn, abandoned, landing, self.connector.linger));
        let now = clock::now();
        let conn = Http1 { sender, abandon, unheard, alarm: Alarm::default(), opened: now, idle_since: now };
        Ok(Conn::Http1(Box::new(conn)))
    }

    async fn start_http2(self: &Arc<Self>, stream: Stream) -> Result<Conn, NotReached> {
        let (io, _landing) = Io::new(stream, None);
        let (sender, conn) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .keep_alive_interval(PING_EVERY)
            .initial_max_send_streams(STREAMS_UNTOLD)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| NotReached::saying(Unreached::Closed, &error))?;
        let streams = Arc::new(Streams { open: AtomicUsize::new(1), max: AtomicUsize::new(STREAMS_MAX) });
        let mut conn = Box::pin(conn);
        let allowed = Arc::clone(&streams);
        let (told, heard) = oneshot::channel();
        self.spawn_counted("upstream http/2 connection", async move {
            let mut told = Some(told);
            // hyper reads frames in a task of its own, which wakes nobody when the settings arrive.
            let mut look = tokio::time::interval(SETTINGS_LOOK);
            let end = poll_fn(|cx| {
                let end = conn.as_mut().poll(cx);
                told.take_if(|told| told.is_closed());
                while told.is_some() && look.poll_tick(cx).is_ready() {}
                let max = conn.current_max_send_streams();
                allowed.max.store(max.clamp(1, STREAMS_MAX), Ordering::Relaxed);
                if max != STREAMS_UNTOLD
                    && let Some(told) = told.take()
                {
                    // An error means that nobody waits any more: it took too long.
                    told.send(()).ok();
                }
                end
            });
            if let Err(error) = end.await {
                tracing::debug!(%error, "upstream HTTP/2 connection ended");
            }
        });
        // Until its settings are known, nobody can tell how many streams it takes; others wait for this connection.
        drop(tokio::time::timeout(SETTINGS_MAX, heard).await);
        let conn = Http2 { sender, opened: clock::now(), streams, quiet_since: None };
        self.http2.lock().push(conn.clone());
        Ok(Conn::Http2(conn))
    }

    fn spawn_counted(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let metrics = Arc::clone(&self.metrics);
        metrics.upstream_connections.inc();
        self.tasks.spawn(name, async move {
            task.await;
            metrics.upstream_connections.dec();
        });
    }

    pub(super) fn put_back(&self, mut conn: Box<Http1>) {
        if conn.sender.is_closed() {
            return;
        }
        conn.idle_since = clock::now();
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_COUNT_MAX {
            idle.push(conn);
        }
    }

    /// Origin form, with `Host`.
    fn for_http1(&self, request: &mut Request<SendBody>) {
        if request.uri().scheme().is_some() {
            let path = request.uri().path_and_query().cloned();
            *request.uri_mut() = path.map(http::Uri::from).unwrap_or_default();
        }
        request.headers_mut().insert(http::header::HOST, self.connector.host_header.clone());
        *request.version_mut() = http::Version::HTTP_11;
        if let Some(names) = request.body().announcement() {
            request.headers_mut().insert(http::header::TRAILER, names);
        }
        // Told, since hyper takes a body without a length for none if the method is GET or HEAD, and drops it.
        if !request.body().is_end_stream() && request.body().size_hint().exact().is_none() {
            request.headers_mut().insert(http::header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }

    /// Pseudo-headers instead of `Host`.
    fn for_http2(&self, request: &mut Request<SendBody>) {
        let mut parts = http::uri::Parts::default();
        parts.scheme.clone_from(&self.connector.origin.scheme);
        parts.authority.clone_from(&self.connector.origin.authority);
        parts.path_and_query = request.uri().path_and_query().cloned();
        if let Ok(uri) = http::Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        request.headers_mut().remove(http::header::HOST);
        *request.version_mut() = http::Version::HTTP_2;
    }
}

impl Http1 {
    /// Whether the pool should keep it.
    fn is_of_use(&self, now: std::time::Instant, ages: Ages) -> bool {
        !self.sender.is_closed()
            && now.saturating_duration_since(self.opened) < ages.age_max
            && now.saturating_duration_since(self.idle_since) < ages.idle_max
    }
}

impl Http2 {
    /// Whether the pool should keep it.
    fn is_of_use(&mut self, now: std::time::Instant, ages: Ages) -> bool {
        if self.streams.open.load(Ordering::Relaxed) > 0 {
            self.quiet_since = None;
        }
        let quiet_since = *self.quiet_since.get_or_insert(now);
        !self.sender.is_closed()
            && now.saturating_duration_since(self.opened) < ages.age_max
            && now.saturating_duration_since(quiet_since) < ages.idle_max
    }
}

/// Runs a connection until it ends or its attempt is abandoned. Then it is closed, and only when the upstream has
/// closed its side too (or `max` has passed) does the slot come back: until then the upstream may still count it.
async fn run_http1<C>(
    mut conn: Pin<Box<C>>,
    abandoned: oneshot::Receiver<Option<Permit>>,
    landing: Landing,
    max: Duration,
) where
    C: Future<Output = hyper::Result<()>>,
{
    let left = tokio::select! {
        // First, or a connection that hyper closed for the same reason would free the slot too early.
        biased;
        left = abandoned => left,
        end = &mut conn => {
            if let Err(error) = end {
                tracing::debug!(%error, "upstream connection ended");
            }
            return;
        }
    };
    // Not sent, only dropped: the pool let an idle connection go, or it became a tunnel. It ends by itself.
    let Ok(permit) = left else {
        drop(conn.await);
        return;
    };
    drop(conn);
    let stream = landing.lock().take();
    if let Some(mut stream) = stream {
        connect::linger(&mut stream, max).await;
    }
    drop(permit);
}
