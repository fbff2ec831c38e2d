//! Admission control of one account: limit, queue, in-flight count, pause. One struct, one owner, one lock around it.
//!
//! An attempt may leave while fewer are in flight than `min(limit, ceiling)`, the account is not paused, and no burst
//! of refusals is being settled. Three clocks run inside, all of them asked for through [`GateCore::wake_at`]:
//!
//! * **settling**: after the first refusal of a burst nothing leaves until everything on the wire has been answered,
//!   so that one burst is one lesson, and what the upstream still holds can be read off;
//! * **pause**: the upstream said when to come back, or refused although it held nothing of ours;
//! * **reopening**: after a pause one attempt leaves, then twice as many each step, so that a queue is not a burst.

use std::time::{Duration, Instant};

use super::{
    limit::{Change, ChangeReason, Epoch, Limit, LimitSettings, Outcome, Sample},
    queue::{Depths, FairQueue, FlowId, Full, Place, Ticket},
    retry::{self, Facts, RetryBudget, RetrySettings, Verdict},
    rng::Rng,
    signals::Attribution,
};

/// A refusal is taken to arrive within three of its usual round trips …
const ROUND_TRIPS: u32 = 3;
/// … of which this is assumed before the first one was seen (no connect was timed either).
const ROUND_TRIP_UNKNOWN: Duration = Duration::from_millis(70);
/// Shortest time in which a full limit counts as unrefused: below it, timers and scheduling blur the picture.
const UNREFUSED_MIN: Duration = Duration::from_millis(20);
/// Longest such time: a server that queues for seconds before it refuses must not stop the search.
const UNREFUSED_MAX: Duration = Duration::from_secs(1);
/// Shortest step of a reopening.
const REOPEN_STEP_MIN: Duration = Duration::from_millis(50);
/// Memory of the drain rate.
const DRAIN_WINDOW: Duration = Duration::from_secs(10);

/// The settings of one account's gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateSettings {
    /// The adaptive limit.
    pub limit: LimitSettings,
    /// The hard maximum; `None`: none is known.
    pub ceiling: Option<u32>,
    /// How many may wait.
    pub depths: Depths,
    /// What may be sent again.
    pub retry: RetrySettings,
}

/// Why an account is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// Remaining reached zero.
    Exhausted,
    /// Refused although nothing of ours was in flight, without a word on when to come back.
    Refused,
    /// `Retry-After` or a relative.
    RetryAfter,
}

impl PauseReason {
    /// All of them, in label order.
    pub const ALL: [Self; 3] = [Self::Exhausted, Self::Refused, Self::RetryAfter];

    /// The metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Refused => "refused",
            Self::RetryAfter => "retry_after",
        }
    }
}

/// Something the shell should count and log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The limit moved.
    Limit(Change),
    /// The account is paused from now on.
    Paused {
        /// Why.
        reason: PauseReason,
        /// For how long.
        during: Duration,
    },
}

/// Why a newcomer was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turned {
    /// Which bound it met.
    pub full: Full,
    /// How many may wait there.
    pub depth_max: usize,
    /// When a place may be free again, from queue length and drain rate.
    pub retry_after: Duration,
}

/// A copy of all numbers, for metrics and `/status`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateView {
    /// What the algorithm allows.
    pub limit: u32,
    /// The hard maximum.
    pub ceiling: Option<u32>,
    /// Attempts in flight.
    pub in_flight: u32,
    /// Exchanges waiting.
    pub queued: usize,
    /// Time left of a pause, and why.
    pub paused: Option<(Duration, PauseReason)>,
    /// Attempts that ended per second, over the last seconds; 0 when idle.
    pub drain_per_second: f64,
}

/// A pause has ended: only so many more than were in flight then may leave, twice as many each step.
#[derive(Debug, Clone, Copy)]
struct Reopening {
    in_flight: u32,
    more: u32,
}

#[derive(Debug)]
struct Settling {
    until: Instant,
    attribution: Attribution,
    /// Most in flight when any refused attempt of the burst left.
    in_flight: u32,
    /// Attempts that were held when the burst began and ended well since.
    finished: u32,
}

