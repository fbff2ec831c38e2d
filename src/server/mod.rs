//! Accepting clients: listener, TLS, HTTP/1.1 and HTTP/2, graceful end.
//!
//! Every worker thread accepts from the same socket and hands the connection to the thread with the fewest, so that
//! few clients cannot leave a core idle while another queues.

mod insert;
mod watch;

use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::{
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::Service,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    config::{Limits, ListenTls},
    metrics::Metrics,
    proxy::{AnswerToPanic, Engine, HEADER_COUNT_MAX, OutBody},
    tasks::Tasks,
};

use watch::{Answer, Connection, Streams, Watch, Watched};

/// Clients the kernel may hold while the accept loops are busy: a burst of thousands must not see resets.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// An accept loop that has not failed for this long is said to work again.
const RECOVERED_AFTER: Duration = Duration::from_secs(1);
/// A kept connection may be idle for this long. Longer than every known client keeps its own (agentkeepalive: 5 min),
/// since the first to close must be the client.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(330);
/// HTTP/2: requests at once on one client connection. Ten times what clients ask for by themselves; more wait at the
/// client.
const STREAMS_MAX: u32 = 1000;
/// HTTP/2: streams a client may have reset before we have taken them on (RUSTSEC-2023-0034). More end the connection.
const RESETS_UNSEEN_MAX: usize = 20;
/// HTTP/2: streams a client may have made us reset, over a connection's life. More end it.
const RESETS_CAUSED_MAX: usize = 1024;
/// HTTP/1: how far a connection reads ahead of the body's reader. hyper's default is 417 KB a connection.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// HTTP/2: the same for one stream, and for a connection.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// HTTP/2: the longest frame we take.
const FRAME_BYTES_MAX: u32 = 16 * 1024;
/// HTTP/2: the table that heads are compressed with, both ways.
const HEADER_TABLE_BYTES: u32 = 4096;
/// HTTP/2: what one answer may have waiting to be written, however large its client says that its window is.
const SEND_AHEAD_BYTES: usize = 64 * 1024;

/// HTTP/2: how often a quiet client is asked for a sign of life, and how long it has for it.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two looks at a preface that has begun.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);

/// Why the listener's TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or is not what it should be.
    #[error("tls: {}: {problem}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The parts do not fit together.
    #[error("tls: {0}")]
    Parts(String),
}

/// Binds the proxy's or the admin's listener.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What all accept loops share.
#[derive(Debug)]
pub struct Acceptors {
    workers: Vec<Worker>,
    limits: Limits,
    open: AtomicUsize,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Worker {
    open: AtomicUsize,
    handed: mpsc::UnboundedSender<StdStream>,
}

/// The receiving end of a worker.
pub type Handed = mpsc::UnboundedReceiver<StdStream>;

impl Acceptors {
    /// One entry per worker thread; each worker takes its receiving end.
    ///
    /// The channels are unbounded but hold connections only, of which there are at most `connections_max`.
    #[must_use]
    pub fn new(threads: usize, limits: Limits, metrics: Arc<Metrics>) -> (Arc<Self>, Vec<Handed>) {
        let (workers, handed) = (0..threads)
            .map(|_| {
                let (sender, receiver) = mpsc::unbounded_channel();
                (Worker { open: AtomicUsize::new(0), handed: sender }, receiver)
            })
            .unzip();
        (Arc::new(Self { workers, limits, open: AtomicUsize::new(0), metrics }), handed)
    }

