//! How fast attempts end.

use std::time::{Duration, Instant};

/// Memory of the drain rate.
const DRAIN_WINDOW: Duration = Duration::from_secs(10);

/// How many attempts end per second: a count that fades with `DRAIN_WINDOW`.
#[derive(Debug, Default)]
pub struct Drain {
    count: f64,
    last: Option<Instant>,
    first: Option<Instant>,
}

impl Drain {
    /// One ended.
    pub fn ended(&mut self, now: Instant) {
        self.count = self.faded(now) + 1.0;
        self.last = Some(now);
        self.first.get_or_insert(now);
    }

    fn faded(&self, now: Instant) -> f64 {
        let since = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.count * (-since.as_secs_f64() / DRAIN_WINDOW.as_secs_f64()).exp()
    }

    /// How many end per second; 0 when idle.
    pub fn per_second(&self, now: Instant) -> f64 {
        // A fading count of a steady rate approaches rate × window, as far as its age has let it.
        let age = self.first.map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        let age = age.max(Duration::from_millis(100)).as_secs_f64() / DRAIN_WINDOW.as_secs_f64();
        let rate = self.faded(now) / (DRAIN_WINDOW.as_secs_f64() * (1.0 - (-age).exp()));
        if rate < 0.01 { 0.0 } else { rate }
    }
}
