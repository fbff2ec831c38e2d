//! The delivered rate, measured where the upstream reports nothing.
//!
//! Between two refusals that say "the bucket is empty", what was let through is what flowed in, however large the
//! bucket is: `rate = amount / time`. Attempts leave at a little less than that. Whether more would pass is tried now
//! and then, slowly; after a refusal one attempt asks before others follow.

use std::time::{Duration, Instant};

use crate::control::attempt::Attempt;

/// First rest after a refusal while nothing is known of the rate.
const REST: Duration = Duration::from_millis(500);
/// Each refused canary makes the next rest longer by this …
const REST_GROWTH: f64 = 1.5;
/// … up to this.
const REST_MAX: Duration = Duration::from_secs(15);
/// A measurement counts from so many units on: one more or less is its error.
const UNITS_MIN: f64 = 5.0;
/// Measurements kept. The highest counts: each is a lower bound, and one is too low if the bucket overflowed meanwhile.
const MEASURED: usize = 4;
/// Two measurements in a row below this share of it, and the rate has fallen.
const FALLEN: f64 = 0.8;
/// A measurement of so many units is precise.
const UNITS_PRECISE: f64 = 200.0;
/// Time and units since the last refusal after which a higher rate than a precise one is tried. The time doubles with
/// each measurement that only confirms the one before …
const CLEAN: Duration = Duration::from_secs(20);
const CLEAN_UNITS: f64 = 100.0;
/// … up to this.
const CLEAN_MAX: Duration = Duration::from_secs(300);
/// Two measurements that differ by less confirm each other.
const CONFIRMS: f64 = 0.03;
/// Tries follow one another at this distance …
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// … by a first step of 1 %, or what the measurement may be wrong by, each 1.3 times the one before, up to 8 %.
const PROBE_STEP: f64 = 0.01;
const PROBE_STEP_GROWTH: f64 = 1.3;
const PROBE_STEP_MAX: f64 = 0.08;
/// A first step is at most this, however coarse the measurement.
const PROBE_STEP_COARSE: f64 = 0.2;
/// What may leave at once, as seconds of refill; at least one attempt.
const BURST_SECONDS: f64 = 0.1;
/// Of the time between two refusals this share may have passed without demand, or it measures the demand.
const IDLE_SHARE: f64 = 0.1;
/// No single unit is waited for longer, in seconds: what it costs may be absurd.
const DEBT_SECONDS: f64 = 3600.0;
/// A canary counts as accepted after this at the latest.
const ACCEPTED_MAX: Duration = Duration::from_secs(2);
/// Most that leaves within one round trip when a window is found to be open again: so many are refused at its end.
const RAMP_MAX: f64 = 32.0;
/// A rate that is only a guess grows by this for each unit that passes.
const GUESS_GROWTH: f64 = 1.1;

/// The measured rate of one dimension. Amounts are in its unit.
#[derive(Debug)]
pub(super) struct Pacer {
    phase: Phase,
    /// What is believed to flow in, per second. 0: unknown.
    rate: f64,
    /// `rate` comes from a canary's waiting time, not from a measurement.
    guess: bool,
    /// Units of the measurement behind `rate`.
    units: f64,
    gain: f64,
    step: f64,
    stepped: Instant,
    /// Time without a refusal before more is tried.
    clean: Duration,
    measured: [Option<Measured>; MEASURED],
    level: f64,
    at: Instant,
    /// The refusal that measurements begin at.
    empty: Empty,
    /// When the last refusal was heard: those of attempts that left before tell nothing new.
    heard: Instant,
    rest: Duration,
    /// How long it took until something was accepted again, the last time.
    waited: Duration,
    /// When the refusal was heard that began this rest.
    closed: Instant,
    /// Somebody had to wait for the pace since the last step.
    bound: bool,
    /// What left and was refused since `empty`.
    bounced: f64,
    /// Time since `empty` in which nobody wanted more than there was: then it tells nothing about the rate.
    idle: f64,
    /// When something left last.
    spent: Instant,
    /// Share of a measured rate that is used.
    pace: f64,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    rate: f64,
    units: f64,
}

#[derive(Debug, Clone, Copy)]
struct Empty {
    id: u64,
    sent: Instant,
    total: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Nothing leaves.
    Rest { until: Instant },
    /// One attempt asks (`sent`: it is on its way), then a second at once: a bucket has one, a new window has both.
    Canary { sent: Option<(u64, Instant)>, second: bool },
    /// More pass than were thought: twice as many each round trip.
    Ramp { left: f64, size: f64, since: Instant },
    /// At the rate.
    Pace,
}