/// The gate of one account. `W` is what wakes a waiter: a channel in the shell, a number in a simulation.
#[derive(Debug)]
pub struct GateCore<W> {
    settings: GateSettings,
    limit: Limit,
    in_flight: u32,
    queue: FairQueue<W>,
    budget: RetryBudget,
    rng: Rng,
    next_place: u64,
    pause: Option<(Instant, PauseReason)>,
    reopening: Option<Reopening>,
    settling: Option<Settling>,
    /// When the last burst of refusals or overloads began; attempts that left before it are part of it.
    epoch: Option<Instant>,
    refusals_in_row: u32,
    overloads_in_row: u32,
    /// Since when as many as allowed are in flight.
    full_since: Option<Instant>,
    /// Average time a refusal takes, or a connect before the first one.
    round_trip: Option<Duration>,
    drain: Drain,
    events: Vec<Event>,
}

impl<W> GateCore<W> {
    /// A gate that has seen nothing yet.
    #[must_use]
    pub fn new(settings: GateSettings, seed: u64) -> Self {
        Self {
            limit: Limit::new(&settings.limit, settings.ceiling),
            in_flight: 0,
            queue: FairQueue::new(settings.depths),
            budget: RetryBudget::new(settings.retry.budget),
            rng: Rng::new(seed),
            next_place: 0,
            pause: None,
            reopening: None,
            settling: None,
            epoch: None,
            refusals_in_row: 0,
            overloads_in_row: 0,
            full_since: None,
            round_trip: None,
            drain: Drain::default(),
            events: Vec::new(),
            settings,
        }
    }

    /// A new exchange: its place in the order of arrival. Earns its share of the retry budget.
    pub fn arrive(&mut self) -> Place {
        self.budget.deposit();
        self.next_place += 1;
        Place(self.next_place)
    }

    /// Takes a slot at once if one is free and nobody waits.
    #[must_use]
    pub fn try_enter(&mut self, now: Instant) -> bool {
        self.advance(now);
        let enters = self.queue.is_empty() && self.admits();
        if enters {
            self.enter(now);
        }
        enters
    }

    /// Joins the queue as a newcomer, if there is room.
    pub fn enqueue(&mut self, flow: FlowId, place: Place, waiter: W, now: Instant) -> Result<Ticket, Turned> {
        self.queue.room(flow).map_err(|full| {
            let Depths { total_max, per_flow_max } = self.settings.depths;
            let depth_max = if full == Full::Flow { per_flow_max } else { total_max };
            Turned { full, depth_max, retry_after: self.wait_estimate(now) }
        })?;
        Ok(self.queue.push(flow, place, waiter))
    }

    /// Joins the queue again, at the old place, after a refused or failed attempt. Always has room: it was admitted
    /// once, so no more of these exist than attempts were in flight.
    pub fn requeue(&mut self, flow: FlowId, place: Place, waiter: W) -> Ticket {
        self.queue.push(flow, place, waiter)
    }

