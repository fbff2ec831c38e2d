//! What a gate learns from answers, refusals and failures.

use std::time::{Duration, Instant};

use super::{Burst, Event, GateCore, Heard, Opening, Pause, PauseReason};
use crate::control::{
    attempt::Attempt,
    limit::{Epoch, Outcome, Sample},
    mind::Evidence,
    signals::{Attribution, Signals},
};

/// First rest when the upstream holds nothing of ours and still refuses for its ceiling: others hold it.
const CROWDED: Duration = Duration::from_millis(100);
/// Longest such rest.
const CROWDED_MAX: Duration = Duration::from_secs(5);
/// A refusal that does not say why and asks for more than this is about a rate, not about slots.
const TOLD_RATE: Duration = Duration::from_secs(2);

impl<W> GateCore<W> {
    /// Learns from one attempt. Returns the outcome as it is understood: a refusal that does not say why is taken for
    /// what the evidence speaks for.
    pub fn observe(&mut self, attempt: &Attempt, heard: &Heard, now: Instant) -> Outcome {
        self.advance(now);
        let trip = self.trip.takes();
        self.rates.reported(attempt, &heard.signals.budgets, trip, now);
        let after_burst = self.burst.is_none_or(|burst| attempt.sent >= burst.at);
        match heard.outcome {
            Outcome::Failed | Outcome::Ignored => heard.outcome,
            Outcome::Accepted => {
                self.accepted(attempt, heard, after_burst, now);
                Outcome::Accepted
            }
            Outcome::Overloaded | Outcome::Bounced(Attribution::Overload) => {
                self.overloads_in_row = self.overloads_in_row.saturating_add(1);
                if self.overload.is_none_or(|began| attempt.sent >= began) {
                    self.overload = Some(now);
                    let change = self.limit.overloaded(self.overloads_in_row);
                    self.changed(change);
                }
                self.told(&heard.signals, now);
                Outcome::Overloaded
            }
            Outcome::Bounced(attribution) => {
                let attribution = self.bounced(attempt, attribution, heard, after_burst, now);
                Outcome::Bounced(attribution)
            }
        }
    }

    fn accepted(&mut self, attempt: &Attempt, heard: &Heard, after_burst: bool, now: Instant) {
        if after_burst && let Some(burst) = &mut self.burst {
            burst.accepted = true;
        }
        self.overloads_in_row = 0;
        self.full_passed |= self.full_since.is_some_and(|(_, id)| attempt.id >= id);
        if self.breakers.accepted(attempt.demand.model) {
            self.events.push(Event::Quota { spent: false });
        }
        let change = self.limit.accepted(&Sample {
            id: attempt.id,
            newest: self.next_attempt,
            sent: attempt.sent,
            first_byte: heard.first_byte,
            in_flight: attempt.in_flight,
            class: attempt.demand.class(),
            now,
        });
        self.changed(change);
    }

    fn bounced(
        &mut self,
        attempt: &Attempt,
        attribution: Attribution,
        heard: &Heard,
        after_burst: bool,
        now: Instant,
    ) -> Attribution {
        let most = self.settings.retry.retry_after_max;
        let told = heard.signals.retry_after.filter(|told| !told.is_zero()).map(|told| told.min(most));
        match attribution {
            Attribution::Quota => {
                if self.breakers.trip(attempt.demand.model, told, now) {
                    self.events.push(Event::Quota { spent: true });
                }
                return attribution;
            }
            Attribution::Rate | Attribution::Ceiling | Attribution::Unknown | Attribution::Overload => {
                self.trip.note(heard.first_byte);
            }
        }
        let is_late = self.trip.is_late(heard.first_byte);
        // What was there when it was decided: mostly now, a moment ago. Where an upstream thinks about it, many have
        // ended since, and those that were there when the attempt left say more.
        let held = self.ledger.before(attempt.id);
        let held = if is_late { held.max(attempt.in_flight - 1) } else { held };
        let is_unknown = attribution == Attribution::Unknown;
        let attribution = if !is_unknown {
            attribution
        } else if heard.signals.refused.is_some() || told > Some(TOLD_RATE) {
            Attribution::Rate
        } else {
            if after_burst {
                self.weigh(attempt, held);
            }
            self.mind.verdict()
        };
        if attribution == Attribution::Rate {
            let in_row = self.mark_burst(attempt, after_burst, now);
            let holds = self.rates.refused(attempt, heard.signals.refused, told, now);
            let unexplained = (is_unknown && held == 0) || !holds;
            if unexplained && told.is_none() && after_burst {
                // Not a word on when, and not what was known: whatever it is, it is not helped by asking soon.
                self.back_off(in_row, now);
            }
            self.told(&heard.signals, now);
        } else {
            if after_burst {
                self.ceiling_refused(attempt, held, is_unknown && told.is_none(), now);
            } else if is_late {
                let change = self.limit.refine(held);
                self.changed(change);
            }
            if is_unknown && !self.mind.is_sure() {
                // Until it is known to be no matter of time, it is taken at its word.
                self.told(&heard.signals, now);
            }
        }
        if is_unknown && !self.mind.is_sure() { Attribution::Unknown } else { attribution }
    }

