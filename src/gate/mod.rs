//! The async shell around `control::gate`: waiting for a slot, handing it over, giving it back.
//!
//! One lock per account. It is held for a few dozen instructions, never across an await, and never while a permit is
//! handed over: grants are collected under the lock and delivered after it.

mod permit;
mod registry;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::{
    clock,
    control::{
        attempt::Attempt,
        cost::Demand,
        gate::{Event, GateCore, GateSettings, GateView, Heard, PauseReason, Turned, Waiter},
        limit::Outcome,
        queue::{FlowId, Place, Ticket},
        retry::{Facts, Verdict},
        signals::{Attribution, Dimension, Signals},
    },
    metrics::{AccountMetrics, Remaining},
    tasks::Tasks,
};

pub use permit::Permit;
pub use registry::{Accounts, LastAccount, Newcomer, Retired};

/// The timer's own grain. A time that has passed already would spin, and one that is earlier by less is no news.
const GRAIN: Duration = Duration::from_millis(1);

/// Why the gate said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As many wait already as may.
    Full {
        /// The bound that was met.
        depth_max: usize,
        /// When a place may be free.
        retry_after: Duration,
    },
    /// The account is paused for longer than the caller can wait.
    Hopeless {
        /// When it opens again.
        retry_after: Duration,
        /// Why it is paused.
        reason: PauseReason,
    },
    /// The deadline passed while waiting.
    TooLate {
        /// When a slot may be free.
        retry_after: Duration,
    },
}

impl From<Turned> for Refusal {
    fn from(turned: Turned) -> Self {
        match turned {
            Turned::Full { full: _, depth_max, retry_after } => Self::Full { depth_max, retry_after },
            Turned::Hopeless { retry_after, reason } => Self::Hopeless { retry_after, reason },
        }
    }
}

/// The last refusal an account saw, for `/status`.
#[derive(Debug, Clone, Copy)]
pub struct LastRefusal {
    /// When.
    pub at: Instant,
    /// Why, as it was understood.
    pub attribution: Attribution,
    /// What it named as used up, where it did.
    pub dimension: Option<Dimension>,
    /// The upstream's status.
    pub status: u16,
    /// How long it asked to wait.
    pub retry_after: Option<Duration>,
}

/// Admission to one account at one upstream.
#[derive(Debug)]
pub struct Gate {
    upstream: Arc<str>,
    account: Arc<str>,
    limit_at_first: u32,
    state: Mutex<State>,
    // A copy of what the core says, for a look without the lock.
    wants_usage: AtomicBool,
    /// A quota was found spent: whoever waits may wait in vain.
    quota_news: Notify,
    /// Counters and histograms of this account.
    pub metrics: AccountMetrics,
    tasks: Tasks,
}

/// What wakes a waiter.
type Wake = oneshot::Sender<Result<Permit, Refusal>>;

#[derive(Debug)]
struct State {
    core: GateCore<Wake>,
    /// When the timer goes off.
    armed: Option<Instant>,
    /// Tells its task that this is earlier than it was; gone with the task.
    timer: Weak<Notify>,
    last_refusal: Option<LastRefusal>,
    remaining: Remaining,
    balance: Option<Balance>,
    last_used: Instant,
}

/// What the upstream last said the account has left.
#[derive(Debug, Clone, Copy)]
struct Balance {
    /// The configuration that asked for it: they are numbered, and only grow.
    epoch: u64,
    usd: f64,
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
        let now = clock::now();
        let state = State {
            core: GateCore::new(settings, seed, now),
            armed: None,
            timer: Weak::new(),
            last_refusal: None,
            remaining: Remaining::default(),
            balance: None,
            last_used: now,
        };
        let limit_at_first = state.core.view(now).limit;
        let (state, wants_usage, quota_news) = (Mutex::new(state), AtomicBool::default(), Notify::new());
        let gate = Self { upstream, account, limit_at_first, state, wants_usage, quota_news, metrics, tasks };
        gate.note_wants(&gate.state.lock());
        gate
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

