//! The composition root: builds every room, spawns, reloads, drains. The only file that knows all rooms.

use std::{
    collections::HashSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::Admin,
    config::{Config, Limits},
    gate::{Accounts, Retired},
    metrics::Metrics,
    proxy::{BufferBudget, Engine, Route, Shared, Snapshot},
    server::{self, Acceptors, Server, TlsError},
    tasks::Tasks,
    traces::{Traces, TracesError},
    upstream::{Connector, ConnectorError, Ways},
};

/// Time for exchanges that are refused when the drain is over to get their answer out.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);

/// Why Tidegate cannot start, or cannot take a new configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be bound.
    #[error("{what}: cannot listen on {address}: {problem}")]
    Bind {
        /// `listen` or `admin`.
        what: &'static str,
        /// Which address.
        address: SocketAddr,
        /// What the system says, and what may help.
        problem: String,
    },
    /// An upstream's TLS settings cannot be used.
    #[error(transparent)]
    Connector(#[from] ConnectorError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The listener's TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Spans cannot be sent.
    #[error(transparent)]
    Traces(#[from] TracesError),
}

/// A running Tidegate.
pub struct App {
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// Where the proxy listens.
    pub proxy: SocketAddr,
    /// Where the admin listener listens.
    pub admin: Option<SocketAddr>,
    /// Fired when somebody asks for a drain over the admin listener.
    pub drain_asked: CancellationToken,
    /// What it was started with; some of it stays in force until a restart.
    started: Arc<Config>,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    compiler: Compiler,
    connections: Tasks,
    background: Tasks,
    closing: CancellationToken,
    ended: CancellationToken,
    workers: Vec<JoinHandle<()>>,
}

impl App {
    /// Binds, starts the worker threads, and serves. The admin listener runs on the calling runtime.
    pub fn start(config: Config) -> Result<Self, StartError> {
        Self::start_by(config, Ways::default())
    }

    /// The same, with ways to the upstreams of the caller's choice.
    pub fn start_by(config: Config, ways: Ways) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new());
        let background = Tasks::new();
        let compiler = Compiler {
            metrics: Arc::clone(&metrics),
            labels: Arc::default(),
            tasks: background.clone(),
            ways,
            balance_epochs: AtomicU64::default(),
        };
        let snapshot = compiler.compile(Arc::clone(&config), None, &Retired::default())?;
        let tls = config.tls.as_ref().map(server::tls_config).transpose()?;
        let tls = tls.map(|tls| Arc::new(ArcSwap::from_pointee(tls)));
        let traces = Traces::start(&config, &metrics)?;
        let (listener, proxy) = bind("listen", config.listen)?;
        let admin_listener = config.admin.map(|address| bind("admin", address)).transpose()?;
        let shared = Arc::new(Shared {
            snapshot: ArcSwap::from_pointee(snapshot),
            retired: Retired::default(),
            buffers: BufferBudget::new(config.buffers.total_max_bytes, metrics.buffered_bytes.clone()),
            metrics: Arc::clone(&metrics),
            refuse_waiting: CancellationToken::new(),
            draining: AtomicBool::new(false),
            traces,
        });
        for (key, address, others_may) in config.exposed() {
            tracing::warn!(key, %address, "other machines can reach this address and {others_may}; nobody is asked who they are");
        }
        let drain_asked = CancellationToken::new();
        let mut app = Self {
            shared: Arc::clone(&shared),
            proxy,
            admin: admin_listener.as_ref().map(|(_, address)| *address),
            drain_asked: drain_asked.clone(),
            started: Arc::clone(&config),
            tls: tls.clone(),
            compiler,
            connections: Tasks::new(),
            background,
            closing: CancellationToken::new(),
            ended: CancellationToken::new(),
            workers: Vec::new(),
        };
        let (acceptors, handed) = Acceptors::new(config.threads, config.limits, metrics);
        for (index, handed) in handed.into_iter().enumerate() {
            let engine = Engine::new(Arc::clone(&shared), app.background.clone(), app.connections.clone());
            let server = Server {
                index,
                acceptors: Arc::clone(&acceptors),
                engine,
                tls: tls.clone(),
                connections: app.connections.clone(),
                closing: app.closing.clone(),
            };
            let listener = listener.try_clone().map_err(StartError::Thread)?;
            app.workers.push(worker(server, listener, handed, app.ended.clone())?);
        }
        if let Some((listener, _)) = admin_listener {
            let admin = Admin::new(shared, drain_asked);
            let tasks = app.background.clone();
            app.background.spawn("admin", async move {
                if let Err(error) = admin.run(listener, tasks).await {
                    tracing::error!(%error, "the admin listener ended");
                }
            });
        }
        Ok(app)
    }

    /// Takes a new configuration, or nothing of it. Running exchanges keep the one they began with, connections their
    /// certificate, gates what they learnt. What cannot change while running is named in the log.
    pub fn reload(&self, config: Config) -> Result<(), StartError> {
        let former = self.shared.snapshot.load_full();
        let tls = config.tls.as_ref().map(server::tls_config).transpose()?;
        let snapshot = self.compiler.compile(Arc::new(config), Some(&former), &self.shared.retired)?;
        // Nothing fails from here on.
        for key in self.needs_restart(&snapshot.config) {
            tracing::warn!(key, "this change needs a restart; the former value stays in force");
        }
        if let (Some(running), Some(tls)) = (&self.tls, tls) {
            running.store(Arc::new(tls));
        }
        self.shared.buffers.set_max(snapshot.config.buffers.total_max_bytes);
        let snapshot = Arc::new(snapshot);
        self.shared.snapshot.store(Arc::clone(&snapshot));
        let is_in = |snapshot: &Snapshot, name: &str| snapshot.routes.iter().any(|route| *route.settings.name == *name);
        for route in snapshot.routes.iter().filter(|route| !is_in(&former, &route.settings.name)) {
            self.shared.retired.remove(&route.settings.name);
        }
        for route in former.routes.iter().filter(|route| !is_in(&snapshot, &route.settings.name)) {
            self.shared.retired.add(Arc::clone(&route.accounts));
        }
        // After the swap, so that no gate is made with the former settings meanwhile.
        for route in &snapshot.routes {
            for (credential, gate) in route.accounts.entries() {
                gate.retune(route.gate_settings(&credential));
            }
        }
        Ok(())
    }

    /// The keys whose values in `config` are others than those in force, and stay so.
    fn needs_restart<'a>(&self, config: &Config) -> impl Iterator<Item = &'a str> {
        let started = &self.started;
        // Not asked for by the listener, but by each exchange.
        let limits = Limits { accounts_max: config.limits.accounts_max, ..started.limits };
        [
            ("listen", started.listen != config.listen),
            ("tls", started.tls.is_some() != config.tls.is_some()),
            ("admin", started.admin != config.admin),
            ("threads", started.threads != config.threads),
            ("limits", limits != config.limits),
            ("otlp", started.otlp != config.otlp),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
    }

    /// Ends politely: not ready, then no new connections, then waits for what runs. Returns how many connections had
    /// to be cut.
    pub async fn drain(&self) -> usize {
        let drain = self.shared.snapshot.load().config.drain;
        self.shared.draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(drain.delay).await;
        self.closing.cancel();
        if !self.connections.finished(drain.max).await {
            // Whoever still waits for a slot is told so instead of being cut.
            self.shared.refuse_waiting.cancel();
            self.connections.finished(LAST_WORDS_MAX).await;
        }
        let cut = self.connections.len();
        self.shared.traces.flush().await;
        cut
    }

    /// Stops everything at once and waits for the threads. Call after [`drain`](Self::drain).
    pub fn stop(mut self) {
        self.closing.cancel();
        self.background.stop();
        self.ended.cancel();
        for worker in self.workers.drain(..) {
            if worker.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// Whether a start with this configuration would find its files, and in them what it needs.
///
/// # Errors
///
/// At the first certificate, key or list of issuers that is missing or of no use.
pub fn check(config: &Config) -> Result<(), StartError> {
    config.tls.as_ref().map(server::tls_config).transpose()?;
    for upstream in &config.upstreams {
        Connector::new(upstream, Ways::default())?;
    }
    Ok(())
}

/// Turns configurations into snapshots, keeping what outlives them.
struct Compiler {
    metrics: Arc<Metrics>,
    labels: Arc<Mutex<HashSet<String>>>,
    tasks: Tasks,
    ways: Ways,
    /// Of the next configuration that asks for a balance in another way, or anew.
    balance_epochs: AtomicU64,
}

impl Compiler {
    fn compile(
        &self,
        config: Arc<Config>,
        former: Option<&Snapshot>,
        retired: &Retired,
    ) -> Result<Snapshot, ConnectorError> {
        let mut routes = Vec::new();
        for settings in &config.upstreams {
            let known =
                former.and_then(|former| former.routes.iter().find(|route| route.settings.name == settings.name));
            let same_way = known.filter(|route| {
                let (old, new) = (&route.settings, settings);
                (&old.url, &old.tls, old.http2, old.deadlines) == (&new.url, &new.tls, new.http2, new.deadlines)
            });
            let connector = Connector::new(settings, self.ways.clone())?;
            let connector = match same_way {
                // Its connections are kept, unless its files hold something else now.
                Some(route) if route.connector.files == connector.files => Arc::clone(&route.connector),
                Some(_) | None => Arc::new(connector),
            };
            let balance_epoch = match known {
                Some(route) if route.settings.balance == settings.balance => route.balance_epoch,
                Some(_) | None => self.balance_epochs.fetch_add(1, Ordering::Relaxed),
            };
            let known = known.map(|route| Arc::clone(&route.accounts)).or_else(|| retired.find(&settings.name));
            let accounts = known.unwrap_or_else(|| {
                let (metrics, tasks) = (Arc::clone(&self.metrics), self.tasks.clone());
                Arc::new(Accounts::new(&settings.name, Arc::clone(&self.labels), metrics, tasks))
            });
            routes.push(Arc::new(Route { settings: settings.clone(), connector, accounts, balance_epoch }));
        }
        Ok(Snapshot::new(config, routes))
    }
}

fn bind(what: &'static str, address: SocketAddr) -> Result<(std::net::TcpListener, SocketAddr), StartError> {
    server::bind(address)
        .and_then(|listener| listener.local_addr().map(|bound| (listener, bound)))
        .map_err(|error| StartError::bind(what, address, &error))
}

impl StartError {
    /// `what` is the key, and the flag too.
    pub(crate) fn bind(what: &'static str, address: SocketAddr, error: &io::Error) -> Self {
        Self::Bind { what, address, problem: explain(what, address, error) }
    }
}

/// `what` is the key, and the flag too.
fn explain(what: &str, address: SocketAddr, error: &io::Error) -> String {
    let (kind, port) = (error.kind(), address.port());
    if kind == io::ErrorKind::AddrInUse {
        let free = SocketAddr::new(address.ip(), 0);
        format!("port {port} is taken by another process; try --{what} {free} for a free one")
    } else if kind == io::ErrorKind::AddrNotAvailable {
        let all = SocketAddr::from(([0, 0, 0, 0], port));
        format!("this machine has no such address; try --{what} 127.0.0.1:{port}, or {all} for all it has")
    } else if kind == io::ErrorKind::PermissionDenied {
        format!(
            "not permitted, ports below 1024 need a privilege; try --{what} {}",
            SocketAddr::new(address.ip(), 8080)
        )
    } else {
        error.to_string()
    }
}

/// One thread with a runtime of its own, so that everything on a request's path stays on one core.
fn worker(
    server: Server,
    listener: std::net::TcpListener,
    handed: server::Handed,
    ended: CancellationToken,
) -> Result<JoinHandle<()>, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
    std::thread::Builder::new()
        .name(format!("tidegate-{}", server.index))
        .spawn(move || {
            runtime.block_on(async {
                if let Err(error) = Arc::new(server).run(listener, handed).await {
                    tracing::error!(%error, "an accept loop ended");
                }
                ended.cancelled().await;
            });
        })
        .map_err(StartError::Thread)
}
