//! Tidegate: a local reverse proxy that keeps any client inside a rate-limited API's limits.

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
pub mod server;
pub mod tasks;
pub mod telemetry;
pub mod upstream;
