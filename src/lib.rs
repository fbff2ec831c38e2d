//! Tidegate: a local reverse proxy that keeps any client inside a rate-limited API's limits.
//!
//! This page is the map. It says which rooms there are, who may call whom, and what is always true. The library
//! exports its rooms so that tests and benches can reach them; that is no interface promise to anybody else.
//!
//! # Words
//!
//! An **account** is what the upstream counts against (by default one credential at one upstream). An **exchange** is a
//! client's request and its response; it has one or more **attempts** at the upstream. A **gate** admits the attempts of
//! one account; a **permit** is the right to have one in flight, a **place** the order of arrival in its queue, a
//! **flow** the unit of fairness inside it. The **ceiling** is the hard maximum in flight, the **limit** the adaptive
//! value at or below it. A **bounce** is an attempt the upstream refused; a **fault** a failure Tidegate answers itself.
//!
//! # Rooms
//!
//! | room | what lives there | calls |
//! |---|---|---|
//! | [`cli`] | arguments, help, exit codes | `app`, `config`, `demo`, `mock`, `top` |
//! | [`app`] | the composition root: builds, spawns, reloads, drains | every room below |
//! | [`server`] | accepting clients: TLS, HTTP/1.1, HTTP/2, graceful end | `proxy`, `config` |
//! | [`proxy`] | the life of an exchange, top to bottom in `Engine::handle` | `gate`, `upstream`, `provider`, `control`, `config`, `traces` |
//! | [`gate`] | the async shell of admission: waiting, hand-over, giving back | `control` |
//! | [`control`] | **pure**: gate, queue, limit algorithms, rates, what refusals mean, retry table | nothing but `std` |
//! | [`upstream`] | connections to the upstream, a small pool per thread | `gate` (permits travel along), `config` |
//! | [`provider`] | what upstreams say: headers, error bodies, usage; what requests ask for; presets | `control` (its `Signals` and costs) |
//! | [`config`] | YAML and flags to validated values | `control`, `provider` |
//! | [`traces`] | spans of exchanges, for an OpenTelemetry collector; empty without the feature `otlp` | `upstream`, `provider`, `control`, `config` |
//! | [`admin`] | metrics, health, status, drain | `proxy`, `gate`, `control` (views), `metrics` |
//! | [`top`] | the status page in a terminal | `config` (defaults) |
//! | [`mock`], [`demo`] | the embedded rate-limited API, and the show | servers and clients of their own |
//! | [`clock`], [`fault`], [`files`], [`metrics`], [`remote`], [`tasks`], [`telemetry`], [`watch`] | leaves | open to all but `control` |
//!
//! `tests/it/tidy.rs` reads the sources and keeps this table true.
//!
//! A `door` in a room is for the fuzz targets in `tests/fuzz`: they call what is private. It exists only where
//! `cfg(fuzzing)` is set, which their build does.
//!
//! # Always true
//!
//! * One number, one owner: limit, in-flight count and queue of an account live in one [`control::gate::GateCore`]
//!   behind one lock. Gauges are not kept; whoever scrapes asks the gates.
//! * A slot is a value ([`gate::Permit`]); dropping it is the only way it comes back. It is taken before an attempt
//!   leaves and travels with the response body to its last byte.
//! * An attempt that is abandoned keeps its slot until the upstream has closed its side too (or
//!   `deadlines.linger` has passed): freed any earlier, the next attempt could overtake the news and be one too many.
//! * An exchange that waits holds no slot, and keeps its place through all its attempts.
//! * A burst of refusals is one lesson: those of attempts that had left before the first was heard teach no more.
//! * Everything on a request's path stays on one thread: each worker has its own runtime and its own upstream
//!   connections. Shared are the gates, the configuration snapshot and the metrics.
//! * A running exchange keeps the snapshot it began with; gates outlive snapshots.
//! * Nothing that may have been processed is sent again unless its method, its key or the configuration allows it.
//!
//! # Decisions that differ from what one might expect
//!
//! * **Configuration** is parsed by `saphyr-parser` into a tree with positions, and serde reads that tree, instead of a
//!   serde YAML crate: checks that span several keys can then name line and column too, and a `${NAME}` cannot change
//!   the structure.
//! * **Accounts are labelled** by the first 8 hex digits of the credential's plain SHA-256, not of a keyed hash: an
//!   operator can find the label of a key with `sha256sum`, it stays the same over restarts and replicas, and 32 bits of
//!   a high-entropy key give nothing away.
//! * **429s that say "too many in flight"** do not pause the account, even with `Retry-After`: they are no matter of
//!   time. Only the refused request itself waits as told.
//! * **`tide`**, the default limit, measures the ceiling: of a refused attempt the gate knows how many attempts that left
//!   earlier are still unanswered or being answered, and so many the upstream holds. That number becomes the limit at
//!   once, without waiting for what is on the wire to settle: slots that are free at the upstream stay in use, and a later
//!   refusal of the same burst may only refine it. The other way, epochs that bisect towards a known-bad bound, needs no
//!   ledger, but its prototype lost 7 % where a ceiling went from 50 to 10 to 80, ten seconds each, with answers of
//!   0.1 s; this one loses 3 %.
//! * **Rates, pauses and the limit are one gate,** not layers: whoever is next leaves when all three allow it, and nobody
//!   holds a slot while waiting for a budget. Budgets are followed per model, and a model that has none left is passed
//!   over in the queue.
//! * **A budget that is said to be closed for long** is asked about with one attempt after `retry.retry_after_max`, then
//!   after twice as long, and so on; but callers who cannot wait for what was said are told at once.
//! * **`aimd`, `vegas` and `gradient`** are those of Netflix concurrency-limits, for comparison, with three differences: a
//!   burst of refusals counts once, a 429 never becomes the base of delay, and while the limit is above what the upstream
//!   just refused, more is tried a step at a time (else everybody above the ceiling would knock once per round trip).
//! * **Trailers** go to every HTTP/1.1 client, whether it sent `TE: trailers` or not, and held request bodies announce
//!   theirs; only those of a request that streams to an HTTP/1.1 upstream need the client's `Trailer`, since hyper sends
//!   no others. **Interim answers** (102, 103) stay here: Python's `http.client` takes them for the answer, and hyper's
//!   server cannot send them.
//! * **What hyper answers by itself** (400, 414, 431 to bytes that are no request) is replaced on its way to the socket,
//!   so that these answers too say whose they are and why, and are counted.
//!
//! # Absent on purpose
//!
//! Load balancing over providers, translating one provider's API into another's, prompt rewriting, authenticating end
//! users, plug-ins. No tower on the request path: a plain `async fn` shows the order of steps, and a limiter that gives
//! its permit back with the response *head* would be wrong for streams.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod demo;
pub mod fault;
pub mod files;
pub mod gate;
pub mod metrics;
pub mod mock;
pub mod provider;
pub mod proxy;
pub mod remote;
pub mod server;
pub mod tasks;
pub mod telemetry;
pub mod top;
pub mod traces;
pub mod upstream;
pub mod watch;
