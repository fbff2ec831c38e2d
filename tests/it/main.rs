//! The one integration-test binary: modules by theme.
#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    clippy::let_underscore_must_use,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "tests may panic, use the real clock, and ignore how a scripted peer fares"
)]

mod abuse;
mod admin;
mod admission;
mod browsers;
mod cancel;
mod chaos;
mod cli;
mod config;
mod disguise;
mod faults;
mod floods;
mod forward;
mod http2;
mod lifecycle;
mod mock;
mod money;
#[cfg(feature = "otlp")]
mod otlp;
mod outages;
mod peers;
mod rates;
mod raw;
mod reference;
mod reload;
mod rest;
mod retries;
mod schema;
mod secrets;
mod support;
mod tidy;
mod tls;
mod traces;
mod ways;
