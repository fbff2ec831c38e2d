//! One attempt in flight.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    clock,
    control::{attempt::Attempt, cost::Usage, gate::Heard, limit::Outcome, signals::Signals},
};

use super::Gate;

/// The right to have one attempt in flight. Dropping it frees the slot; there is no other way.
#[derive(Debug)]
#[must_use = "a permit that is dropped at once limits nothing"]
pub struct Permit {
    gate: Arc<Gate>,
    attempt: Attempt,
    bounced: bool,
    /// Already given back by the hand-over that nobody received.
    forfeited: bool,
}

impl Permit {
    pub(super) fn new(gate: Arc<Gate>, attempt: Attempt) -> Self {
        Self { gate, attempt, bounced: false, forfeited: false }
    }

    /// The gate it belongs to.
    #[must_use]
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// The attempt leaves now.
    pub fn sending(&mut self) {
        self.attempt.sent = clock::now();
    }

    /// Time since the attempt left.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.age_at(clock::now())
    }

    /// Tells the gate how the attempt went: once, at the response head or when it failed. `said`: the answer's status
    /// and what it said about limits, if there was an answer. Returns the outcome as it is understood: a refusal that
    /// does not say why is taken for what the evidence speaks for.
    pub fn observe(&mut self, outcome: Outcome, said: Option<(u16, &Signals)>) -> Outcome {
        let now = clock::now();
        let signals = said.map_or_else(Signals::default, |(_, signals)| *signals);
        let heard = Heard { first_byte: self.age_at(now), outcome, signals };
        let outcome = self.gate.learn(&self.attempt, &heard, said, now);
        self.bounced = matches!(outcome, Outcome::Bounced(_));
        outcome
    }

    /// The answer ended and said what it used.
    pub fn finish(&self, usage: &Usage) {
        self.gate.metrics.used(usage);
        if self.attempt.demand.read {
            // Of what was not read nobody knows what it asked for, so there is nothing to compare.
            self.gate.state.lock().core.finish(&self.attempt, usage);
        }
    }

    /// Gives the slot back without having sent anything.
    pub fn unused(mut self) {
        self.forfeited = true;
        let now = clock::now();
        self.gate.act(now, |state| state.core.forfeit(&self.attempt, now));
    }

    /// Whoever handed it over gives the slot back.
    pub(super) fn forfeit(mut self) -> Attempt {
        self.forfeited = true;
        self.attempt
    }

    fn age_at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.attempt.sent)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.forfeited {
            return;
        }
        let now = clock::now();
        self.gate.act(now, |state| state.core.leave(&self.attempt, self.bounced, now));
    }
}
