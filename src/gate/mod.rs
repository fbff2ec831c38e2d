//! The async shell around `control::gate`: waiting for a slot, handing it over, giving it back.
//!
//! One lock per account. It is held for a few dozen instructions, never across an await, and never while a permit is
//! handed over: grants are collected under the lock and delivered after it.

mod permit;
mod registry;

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    clock,
    control::{
        gate::{Event, GateCore, GateSettings, GateView, PauseReason},
        queue::{FlowId, Place, Ticket},
        retry::{Facts, Verdict},
        signals::{Attribution, Signals},
    },
    metrics::{AccountMetrics, Remaining},
    tasks::Tasks,
};

pub use permit::Permit;
pub use registry::{AccountKey, Accounts};

/// Why the gate said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As many wait already as may.
    Full {
        /// The bound that was met.
        depth_max: usize,
        /// When a place may be free.
        retry_after: std::time::Duration,
    },
    /// The deadline passed while waiting.
    TooLate {
        /// When a slot may be free.
        retry_after: std::time::Duration,
    },
}

/// The last refusal an account saw, for `/status`.
#[derive(Debug, Clone, Copy)]
pub struct LastRefusal {
    /// When.
    pub at: Instant,
    /// Why.
    pub attribution: Attribution,
    /// The upstream's status.
    pub status: u16,
}

/// Admission to one account at one upstream.
#[derive(Debug)]
pub struct Gate {
    upstream: Arc<str>,
    account: Arc<str>,
    state: Mutex<State>,
    /// Counters and histograms of this account.
    pub metrics: AccountMetrics,
    tasks: Tasks,
}

#[derive(Debug)]
struct State {
    core: GateCore<oneshot::Sender<Permit>>,
    /// When the next timer goes off.
    armed: Option<Instant>,
    last_refusal: Option<LastRefusal>,
    remaining: Remaining,
    last_used: Instant,
}

impl Gate {
    /// A gate that has seen nothing yet.
    #[must_use]
    pub fn new(
        upstream: Arc<str>,
        account: Arc<str>,
        settings: GateSettings,
        seed: u64,
        metrics: AccountMetrics,
        tasks: Tasks,
    ) -> Self {
        let state = State {
            core: GateCore::new(settings, seed),
            armed: None,
            last_refusal: None,
            remaining: Remaining::default(),
            last_used: clock::now(),
        };
        Self { upstream, account, state: Mutex::new(state), metrics, tasks }
    }

    /// Name of the upstream.
    #[must_use]
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// Label of the account.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    /// A new exchange: its place in the order of arrival, kept through all its attempts.
    #[must_use]
    pub fn arrive(&self) -> Place {
        let mut state = self.state.lock();
        state.last_used = clock::now();
        state.core.arrive()
    }

    /// A slot at once, if one is free and nobody waits.
    #[must_use]
    pub fn try_admit(self: &Arc<Self>) -> Option<Permit> {
        let now = clock::now();
        let mut state = self.state.lock();
        let entered = state.core.try_enter(now);
        let in_flight = state.core.in_flight();
        self.arm(&mut state, now);
        let events = state.core.take_events();
        drop(state);
        self.report(events);
        entered.then(|| Permit::new(Arc::clone(self), in_flight))
    }

    /// Waits for a slot as a newcomer. Cancel-safe: dropping the future leaves the queue, and a slot that was granted
    /// in that instant goes back.
    pub async fn admit(self: &Arc<Self>, flow: FlowId, place: Place, deadline: Instant) -> Result<Permit, Refusal> {
        let waiting = {
            let now = clock::now();
            let (sender, receiver) = oneshot::channel();
            let ticket = (self.state.lock().core)
                .enqueue(flow, place, sender, now)
                .map_err(|turned| Refusal::Full { depth_max: turned.depth_max, retry_after: turned.retry_after })?;
            let waiting = Waiting { gate: Arc::clone(self), ticket, receiver };
            // A slot may be free, or have become free a moment ago.
            self.pump(now);
            waiting
        };
        waiting.granted(deadline).await
    }

    /// Waits for a slot again, at the old place, after a refused or failed attempt. Cancel-safe like
    /// [`admit`](Self::admit).
    pub async fn readmit(self: &Arc<Self>, flow: FlowId, place: Place, deadline: Instant) -> Result<Permit, Refusal> {
        let waiting = {
            let now = clock::now();
            let (sender, receiver) = oneshot::channel();
            let ticket = self.state.lock().core.requeue(flow, place, sender);
            let waiting = Waiting { gate: Arc::clone(self), ticket, receiver };
            self.pump(now);
            waiting
        };
        waiting.granted(deadline).await
    }

    /// What to do after a failed attempt.
    #[must_use]
    pub fn verdict(&self, facts: &Facts) -> Verdict {
        self.state.lock().core.verdict(facts, clock::now())
    }

    /// How long a connect took.
    pub fn note_connect(&self, took: std::time::Duration) {
        self.state.lock().core.note_connect(took);
    }

