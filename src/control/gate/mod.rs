//! Admission control of one account: limit, rates, queue, in-flight count, pause. One struct, one owner, one lock
//! around it.
//!
//! An attempt may leave while fewer are in flight than `min(limit, ceiling)`, every rate has room for what it is taken
//! to cost, and the account is not paused. Three clocks run inside, all of them asked for through
//! [`GateCore::wake_at`]:
//!
//! * **pause**: the upstream said when to come back, or refused although it held nothing of ours;
//! * **opening**: at the start and after a pause a few attempts leave, then twice as many each round trip, so that a
//!   queue is not a burst;
//! * **rates**: a bucket refills, a window turns, a canary was not refused.

mod learn;
mod types;
mod waiting;

use std::time::{Duration, Instant};

use super::{
    attempt::{Attempt, Ledger},
    breaker::Breakers,
    cost::{Costs, Demand, Usage},
    drain::Drain,
    limit::{Change, ChangeReason, Limit, LimitSettings},
    mind::Mind,
    queue::{FairQueue, Lane, Place},
    rates::Rates,
    retry::{self, Facts, RetryBudget, Verdict},
    rng::Rng,
    trip::Trip,
};
pub use types::{Event, GateSettings, GateView, Heard, PauseReason, Turned, Waiter};

/// Attempts that leave at once when the ceiling is not known: a small one is not met by a burst.
const OPENING: u32 = 3;
/// A known ceiling is opened from this share of it, so that the first answers tell how fast the upstream is when idle.
const OPENING_SHARE: u32 = 8;
/// Longest that the first attempts are waited for, to learn how fast the upstream is when idle, before more leave.
const FIRST_ANSWERS: Duration = Duration::from_millis(250);
/// The same where a known ceiling lets many leave: there nothing else will tell that they are too many.
const FIRST_ANSWERS_KNOWN: Duration = Duration::from_secs(5);
/// Longest time until an upstream opens again that is believed at all.
const TOLD_MAX: Duration = Duration::from_secs(31 * 86_400);
/// After this long without use the next burst opens step by step, like a start.
const IDLE: Duration = Duration::from_secs(600);

/// Only so many more than were in flight then may leave, twice as many each step.
#[derive(Debug, Clone, Copy)]
struct Opening {
    in_flight: u32,
    more: u32,
    /// More leave at the latest then, and not before the first answers are known.
    base_by: Option<Instant>,
}

/// Nothing leaves until then.
#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Instant,
    /// What the upstream said, which may be later: then it is asked again before.
    told: Instant,
    reason: PauseReason,
}

#[derive(Debug, Clone, Copy)]
struct Closed {
    lane: Lane,
    until: Instant,
    reason: PauseReason,
}

/// The last burst of refusals that taught the limit something.
#[derive(Debug, Clone, Copy)]
struct Burst {
    /// When it began: attempts that left before it are part of it.
    at: Instant,
    /// The first attempt that left after it.
    first_after: Option<u64>,
    /// Something that left after it was accepted.
    accepted: bool,
    in_row: u32,
}

/// The gate of one account. `W` is what wakes a waiter.
#[derive(Debug)]
pub struct GateCore<W> {
    settings: GateSettings,
    limit: Limit,
    rates: Rates,
    costs: Costs,
    mind: Mind,
    breakers: Breakers,
    ledger: Ledger,
    in_flight: u32,
    next_attempt: u64,
    queue: FairQueue<Waiter<W>>,
    budget: RetryBudget,
    rng: Rng,
    next_place: u64,
    pause: Option<Pause>,
    /// Lanes that nothing leaves from for a while, as those who cannot wait for it have been told.
    closed: Vec<Closed>,
    opening: Option<Opening>,
    burst: Option<Burst>,
    /// When the last overload began, and how many came since something was accepted.
    overload: Option<Instant>,
    overloads_in_row: u32,
    /// Since when as many as allowed are in flight, and the attempt that made it so.
    full_since: Option<(Instant, u64)>,
    /// That attempt, or one after it, was accepted: nothing more is to be waited for.
    full_passed: bool,
    last_used: Instant,
    trip: Trip,
    drain: Drain,
    events: Vec<Event>,
}

