//! The embedded rate-limited API (`tidegate mock`): a server of its own that behaves like the real ones where they hurt.
//! It is also the judge of the proxy's own tests, so what it counts is exact: a request holds its slot from its head to
//! the last byte of its answer, or until its client has left.

mod args;
mod body;
mod ledger;
mod limits;
mod live;
mod overload;
mod refuse;
mod serve;
mod settings;
mod shapes;
mod slot;
mod websocket;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::control::rng::Rng;

pub use args::MockArgs;
use ledger::Ledger;
pub use ledger::{Counts, LedgerSnapshot, Refused};
use limits::KeyLimits;
use overload::WorkClock;
pub use settings::{HeaderFamily, Latency, RetryAfterForm, Says, Settings};
use slot::Account;

/// Keys told apart; further ones share one account.
const KEYS_MAX: usize = 10_000;
/// Connections the kernel may hold while the accept loop is busy.
const BACKLOG: i32 = 4096;

/// A running mock. Ends with its handle.
pub struct Mock {
    addr: SocketAddr,
    state: Arc<State>,
    _stop: DropGuard,
}

/// What all connections share.
struct State {
    settings: ArcSwap<Settings>,
    accounts: Mutex<HashMap<String, Arc<Account>>>,
    clock: Arc<WorkClock>,
    ledger: Arc<Mutex<Ledger>>,
    rng: Mutex<Rng>,
    served: AtomicU64,
}

impl Mock {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What happened so far.
    #[must_use]
    pub fn ledger(&self) -> LedgerSnapshot {
        self.state.snapshot()
    }

    /// Forgets what happened so far.
    pub fn clear_ledger(&self) {
        self.state.ledger.lock().clear(crate::clock::now());
    }
}

/// Starts a mock as the command line describes it, on the current runtime.
pub fn start(args: &MockArgs) -> io::Result<Mock> {
    start_with(args.listen, Settings::from(args))
}

/// Starts a mock on the current runtime.
pub fn start_with(listen: SocketAddr, settings: Settings) -> io::Result<Mock> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from_std(socket.into())?;
    let addr = listener.local_addr()?;
    let state = Arc::new(State {
        rng: Mutex::new(Rng::new(settings.seed)),
        clock: Arc::new(WorkClock::new(settings.knee, crate::clock::now())),
        settings: ArcSwap::from_pointee(settings),
        accounts: Mutex::default(),
        ledger: Arc::default(),
        served: AtomicU64::new(0),
    });
    let stop = CancellationToken::new();
    tokio::spawn(accept(listener, Arc::clone(&state), stop.clone()));
    Ok(Mock { addr, state, _stop: stop.drop_guard() })
}

async fn accept(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors: some will come back.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            continue;
        };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let (state, stop) = (Arc::clone(&state), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| serve::handle(Arc::clone(&state), request));
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new());
            builder.http2().timer(TokioTimer::new()).max_concurrent_streams(10_000);
            let conn = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            // A connection that ends badly is what faults look like from here.
            drop(stop.run_until_cancelled(conn).await);
        });
    }
}

impl State {
    fn account(&self, label: String) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        let full = accounts.len() >= KEYS_MAX && !accounts.contains_key(&label);
        let label = if full { "other".to_owned() } else { label };
        if let Some(account) = accounts.get(&label) {
            return Arc::clone(account);
        }
        let limits = Mutex::new(KeyLimits::new(&self.settings.load(), crate::clock::now()));
        let account = Arc::new(Account { label: label.clone(), limits });
        accounts.insert(label, Arc::clone(&account));
        account
    }

    /// Puts new settings in force for all keys at once.
    fn change(&self, make: impl FnOnce(&Settings) -> Result<Settings, String>) -> Result<(), String> {
        // Held to the end: a key that comes meanwhile must not begin with the old settings.
        let accounts = self.accounts.lock();
        let settings = make(&self.settings.load())?;
        let now = crate::clock::now();
        for account in accounts.values() {
            account.limits.lock().adopt(&settings, now);
        }
        self.clock.set_knee(settings.knee, now);
        self.settings.store(Arc::new(settings));
        Ok(())
    }

    fn snapshot(&self) -> LedgerSnapshot {
        self.ledger.lock().snapshot(self.settings.load().ceiling, crate::clock::now())
    }

    fn next(&self) -> u64 {
        self.served.fetch_add(1, Ordering::Relaxed) + 1
    }
}