    /// Leaves the queue. `false`: the slot had already been granted.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        self.queue.remove(ticket).is_some()
    }

    /// The next waiter that may enter, its slot already taken. Call until `None` after anything that may have freed
    /// room, and at [`wake_at`](Self::wake_at).
    pub fn next_grant(&mut self, now: Instant) -> Option<W> {
        self.advance(now);
        if !self.admits() {
            return None;
        }
        let waiter = self.queue.pop()?;
        self.enter(now);
        Some(waiter)
    }

    /// A slot comes back. `bounced`: the attempt had been refused, so the upstream never held it.
    pub fn leave(&mut self, bounced: bool, now: Instant) {
        debug_assert!(self.in_flight > 0, "leave without enter");
        self.in_flight = self.in_flight.saturating_sub(1);
        if !bounced {
            self.drain.ended(now);
            if let Some(settling) = &mut self.settling {
                settling.finished += 1;
            }
        }
        if self.queue.is_empty() {
            // Nobody wants more: a limit that is not in demand proves nothing.
            self.full_since = None;
        }
    }

    /// Learns from one attempt.
    pub fn observe(&mut self, sample: &Sample, now: Instant) {
        self.advance(now);
        let same_epoch = self.epoch.is_some_and(|epoch| sample.sent < epoch);
        match sample.outcome {
            Outcome::Ignored => {}
            Outcome::Accepted => {
                if !same_epoch {
                    self.refusals_in_row = 0;
                    self.overloads_in_row = 0;
                }
                let change = self.limit.accepted(sample);
                self.changed(change);
            }
            Outcome::Bounced(Attribution::Quota) => {}
            Outcome::Bounced(attribution) => {
                self.note_round_trip(sample.first_byte);
                if let Some(settling) = &mut self.settling {
                    settling.in_flight = settling.in_flight.max(sample.in_flight);
                    return;
                }
                if same_epoch {
                    return;
                }
                self.epoch = Some(now);
                self.full_since = None;
                // What left just before this refusal is answered within the same time, give or take a tenth.
                let settle = self.round_trip.map_or(sample.first_byte, |average| average.max(sample.first_byte));
                self.settling = Some(Settling {
                    until: now + settle.min(UNREFUSED_MAX) * 11 / 10,
                    attribution,
                    in_flight: sample.in_flight,
                    finished: 0,
                });
            }
            Outcome::Overloaded => {
                self.overloads_in_row = self.overloads_in_row.saturating_add(1);
                if !same_epoch {
                    self.epoch = Some(now);
                    let change = self.limit.overloaded(self.overloads_in_row, now);
                    self.changed(change);
                }
            }
        }
    }

    /// How long a connect took: a first idea of how soon a refusal would arrive.
    pub fn note_connect(&mut self, took: Duration) {
        self.round_trip.get_or_insert(took);
    }

    /// The account rests until then. A shorter pause never cuts a longer one.
    pub fn pause(&mut self, during: Duration, reason: PauseReason, now: Instant) {
        let during = retry::spread(during.min(self.settings.retry.retry_after_max), &mut self.rng);
        let until = now + during;
        if self.pause.is_none_or(|(current, _)| until > current) {
            if self.pause.is_none() {
                self.events.push(Event::Paused { reason, during });
            }
            self.pause = Some((until, reason));
        }
        self.full_since = None;
    }

    /// What to do after a failed attempt.
    pub fn verdict(&mut self, facts: &Facts, now: Instant) -> Verdict {
        retry::decide(facts, &self.settings.retry, &mut self.budget, &mut self.rng, now)
    }

    /// When to call [`next_grant`](Self::next_grant) again without being asked; `None`: only events matter.
    #[must_use]
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.queue.is_empty() {
            return None;
        }
        let hold = [self.settling.as_ref().map(|settling| settling.until), self.pause.map(|(until, _)| until)];
        if let Some(until) = hold.into_iter().flatten().max() {
            return Some(until);
        }
        let full_since = self.full_since?;
        if self.reopening.is_some() {
            return Some(full_since + self.reopen_step());
        }
        Some(self.limit.grows_at(now)?.max(full_since + self.unrefused_after()))
    }

    /// Takes new settings; what was learnt survives unless algorithm, range or ceiling changed.
    pub fn retune(&mut self, settings: GateSettings) {
        if settings.limit != self.settings.limit || settings.ceiling != self.settings.ceiling {
            let from = self.limit.value();
            self.limit = Limit::new(&settings.limit, settings.ceiling);
            let to = self.limit.value();
            self.changed((from != to).then_some(Change { from, to, reason: ChangeReason::Retune }));
            self.full_since = None;
        }
        self.queue.set_depths(settings.depths);
        self.budget.set_ratio(settings.retry.budget);
        self.settings = settings;
    }

    /// Time after which a newcomer may expect a place: queue length over drain rate, after the pause.
    #[must_use]
    pub fn wait_estimate(&self, now: Instant) -> Duration {
        let pause = self.pause.map_or(Duration::ZERO, |(until, _)| until.saturating_duration_since(now));
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
            paused: self
                .pause
                .map(|(until, reason)| (until.saturating_duration_since(now), reason))
                .filter(|(left, _)| !left.is_zero()),
            drain_per_second: self.drain.per_second(now),
        }
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
        self.reopening.map_or(limit, |reopening| limit.min(reopening.in_flight.saturating_add(reopening.more)))
    }

    fn admits(&self) -> bool {
        self.pause.is_none() && self.settling.is_none() && self.in_flight < self.allowed()
    }

    fn enter(&mut self, now: Instant) {
        self.in_flight += 1;
        debug_assert!(
            self.in_flight <= self.settings.ceiling.unwrap_or(u32::MAX),
            "{} in flight above the ceiling",
            self.in_flight
        );
        if self.in_flight >= self.allowed() {
            self.full_since.get_or_insert(now);
        }
    }

    /// Lets the clocks inside run up to `now`.
    fn advance(&mut self, now: Instant) {
        if let Some(settling) = self.settling.take_if(|settling| settling.until <= now) {
            self.settle(&settling, now);
        }
        if self.pause.take_if(|(until, _)| *until <= now).is_some() {
            // What outlasted the pause (long streams) proves nothing and must not stand in the way of the first one.
            self.reopening = Some(Reopening { in_flight: self.in_flight, more: 1 });
            self.full_since = None;
        }
        let Some(full_since) = self.full_since else {
            return;
        };
        if self.queue.is_empty() || self.in_flight < self.allowed() {
            return;
        }
        if let Some(reopening) = self.reopening {
            if now >= full_since + self.reopen_step() {
                let more = reopening.more.saturating_mul(2);
                self.reopening = (more < self.limit.value()).then_some(Reopening { more, ..reopening });
                self.full_since = None;
            }
        } else if now >= full_since + self.unrefused_after() {
            let change = self.limit.unrefused(now);
            if change.is_some() {
                self.full_since = None;
            }
            self.changed(change);
        }
    }

    fn settle(&mut self, settling: &Settling, now: Instant) {
        self.refusals_in_row = self.refusals_in_row.saturating_add(1);
        let held = self.in_flight.saturating_add(settling.finished);
        let epoch = Epoch {
            attribution: settling.attribution,
            held,
            in_flight: settling.in_flight,
            in_row: self.refusals_in_row,
        };
        let change = self.limit.refused(&epoch, now);
        self.changed(change);
        // Asking again at once would be refused again: the next slot of ours to end changes nothing about it.
        let hopeless = match settling.attribution {
            Attribution::Ceiling | Attribution::Unknown => held == 0 || (change.is_none() && self.refusals_in_row > 1),
            Attribution::Overload | Attribution::Quota | Attribution::Rate => true,
        };
        if hopeless && self.pause.is_none() {
            let during = self.settings.retry.backoff.delay(self.refusals_in_row - 1, &mut self.rng);
            self.events.push(Event::Paused { reason: PauseReason::Refused, during });
            self.pause = Some((now + during, PauseReason::Refused));
        }
    }

    fn changed(&mut self, change: Option<Change>) {
        self.events.extend(change.map(Event::Limit));
    }

    fn note_round_trip(&mut self, took: Duration) {
        self.round_trip = Some(match self.round_trip {
            // An average over about four refusals.
            Some(average) => (average * 3 + took) / 4,
            None => took,
        });
    }

    fn unrefused_after(&self) -> Duration {
        let round_trip = self.round_trip.unwrap_or(ROUND_TRIP_UNKNOWN);
        round_trip.saturating_mul(ROUND_TRIPS).clamp(UNREFUSED_MIN, UNREFUSED_MAX)
    }

    fn reopen_step(&self) -> Duration {
        self.unrefused_after().max(REOPEN_STEP_MIN)
    }
}

/// How many attempts end per second: a count that fades with [`DRAIN_WINDOW`].
#[derive(Debug, Default)]
struct Drain {
    count: f64,
    last: Option<Instant>,
    first: Option<Instant>,
}

impl Drain {
    fn ended(&mut self, now: Instant) {
        self.count = self.faded(now) + 1.0;
        self.last = Some(now);
        self.first.get_or_insert(now);
    }

    fn faded(&self, now: Instant) -> f64 {
        let since = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.count * (-since.as_secs_f64() / DRAIN_WINDOW.as_secs_f64()).exp()
    }

    fn per_second(&self, now: Instant) -> f64 {
        // A fading count of a steady rate approaches rate × window, as far as its age has let it.
        let age = self.first.map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        let age = age.max(Duration::from_millis(100)).as_secs_f64() / DRAIN_WINDOW.as_secs_f64();
        let rate = self.faded(now) / (DRAIN_WINDOW.as_secs_f64() * (1.0 - (-age).exp()));
        if rate < 0.01 { 0.0 } else { rate }
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