    /// Where its limit began.
    #[must_use]
    pub fn limit_at_first(&self) -> u32 {
        self.limit_at_first
    }

    /// Whether it is worth knowing what requests used: tokens are counted, or a quota is spent. Only then all answers
    /// are read for it.
    #[must_use]
    pub fn wants_usage(&self) -> bool {
        self.wants_usage.load(Ordering::Relaxed)
    }

    /// The quota for this is spent, and it is not this request's turn to ask whether that is still so. Returns the time
    /// until the next one may. Asked when a permit is there: a request that is not blocked is the one that asks.
    #[must_use]
    pub fn quota_blocks(&self, demand: &Demand) -> Option<Duration> {
        if !self.wants_usage() {
            return None;
        }
        self.state.lock().core.quota_blocks(demand, clock::now())
    }

    /// The same for a request that has not been admitted yet.
    #[must_use]
    pub fn quota_spent(&self, demand: &Demand) -> Option<Duration> {
        if !self.wants_usage() {
            return None;
        }
        self.state.lock().core.quota_spent(demand, clock::now())
    }

    /// Completes when the quota for this is found spent. Returns the time until somebody may ask again.
    pub async fn quota_runs_out(&self, demand: &Demand) -> Duration {
        loop {
            self.quota_news.notified().await;
            if let Some(left) = self.quota_spent(demand) {
                return left;
            }
        }
    }

    /// A new exchange: its place in the order of arrival, kept through all its attempts; and a slot at once, if one is
    /// free and nobody waits.
    #[must_use]
    pub fn enter(self: &Arc<Self>, demand: &Demand) -> (Place, Option<Permit>) {
        let now = clock::now();
        let mut state = self.state.lock();
        state.last_used = now;
        let place = state.core.arrive();
        let attempt = state.core.try_enter(demand, now);
        self.arm(&mut state, now);
        let events = state.core.take_events();
        drop(state);
        self.report(events);
        (place, attempt.map(|attempt| Permit::new(Arc::clone(self), attempt)))
    }

    /// Waits for a slot as a newcomer. Cancel-safe: dropping the future leaves the queue, and a slot that was granted
    /// in that instant goes back.
    pub async fn admit(
        self: &Arc<Self>,
        flow: FlowId,
        place: Place,
        demand: Demand,
        deadline: Instant,
    ) -> Result<Permit, Refusal> {
        let waiting = {
            let now = clock::now();
            let (wake, receiver) = oneshot::channel();
            let waiter = Waiter { demand, deadline, wake };
            // A slot may be free, or have become free a moment ago.
            let ticket = self.act(now, |state| state.core.enqueue(flow, place, waiter, now))?;
            Waiting::new(self, ticket, receiver)
        };
        waiting.granted(deadline).await
    }

    /// Waits for a slot again, at the old place, after a refused or failed attempt. Cancel-safe like
    /// [`admit`](Self::admit).
    pub async fn readmit(
        self: &Arc<Self>,
        flow: FlowId,
        place: Place,
        demand: Demand,
        deadline: Instant,
    ) -> Result<Permit, Refusal> {
        let waiting = {
            let (wake, receiver) = oneshot::channel();
            let waiter = Waiter { demand, deadline, wake };
            let ticket = self.act(clock::now(), |state| state.core.requeue(flow, place, waiter));
            Waiting::new(self, ticket, receiver)
        };
        waiting.granted(deadline).await
    }

    /// What to do after a failed attempt.
    #[must_use]
    pub fn verdict(&self, facts: &Facts) -> Verdict {
        self.state.lock().core.verdict(facts, clock::now())
    }

