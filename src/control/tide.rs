//! The measured ceiling: a refusal tells the ceiling exactly, so it is read off instead of guessed by a factor.
//!
//! While nothing is refused the limit grows by a share of itself each time it was in use for as long as a refusal
//! takes to arrive. When an attempt is refused, what the upstream held of ours then *is* its ceiling: the limit goes
//! there and stays, and asks for one more slot now and then to notice a ceiling that rose. Only refusals that follow
//! one another without any acceptance in between cut deeper, since then the ceiling fell or others share it.

use std::time::{Duration, Instant};

use super::{
    delay::Guard,
    limit::{Change, ChangeReason, Epoch, Sample},
};

/// The first ceiling that is found is tried again after this, and so many answers, and then each time that twice the
/// time has passed.
const FOUND_MIN: Duration = Duration::from_secs(4);
const FOUND_ANSWERS: u32 = 3;
/// After a fall the former ceiling may come back any time, the sooner the more likely: the next try comes when the
/// time since the fall has grown by this share …
const RETURN_SHARE: f64 = 1.0 / 20.0;
/// … but not before this many answers …
const RETURN_ANSWERS: u32 = 18;
/// … nor this time.
const RETURN_MIN: Duration = Duration::from_millis(400);
/// Refusals of what had passed before, within [`CONTENDED`] of one another, that show others on the same ceiling.
const CONTENDERS: u32 = 3;
/// One fall of the ceiling may be several bursts of refusals: only those at least this far apart are signs.
const APART: Duration = Duration::from_millis(200);
/// That others are there is believed for this long after the last sign of them.
const CONTENDED: Duration = Duration::from_secs(30);
/// Next to others each refusal of what had passed before gives up this share, carried on while it is less than a slot:
/// the larger gives more, so shares converge.
const YIELD: f64 = 0.08;
/// Next to others one more slot is tried for this often, by the small as by the large.
const CONTEND_EVERY: Duration = Duration::from_secs(1);
/// After a refusal the delay guard is silent for this long.
const KNOWN: Duration = Duration::from_secs(600);
/// Times a refusal's time that a try of one more slot lasts.
const TRY_TRIPS: u32 = 3;
/// On the way back to a ceiling that was there before, growth is this much faster.
const RETURN: f64 = 5.0;
/// Growth beyond this many at once: tries of one and of two have passed, so the ceiling has risen.
const TRIED: u32 = 2;
/// Until the first refusal, and where the ceiling has risen, growth is this much faster …
const SEARCH: f64 = 3.3;
/// … but not beyond this many: there, what overshoots is many.
const SEARCH_MAX: u32 = 30;
/// A fall is one to this share of the former ceiling, or below.
const FALL: f64 = 0.8;
/// A try that cost several refusals is worth as many times the answers of one that cost one, up to this.
const COST_MAX: u32 = 16;
/// The largest single cut.
const CUT_MIN: f64 = 0.5;
/// Overload answers in a row, with nothing accepted between, that cut the limit. Single ones are noise.
const OVERLOADS_IN_ROW: u32 = 5;
/// After an overload each round of accepted answers gives back this share of the limit, and one slot at the least: the
/// upstream may still be weak, and one that is well again should not be waited for.
const RECOVERY: f64 = 0.2;

/// What rising delay does where the upstream does not refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayGuard {
    /// Shown, but nothing follows from it.
    Observe,
    /// Not looked at.
    Off,
    /// Shrinks the limit.
    On,
}

impl DelayGuard {
    /// All of them, in the order a user meets them: the default first.
    pub const ALL: [Self; 3] = [Self::On, Self::Observe, Self::Off];

    /// The word for it in a configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Off => "off",
            Self::On => "on",
        }
    }
}

/// The settings of `tide`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TideSettings {
    /// Factor of a cut, when a second refusal follows the first with nothing accepted between; each further one in the
    /// row cuts by another factor. Between 0 and 1.
    pub cut: f64,
    /// Share of the limit that is tried at once above it. Between 0 and 1.
    pub growth: f64,
    /// Accepted answers between tries of a held ceiling: at most one in so many attempts is spent on it.
    pub probe_answers: u32,
    /// Least time between such tries.
    pub probe_min: Duration,
    /// Share of a measured rate that is used. Between 0 and 1.
    pub pace: f64,
    /// First-byte time over its base that counts as overload. Above 1.
    pub delay_tolerance: f64,
    /// What rising delay does.
    pub delay_guard: DelayGuard,
    /// Share of the highest ceiling seen that is always tried for, next to a greedy neighbour on the same account.
    /// 0 to 1.
    pub min_share: f64,
}