impl<W> GateCore<W> {
    /// A gate that has seen nothing yet.
    #[must_use]
    pub fn new(settings: GateSettings, seed: u64, now: Instant) -> Self {
        let mut rates = Rates::new(&settings.rates, settings.limit.tide.pace, now);
        rates.tune(settings.limit.tide.pace, settings.retry.retry_after_max);
        Self {
            limit: Limit::new(&settings.limit, settings.ceiling, seed),
            rates,
            costs: Costs::default(),
            mind: Mind::default(),
            breakers: Breakers::default(),
            ledger: Ledger::default(),
            in_flight: 0,
            next_attempt: 0,
            queue: FairQueue::new(settings.depths),
            budget: RetryBudget::new(settings.retry.budget),
            rng: Rng::new(seed),
            next_place: 0,
            pause: None,
            closed: Vec::new(),
            opening: Some(Self::opening(&settings)),
            burst: None,
            overload: None,
            overloads_in_row: 0,
            full_since: None,
            full_passed: false,
            last_used: now,
            trip: Trip::default(),
            drain: Drain::default(),
            events: Vec::new(),
            settings,
        }
    }

    fn opening(settings: &GateSettings) -> Opening {
        let more = settings.ceiling.map_or(OPENING, |ceiling| (ceiling / OPENING_SHARE).max(settings.limit.initial));
        Opening { in_flight: 0, more, base_by: None }
    }

    /// A new exchange: its place in the order of arrival. Earns its share of the retry budget.
    pub fn arrive(&mut self) -> Place {
        self.budget.deposit();
        self.next_place += 1;
        Place(self.next_place)
    }

    /// Whether it is worth knowing what requests ask for: only then their bodies are read for it.
    #[must_use]
    pub fn wants_demand(&self) -> bool {
        self.rates.counts_tokens() || !self.breakers.is_empty()
    }

    /// The quota of this model is spent, and it is not this request's turn to ask whether that is still so. Returns
    /// the time until the next one may.
    pub fn quota_blocks(&mut self, demand: &Demand, now: Instant) -> Option<Duration> {
        self.breakers.blocks(demand.model, now)
    }

    /// The same for one that would not ask at once: it is not counted as the one that does.
    #[must_use]
    pub fn quota_spent(&self, demand: &Demand, now: Instant) -> Option<Duration> {
        self.breakers.spent(demand.model, now)
    }

    /// Takes a slot at once if one is free and nobody waits.
    #[must_use]
    pub fn try_enter(&mut self, demand: &Demand, now: Instant) -> Option<Attempt> {
        self.advance(now);
        (self.queue.is_empty() && self.admits(demand, now)).then(|| self.enter(*demand, now))
    }

    /// A slot comes back. `bounced`: the attempt had been refused, so the upstream never held it.
    pub fn leave(&mut self, attempt: &Attempt, bounced: bool, now: Instant) {
        debug_assert!(self.in_flight > 0, "leave without enter");
        self.in_flight = self.in_flight.saturating_sub(1);
        self.ledger.remove(attempt.id);
        self.last_used = now;
        if !bounced {
            self.drain.ended(now);
        }
        if self.queue.is_empty() {
            // Nobody wants more: a limit that is not in demand proves nothing.
            self.full_since = None;
        }
    }

    /// A slot comes back that nothing was sent with.
    pub fn forfeit(&mut self, attempt: &Attempt, now: Instant) {
        self.rates.refund(attempt);
        self.leave(attempt, true, now);
    }

    /// An answer ended and said what it used.
    pub fn finish(&mut self, attempt: &Attempt, usage: &Usage) {
        self.costs.learn(&attempt.demand, usage);
    }