    /// How long a connect took.
    pub fn note_connect(&self, took: Duration) {
        self.state.lock().core.note_connect(took);
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

    /// What the upstream last said the account has left, in dollars, to a request of the configuration with this number.
    #[must_use]
    pub fn balance_usd(&self, epoch: u64) -> Option<f64> {
        self.state.lock().balance.filter(|balance| balance.epoch == epoch).map(|balance| balance.usd)
    }

    /// The upstream says what the account has left. Requests of a former configuration may be answered last, and then
    /// are not heard.
    pub fn note_balance_usd(&self, epoch: u64, usd: f64) {
        let balance = &mut self.state.lock().balance;
        if balance.is_none_or(|known| known.epoch <= epoch) {
            *balance = Some(Balance { epoch, usd });
        }
    }

    /// Takes new settings; running attempts and waiters stay.
    pub fn retune(self: &Arc<Self>, settings: GateSettings) {
        let now = clock::now();
        self.act(now, |state| {
            state.core.retune(settings, now);
            self.note_wants(state);
        });
    }

    /// Since when nobody has been inside or waiting; `None`: somebody is.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state.lock();
        state.core.is_idle().then_some(state.last_used)
    }

    /// Leaves the queue. `false`: an answer is there already. Whoever stood behind may now be able to leave, or at
    /// least sooner: asking that costs little more than asking whether it was the first in line.
    fn cancel(self: &Arc<Self>, ticket: Ticket) -> bool {
        let now = clock::now();
        self.act(now, |state| state.core.cancel(ticket))
    }

    fn wait_estimate(&self) -> Duration {
        self.state.lock().core.wait_estimate(clock::now())
    }

    /// What was heard of an attempt. Returns the outcome as it is understood.
    fn learn(
        self: &Arc<Self>,
        attempt: &Attempt,
        heard: &Heard,
        said: Option<(u16, &Signals)>,
        now: Instant,
    ) -> Outcome {
        let (outcome, refusal) = self.act(now, |state| {
            let outcome = state.core.observe(attempt, heard, now);
            let attribution = match outcome {
                Outcome::Bounced(attribution) => Some(attribution),
                Outcome::Overloaded => Some(Attribution::Overload),
                Outcome::Accepted | Outcome::Failed | Outcome::Ignored => None,
            };
            let refusal = attribution.zip(said).map(|(attribution, (status, signals))| LastRefusal {
                at: now,
                attribution,
                dimension: signals.refused,
                status,
                retry_after: signals.retry_after,
            });
            state.last_refusal = refusal.or(state.last_refusal);
            state.remaining.update(&heard.signals.budgets);
            self.note_wants(state);
            (outcome, refusal)
        });
        self.metrics.attempt(outcome.label());
        if let Some(refusal) = refusal {
            self.metrics.refused(refusal.attribution);
        }
        outcome
    }

    fn note_wants(&self, state: &State) {
        self.wants_usage.store(state.core.wants_demand(), Ordering::Relaxed);
    }

    /// Does something to the state, then hands out every slot that is free and tells those whose wait has become
    /// pointless. Iterative: a queue full of waiters that vanished cannot recurse.
    fn act<T>(self: &Arc<Self>, now: Instant, act: impl FnOnce(&mut State) -> T) -> T {
        let mut vanished = Vec::new();
        let mut state = self.state.lock();
        let done = act(&mut state);
        loop {
            for attempt in vanished.drain(..) {
                // Nothing was sent with it: as if it had never been granted.
                state.core.forfeit(&attempt, now);
            }
            let grants: Vec<_> = std::iter::from_fn(|| state.core.next_grant(now)).collect();
            let hopeless = state.core.take_hopeless(now);
            self.arm(&mut state, now);
            let events = state.core.take_events();
            drop(state);
            self.report(events);
            for (wake, turned) in hopeless {
                // Whoever has left meanwhile need not be told.
                drop(wake.send(Err(turned.into())));
            }
            for (wake, attempt) in grants {
                if let Err(Ok(permit)) = wake.send(Ok(Permit::new(Arc::clone(self), attempt))) {
                    vanished.push(permit.forfeit());
                }
            }
            if vanished.is_empty() {
                return done;
            }
            state = self.state.lock();
        }
    }