impl Default for TideSettings {
    fn default() -> Self {
        Self {
            cut: 0.8,
            growth: 0.12,
            probe_answers: 90,
            probe_min: Duration::from_secs(3),
            pace: 0.995,
            delay_tolerance: 1.6,
            delay_guard: DelayGuard::On,
            min_share: 0.0,
        }
    }
}

/// The state of one account's limit.
#[derive(Debug)]
pub struct Tide {
    settings: TideSettings,
    value: u32,
    /// The highest value that was in use without a refusal, since the ceiling last fell.
    confirmed: u32,
    min: u32,
    top: u32,
    /// A value known to be refused; growth stays below it.
    bound: Option<u32>,
    mode: Mode,
    /// The next growth: one after a try, then twice as much each time, up to `growth`.
    step: u32,
    /// By how many the last try went over the ceiling: about so many were refused for it.
    cost: u32,
    /// Where the last try began.
    tried: u32,
    /// Nothing was ever refused: the search goes faster.
    searching: bool,
    /// When something was last refused: the ceiling is known, so delay need not tell it.
    refused: Option<Instant>,
    /// When the first was: a ceiling was found.
    found: Option<Instant>,
    /// The ceiling before it last fell, and when it fell.
    fell: Option<(u32, Instant)>,
    /// The highest ceiling seen.
    best: u32,
    /// Signs of others on the same ceiling, and when the last one was seen.
    signs: u32,
    sign: Option<Instant>,
    /// What is to be given up to others, less than one slot.
    owed: f64,
    /// What the upstream's overload has left, until accepted answers have given it back.
    overload: Option<f64>,
    delay: Guard,
}

#[derive(Debug, Clone, Copy)]
enum Mode {
    Grow,
    Hold { since: Instant, answers: u32 },
}

impl Tide {
    /// Begins at `initial` and stays within `min ..= top`.
    #[must_use]
    pub fn new(initial: u32, min: u32, top: u32, settings: TideSettings) -> Self {
        let value = initial.clamp(min, top);
        let delay = Guard::new(settings.delay_tolerance, initial / 8);
        Self {
            settings,
            value,
            confirmed: 0,
            min,
            top,
            bound: None,
            mode: Mode::Grow,
            step: top,
            cost: 1,
            tried: 0,
            searching: true,
            refused: None,
            found: None,
            fell: None,
            best: 0,
            signs: 0,
            sign: None,
            owed: 0.0,
            overload: None,
            delay,
        }
    }

    /// Takes new constants and keeps what was learnt.
    pub fn set(&mut self, settings: TideSettings) {
        self.delay.set_tolerance(settings.delay_tolerance);
        self.settings = settings;
    }

