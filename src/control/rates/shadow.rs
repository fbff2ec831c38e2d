//! The shadow of a budget that the upstream reports: what is there now, by its last word and by what left since.

use std::time::{Duration, Instant};

use crate::control::{
    attempt::Attempt,
    cost::Cost,
    signals::{Budget, Dimension, Refill},
};

/// Window of a budget that names none. Providers count per minute.
const WINDOW: Duration = Duration::from_secs(60);
/// Share of a budget that is left alone: its last tokens are where a small error turns into a refusal.
const RESERVE: f64 = 0.01;
/// Below this many requests a reserve of one would be a large share: of a window, which loses it each time …
const RESERVE_FROM: f64 = 50.0;
/// … and of a bucket, which keeps it.
const RESERVE_FROM_BUCKET: f64 = 4.0;
/// Standard deviations of what unreported attempts may have cost, kept in reserve. Costs have a long tail: of a
/// log-normal one with sigma 0.8, one in 600 is beyond eight. In a bucket that refills it costs its size once.
const DEVIATIONS: f64 = 8.0;
/// Most that is held back for them, as a share of the budget.
const RESERVE_MAX: f64 = 0.5;
/// Share a new report has in what is known of charges.
const SHARE: f64 = 0.1;
/// Shortest time, in seconds, in which an empty bucket is full; a tiny one in a second: rounding blurs its rate. Each
/// refusal makes it [longer](FULL_GROWTH), up to a second: the limit may be of more than the bucket ever holds.
const FULL_MIN: f64 = 0.05;
const FULL_GROWTH: f64 = 4.0;
/// Agreement of so many reports settles how a budget comes back.
const VOTES: i32 = 3;
/// Answers in a row that no longer mention the budget, after which it is forgotten.
const SILENT_MAX: u32 = 50;
/// A burst that was refused although it should have fitted is halved down to this many seconds of refill …
const BURST_SECONDS_MIN: f64 = 0.5;
/// … and doubled again after this long without another such refusal.
const SURPRISE_LASTS: Duration = Duration::from_secs(120);
/// What is held back of a budget that comes back slowly, at most, in seconds of refill: a hundredth of a month is hours.
const RESERVE_SECONDS: f64 = 5.0;
/// Of a closed budget, the longest time between two attempts that ask whether it is still so.
const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// What is known of one budget. Amounts are in the unit of its dimension.
#[derive(Debug)]
pub(super) struct Shadow {
    pub(super) id: u32,
    /// Budgets are per model where models are told apart; 0: of all.
    pub(super) model: u64,
    pub(super) dimension: Dimension,
    pub(super) limit: f64,
    /// Refill per second.
    rate: f64,
    level: f64,
    at: Instant,
    refill: Option<Refill>,
    /// Length of a window, as far as it is known.
    period: Duration,
    /// When the window turns.
    turn: Option<Instant>,
    /// The window has turned by our clock, and this is what one attempt is sent to find out.
    turned: Option<Turned>,
    votes: i32,
    last: Report,
    /// What was charged for what was estimated, both fading.
    charged: f64,
    estimated: f64,
    /// Mean square of the error of one attempt's estimate.
    variance: f64,
    /// Sums of missing amounts and of the times to refill them, both fading: their ratio is the rate.
    missing: f64,
    reset: f64,
    /// Most of the level that may leave at once; below `limit` only after a hidden shorter window showed itself.
    burst: f64,
    silent: u32,
    surprises: u32,
    /// See [`FULL_MIN`].
    full_min: f64,
    /// When the last surprise was, or was forgiven.
    surprised: Instant,
    /// When it was reported last.
    pub(super) heard: Instant,
    /// When an attempt left that it covers.
    asked: Instant,
    /// Attempts in a row that asked whether it is still closed.
    unanswered: u32,
    /// It turned when it said it would, or names its length: taken at its word for a whole window.
    trusted: bool,
}

/// What attempts were taken to cost, all together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    /// Of those that are certain to have arrived when an answer left that is heard now.
    pub(super) arrived: Cost,
    /// Of all until now.
    pub(super) now: Cost,
}

