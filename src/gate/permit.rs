//! One attempt in flight.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    clock,
    control::limit::{Outcome, Sample},
};

use super::Gate;

/// The right to have one attempt in flight. Dropping it frees the slot; there is no other way.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once limits nothing"]
pub struct Permit {
    gate: Arc<Gate>,
    sent: Instant,
    in_flight: u32,
    bounced: bool,
    /// Already given back by the hand-over that nobody received.
    forfeited: bool,
}

impl Permit {
    pub(super) fn new(gate: Arc<Gate>, in_flight: u32) -> Self {
        Self { gate, sent: clock::now(), in_flight, bounced: false, forfeited: false }
    }

    /// The gate it belongs to.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The attempt leaves now.
    pub fn sending(&mut self) {
        self.sent = clock::now();
    }

    /// Time since the attempt left.
    #[must_use]
    pub fn age(&self) -> Duration {
        clock::now().saturating_duration_since(self.sent)
    }

    /// Tells the limit how the attempt went: once, at the response head or when it failed.
    pub fn observe(&mut self, outcome: Outcome) {
        let now = clock::now();
        self.bounced = matches!(outcome, Outcome::Bounced(_));
        let first_byte = now.saturating_duration_since(self.sent);
        let sample = Sample { sent: self.sent, first_byte, in_flight: self.in_flight, outcome };
        let events = {
            let mut state = self.gate.state.lock();
            state.core.observe(&sample, now);
            state.core.take_events()
        };
        self.gate.report(events);
        self.gate.metrics.attempt(outcome.label());
    }

    /// Whoever handed it over gives the slot back.
    pub(super) fn forfeit(mut self) {
        self.forfeited = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.forfeited {
            return;
        }
        let now = clock::now();
        self.gate.state.lock().core.leave(self.bounced, now);
        self.gate.pump(now);
    }
}
