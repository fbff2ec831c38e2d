//! How names become addresses, and for how long connections are kept.
//!
//! There is no cache of names: the system's resolver is asked for every new connection, and keeps to the TTLs itself
//! where it caches. So a changed address is noticed as soon as a connection is opened, and since none is kept for longer
//! than [`Ages`] say, at the latest then.

use std::{fmt, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

/// Addresses on their way.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Turns a name and a port into addresses.
pub type Resolve = dyn Fn(String, u16) -> Resolving + Send + Sync;

/// The ways to an upstream. Other than by default only where a test must not depend on the machine's names or wait for
/// minutes.
#[derive(Clone)]
pub struct Ways {
    /// Asked for every new connection.
    pub resolve: Arc<Resolve>,
    /// How long connections are kept.
    pub ages: Ages,
}

/// How long connections are kept.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// Idle connections are closed after this.
    pub idle_max: Duration,
    /// No connection takes new work after this.
    pub age_max: Duration,
    /// How often idle ones are looked through.
    pub sweep_every: Duration,
}

impl Default for Ages {
    fn default() -> Self {
        Self {
            // Providers close theirs after 60 s, and the first to close must be us.
            idle_max: Duration::from_secs(45),
            // So that a changed address is noticed.
            age_max: Duration::from_secs(300),
            sweep_every: Duration::from_secs(5),
        }
    }
}

impl Default for Ways {
    fn default() -> Self {
        Self { resolve: Arc::new(|host, port| Box::pin(system(host, port))), ages: Ages::default() }
    }
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ways").field("ages", &self.ages).finish_non_exhaustive()
    }
}

async fn system(host: String, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}
