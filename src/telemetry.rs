//! Log format and filter. Everything goes to standard error; nothing of a request's content is ever logged.
//!
//! Field names: `upstream`, `account`, `end`, `status`, `fault`, `attempts`, `queued_ms`, `took_ms`, `request_bytes`,
//! `response_bytes`, `from`, `to`, `reason`, `for_ms`, `after_ms`, `error`, `usage`; of a panic `place`, `thread`, `said`,
//! `backtrace`; of a collector `url`.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal},
    panic::{self, PanicHookInfo},
};

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

/// Starts logging, by default for people where they look, and for programs elsewhere. A second call changes nothing.
pub fn start(format: Option<LogFormat>, level: LogLevel) {
    let seen = io::stderr().is_terminal();
    let format = format.unwrap_or(if seen { LogFormat::Text } else { LogFormat::Json });
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
            let colour = seen && can_steer() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_ansi(colour).try_init()
        }
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    panic::set_hook(Box::new(log_panic));
}

/// Whether the terminal takes escape sequences.
#[must_use]
pub fn can_steer() -> bool {
    std::env::var_os("TERM").is_none_or(|kind| kind != "dumb")
}

/// A panic is a line of the log like any other, in the format that was asked for.
fn log_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string);
    let thread = std::thread::current();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(place, thread = thread.name(), said = said(info.payload()), backtrace, "panic");
}

/// What a panic says, if it cannot have been put together from a request: `unwrap` and slicing quote what they fail on.
/// The place tells the rest.
fn said(payload: &dyn Any) -> Option<&str> {
    let numbers_only = |text: &&str| text.starts_with("index out of bounds: ");
    let literal = payload.downcast_ref::<&'static str>().copied();
    literal.or_else(|| payload.downcast_ref::<String>().map(String::as_str).filter(numbers_only))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_quotes_nothing_that_was_put_together() {
        let quoted = Box::new("byte index 1 is not a char boundary of `sk-secret`".to_owned());
        let numbers = Box::new("index out of bounds: the len is 3 but the index is 5".to_owned());
        let payloads: [(Box<dyn Any>, Option<&str>); 4] = [
            (Box::new("a literal"), Some("a literal")),
            (quoted, None),
            (numbers.clone(), Some(&numbers)),
            (Box::new(7), None),
        ];
        for (payload, want) in payloads {
            assert_eq!(said(payload.as_ref()), want);
        }
    }
}
