//! The configuration as the rest of the program sees it: validated values only.
//!
//! The way of a file: `env` masks `${NAME}`, `tree` parses (the only place that knows the YAML crate), `de` lets serde
//! read the tree into the shapes of `file`, `flags` lays the command line over them, `check`, `upstream`,
//! `account`, `limit`, `otlp` and `prices` turn them into the types below with the help of `values`. `show` goes the other
//! way, `advice` names what is legal and unwise, `init` writes a file to start from, `schema` tells editors what may stand
//! in one.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue, Uri};

use crate::{control::cost::Price, provider::presets::Preset};

pub use crate::control::{
    limit::{Algorithm, LimitSettings},
    retry::RetryPost,
};

mod account;
mod advice;
mod check;
mod de;
pub mod defaults;
mod env;
pub mod file;
mod flags;
pub mod init;
mod limit;
mod otlp;
mod prices;
mod problem;
mod schema;
pub mod show;
mod tree;
mod upstream;
mod values;

/// Nothing is known about the provider.
pub const DEFAULT_PRESET: Preset = Preset::Generic;

pub use flags::Overrides;
pub use problem::ConfigError;
pub use schema::{presets, schema};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Address of the proxy listener.
    pub listen: SocketAddr,
    /// TLS of the proxy listener; `None`: plain HTTP.
    pub tls: Option<ListenTls>,
    /// Address of the admin listener; `None`: off.
    pub admin: Option<SocketAddr>,
    /// Host names the admin listener answers to besides `localhost` and addresses; lower case.
    pub admin_hosts: Vec<String>,
    /// Worker threads, each with its own runtime and upstream connections. At least 1.
    pub threads: usize,
    /// Tier name → attempts in flight.
    pub tiers: BTreeMap<String, u32>,
    /// At least one; names are unique; path prefixes are unique.
    pub upstreams: Vec<Upstream>,
    /// Bounds on buffered request bodies.
    pub buffers: Buffers,
    /// Bounds on what clients may ask of the listener.
    pub limits: Limits,
    /// How the process ends.
    pub drain: Drain,
    /// Whether answers carry `x-tidegate-attempts` and its kin.
    pub trace: Trace,
    /// Where spans go; `None`: nowhere. Always so in a binary without the feature `otlp`.
    pub otlp: Option<Otlp>,
}

impl Config {
    /// Every file it names: certificates, keys and issuers. The configuration file itself is not among them.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let listener = self.tls.iter().flat_map(|tls| [Some(&tls.cert), Some(&tls.key), tls.client_ca.as_ref()]);
        listener.flatten().cloned().chain(self.upstreams.iter().flat_map(|upstream| upstream.tls.files()))
    }

    /// The keys of the listeners that other machines can reach, and what that lets them do.
    pub fn exposed(&self) -> impl Iterator<Item = (&'static str, SocketAddr, &'static str)> + '_ {
        let only_known = self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let listen = (!only_known).then_some(("listen", self.listen, "send requests to the upstreams"));
        let admin = self.admin.map(|admin| ("admin", admin, "read the status and end the process"));
        let here = |address: SocketAddr| address.ip().to_canonical().is_loopback();
        listen.into_iter().chain(admin).filter(move |(_, address, _)| !here(*address))
    }
}

impl UpstreamTls {
    /// Every file it names.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let (cert, key) = self.client.as_ref().map_or((None, None), |(cert, key)| (Some(cert), Some(key)));
        [self.ca.as_ref(), cert, key].into_iter().flatten().cloned()
    }
}

/// Certificate and key of the proxy listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenTls {
    /// PEM file with the certificate chain.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
    /// PEM file with the issuers of client certificates; given: clients must present one.
    pub client_ca: Option<PathBuf>,
}

/// One API behind Tidegate.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Name: metric label, log field.
    pub name: String,
    /// Scheme, authority and optional base path. Never has a query.
    pub url: Uri,
    /// Requests whose path begins with this (on a segment boundary) go here; the longest match wins. Begins with `/`.
    pub path_prefix: String,
    /// Whether the prefix is removed before forwarding.
    pub strip_prefix: bool,
    /// What is known about the provider. `auto` has been resolved by the URL's host.
    pub preset: Preset,
    /// Attempts in flight for every account without one of its own; `None`: no ceiling is assumed.
    pub ceiling: Option<u32>,
    /// Name of the tier that gave `ceiling`, if one did.
    pub tier: Option<String>,
    /// Requests per minute of each account, 1 to 10⁹; `None`: not known from the start.
    pub rpm: Option<u32>,
    /// Tokens per minute of each account, 1 to 10⁹; `None`: not known from the start.
    pub tpm: Option<u64>,
    /// What counts as one account.
    pub account: Account,
    /// The adaptive limit.
    pub limit: LimitSettings,
    /// The queue of each account.
    pub queue: Queue,
    /// What may be sent again, and when.
    pub retry: Retry,
    /// How long each step may take.
    pub deadlines: Deadlines,
    /// TLS towards the upstream; used when `url` is https.
    pub tls: UpstreamTls,
    /// Which HTTP version is spoken to the upstream.
    pub http2: Http2,
    /// What its models cost; the first entry that is for a model holds.
    pub prices: Vec<ModelPrice>,
    /// Header in which answers say how many dollars the account has left.
    pub balance: Option<HeaderName>,
}

/// What some models cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelPrice {
    /// The model's name, or how it begins and a `*`.
    pub model: String,
    /// Of each token.
    pub price: Price,
}