    /// Sees to it that somebody looks again when the core wants it. There is one timer: it is set anew, and ends when
    /// there is nothing to wait for.
    fn arm(self: &Arc<Self>, state: &mut State, now: Instant) {
        let Some(at) = state.core.wake_at(now) else { return };
        let at = at.max(now + GRAIN);
        let timer = state.timer.upgrade();
        if timer.is_some() && state.armed.is_some_and(|armed| armed <= at + GRAIN && armed > now) {
            return;
        }
        state.armed = Some(at);
        if let Some(timer) = timer {
            timer.notify_one();
            return;
        }
        let (gate, timer) = (Arc::downgrade(self), Arc::new(Notify::new()));
        state.timer = Arc::downgrade(&timer);
        self.tasks.spawn("gate timer", async move {
            let mut at = at;
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(at.into()) => {}
                    () = timer.notified() => {}
                }
                let Some(next) = gate.upgrade().and_then(|gate| gate.tick()) else { return };
                at = next;
            }
        });
    }

    /// Looks again if it is time. Returns when to come back; `None`: nothing is to be waited for.
    fn tick(self: &Arc<Self>) -> Option<Instant> {
        let now = clock::now();
        if self.state.lock().armed.take_if(|armed| *armed <= now).is_some() {
            self.act(now, |_| ());
        }
        let mut state = self.state.lock();
        if state.armed.is_none() {
            state.timer = Weak::new();
        }
        state.armed
    }

    fn report(&self, events: Vec<Event>) {
        let (upstream, account) = (self.upstream(), self.account());
        for event in events {
            match event {
                Event::Limit(change) => {
                    self.metrics.limit_changed(change.reason);
                    tracing::debug!(
                        upstream,
                        account,
                        from = change.from,
                        to = change.to,
                        reason = change.reason.label(),
                        "limit changed"
                    );
                }
                Event::Mind { verdict } => {
                    let verdict = verdict.label();
                    tracing::info!(upstream, account, "refusals without a word are now taken for a {verdict}");
                }
                Event::Paused { reason, during } => {
                    self.metrics.paused(reason);
                    let for_ms = during.as_millis() as u64;
                    tracing::info!(upstream, account, reason = reason.label(), for_ms, "account paused");
                }
                Event::Quota { spent: true } => {
                    self.quota_news.notify_waiters();
                    tracing::warn!(
                        upstream,
                        account,
                        "a quota is spent; until it is back, few requests for it are sent"
                    );
                }
                Event::Quota { spent: false } => {
                    tracing::info!(upstream, account, "a quota that was spent is back");
                }
            }
        }
    }
}

/// A place in the queue. Dropping it leaves the queue, and gives back a slot that was granted meanwhile.
struct Waiting {
    gate: Arc<Gate>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Result<Permit, Refusal>>,
    /// The answer was received, or can no longer come.
    over: bool,
}

impl Waiting {
    fn new(gate: &Arc<Gate>, ticket: Ticket, receiver: oneshot::Receiver<Result<Permit, Refusal>>) -> Self {
        Self { gate: Arc::clone(gate), ticket, receiver, over: false }
    }

    async fn granted(mut self, deadline: Instant) -> Result<Permit, Refusal> {
        let answer = match tokio::time::timeout_at(deadline.into(), &mut self.receiver).await {
            Ok(answer) => {
                self.over = true;
                answer.ok()
            }
            // Granted in this very instant? Then it counts.
            Err(_elapsed) => self.leave(),
        };
        // The sender lives in the queue until it is used; if it went away the gate did.
        answer.unwrap_or_else(|| Err(Refusal::TooLate { retry_after: self.gate.wait_estimate() }))
    }

    /// Leaves the queue. Returns the answer if there was one already.
    fn leave(&mut self) -> Option<Result<Permit, Refusal>> {
        if std::mem::replace(&mut self.over, true) || self.gate.cancel(self.ticket) {
            return None;
        }
        // From here on whoever hands over a permit keeps it.
        self.receiver.close();
        self.receiver.try_recv().ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(Ok(permit)) = self.leave() {
            permit.unused();
        }
    }
}

#[cfg(test)]
mod tests;
