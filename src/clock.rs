//! The only place that reads the clock. Everything else takes `now` as an argument.

use std::time::Instant;

/// The current instant. Inside a tokio runtime whose time is paused, it follows that time.
#[expect(clippy::disallowed_methods, reason = "this is the one place the rule points to")]
#[must_use]
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
