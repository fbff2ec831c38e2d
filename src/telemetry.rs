//! Log format and filter. Everything goes to standard error; nothing of a request's content is ever logged.
//!
//! Field names: `upstream`, `account`, `end`, `status`, `fault`, `attempts`, `queued_ms`, `took_ms`, `request_bytes`,
//! `response_bytes`, `from`, `to`, `reason`, `for_ms`, `after_ms`, `error`.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogLevel {
    /// What needs a person.
    Error,
    /// What an operator should look at.
    Warn,
    /// Pauses, faults, failed exchanges; the start and the end.
    Info,
    /// Every exchange and every decision.
    Debug,
    /// Everything of Tidegate's own.
    Trace,
}

/// Starts logging. A second call changes nothing.
pub fn start(format: LogFormat, level: LogLevel) {
    let own = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    // Libraries print headers, credentials among them, at their talkative levels: those stay shut.
    let filter = EnvFilter::new(format!("warn,tidegate={own}"));
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    let started = match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
        LogFormat::Text => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}