    fn weigh(&mut self, attempt: &Attempt, held: u32) {
        let accepted = self.burst.is_some_and(|burst| burst.accepted || burst.first_after != Some(attempt.id));
        let passed_before = attempt.within;
        let change = self.mind.weigh(&Evidence { accepted, passed_before, held, rate: self.rates.measured() });
        if change == Some(Attribution::Rate) {
            // What it was cut to was no ceiling.
            let change = self.limit.restore();
            self.changed(change);
        }
        self.events.extend(change.map(|verdict| Event::Mind { verdict }));
    }

    /// Begins a burst with this refusal. Returns how many came without an acceptance between.
    fn mark_burst(&mut self, attempt: &Attempt, after_burst: bool, now: Instant) -> u32 {
        let before = self.burst;
        if !after_burst {
            return before.map_or(0, |burst| burst.in_row);
        }
        let in_row = match before {
            Some(burst) if burst.first_after == Some(attempt.id) && !burst.accepted => burst.in_row.saturating_add(1),
            _ => 1,
        };
        self.burst = Some(Burst { at: now, first_after: None, accepted: false, in_row });
        in_row
    }

    fn ceiling_refused(&mut self, attempt: &Attempt, held: u32, is_mute: bool, now: Instant) {
        let in_row = self.mark_burst(attempt, true, now);
        self.full_since = None;
        self.opening = None;
        let change = self.limit.refused(&Epoch { held, in_row, passed_before: attempt.within }, now);
        self.changed(change);
        if held > 0 {
            if self.limit.value() > held {
                // Not every algorithm takes a refusal at its word. What it lets through is tried a step at a time, or
                // everybody above the ceiling would knock once per round trip.
                self.opening = Some(Opening { in_flight: held, more: 1, base_by: None });
            }
            return;
        }
        // Asking again at once would be refused again, and no slot of ours will come free to tell us when.
        if is_mute {
            self.back_off(in_row, now);
        } else {
            let rest = CROWDED.saturating_mul(1 << (in_row - 1).min(16)).min(CROWDED_MAX);
            let rest = rest + self.rng.up_to(rest);
            self.rest(rest, PauseReason::Refused, now);
        }
    }

    fn back_off(&mut self, in_row: u32, now: Instant) {
        let rest = self.settings.retry.backoff.delay(in_row.saturating_sub(1), &mut self.rng);
        self.rest(rest, PauseReason::Refused, now);
    }

    /// Does as the answer says about when to come back.
    fn told(&mut self, signals: &Signals, now: Instant) {
        if let Some(told) = signals.retry_after.filter(|told| !told.is_zero()) {
            self.pause(told, PauseReason::RetryAfter, now);
        }
    }

    pub(super) fn rest(&mut self, during: Duration, reason: PauseReason, now: Instant) {
        let until = now + during;
        if self.pause.is_none_or(|pause| until > pause.until) {
            if self.pause.is_none() {
                self.events.push(Event::Paused { reason, during });
            }
            let told = self.pause.map_or(until, |pause| pause.told.max(until));
            self.pause = Some(Pause { until, told, reason });
        }
        self.full_since = None;
    }
}