/// What the upstream counts against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The key that tells accounts apart.
    pub by: AccountBy,
    /// Whether the `model` named in the request is part of the key.
    pub split_by_model: bool,
    /// Credentials with a ceiling of their own.
    pub tiers: Vec<AccountTier>,
}

/// What tells accounts apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountBy {
    /// `authorization`, `x-api-key`, `api-key`, `x-goog-api-key`, or the `key` query parameter.
    Credential,
    /// The value of a header.
    Header(HeaderName),
    /// All requests to the upstream are one account.
    Upstream,
}

/// A credential with a ceiling of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountTier {
    /// SHA-256 of the credential (of the token alone, without a scheme such as `Bearer`).
    pub sha256: [u8; 32],
    /// Tier name, if the ceiling came from one.
    pub tier: Option<String>,
    /// Attempts in flight.
    pub ceiling: u32,
}

/// The queue of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Most requests waiting, over all flows.
    pub depth_max: usize,
    /// Most requests waiting in one flow.
    pub depth_per_flow_max: usize,
    /// Longest wait.
    pub wait_max: Duration,
    /// Header whose value names the flow; a request without it belongs to the unnamed flow.
    pub flow: HeaderName,
}

/// What may be sent again, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retry {
    /// Attempts per exchange, the first one included; refusals (429) are not counted.
    pub attempts_max: u32,
    /// When a request that may have been processed is sent again although its method is not idempotent.
    pub post: RetryPost,
    /// First step of the backoff.
    pub backoff_base: Duration,
    /// Largest step of the backoff.
    pub backoff_max: Duration,
    /// Upper end of the uniform random time added to each step.
    pub backoff_jitter: Duration,
    /// A longer `Retry-After` is treated as this long.
    pub retry_after_max: Duration,
    /// Retries of failures earned by each request.
    pub budget: f64,
}

/// How long each step may take. `None`: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// TCP connect and TLS handshake together.
    pub connect: Duration,
    /// From the request's last byte written to the response head.
    pub first_byte: Option<Duration>,
    /// Longest silence inside a body.
    pub idle: Option<Duration>,
    /// The whole exchange, waiting included.
    pub total: Option<Duration>,
    /// How long the slot of an abandoned attempt is kept at most, while the upstream has not closed its side.
    pub linger: Duration,
}

/// TLS towards an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Which issuers are trusted.
    pub roots: TlsRoots,
    /// PEM file with further issuers.
    pub ca: Option<PathBuf>,
    /// PEM files with certificate and key for mutual TLS.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Name to verify and to send as SNI instead of the URL's host.
    pub server_name: Option<String>,
}

/// Which issuers are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsRoots {
    /// Mozilla's list, compiled in.
    Bundled,
    /// Only the file named by `ca`.
    None,
    /// The machine's own list.
    System,
}

/// Which HTTP version is spoken to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http2 {
    /// HTTP/2 where ALPN agrees on it (https), HTTP/1.1 otherwise.
    Auto,
    /// HTTP/1.1 only.
    Off,
    /// HTTP/2 only, by prior knowledge on plain http.
    Only,
}

/// Bounds on buffered request bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// A request body up to this size is read whole and can be sent again.
    pub request_max_bytes: u64,
    /// All buffered bodies together; when spent, bodies are streamed instead.
    pub total_max_bytes: u64,
}

/// Bounds on what clients may ask of the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections_max: usize,
    /// Bytes of a request head.
    pub header_bytes_max: u64,
    /// Bytes of a request body; `None`: no bound.
    pub body_bytes_max: Option<u64>,
    /// Time a client may take to send a request head.
    pub header_timeout: Duration,
    /// Time in which a client must take something of what is sent to it.
    pub send_timeout: Duration,
    /// Accounts kept at once.
    pub accounts_max: usize,
}

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Time between "not ready" and closing the listener.
    pub delay: Duration,
    /// Time for running exchanges to end.
    pub max: Duration,
}

/// Whether answers carry headers that tell what Tidegate did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// `x-tidegate-attempts`, `x-tidegate-queued-ms`, `Server-Timing`.
    Headers,
    /// Nothing is added.
    Off,
}

/// Where spans go.
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    /// The collector's base URL; never has a query.
    pub endpoint: Uri,
    /// Share of the traces that begin here and are recorded, 0 to 1.
    pub sample: f64,
    /// Sent along with each export; the values are marked as secrets.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What the spans' sender is called.
    pub service_name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_machines_reach_is_named() {
        let mut config = Config::for_upstream("http://h").unwrap();
        for (listen, admin, client_ca, want) in [
            ("127.0.0.1:1", Some("127.0.0.1:2"), false, &[][..]),
            ("[::1]:1", Some("[::ffff:127.0.0.1]:2"), false, &[]),
            ("127.9.9.9:1", None, false, &[]),
            ("0.0.0.0:1", Some("127.0.0.1:2"), false, &["listen"]),
            ("[::]:1", Some("10.1.2.3:2"), false, &["listen", "admin"]),
            ("0.0.0.0:1", Some("[::]:2"), true, &["admin"]),
        ] {
            config.listen = listen.parse().unwrap();
            config.admin = admin.map(|admin| admin.parse().unwrap());
            let [cert, key, ca] = ["cert", "key", "ca"].map(PathBuf::from);
            config.tls = Some(ListenTls { cert, key, client_ca: client_ca.then_some(ca) });
            let named: Vec<_> = config.exposed().map(|(key, ..)| key).collect();
            assert_eq!(named, want, "{listen} {admin:?}");
        }
    }
}