#[derive(Debug, Clone, Copy)]
struct Report {
    attempt: u64,
    sent: Instant,
    total: Cost,
    remaining: f64,
    reset: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Turned {
    /// When the first attempt of the new window left.
    canary: Option<Instant>,
}

impl Shadow {
    pub(super) fn new(budget: &Budget, model: u64, attempt: &Attempt, totals: Totals, now: Instant) -> Self {
        let limit = budget.limit.map_or(budget.remaining as f64, |limit| limit as f64).max(1.0);
        let mut shadow = Self {
            id: budget.id,
            model,
            dimension: budget.dimension,
            limit,
            rate: limit / budget.window.unwrap_or(WINDOW).as_secs_f64(),
            level: budget.remaining as f64,
            at: now,
            refill: budget.refill,
            period: budget.window.unwrap_or(WINDOW),
            turn: None,
            turned: None,
            votes: 0,
            last: Report { attempt: 0, sent: attempt.sent, total: totals.now, remaining: limit, reset: None },
            charged: 0.0,
            estimated: 0.0,
            variance: 0.0,
            missing: 0.0,
            reset: 0.0,
            burst: f64::INFINITY,
            silent: 0,
            surprises: 0,
            full_min: FULL_MIN,
            surprised: now,
            heard: now,
            asked: now,
            unanswered: 0,
            trusted: false,
        };
        shadow.report(budget, attempt, totals, Duration::ZERO, now);
        shadow
    }

    /// A report of the upstream, carried by the answer to `attempt`. Those of earlier attempts than the last are old
    /// news.
    pub(super) fn report(&mut self, budget: &Budget, attempt: &Attempt, totals: Totals, trip: Duration, now: Instant) {
        self.silent = 0;
        self.heard = now;
        if attempt.id <= self.last.attempt {
            return;
        }
        let first = self.last.attempt == 0;
        let remaining = budget.remaining as f64;
        if let Some(limit) = budget.limit {
            self.limit = (limit as f64).max(1.0);
        }
        self.limit = self.limit.max(remaining);
        self.refill = budget.refill.or(self.refill);
        let report = Report {
            attempt: attempt.id,
            sent: attempt.sent,
            total: attempt.total,
            remaining,
            reset: budget.reset.map(|reset| reset.as_secs_f64()),
        };
        if !first {
            self.vote(&report);
            self.learn_charge(&report);
        }
        self.learn_rate(budget, &report);
        self.last = report;
        self.trusted |= (self.turned.is_some() && remaining >= 1.0) || budget.window >= budget.reset.max(Some(WINDOW));
        self.turned = None;
        if remaining >= 1.0 {
            self.unanswered = 0;
        }
        self.period = budget.window.unwrap_or(self.period).max(budget.reset.unwrap_or_default());
        if self.kind() == Refill::Window {
            self.rate = self.limit / self.period.as_secs_f64().max(1.0);
        }
        self.turn = match (self.kind(), budget.reset) {
            (Refill::Window, Some(reset)) => Some(now + reset),
            (Refill::Window, None) => self.turn.or(Some(now + self.period)),
            (Refill::Continuous, _) => None,
        };
        // Since the upstream wrote this, later attempts took their share, and it refilled.
        let spent = |from: Cost| (totals.now - from).of(self.dimension) * self.factor();
        let age = now.saturating_duration_since(attempt.sent).saturating_sub(trip / 2).as_secs_f64();
        let refilled = if self.kind() == Refill::Continuous { self.rate * age } else { 0.0 };
        let at_arrival = remaining + refilled - spent(attempt.total);
        // Others wrote it when the answer left: what arrived and came back until then is in it already. Nobody says
        // which, so the lower counts.
        let at_answer = remaining - spent(totals.arrived);
        let level = if self.kind() == Refill::Continuous { at_arrival.min(at_answer) } else { at_arrival };
        // No debt is deeper than one budget: estimates may be absurd.
        self.level = level.clamp(-self.limit, self.limit);
        self.at = now;
    }

    /// An answer did not mention this budget. `true`: it has been silent for long enough to be forgotten.
    pub(super) fn unmentioned(&mut self) -> bool {
        self.silent = self.silent.saturating_add(1);
        self.silent > SILENT_MAX
    }

    /// Whether it is about an attempt for this model.
    pub(super) fn covers(&self, model: u64) -> bool {
        self.model == 0 || self.model == model
    }

    pub(super) fn advance(&mut self, trip: Duration, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        if self.surprises > 0 && now.saturating_duration_since(self.surprised) > SURPRISE_LASTS {
            self.surprised = now;
            self.surprises -= 1;
            self.burst = if self.surprises == 0 { f64::INFINITY } else { self.burst * 2.0 };
        }
        if self.kind() == Refill::Continuous || (self.turn.is_none() && self.turned.is_none()) {
            // A window whose turn is not known refills as if it had none.
            self.level = (self.level + self.rate * passed).min(self.limit);
        } else if self.turn.is_some_and(|turn| turn <= now) {
            // Whose clock is right only an attempt can tell: one, then all.
            self.turn = Some(now + self.period);
            self.turned = Some(Turned { canary: None });
            self.level = 1.0;
        }
        if let Some(Turned { canary: Some(sent) }) = self.turned
            && now >= sent + canary_after(trip)
        {
            self.turned = None;
            self.level = self.limit - 1.0;
        }
    }

