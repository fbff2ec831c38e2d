//! The room without its feature: values without size, calls that do nothing.

use std::time::{Duration, Instant};

use http::{StatusCode, request};

use crate::{
    config::{Config, Upstream},
    control::{cost::Usage, retry::Failure},
    metrics::Metrics,
};

use super::{Ending, TracesError};

/// Where spans would go.
#[derive(Debug, Clone, Default)]
pub struct Traces(());

impl Traces {
    /// Nothing to start.
    pub fn start(_config: &Config, _metrics: &Metrics) -> Result<Self, TracesError> {
        Ok(Self(()))
    }

    /// No span.
    #[must_use]
    pub fn begin(&self, _head: &request::Parts, _now: Instant) -> Span {
        Span(())
    }

    /// Nothing is left to send.
    pub async fn flush(&self) {}
}

/// What would be noted of an exchange.
#[derive(Debug, Default)]
pub struct Span(());

impl Span {
    /// It is known where the request goes, and what it asks for.
    pub fn asked(&mut self, _waited: Duration, _settings: &Upstream, _path: &str, _body: &[u8]) {}

    /// An attempt leaves.
    pub fn leaves(&mut self, _now: Instant, _waited: Duration) {}

    /// Its response head is here.
    pub fn heard(&mut self, _now: Instant, _status: StatusCode) {}

    /// It failed.
    pub fn failed(&mut self, _failure: Failure) {}

    /// Nobody is told who answered.
    #[must_use]
    pub fn wants_model(&self) -> bool {
        false
    }

    /// The answer said who gave it.
    pub fn answered_by(&mut self, _model: &str) {}

    /// The answer said what it used.
    pub fn used(&mut self, _usage: &Usage) {}

    /// The exchange has ended.
    pub fn end(&mut self, _ending: &Ending<'_>) {}
}
