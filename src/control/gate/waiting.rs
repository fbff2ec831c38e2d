//! Those who wait at a gate: who goes next and when, and who need not wait any longer.

use std::time::{Duration, Instant};

use super::{Closed, Event, GateCore, PauseReason, TOLD_MAX, Turned, Waiter};
use crate::control::{
    attempt::Attempt,
    cost::Demand,
    queue::{Depths, FlowId, Full, Lane, Place, Ticket},
};

/// A wait for a budget that is shorter than this is no reason to tell anybody, nor is one that grew by less.
const CLOSED_MIN: Duration = Duration::from_secs(1);
/// One that is longer is worth a word in the log.
const CLOSED_LONG: Duration = Duration::from_secs(5);

impl<W> GateCore<W> {
    /// Joins the queue as a newcomer, if there is room and hope.
    pub fn enqueue(&mut self, flow: FlowId, place: Place, waiter: Waiter<W>, now: Instant) -> Result<Ticket, Turned> {
        self.advance(now);
        if let Some((until, reason)) = self.opens_at(&waiter.demand, now).filter(|(until, _)| *until > waiter.deadline)
        {
            return Err(Turned::Hopeless { retry_after: until.saturating_duration_since(now), reason });
        }
        self.queue.room(flow).map_err(|full| {
            let Depths { total_max, per_flow_max } = self.settings.depths;
            let depth_max = if full == Full::Flow { per_flow_max } else { total_max };
            Turned::Full { full, depth_max, retry_after: self.wait_estimate(now) }
        })?;
        Ok(self.queue.push(flow, Lane(waiter.demand.model), place, waiter))
    }

    /// Joins the queue again, at the old place, after a refused or failed attempt. Always has room: it was admitted
    /// once, so no more of these exist than attempts were in flight.
    pub fn requeue(&mut self, flow: FlowId, place: Place, waiter: Waiter<W>) -> Ticket {
        let (lane, deadline) = (Lane(waiter.demand.model), waiter.deadline);
        // It has not been told.
        self.closed.retain(|closed| closed.lane != lane || closed.until <= deadline);
        self.queue.push(flow, lane, place, waiter)
    }

    /// Leaves the queue. `false`: the slot had already been granted.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        self.queue.remove(ticket).is_some()
    }

    /// The next waiter that may enter, its slot already taken. Call until `None` after anything that may have freed
    /// room, and at [`wake_at`](Self::wake_at).
    pub fn next_grant(&mut self, now: Instant) -> Option<(W, Attempt)> {
        if self.queue.is_empty() {
            return None;
        }
        self.advance(now);
        if self.pause.is_some() || self.in_flight >= self.allowed() {
            return None;
        }
        let mut shut = Vec::new();
        loop {
            let (ticket, waiter) = self.queue.head(&shut)?;
            let demand = waiter.demand;
            if self.rate_wait(&demand, now).is_zero() {
                let waiter = self.queue.take(ticket)?;
                let attempt = self.enter(waiter.demand, now);
                return Some((waiter.wake, attempt));
            }
            if !self.others_may_pass(&demand, now) {
                return None;
            }
            shut.push(ticket.lane());
        }
    }

    /// What this one waits for is a budget of its own model, and others wait.
    fn others_may_pass(&mut self, demand: &Demand, now: Instant) -> bool {
        let cost = self.costs.estimate(demand);
        self.queue.lanes() > 1 && self.rates.wait_of_all(&cost, self.trip.takes(), now).is_zero()
    }

    pub(super) fn rate_wait(&mut self, demand: &Demand, now: Instant) -> Duration {
        let cost = self.costs.estimate(demand);
        self.rates.wait(&cost, demand.model, self.trip.takes(), now)
    }

    /// Those whose callers cannot wait until anything leaves again, with the reason: they are told at once, so that
    /// they can turn elsewhere. Call after anything that was learnt.
    pub fn take_hopeless(&mut self, now: Instant) -> Vec<(W, Turned)> {
        let mut hopeless = Vec::new();
        if self.pause.is_none() && self.rates.is_free() {
            self.closed.clear();
            return hopeless;
        }
        let (mut shut, lanes) = (Vec::new(), self.queue.lanes());
        while shut.len() < lanes {
            let Some((ticket, waiter)) = self.queue.head(&shut) else { break };
            let (lane, demand) = (ticket.lane(), waiter.demand);
            shut.push(lane);
            let Some((until, reason)) = self.opens_at(&demand, now) else {
                self.closed.retain(|closed| closed.lane != lane);
                continue;
            };
            let known = self.closed.iter_mut().find(|closed| closed.lane == lane);
            let is_later = known.as_ref().is_none_or(|known| until > known.until + CLOSED_MIN);
            match known {
                Some(known) => {
                    if is_later || until < known.until {
                        *known = Closed { lane, until, reason };
                    }
                }
                None => {
                    self.closed.push(Closed { lane, until, reason });
                    let during = until.saturating_duration_since(now);
                    if self.pause.is_none() && during > CLOSED_LONG {
                        self.events.push(Event::Paused { reason, during });
                    }
                }
            }
            if is_later {
                let turned = Turned::Hopeless { retry_after: until.saturating_duration_since(now), reason };
                let gone = self.queue.take_where(lane, |waiter| waiter.deadline < until);
                hopeless.extend(gone.into_iter().map(|waiter| (waiter.wake, turned)));
            }
        }
        self.closed.retain(|closed| closed.until > now);
        hopeless
    }

    /// When one with this demand may leave at the earliest by what the upstream said, if that is known and not soon.
    fn opens_at(&mut self, demand: &Demand, now: Instant) -> Option<(Instant, PauseReason)> {
        let cost = self.costs.estimate(demand);
        let wait = self.rates.opens_in(&cost, demand.model, self.trip.takes(), now);
        let spent = (wait > CLOSED_MIN).then(|| (now + wait.min(TOLD_MAX), PauseReason::Exhausted));
        let pause = self.pause.map(|pause| (pause.told.max(pause.until), pause.reason));
        pause.into_iter().chain(spent).max_by_key(|(until, _)| *until)
    }

    /// When to call [`next_grant`](Self::next_grant) again without being asked; `None`: only events matter.
    #[must_use]
    pub fn wake_at(&mut self, now: Instant) -> Option<Instant> {
        let (first, _) = self.queue.head(&[])?;
        if let Some(pause) = self.pause {
            return Some(pause.until);
        }
        if self.in_flight < self.allowed() {
            return Some(now + self.soonest(first, now));
        }
        let (since, _) = self.full_since?;
        let unrefused = self.unrefused_at(since);
        if self.opening.is_some() {
            return Some(unrefused);
        }
        Some(self.limit.grows_at(now)?.max(unrefused))
    }

    /// Time until the first of those that head a lane may leave.
    fn soonest(&mut self, first: Ticket, now: Instant) -> Duration {
        let (mut soonest, mut shut, mut next) = (Duration::MAX, Vec::new(), Some(first));
        while next.is_some() {
            let Some((ticket, waiter)) = self.queue.head(&shut) else { break };
            let demand = waiter.demand;
            soonest = soonest.min(self.rate_wait(&demand, now));
            shut.push(ticket.lane());
            next = next.filter(|_| !soonest.is_zero() && self.others_may_pass(&demand, now));
        }
        soonest
    }
}