    pub(super) fn spend(&mut self, cost: &Cost, now: Instant) {
        if cost.of(self.dimension) <= 0.0 {
            return;
        }
        let amount = self.amount(cost);
        if let Some(turned) = &mut self.turned {
            turned.canary.get_or_insert(now);
            self.level = 0.0;
        } else {
            self.unanswered += u32::from(self.level + 1e-6 < amount);
            self.level = (self.level - amount).max(-self.limit);
        }
        self.asked = now;
    }

    /// What was taken for an attempt that never left.
    pub(super) fn refund(&mut self, cost: &Cost) {
        self.level = (self.level + self.amount(cost)).min(self.limit);
    }

    /// Time until an attempt of this cost may leave: it fits, or it is time to ask whether what was said still holds.
    /// `ask_after`: how long to take the upstream at its word at least; doubled with each attempt that found it right.
    pub(super) fn leaves_in(
        &self,
        cost: &Cost,
        total: &Cost,
        ask_after: Duration,
        trip: Duration,
        now: Instant,
    ) -> Duration {
        let fits = self.wait(cost, total, trip, now);
        if fits <= ask_after {
            return fits;
        }
        let doubled = ask_after.saturating_mul(1 << self.unanswered.min(16)).min(SILENCE_MAX).max(ask_after);
        // What refills for longer than that anyway is no closed door.
        let refill = Duration::from_secs_f64((self.amount(cost) / self.rate.max(1e-9)).min(86_400.0));
        let silence = match self.kind() {
            Refill::Continuous => doubled.max(refill),
            Refill::Window if self.trusted => doubled.max(self.period),
            Refill::Window => doubled,
        };
        fits.min((self.heard.max(self.asked) + silence).saturating_duration_since(now))
    }

    /// Time until `cost` fits by what the upstream said; zero: it fits now.
    pub(super) fn wait(&self, cost: &Cost, total: &Cost, trip: Duration, now: Instant) -> Duration {
        if cost.of(self.dimension) <= 0.0 {
            // It is about something else, and tells nothing about this: what fetches a stored answer asks for no tokens.
            return Duration::ZERO;
        }
        if let Some(turned) = self.turned {
            return match turned.canary {
                None => Duration::ZERO,
                Some(sent) => (sent + canary_after(trip)).saturating_duration_since(now),
            };
        }
        let amount = self.amount(cost);
        let need = (amount + self.reserve(total)).min(self.limit);
        let hidden = (self.limit - self.burst).max(0.0);
        let short = need + hidden.min(self.limit - need) - self.level;
        if short <= 1e-9 {
            return Duration::ZERO;
        }
        match (self.kind(), self.turn) {
            (Refill::Window, Some(turn)) => turn.saturating_duration_since(now),
            _ => Duration::from_secs_f64((short / self.rate.max(1e-9)).min(86_400.0)),
        }
    }

    /// A refusal for this dimension. Returns how many bursts of them came of late although there should have been enough.
    pub(super) fn refused(&mut self, attempt: &Attempt, now: Instant) -> u32 {
        self.full_min = (self.full_min * FULL_GROWTH).min(1.0);
        if let Some(turned) = &mut self.turned {
            // Not yet turned: the next one asks again.
            turned.canary = None;
        } else if self.explains() {
            self.level = self.level.min(0.0);
        } else {
            if self.surprises == 0 || attempt.sent >= self.surprised {
                // Those that were on their way already are the same surprise.
                self.surprises = self.surprises.saturating_add(1);
                self.surprised = now;
            }
            if self.kind() == Refill::Continuous {
                // A shorter window than the one reported (Azure counts in slices of 1 or 10 s).
                self.burst = (self.burst.min(self.limit) / 2.0).max(self.rate * BURST_SECONDS_MIN).max(1.0);
                self.level = self.level.min(self.limit - self.burst);
            }
        }
        self.surprises
    }

    /// A refusal is no surprise: there is as good as nothing left.
    pub(super) fn explains(&self) -> bool {
        self.turned.is_some() || self.level <= 0.1 * self.limit
    }

    /// What is left, as a share of the whole.
    pub(super) fn share(&self) -> f64 {
        self.level / self.limit
    }

    pub(super) fn level(&self) -> f64 {
        self.level.max(0.0)
    }

    pub(super) fn rate(&self) -> f64 {
        self.rate
    }

    /// What an attempt of this cost takes. One that is larger than the whole budget is sent when the budget is full.
    fn amount(&self, cost: &Cost) -> f64 {
        (cost.of(self.dimension) * self.factor()).min(self.limit)
    }