    /// How long a connect took: a first idea of how soon a refusal would arrive.
    pub fn note_connect(&mut self, took: Duration) {
        self.trip.connected(took);
    }

    /// The account rests until then. A shorter pause never cuts a longer one.
    pub fn pause(&mut self, during: Duration, reason: PauseReason, now: Instant) {
        let told = now + during.min(TOLD_MAX);
        let during = retry::spread(during.min(self.settings.retry.retry_after_max), &mut self.rng);
        self.rest(during, reason, now);
        if let Some(pause) = &mut self.pause {
            pause.told = pause.told.max(told);
        }
    }

    /// What to do after a failed attempt.
    pub fn verdict(&mut self, facts: &Facts, now: Instant) -> Verdict {
        retry::decide(facts, &self.settings.retry, &mut self.budget, &mut self.rng, now)
    }

    /// Takes new settings; what was learnt survives unless algorithm, range or ceiling changed.
    pub fn retune(&mut self, settings: GateSettings, now: Instant) {
        let same_range = LimitSettings { tide: self.settings.limit.tide, ..settings.limit } == self.settings.limit
            && settings.ceiling == self.settings.ceiling;
        if settings.limit != self.settings.limit && same_range && self.limit.retune(&settings.limit) {
            // Only constants: what they led to stays, and moves on from there.
        } else if settings.limit != self.settings.limit || settings.ceiling != self.settings.ceiling {
            let from = self.limit.value();
            self.limit = Limit::new(&settings.limit, settings.ceiling, self.rng.next_u64());
            let to = self.limit.value();
            self.changed((from != to).then_some(Change { from, to, reason: ChangeReason::Retune }));
            self.full_since = None;
        }
        if settings.rates != self.settings.rates {
            self.rates.configure(&settings.rates, now);
        }
        self.rates.tune(settings.limit.tide.pace, settings.retry.retry_after_max);
        self.queue.set_depths(settings.depths);
        self.budget.set_ratio(settings.retry.budget);
        self.settings = settings;
    }

    /// Time after which a newcomer may expect a place: queue length over drain rate, after the pause.
    #[must_use]
    pub fn wait_estimate(&self, now: Instant) -> Duration {
        let pause = self.pause.map_or(Duration::ZERO, |pause| pause.until.saturating_duration_since(now));
        let rate = self.drain.per_second(now);
        let queue = if rate > 0.0 { (self.queue.len() as f64 / rate).min(3600.0) } else { 1.0 };
        pause + Duration::from_secs_f64(queue)
    }

    /// Attempts in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// A copy of all numbers.
    #[must_use]
    pub fn view(&self, now: Instant) -> GateView {
        GateView {
            limit: self.limit.value(),
            ceiling: self.settings.ceiling,
            in_flight: self.in_flight,
            queued: self.queue.len(),
            paused: self.paused(now),
            drain_per_second: self.drain.per_second(now),
            delay_limit: self.limit.delay_verdict(),
            overload_limit: self.limit.overload_limit(),
            rates: self.rates.view(),
            unknown_means: self.mind.verdict(),
            quotas_spent: self.breakers.len(),
        }
    }

    /// A pause, or that nobody who waits may leave for want of a budget: time left, and why.
    fn paused(&self, now: Instant) -> Option<(Duration, PauseReason)> {
        let pause = self.pause.map(|pause| (pause.until, pause.reason));
        let all_closed = !self.closed.is_empty() && self.closed.len() >= self.queue.lanes();
        let closed = self.closed.iter().filter(|_| all_closed).map(|closed| (closed.until, closed.reason));
        let closed = closed.min_by_key(|(until, _)| *until);
        let paused = pause.into_iter().chain(closed).max_by_key(|(until, _)| *until);
        paused.map(|(until, reason)| (until.saturating_duration_since(now), reason)).filter(|(left, _)| !left.is_zero())
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Nobody is inside and nobody waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.queue.is_empty()
    }