impl Pacer {
    /// Begins with the first refusal. `amount`: units that left so far, `attempt` included.
    pub(super) fn new(attempt: &Attempt, amount: f64, pace: f64, told: Option<Duration>, now: Instant) -> Self {
        Self {
            phase: Phase::Rest { until: now + told.unwrap_or(REST) },
            rate: 0.0,
            guess: true,
            units: 0.0,
            gain: 1.0,
            step: PROBE_STEP,
            stepped: now,
            clean: CLEAN,
            measured: [None; MEASURED],
            level: 0.0,
            at: now,
            empty: Empty { id: attempt.id, sent: attempt.sent, total: amount },
            heard: now,
            rest: REST,
            waited: Duration::ZERO,
            closed: now,
            bound: false,
            bounced: 0.0,
            idle: 0.0,
            spent: now,
            pace,
        }
    }

    /// A refusal for want of this dimension. `amount`: units of this attempt; `total`: units up to and with it.
    pub(super) fn refused(&mut self, attempt: &Attempt, amount: f64, total: f64, told: Option<Duration>, now: Instant) {
        if attempt.id > self.empty.id {
            self.bounced += amount;
        }
        if attempt.sent < self.heard {
            return;
        }
        self.heard = now;
        self.stepped = now;
        let time = attempt.sent.saturating_duration_since(self.empty.sent).as_secs_f64();
        let units = total - self.empty.total - self.bounced;
        match self.phase {
            Phase::Canary { sent, second: false } if sent.is_none_or(|(id, _)| id == attempt.id) => {
                self.rest = self.rest.mul_f64(REST_GROWTH).min(REST_MAX);
            }
            Phase::Canary { .. } | Phase::Ramp { .. } | Phase::Rest { .. } | Phase::Pace => {
                self.rest = REST;
                self.closed = now;
            }
        }
        if self.guess && time > 0.0 && units > 0.0 {
            // So many units in this time, give or take one.
            self.rate = (units - 0.5).max(0.5) / (time - self.idle).max(0.001);
        }
        if units >= UNITS_MIN && time > 0.0 {
            if self.idle < IDLE_SHARE * time || (units - 1.0) / time > self.rate {
                self.measured(units, time);
            }
            self.empty = Empty { id: attempt.id, sent: attempt.sent, total };
            self.bounced = 0.0;
            self.idle = 0.0;
        } else if self.phase == Phase::Pace && !self.guess {
            self.rate *= 0.9;
        }
        self.gain = 1.0;
        if self.rate > 0.0 && !matches!(self.phase, Phase::Canary { second: false, .. }) {
            // About one unit's time; where it took long the last time, a window has to turn.
            let unit = Duration::from_secs_f64((1.2 / self.rate).min(REST_MAX.as_secs_f64()));
            self.rest = unit.max(self.waited / 8).min(REST_MAX);
        }
        self.level = 0.0;
        self.at = now;
        self.phase = Phase::Rest { until: now + told.unwrap_or(self.rest) };
    }

    fn measured(&mut self, units: f64, time: f64) {
        // Of a bucket that was empty at both ends no more than one unit less came out than flowed in: a lower bound.
        let fresh = Measured { rate: (units - 1.0) / time, units };
        let fallen = self.measured.iter().flatten().take(2).filter(|known| fresh.rate < FALLEN * known.rate).count();
        if fallen == 2 && units >= UNITS_PRECISE {
            // Far below: what was measured before is history.
            self.measured = [None; MEASURED];
        }
        self.measured.rotate_right(1);
        if let Some(first) = self.measured.first_mut() {
            *first = Some(fresh);
        }
        let best = self.measured.iter().flatten().copied().reduce(|a, b| if b.rate > a.rate { b } else { a });
        let best = best.unwrap_or(fresh);
        let confirmed = (best.rate / self.rate.max(1e-9) - 1.0).abs() < CONFIRMS && best.units >= UNITS_PRECISE;
        self.clean = if confirmed { (self.clean * 2).min(CLEAN_MAX) } else { CLEAN };
        (self.rate, self.units) = (best.rate, best.units);
        self.guess = false;
    }

    pub(super) fn advance(&mut self, total: f64, trip: Duration, now: Instant) {
        if let Phase::Rest { until } = self.phase
            && until <= now
        {
            self.phase = Phase::Canary { sent: None, second: false };
            self.spent = until;
        }
        if let Phase::Canary { sent: Some((_, sent)), second } = self.phase
            && now >= sent + accepted_after(trip)
        {
            self.accepted_canary(sent, second, now);
        }
        if let Phase::Ramp { left, size, since } = self.phase
            && left < 1.0
            && now >= since + accepted_after(trip)
        {
            let size = (size * 2.0).min(RAMP_MAX);
            self.phase = Phase::Ramp { left: size, size, since: now };
        }
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        let burst = (self.used() * BURST_SECONDS).max(1.0);
        self.level = (self.level + self.used() * passed).min(burst);
        self.try_more(total, now);
    }

