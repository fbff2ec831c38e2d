//! What holds when nothing is said. `config/tidegate.yaml` shows the same values, and a test compares the two. The
//! defaults of an algorithm of the limit stand beside its formula, in `control`.

use std::{num::NonZero, time::Duration};

use super::{Algorithm, Buffers, Drain, Http2, Limits, RetryPost, TlsRoots, Trace};

/// Loopback: whoever reaches the proxy can spend the keys of its clients, so other machines must be let in on purpose.
pub const LISTEN: &str = "127.0.0.1:8080";

/// Loopback, beside the proxy.
pub const ADMIN: &str = "127.0.0.1:9090";

/// Tiers that exist when the file names none: the concurrency most APIs sell under these names. A guess.
pub const TIERS: [(&str, u32); 3] = [("enterprise", 200), ("free", 10), ("pro", 50)];

/// Every request, when nothing narrower is asked for.
pub const PATH_PREFIX: &str = "/";

/// Measures the ceiling from the refusals themselves.
pub const ALGORITHM: Algorithm = Algorithm::Tide;

/// One attempt at a time always gets through; less would be a standstill.
pub const LIMIT_MIN: u32 = 1;

/// A bound for an unknown API: above what one account of any known one serves. A guess.
pub const LIMIT_MAX: u32 = 1000;

/// The ceiling of a free tier: the first burst is not refused anywhere.
pub const LIMIT_INITIAL: u32 = 10;

/// Five minutes at 33 requests per second; a waiting request without its body costs a few KiB. A guess.
pub const QUEUE_DEPTH: usize = 10_000;

/// Half of the ten minutes after which the common SDKs give up by themselves.
pub const QUEUE_WAIT: Duration = Duration::from_secs(5 * 60);

/// Header that names the flow.
pub const FLOW_HEADER: &str = "x-tidegate-flow";

/// The first one and three retries, as the guides of the big APIs advise.
pub const ATTEMPTS: u32 = 4;

/// What may have been processed is never sent again unasked: it may have been paid for.
pub const RETRY_POST: RetryPost = RetryPost::Refused;

/// First step of `min(2^n + random(0, 1), 60)` seconds.
pub const BACKOFF_BASE: Duration = Duration::from_secs(1);

/// Largest step of the same formula.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// The random part of the same formula.
pub const BACKOFF_JITTER: Duration = Duration::from_secs(1);

/// As long as the largest step: what asks for more is a quota, which waiting does not refill.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// One retry per five requests, as Finagle and Envoy have it.
pub const RETRY_BUDGET: f64 = 0.2;

/// Ample for a handshake around the globe with one lost packet.
pub const CONNECT: Duration = Duration::from_secs(5);

/// The time-out of the common SDKs; reasoning models take minutes before the first byte.
pub const FIRST_BYTE: Duration = Duration::from_secs(10 * 60);

/// Streams send a line or a ping every few seconds; five minutes of silence is a dead peer. A guess.
pub const IDLE: Duration = Duration::from_secs(5 * 60);

/// A few round trips: an upstream that notices a closed connection has noticed by then. A guess.
pub const LINGER: Duration = Duration::from_millis(250);

/// The issuers this machine trusts, company proxies included.
pub const TLS_ROOTS: TlsRoots = TlsRoots::System;

/// HTTP/2 where the upstream agrees on it.
pub const HTTP2: Http2 = Http2::Auto;

/// Nothing is added to answers.
pub const TRACE: Trace = Trace::Off;

/// The largest chat requests without pictures fit; 256 MiB is what a sidecar may cost. Guesses.
pub const BUFFERS: Buffers = Buffers { request_max_bytes: 4 << 20, total_max_bytes: 256 << 20 };

/// A collector on this machine, where OTLP over HTTP is taken by default.
pub const OTLP_ENDPOINT: &str = "http://127.0.0.1:4318";

/// All of them, as OpenTelemetry's SDKs have it: an API with a limit sees few requests.
pub const OTLP_SAMPLE: f64 = 1.0;

/// The program's name.
pub const OTLP_SERVICE_NAME: &str = "tidegate";

/// Bounds that a single process on a usual descriptor limit can keep. Guesses.
pub const LIMITS: Limits = Limits {
    connections_max: 20_000,
    header_bytes_max: 64 << 10,
    // The upstream knows what it takes; what is not held here costs nothing here.
    body_bytes_max: None,
    header_timeout: Duration::from_secs(10),
    // As long as an upstream may be silent. The kernel tells of room only once about a third of its buffer is free.
    send_timeout: IDLE,
    accounts_max: 1024,
};

/// Ten minutes: as long as the longest exchange that `FIRST_BYTE` allows. No delay unless a load balancer needs one.
pub const DRAIN: Drain = Drain { delay: Duration::ZERO, max: Duration::from_secs(10 * 60) };

/// One thread per core the process may use, containers' quotas included; 1 where that cannot be told.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}