    fn least_busy(&self) -> usize {
        let open = |worker: &Worker| worker.open.load(Ordering::Relaxed);
        self.workers.iter().enumerate().min_by_key(|(_, worker)| open(worker)).map_or(0, |(index, _)| index)
    }
}

/// One worker's side of the server.
#[derive(Clone)]
pub struct Server {
    /// Which worker this is.
    pub index: usize,
    /// Shared by all workers.
    pub acceptors: Arc<Acceptors>,
    /// This thread's engine.
    pub engine: Arc<Engine>,
    /// TLS of the listener. Connections keep what they began with.
    pub tls: Option<Arc<ArcSwap<ServerConfig>>>,
    /// Connections are tasks of this group.
    pub connections: Tasks,
    /// No new connections, and the open ones end with their current request.
    pub closing: CancellationToken,
}

impl Server {
    /// Accepts until closing; serves what it accepts and what other workers hand over.
    pub async fn run(self, listener: StdListener, mut handed: Handed) -> io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        let mut failed_at: Option<std::time::Instant> = None;
        loop {
            tokio::select! {
                () = self.closing.cancelled() => return Ok(()),
                Some(stream) = handed.recv() => match TcpStream::from_std(stream) {
                    Ok(stream) => self.spawn(stream),
                    Err(error) => self.lost(self.index, &error),
                },
                accepted = self.accept(&listener) => match accepted {
                    Ok(stream) => {
                        let quiet = |at| clock::now().saturating_duration_since(at) >= RECOVERED_AFTER;
                        if failed_at.take_if(|at| quiet(*at)).is_some() {
                            tracing::warn!("connections are accepted again");
                        }
                        self.hand_over(stream);
                    }
                    Err(error) => {
                        // Said once: it may go on for as long as connections stay open.
                        if failed_at.replace(clock::now()).is_none() {
                            tracing::warn!(%error, "connections cannot be accepted; trying again until they can");
                        }
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    /// The next connection, as soon as there is room for one.
    async fn accept(&self, listener: &TcpListener) -> io::Result<TcpStream> {
        while self.acceptors.open.load(Ordering::Relaxed) >= self.acceptors.limits.connections_max {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        let (stream, _) = listener.accept().await?;
        Ok(stream)
    }

    fn hand_over(&self, stream: TcpStream) {
        let index = self.acceptors.least_busy();
        self.acceptors.open.fetch_add(1, Ordering::Relaxed);
        self.acceptors.metrics.downstream_connections.inc();
        let Some(worker) = self.acceptors.workers.get(index) else { return };
        worker.open.fetch_add(1, Ordering::Relaxed);
        if index == self.index {
            return self.spawn(stream);
        }
        match stream.into_std() {
            // A worker that is gone is closing, and so are we.
            Ok(stream) => drop(worker.handed.send(stream)),
            Err(error) => self.lost(index, &error),
        }
    }

    fn lost(&self, index: usize, error: &io::Error) {
        tracing::warn!(%error, "a connection was lost between threads");
        self.closed(index);
    }

    fn closed(&self, index: usize) {
        self.acceptors.open.fetch_sub(1, Ordering::Relaxed);
        self.acceptors.metrics.downstream_connections.dec();
        if let Some(worker) = self.acceptors.workers.get(index) {
            worker.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn spawn(&self, stream: TcpStream) {
        let open = Open(self.clone());
        self.connections.spawn("client connection", async move {
            let server = &open.0;
            // Small stream events must not wait for company.
            if stream.set_nodelay(true).is_err() {
                return;
            }
            let deadline = Instant::from(clock::now() + server.acceptors.limits.header_timeout);
            match &server.tls {
                None => {
                    let asked = server.closing.run_until_cancelled(speaks_http2(&stream));
                    match tokio::time::timeout_at(deadline, asked).await {
                        Ok(Some(Ok(http2))) => server.serve(stream, http2, deadline).await,
                        Ok(Some(Err(error))) => tracing::debug!(%error, "a client left without a word"),
                        Ok(None) => {}
                        Err(_) => tracing::debug!("a client said nothing in time"),
                    }
                }
                // Boxed: a plain connection, of which there may be thousands, must not reserve room for all this.
                Some(tls) => {
                    let tls = TlsAcceptor::from(tls.load_full());
                    Box::pin(server.serve_tls(stream, tls, deadline)).await;
                }
            }
        });
    }

    async fn serve_tls(&self, stream: TcpStream, tls: TlsAcceptor, deadline: Instant) {
        match tokio::time::timeout_at(deadline, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.serve(stream, http2, deadline).await;
            }
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake with a client failed"),
            Err(_) => tracing::debug!("TLS handshake with a client took too long"),
        }
    }

    async fn serve<S: Connection>(&self, stream: S, http2: bool, first_head_by: Instant) {
        // Boxed: an HTTP/1.1 connection, of which there may be thousands, must not reserve room for HTTP/2.
        if http2 {
            Box::pin(self.serve_http2(stream, first_head_by)).await;
        } else {
            self.serve_http1(stream, first_head_by).await;
        }
    }

    async fn serve_http1<S: Connection>(&self, stream: S, first_head_by: Instant) {
        let head_bytes_max = self.head_bytes_max();
        let watch = Arc::<Watch>::default();
        // Pinned where it is made, for one copy: a name in between, or a hand-over by value, would keep room for more.
        let conn = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .header_read_timeout(KEEP_ALIVE_MAX)
                .max_headers(HEADER_COUNT_MAX)
                .max_header_size(head_bytes_max)
                .max_buf_size(head_bytes_max.max(READ_AHEAD_BYTES))
                .serve_connection(self.watched(stream, &watch, true), Exchanges::new(&self.engine, &watch))
                .with_upgrades()
        );
        self.drive(conn, |conn| conn.graceful_shutdown(), &watch, first_head_by).await;
    }

    async fn serve_http2<S: Connection>(&self, stream: S, first_head_by: Instant) {
        let watch = Arc::<Watch>::default();
        let conn = std::pin::pin!(
            http2::Builder::new(Streams { send_max: self.acceptors.limits.send_timeout })
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .max_concurrent_streams(STREAMS_MAX)
                .max_pending_accept_reset_streams(RESETS_UNSEEN_MAX)
                .max_local_error_reset_streams(RESETS_CAUSED_MAX)
                .max_header_list_size(u32::try_from(self.head_bytes_max()).unwrap_or(u32::MAX))
                .header_table_size(HEADER_TABLE_BYTES)
                .max_frame_size(FRAME_BYTES_MAX)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_send_buf_size(SEND_AHEAD_BYTES)
                .keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PONG_WITHIN)
                .serve_connection(self.watched(stream, &watch, false), Exchanges::new(&self.engine, &watch))
        );
        self.drive(conn, |conn| conn.graceful_shutdown(), &watch, first_head_by).await;
    }

    fn watched<S: Connection>(&self, stream: S, watch: &Arc<Watch>, http1: bool) -> TokioIo<Watched<S>> {
        TokioIo::new(Watched::new(stream, watch, &self.engine, http1, &self.acceptors.limits))
    }

    fn head_bytes_max(&self) -> usize {
        usize::try_from(self.acceptors.limits.header_bytes_max).unwrap_or(usize::MAX)
    }

    /// Runs a connection to its end. The first head has its deadline from the start; later ones from their first byte,
    /// which may take [`KEEP_ALIVE_MAX`] to come.
    async fn drive<C>(&self, mut conn: Pin<&mut C>, close: fn(Pin<&mut C>), watch: &Watch, first_head_by: Instant)
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let mut waiting_for_first = true;
        let mut closing = false;
        loop {
            tokio::select! {
                end = conn.as_mut() => {
                    if let Err(error) = end {
                        tracing::debug!(%error, "client connection ended");
                    }
                    return;
                }
                () = tokio::time::sleep_until(first_head_by), if waiting_for_first => {
                    if !watch.has_begun() {
                        tracing::debug!("no request head arrived in time");
                        return;
                    }
                    waiting_for_first = false;
                }
                () = self.closing.cancelled(), if !closing => {
                    if !watch.has_begun() {
                        // Nothing was asked yet, and nothing will be answered.
                        return;
                    }
                    closing = true;
                    close(conn.as_mut());
                }
            }
        }
    }
}

/// Turns the requests of a connection into exchanges.
struct Exchanges {
    engine: Arc<Engine>,
    watch: Arc<Watch>,
}

impl Exchanges {
    fn new(engine: &Arc<Engine>, watch: &Arc<Watch>) -> Self {
        Self { engine: Arc::clone(engine), watch: Arc::clone(watch) }
    }
}

impl Service<Request<Incoming>> for Exchanges {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Exchange;

    fn call(&self, request: Request<Incoming>) -> Exchange {
        let open = self.watch.begin();
        let mut request = Box::new(request);
        if self.watch.take_fragment() {
            // No more than any other target that is not a path, now that nobody can tell what it was.
            *request.uri_mut() = Uri::from_static("*");
        }
        if request.version() <= Version::HTTP_11 && !request.body().is_end_stream() {
            request.extensions_mut().insert(Arc::clone(&self.watch.unheard));
        }
        Exchange {
            version: request.version(),
            to_head: request.method() == Method::HEAD,
            panicked: Engine::answer_to_panic(&request),
            handled: Box::pin(Arc::clone(&self.engine).handle(request)),
            watch: Arc::clone(&self.watch),
            open: Some(open),
        }
    }
}

/// A running exchange. If it panics, it fails alone: its slot comes back, its client is answered, and the connection's
/// other exchanges go on.
struct Exchange {
    handled: Pin<Box<dyn Future<Output = Result<Response<OutBody>, Infallible>> + Send>>,
    version: Version,
    to_head: bool,
    panicked: AnswerToPanic,
    watch: Arc<Watch>,
    open: Option<watch::Open>,
}

impl Future for Exchange {
    type Output = Result<Response<Answer>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let handled = &mut self.handled;
        // Never polled again afterwards: what it left half done is dropped with it.
        let response = match catch_unwind(AssertUnwindSafe(|| handled.as_mut().poll(cx))) {
            Ok(handled) => ready!(handled)?,
            Err(_) => self.panicked.response(),
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.watch.becomes_tunnel();
        }
        let open = self.open.take();
        Poll::Ready(Ok(Answer::new(response, self.version, self.to_head, open)))
    }
}

/// Whether the client's first bytes are HTTP/2's preface. Nothing is taken from the stream.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    // No method of HTTP/1 begins like this (RFC 9113 3.4).
    const PREFACE: &[u8] = b"PRI ";
    let mut start = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut start).await?;
        let Some(start) = start.get(..seen).filter(|start| !start.is_empty()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if start == PREFACE || !PREFACE.starts_with(start) {
            return Ok(start == PREFACE);
        }
        // "P" could still become POST or PRI; the rest is on its way.
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}

/// An open connection, counted until it is dropped.
struct Open(Server);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed(self.0.index);
    }
}

/// Reads certificate, key and client issuers.
pub fn tls_config(tls: &ListenTls) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Parts(error.to_string()))?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for issuer in certificates(path)? {
                roots.add(issuer).map_err(|error| file_error(path, &error))?;
            }
            let provider = Arc::new(aws_lc_rs::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| file_error(path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| file_error(&tls.key, &error))?;
    let mut config = builder
        .with_single_cert(certificates(&tls.cert)?, key)
        .map_err(|error| TlsError::Parts(format!("certificate and key: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(|certificates| certificates.collect())
        .map_err(|error| file_error(path, &error))?;
    if chain.is_empty() {
        return Err(file_error(path, &"no certificate in it"));
    }
    Ok(chain)
}

fn file_error(path: &Path, problem: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), problem: problem.to_string() }
}