    fn allowed(&self) -> u32 {
        let limit = self.limit.value().min(self.settings.ceiling.unwrap_or(u32::MAX));
        self.opening.map_or(limit, |opening| limit.min(opening.in_flight.saturating_add(opening.more)))
    }

    fn admits(&mut self, demand: &Demand, now: Instant) -> bool {
        self.pause.is_none() && self.in_flight < self.allowed() && self.rate_wait(demand, now).is_zero()
    }

    fn enter(&mut self, demand: Demand, now: Instant) -> Attempt {
        if self.in_flight == 0 && now.saturating_duration_since(self.last_used) > IDLE {
            self.opening = Some(Self::opening(&self.settings));
        }
        self.in_flight += 1;
        debug_assert!(
            self.in_flight <= self.settings.ceiling.unwrap_or(u32::MAX),
            "{} in flight above the ceiling",
            self.in_flight
        );
        self.next_attempt += 1;
        let id = self.next_attempt;
        self.note_full(now);
        self.ledger.add(id);
        if let Some(burst) = &mut self.burst {
            burst.first_after.get_or_insert(id);
        }
        let cost = self.costs.estimate(&demand);
        let total = self.rates.spend(id, &cost, demand.model, now);
        Attempt {
            id,
            sent: now,
            in_flight: self.in_flight,
            within: self.in_flight <= self.limit.confirmed(),
            demand,
            cost,
            total,
        }
    }

    /// Lets the clocks inside run up to `now`.
    fn advance(&mut self, now: Instant) {
        let trip = self.trip.takes();
        self.rates.advance(trip, now);
        if self.pause.take_if(|pause| pause.until <= now).is_some() {
            // What outlasted the pause (long streams) proves nothing and must not stand in the way of the first one.
            self.opening = Some(Opening { in_flight: self.in_flight, more: 1, base_by: None });
            self.full_since = None;
        }
        let Some((since, _)) = self.full_since else { return };
        if self.queue.is_empty() || self.in_flight < self.allowed() || now < self.unrefused_at(since) {
            return;
        }
        if let Some(opening) = self.opening {
            self.opening = self.opened(opening, now);
        } else {
            let change = self.limit.unrefused(now);
            if change.is_none() {
                return;
            }
            self.changed(change);
        }
        self.full_since = None;
        self.note_full(now);
    }

    /// The next step of an opening; `None`: it is over.
    fn opened(&self, opening: Opening, now: Instant) -> Option<Opening> {
        let enough = self.settings.limit.initial.max(opening.more.min(self.limit.value() / OPENING_SHARE));
        if !self.limit.has_base() && opening.more >= enough {
            let longest = if self.settings.ceiling.is_some() { FIRST_ANSWERS_KNOWN } else { FIRST_ANSWERS };
            let base_by = opening.base_by.unwrap_or(now + longest);
            if now < base_by {
                return Some(Opening { base_by: Some(base_by), ..opening });
            }
        }
        let more = opening.more.saturating_mul(2);
        (opening.in_flight.saturating_add(opening.more) < self.limit.value()).then_some(Opening { more, ..opening })
    }

    /// When as many as were in flight since then count as unrefused.
    fn unrefused_at(&self, since: Instant) -> Instant {
        let patience = if self.opening.is_some() { 1 } else { self.limit.patience() };
        match self.full_passed && patience == 1 {
            true => since,
            false => since + self.trip.unrefused_after() * patience,
        }
    }

    /// As many are in flight as may be, from now on if they were not before.
    fn note_full(&mut self, now: Instant) {
        if self.in_flight < self.allowed() || self.full_since.is_some() {
            return;
        }
        self.full_since = Some((now, self.next_attempt));
        self.full_passed = false;
    }

    fn changed(&mut self, change: Option<Change>) {
        self.events.extend(change.map(Event::Limit));
    }
}

#[cfg(test)]
#[path = "absurd_tests.rs"]
pub(crate) mod absurd;
#[cfg(test)]
mod budget_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod time_tests;
