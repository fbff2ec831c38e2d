//! Accepting clients: listener, TLS, HTTP/1.1 and HTTP/2, graceful end.
//!
//! Every worker thread accepts from the same socket and hands the connection to the thread with the fewest, so that
//! few clients cannot leave a core idle while another queues.

mod answer;
mod connection;
mod exchange;
mod insert;
mod tls;
mod watch;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{clock, config::Limits, metrics::Metrics, proxy::Engine, tasks::Tasks};

use connection::speaks_http2;
pub use tls::{TlsError, tls_config};

/// Clients the kernel may hold while the accept loops are busy: a burst of thousands must not see resets.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed for want of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// An accept loop that has not failed for this long is said to work again.
const RECOVERED_AFTER: Duration = Duration::from_secs(1);

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
    pub async fn run(self: Arc<Self>, listener: StdListener, mut handed: Handed) -> io::Result<()> {
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

    fn hand_over(self: &Arc<Self>, stream: TcpStream) {
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

    fn spawn(self: &Arc<Self>, stream: TcpStream) {
        let open = Open(Arc::clone(self));
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
}

/// An open connection, counted until it is dropped.
struct Open(Arc<Server>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.closed(self.0.index);
    }
}