    /// What an answer said about the account. Pauses it if that is what it said.
    pub fn note_signals(self: &Arc<Self>, signals: &Signals, refused: Option<(Attribution, u16)>) {
        let now = clock::now();
        let mut state = self.state.lock();
        if signals.requests_remaining.is_some() || signals.tokens_remaining.is_some() {
            state.remaining = Remaining {
                requests: signals.requests_remaining.or(state.remaining.requests),
                tokens: signals.tokens_remaining.or(state.remaining.tokens),
            };
        }
        if let Some((attribution, status)) = refused {
            state.last_refusal = Some(LastRefusal { at: now, attribution, status });
        }
        let told = signals.retry_after.map(|told| (told, PauseReason::RetryAfter));
        let exhausted = signals.exhausted_for.map(|told| (told, PauseReason::Exhausted));
        let pause = match refused.map(|(attribution, _)| attribution) {
            // A spent quota does not come back by waiting: nobody else is held up for it.
            Some(Attribution::Quota) => None,
            // Too many in flight is no matter of time.
            Some(Attribution::Ceiling) | None => exhausted,
            Some(Attribution::Overload | Attribution::Rate | Attribution::Unknown) => told.or(exhausted),
        };
        if let Some((during, reason)) = pause.filter(|(during, _)| !during.is_zero()) {
            state.core.pause(during, reason, now);
            self.arm(&mut state, now);
            self.report(state.core.take_events());
        }
    }

    /// A copy of all numbers.
    #[must_use]
    pub fn view(&self) -> GateView {
        self.state.lock().core.view(clock::now())
    }

    /// The last refusal, if there was one.
    #[must_use]
    pub fn last_refusal(&self) -> Option<LastRefusal> {
        self.state.lock().last_refusal
    }

    /// What the upstream last said remains.
    #[must_use]
    pub fn remaining(&self) -> Remaining {
        self.state.lock().remaining
    }

    /// Takes new settings; running attempts and waiters stay.
    pub fn retune(self: &Arc<Self>, settings: GateSettings) {
        self.state.lock().core.retune(settings);
        self.pump(clock::now());
    }

    /// Since when nobody has been inside or waiting; `None`: somebody is.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.core.is_idle().then_some(state.last_used)
    }

    fn cancel(&self, ticket: Ticket) -> bool {
        self.state.lock().core.cancel(ticket)
    }

    fn wait_estimate(&self) -> std::time::Duration {
        self.state.lock().core.wait_estimate(clock::now())
    }

    /// Hands out every slot that is free. Iterative: a queue full of waiters that vanished cannot recurse.
    fn pump(self: &Arc<Self>, now: Instant) {
        let mut vanished = 0;
        loop {
            let mut grants = Vec::new();
            let events = {
                let mut state = self.state.lock();
                for _ in 0..std::mem::take(&mut vanished) {
                    // Nothing was sent with it: as if it had never been granted.
                    state.core.leave(true, now);
                }
                while let Some(sender) = state.core.next_grant(now) {
                    grants.push((sender, state.core.in_flight()));
                }
                self.arm(&mut state, now);
                state.core.take_events()
            };
            self.report(events);
            if grants.is_empty() {
                return;
            }
            for (sender, in_flight) in grants {
                if let Err(permit) = sender.send(Permit::new(Arc::clone(self), in_flight)) {
                    permit.forfeit();
                    vanished += 1;
                }
            }
            if vanished == 0 {
                return;
            }
        }
    }

    /// Sees to it that [`pump`](Self::pump) runs when the core wants it.
    fn arm(self: &Arc<Self>, state: &mut State, now: Instant) {
        let Some(at) = state.core.wake_at(now) else { return };
        if state.armed.is_some_and(|armed| armed <= at && armed > now) {
            return;
        }
        // A time that has passed already would spin; a millisecond is the timer's own grain.
        let at = at.max(now + std::time::Duration::from_millis(1));
        state.armed = Some(at);
        let gate = Arc::downgrade(self);
        self.tasks.spawn("gate timer", async move {
            tokio::time::sleep_until(at.into()).await;
            let Some(gate) = gate.upgrade() else { return };
            let now = clock::now();
            gate.state.lock().armed.take_if(|armed| *armed <= now);
            gate.pump(now);
        });
    }

    fn report(&self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Limit(change) => {
                    self.metrics.limit_changed(change.reason);
                    tracing::debug!(
                        upstream = %self.upstream, account = %self.account, from = change.from, to = change.to,
                        reason = change.reason.label(), "limit changed"
                    );
                }
                Event::Paused { reason, during } => {
                    self.metrics.paused(reason);
                    tracing::info!(
                        upstream = %self.upstream, account = %self.account, reason = reason.label(),
                        for_ms = during.as_millis() as u64, "account paused"
                    );
                }
            }
        }
    }
}

/// A place in the queue. Dropping it leaves the queue; a permit that was granted meanwhile is dropped with `receiver`.
struct Waiting {
    gate: Arc<Gate>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Permit>,
}

impl Waiting {
    async fn granted(mut self, deadline: Instant) -> Result<Permit, Refusal> {
        match tokio::time::timeout_at(deadline.into(), &mut self.receiver).await {
            Ok(Ok(permit)) => Ok(permit),
            // The sender lives in the queue until it is used; if it went away the gate did.
            Ok(Err(_)) => Err(Refusal::TooLate { retry_after: self.gate.wait_estimate() }),
            Err(_elapsed) => {
                // Granted in this very instant? Then it counts.
                if !self.gate.cancel(self.ticket)
                    && let Ok(permit) = self.receiver.try_recv()
                {
                    return Ok(permit);
                }
                Err(Refusal::TooLate { retry_after: self.gate.wait_estimate() })
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gate.cancel(self.ticket);
    }
}

#[cfg(test)]
mod tests;