    fn reserve(&self, total: &Cost) -> f64 {
        if self.dimension == Dimension::Requests {
            return match self.kind() {
                _ if self.limit < RESERVE_FROM_BUCKET => 0.0,
                Refill::Continuous => (self.limit * RESERVE).min(self.rate * RESERVE_SECONDS).max(1.0),
                // What is left when a window turns is lost.
                Refill::Window if self.limit < RESERVE_FROM && self.is_window() => 0.0,
                Refill::Window => 1.0,
            };
        }
        let unreported = (*total - self.last.total).token_requests.max(0.0) + 1.0;
        let least = (self.limit * RESERVE).min(self.rate * RESERVE_SECONDS);
        (DEVIATIONS * (self.variance * unreported).sqrt()).max(least).min(self.limit * RESERVE_MAX)
    }

    /// Charged per estimated.
    fn factor(&self) -> f64 {
        if self.dimension == Dimension::Requests || self.estimated <= 0.0 { 1.0 } else { self.charged / self.estimated }
    }

    /// Undecided counts as a window: waiting too long costs time, coming too early is refused.
    pub(super) fn kind(&self) -> Refill {
        match self.refill {
            Some(refill) => refill,
            None if self.votes >= VOTES || self.last.reset.is_none() => Refill::Continuous,
            None => Refill::Window,
        }
    }

    /// It is known to be a window.
    fn is_window(&self) -> bool {
        self.refill == Some(Refill::Window) || self.votes <= -VOTES
    }

    /// Two reports tell a bucket from a window: does the reset follow the clock, or what is missing?
    fn vote(&mut self, report: &Report) {
        let (Some(before), Some(reset)) = (self.last.reset, report.reset) else { return };
        let missing = self.limit - self.last.remaining;
        if missing < 1.0 || report.remaining >= self.limit || before <= 0.0 {
            return;
        }
        let passed = report.sent.saturating_duration_since(self.last.sent).as_secs_f64();
        if passed >= before {
            // The window may have turned meanwhile.
            return;
        }
        let as_window = (before - passed - reset).abs();
        let as_bucket = (before * (self.limit - report.remaining) / missing - reset).abs();
        // Below this, rounding to whole seconds decides.
        if (as_window - as_bucket).abs() > 1.1 {
            let vote = if as_bucket < as_window { 1 } else { -1 };
            self.votes = (self.votes + vote).clamp(-VOTES, VOTES);
        }
    }

    fn learn_charge(&mut self, report: &Report) {
        let attempts = (report.total - self.last.total).token_requests;
        let estimated = (report.total - self.last.total).of(self.dimension);
        let passed = report.sent.saturating_duration_since(self.last.sent).as_secs_f64();
        let refilled = if self.kind() == Refill::Continuous { self.rate * passed } else { 0.0 };
        let charged = self.last.remaining + refilled - report.remaining;
        let truncated = self.last.remaining + refilled > self.limit || report.remaining >= self.limit;
        if self.dimension == Dimension::Requests || attempts < 1.0 || estimated <= 0.0 || truncated || charged < 0.0 {
            return;
        }
        let error = charged - estimated * self.factor();
        let share = if self.estimated == 0.0 { 1.0 } else { SHARE };
        self.variance += share * (error * error / attempts - self.variance);
        self.charged += share * (charged - self.charged);
        self.estimated += share * (estimated - self.estimated);
    }

    fn learn_rate(&mut self, budget: &Budget, report: &Report) {
        if let Some(window) = budget.window {
            self.rate = self.limit / window.as_secs_f64().max(0.001);
            return;
        }
        let missing = self.limit - report.remaining;
        if let Some(reset) = report.reset.filter(|reset| *reset > 0.0 && missing >= 1.0) {
            self.missing += SHARE * (missing - self.missing);
            self.reset += SHARE * (reset - self.reset);
        }
        self.rate = match self.kind() {
            // What is missing comes back in the time the reset says, whatever the window: per second or per day.
            // A small burst of a high rate is back in a moment, but what is back sooner is a reset of something else.
            Refill::Continuous if self.reset > 0.0 => {
                let full_min = if self.limit < RESERVE_FROM_BUCKET { 1.0 } else { self.full_min };
                (self.missing / self.reset).clamp(self.limit / 86_400.0, self.limit / full_min)
            }
            Refill::Continuous | Refill::Window => self.limit / WINDOW.as_secs_f64(),
        };
    }
}

fn canary_after(trip: Duration) -> Duration {
    (trip * 2).clamp(Duration::from_millis(50), Duration::from_secs(2))
}