    /// How many attempts may be in flight.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.value.min(self.least()).max(self.floor())
    }

    /// An attempt was accepted.
    pub fn accepted(&mut self, sample: &Sample) -> Option<Change> {
        if let Mode::Hold { answers, .. } = &mut self.mode {
            *answers = answers.saturating_add(1);
        }
        let is_known = self.refused.is_some_and(|at| sample.now.saturating_duration_since(at) < KNOWN);
        let is_watched = self.settings.delay_guard != DelayGuard::Off && !is_known;
        if !is_watched && self.overload.is_none() {
            return None;
        }
        let from = self.value();
        if is_watched {
            self.delay.sample(sample, self.value);
        }
        self.recover();
        let to = self.value();
        let reason = if to < from { ChangeReason::Delay } else { ChangeReason::Growth };
        (to != from).then_some(Change { from, to, reason })
    }

    /// How many times a refusal's time the limit has to be in use before it counts as unrefused. A try of one slot
    /// needs more: what has ended at the upstream but is not yet known here makes room for it for a moment.
    #[must_use]
    pub fn patience(&self) -> u32 {
        if matches!(self.mode, Mode::Grow) && self.step == 2 && !self.searching { TRY_TRIPS } else { 1 }
    }

    /// What answers take when little is in flight is known, or not wanted.
    #[must_use]
    pub fn has_base(&self) -> bool {
        self.settings.delay_guard == DelayGuard::Off || self.delay.has_base()
    }

    /// When the limit may next grow, if it is in use then.
    #[must_use]
    pub fn grows_at(&self, now: Instant) -> Option<Instant> {
        if self.value >= self.top || self.least() <= self.value {
            return None;
        }
        let Mode::Hold { since, answers } = self.mode else { return Some(now) };
        if self.is_contended(now) {
            return Some(since + CONTEND_EVERY);
        }
        let due = self.settings.probe_answers.saturating_mul(self.cost);
        let usual = (answers >= due).then_some(since + self.settings.probe_min);
        // A small first find may be what others left: soon, then after twice the time, and so on.
        let again = self.found.and_then(|found| {
            let after = since.saturating_duration_since(found).max(FOUND_MIN);
            (answers >= FOUND_ANSWERS).then_some(since + after)
        });
        let soon =
            self.fell.filter(|(former, _)| f64::from(self.value) < FALL * f64::from(*former)).and_then(|(_, at)| {
                let after = since.saturating_duration_since(at).mul_f64(RETURN_SHARE).max(RETURN_MIN);
                (answers >= RETURN_ANSWERS).then_some(since + after)
            });
        usual.into_iter().chain(soon).chain(again).min()
    }

    /// The limit was in use to the full and nothing was refused.
    pub fn unrefused(&mut self, now: Instant) -> Option<Change> {
        if self.grows_at(now)? > now {
            return None;
        }
        self.value = self.value.max(self.floor());
        let from = self.value;
        self.confirmed = self.confirmed.max(from);
        if let Mode::Hold { .. } = self.mode {
            self.tried = from;
            // One slot more: if it is refused, one bounce was the price.
            self.bound = None;
            self.mode = Mode::Grow;
            self.step = 1;
        }
        let top = self.bound.map_or(self.top, |bound| bound.saturating_sub(1).min(self.top));
        if from >= top {
            self.mode = Mode::Hold { since: now, answers: 0 };
            return None;
        }
        let most = match self.bound {
            None => (f64::from(from) * self.settings.growth * self.hurry()) as u32,
            Some(_) => (top - from).div_ceil(2),
        };
        let step = self.step.min(most).max(1);
        self.step = step.saturating_mul(2);
        self.value = from.saturating_add(step).min(top);
        if self.is_contended(now) {
            self.value = self.value.min(from + 1);
            self.mode = Mode::Hold { since: now, answers: 0 };
        }
        self.best = self.best.max(from);
        self.fell.take_if(|(former, _)| self.value >= *former);
        Some(Change { from, to: self.value, reason: ChangeReason::Growth })
    }

    /// An attempt was refused for the ceiling's sake.
    pub fn refused(&mut self, epoch: &Epoch, now: Instant) -> Option<Change> {
        let from = self.value();
        let was_searching = std::mem::replace(&mut self.searching, false);
        self.refused = Some(now);
        self.found.get_or_insert(now);
        self.delay.release();
        self.overload = None;
        self.best = self.best.max(epoch.held);
        self.note_sign(epoch, now);
        if self.is_contended(now) {
            let held = epoch.held.clamp(self.min, self.value.max(self.min));
            if epoch.passed_before {
                self.owed += f64::from(held) * YIELD;
            }
            let gives = self.owed as u32;
            self.owed -= f64::from(gives);
            self.value = held.saturating_sub(gives).max(self.min);
            self.confirmed = self.value;
            self.bound = None;
            self.mode = Mode::Hold { since: now, answers: 0 };
        } else if epoch.in_row <= 1 {
            if !was_searching {
                self.cost = from.saturating_sub(epoch.held.max(self.tried)).clamp(1, COST_MAX);
            }
            self.fall(epoch.held, now);
            self.value = epoch.held.clamp(self.min, self.value.max(self.min));
            self.bound = Some(self.value.saturating_add(1));
            self.mode = Mode::Hold { since: now, answers: 0 };
        } else {
            let held = epoch.held.clamp(self.min, self.value.max(self.min));
            let factor = self.settings.cut.powi(epoch.in_row.min(30) as i32 - 1).max(CUT_MIN);
            let cut = ((f64::from(held) * factor) as u32).clamp(self.min, held);
            self.fall(cut, now);
            self.value = cut;
            self.step = self.top;
            self.bound = Some(held.max(cut.saturating_add(1)));
            self.mode = Mode::Grow;
        }
        let to = self.value();
        (to != from).then_some(Change { from, to, reason: ChangeReason::Refusal })
    }

    /// Another refusal of the same burst was met with fewer held: of all of them the least is the ceiling.
    pub fn refine(&mut self, held: u32) -> Option<Change> {
        let from = self.value();
        if matches!(self.mode, Mode::Hold { .. }) && held < self.value {
            self.value = held.max(self.min);
            self.bound = Some(self.value.saturating_add(1));
        }
        let to = self.value();
        (to != from).then_some(Change { from, to, reason: ChangeReason::Refusal })
    }

    /// Refusals that lowered the limit turned out to be about something else: back to the best there was.
    pub fn restore(&mut self) -> Option<Change> {
        let from = self.value();
        self.value = self.best.clamp(self.min, self.top).max(self.value);
        self.bound = None;
        self.mode = Mode::Grow;
        self.step = 1;
        self.fell = None;
        let to = self.value();
        (to != from).then_some(Change { from, to, reason: ChangeReason::Growth })
    }

    /// Overload answers without an acceptance between them.
    pub fn overloaded(&mut self, in_row: u32) -> Option<Change> {
        if in_row < OVERLOADS_IN_ROW.max(self.value() / 2) {
            return None;
        }
        let from = self.value();
        self.overload = Some((f64::from(from) * self.settings.cut).max(1.0));
        let to = self.value();
        (to != from).then_some(Change { from, to, reason: ChangeReason::Overload })
    }

    /// What an overload has left for now.
    #[must_use]
    pub fn overload_limit(&self) -> Option<u32> {
        self.overload.map(|left| left as u32)
    }

    /// One more answer after an overload.
    fn recover(&mut self) {
        let Some(left) = self.overload else { return };
        let left = left + RECOVERY.max(1.0 / left);
        self.overload = (left < f64::from(self.value)).then_some(left);
    }

    /// The highest value that is known to have passed.
    #[must_use]
    pub fn confirmed(&self) -> u32 {
        self.confirmed
    }

    /// Others are on the same ceiling.
    fn is_contended(&self, now: Instant) -> bool {
        self.signs >= CONTENDERS && self.sign.is_some_and(|at| now.saturating_duration_since(at) < CONTENDED)
    }

    fn note_sign(&mut self, epoch: &Epoch, now: Instant) {
        if self.sign.is_some_and(|at| now.saturating_duration_since(at) >= CONTENDED) {
            self.signs = 0;
        }
        if epoch.held == 0 {
            // Refused with nothing of ours there.
            self.signs = CONTENDERS;
        } else if epoch.passed_before
            && epoch.in_row <= 1
            && self.sign.is_none_or(|at| now.saturating_duration_since(at) >= APART)
        {
            self.signs = self.signs.saturating_add(1);
        } else {
            return;
        }
        self.sign = Some(now);
    }

    /// Remembers the ceiling that was, when it falls to `to`.
    fn fall(&mut self, to: u32, now: Instant) {
        if f64::from(to) < FALL * f64::from(self.confirmed) {
            let former = self.fell.map_or(0, |(former, _)| former).max(self.confirmed);
            self.fell = Some((former, now));
        }
        self.confirmed = self.confirmed.min(to);
    }

    /// What the delay guard allows, whether it is obeyed or only observed; `None`: it has no objection.
    #[must_use]
    pub fn delay_verdict(&self) -> Option<u32> {
        let limit = self.delay.limit();
        (self.settings.delay_guard != DelayGuard::Off && limit < u32::MAX).then_some(limit)
    }

    /// What delay and overload allow.
    fn least(&self) -> u32 {
        let delay = if self.settings.delay_guard == DelayGuard::On { self.delay.limit() } else { u32::MAX };
        delay.min(self.overload_limit().unwrap_or(u32::MAX))
    }

    /// How much faster than usual it grows.
    fn hurry(&self) -> f64 {
        if self.fell.is_some_and(|(former, _)| self.value + self.value / 4 < former) {
            RETURN
        } else if (self.searching || self.step > TRIED) && self.value < SEARCH_MAX {
            SEARCH
        } else {
            1.0
        }
    }

    /// The share that is always tried for.
    fn floor(&self) -> u32 {
        ((f64::from(self.best) * self.settings.min_share) as u32).clamp(self.min, self.top)
    }
}