    /// Raises the pace a little when nothing was refused for long enough.
    fn try_more(&mut self, total: f64, now: Instant) {
        if self.guess || self.phase != Phase::Pace || !self.bound {
            return;
        }
        let precise = self.units >= UNITS_PRECISE;
        let quiet = now.saturating_duration_since(self.heard);
        let longer = self.clean.as_secs_f64() / CLEAN.as_secs_f64();
        let units = if precise { CLEAN_UNITS * longer } else { 2.0 * self.units };
        let every = if precise { PROBE_EVERY.as_secs_f64() } else { (self.units / self.rate).min(5.0) };
        if (precise && quiet < self.clean)
            || total - self.empty.total < units
            || now.saturating_duration_since(self.stepped).as_secs_f64() < every
        {
            return;
        }
        if self.gain == 1.0 {
            self.step = PROBE_STEP.max((1.0 / self.units.max(1.0)).min(PROBE_STEP_COARSE));
        }
        self.gain *= 1.0 + self.step;
        self.step = (self.step * PROBE_STEP_GROWTH).min(PROBE_STEP_MAX.max(self.step));
        self.stepped = now;
        self.bound = false;
    }

    fn accepted_canary(&mut self, sent: Instant, second: bool, now: Instant) {
        self.rest = REST;
        if !second {
            self.waited = sent.saturating_duration_since(self.closed);
        }
        if self.rate == 0.0 {
            let waited = sent.saturating_duration_since(self.empty.sent).as_secs_f64();
            self.rate = 1.0 / (waited - self.idle).max(0.001);
            self.phase = Phase::Canary { sent: None, second: true };
        } else if second {
            self.phase = Phase::Ramp { left: 2.0, size: 2.0, since: now };
        } else {
            self.phase = Phase::Pace;
            self.level = 0.0;
        }
    }

    pub(super) fn spend(&mut self, attempt: u64, amount: f64, now: Instant) {
        let since = now.saturating_duration_since(self.spent);
        // Between a round trip and the next step of a search nothing may leave; what is longer, nobody asked for.
        let unasked = since.saturating_sub(ACCEPTED_MAX).as_secs_f64();
        match &mut self.phase {
            Phase::Canary { sent, .. } => {
                if sent.is_none() {
                    self.idle += unasked;
                }
                sent.get_or_insert((attempt, now));
            }
            Phase::Ramp { left, since: last, .. } => {
                self.idle += unasked;
                *left -= 1.0;
                *last = now;
            }
            Phase::Pace => {
                let burst = (self.used() * BURST_SECONDS).max(1.0);
                if self.level >= burst - 1e-9 {
                    self.idle += (since.as_secs_f64() - burst / self.used().max(1e-9)).max(0.0);
                }
                self.level = (self.level - amount).max(-DEBT_SECONDS * self.used());
                if self.guess {
                    self.rate *= GUESS_GROWTH;
                }
            }
            Phase::Rest { .. } => {}
        }
        self.spent = now;
    }

    pub(super) fn wait(&mut self, amount: f64, trip: Duration, now: Instant) -> Duration {
        let after = |since: Instant| (since + accepted_after(trip)).saturating_duration_since(now);
        match self.phase {
            Phase::Rest { until } => until.saturating_duration_since(now),
            Phase::Canary { sent: None, .. } => Duration::ZERO,
            Phase::Canary { sent: Some((_, sent)), .. } => after(sent),
            Phase::Ramp { left, .. } if left >= 1.0 => Duration::ZERO,
            Phase::Ramp { since, .. } => after(since),
            Phase::Pace => {
                let need = amount.min((self.used() * BURST_SECONDS).max(1.0));
                if self.level >= need - 1e-9 {
                    return Duration::ZERO;
                }
                self.bound = true;
                Duration::from_secs_f64(((need - self.level) / self.used().max(1e-9)).min(DEBT_SECONDS))
            }
        }
    }

    pub(super) fn set_pace(&mut self, pace: f64) {
        self.pace = pace;
    }

    /// Units per second between refusals; 0: only guessed so far.
    pub(super) fn measured_rate(&self) -> f64 {
        if self.guess { 0.0 } else { self.rate }
    }

    /// Units per second that leave; 0: not known.
    pub(super) fn used(&self) -> f64 {
        if self.guess { self.rate } else { self.rate * self.pace * self.gain }
    }
}

fn accepted_after(trip: Duration) -> Duration {
    (trip * 3 / 2).clamp(Duration::from_millis(20), ACCEPTED_MAX)
}
