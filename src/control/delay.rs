//! The delay guard: what keeps an upstream at its knee that never refuses but answers ever more slowly.
//!
//! First-byte times are compared with what they were when little was in flight, class by class (model, streamed or
//! not), because answers of different models are not comparable. Below the tolerance nothing is done; above it, twice
//! in a row, the limit shrinks by as much as the excess. The base follows downwards quickly and upwards very slowly, so
//! that a lasting overload does not become the norm. If shrinking does not make answers any faster, load was not the
//! reason: the limit is given back and the new times become the norm.

use std::time::{Duration, Instant};

use super::limit::Sample;

/// Attempts of a cohort at the least: a median of fewer is noise.
const COHORT_MIN: u64 = 20;
/// … and at the most.
const COHORT_MAX: u64 = 300;
/// The first cohort, which finds the upstream idle: every later verdict has its error.
const COHORT_FIRST: u64 = 10;
const COHORT_FIRST_MAX: u64 = 60;
/// A cohort is large enough when its median is this exact (standard error of the logarithm).
const ERROR: f64 = 0.07;
/// It is judged when this share of it has been heard of. Those still missing are the slow ones, so the median is known.
const HEARD: f64 = 0.75;
/// When so many times as many have answered since, the rest was refused or lost: a new cohort begins.
const LOST: u64 = 4;
/// Share of the way the base goes down towards a median that is clearly lower …
const BASE_DOWN: f64 = 0.3;
/// … and either way towards one that may be the same: equal, or noise alone would carry the base away. The first few
/// are averaged.
const BASE_DRIFT: f64 = 0.01;
/// A base of fewer cohorts is not firm: slow answers then correct the base …
const FIRM: f64 = 4.0;
/// … unless this much more is in flight than when it was found.
const LOADED: f64 = 1.5;
/// Standard errors beyond which two medians are not the same.
const CLEARLY: f64 = 2.5;
/// Up to here the upstream is not overloaded.
const CALM: f64 = 1.25;
/// The ratio a cut aims at: between calm and the tolerance.
const AIM: f64 = 1.43;
/// No single cut is deeper.
const CUT_MIN: f64 = 0.7;
/// One window this much beyond the tolerance cuts at once.
const FAR: f64 = 1.25;
/// Standard errors of the median that an excess must have to be one: lengths of answers scatter widely.
const ERRORS: f64 = 3.0;
/// Standard errors of the base that an excess must have besides the tolerance: a base found too low stays so.
const BASE_ERRORS: f64 = 2.0;
/// Additive growth, as a share of the limit, after one good window …
const GROWTH: f64 = 0.06;
/// … and after [`GOOD_WINDOWS`] of them.
const GROWTH_FAST: f64 = 0.2;
const GOOD_WINDOWS: u32 = 4;
/// The limit has to be used this much to grow.
const USED: f64 = 0.9;
/// A limit cut down to this share …
const FUTILE_LIMIT: f64 = 0.55;
/// … while answers still take this share of the time they took: load is not the reason.
const FUTILE_RATIO: f64 = 0.85;
/// Samples an account must have before the guard acts: until then it only learns what is usual.
const LEARN_SAMPLES: u64 = 200;
/// Classes told apart; beyond it all further ones are one.
const CLASSES_MAX: usize = 16;
/// Seconds below which a base is not believed: on a local upstream timers and scheduling make up the difference.
const BASE_FLOOR: f64 = 0.02;

/// The guard of one account.
#[derive(Debug)]
pub struct Guard {
    tolerance: f64,
    /// Most in flight for delay's sake; infinite while nothing was ever too slow.
    limit: f64,
    classes: Vec<Class>,
    /// Most in flight in this cohort.
    used: u32,
    /// Ids of the attempts that are compared now: cohorts are told apart by when they left, because the first to come
    /// back are always the fast ones.
    first: u64,
    size: u64,
    /// The next cohort begins with what leaves after this.
    resting: Option<Instant>,
    seen: u64,
    slow: u32,
    good: u32,
    /// How much the samples of one class scatter: standard deviation of the logarithm in the last window.
    spread: f64,
    /// Limits and ratios of the cuts that followed one another.
    cuts: Vec<(f64, f64)>,
}

#[derive(Debug)]
struct Class {
    key: u64,
    base: f64,
    /// Square of the base's standard error (of the logarithm).
    variance: f64,
    /// Cohorts that were averaged, and how much was in flight then.
    cohorts: f64,
    load: f64,
    samples: Vec<f64>,
}

/// What a cohort of all classes said: the mean of median over base, and its standard error (of the logarithm).
struct Verdict {
    ratio: f64,
    error: f64,
    /// Standard error of the base, which every verdict shares.
    base_error: f64,
}

impl Guard {
    /// `tolerance`: first-byte time over its base that counts as overload. `first`: attempts that leave at first.
    #[must_use]
    pub fn new(tolerance: f64, first: u32) -> Self {
        Self {
            tolerance,
            limit: f64::INFINITY,
            classes: Vec::new(),
            used: 0,
            first: 1,
            size: u64::from(first).clamp(COHORT_FIRST, COHORT_FIRST_MAX),
            resting: None,
            seen: 0,
            slow: 0,
            good: 0,
            spread: 0.0,
            cuts: Vec::new(),
        }
    }

    /// As in [`new`](Self::new), from now on.
    pub fn set_tolerance(&mut self, tolerance: f64) {
        self.tolerance = tolerance;
    }

    /// What answers take when little is in flight is known.
    #[must_use]
    pub fn has_base(&self) -> bool {
        self.classes.iter().any(|class| class.base > 0.0)
    }

    /// Most that may be in flight.
    #[must_use]
    pub fn limit(&self) -> u32 {
        if self.limit.is_finite() { (self.limit as u32).max(1) } else { u32::MAX }
    }

    /// A first-byte time. `allowed`: the limit without the guard.
    pub fn sample(&mut self, sample: &Sample, allowed: u32) {
        self.seen += 1;
        if self.resting.is_some_and(|until| until <= sample.now) {
            self.resting = None;
            self.first = sample.newest + 1;
        }
        // What left after this answer's own departure is about as much as may still be on its way.
        let on_the_way = sample.newest.saturating_sub(sample.id);
        if sample.id >= self.first + LOST * self.size + 2 * on_the_way {
            self.restart(sample.newest);
        }
        if self.resting.is_some() || !(self.first..self.first + self.size).contains(&sample.id) {
            return;
        }
        self.used = self.used.max(sample.in_flight);
        let at = self.classes.iter().position(|class| class.key == sample.class).unwrap_or_else(|| {
            if self.classes.len() < CLASSES_MAX {
                self.classes.push(Class {
                    key: sample.class,
                    base: 0.0,
                    variance: 0.0,
                    cohorts: 0.0,
                    load: 0.0,
                    samples: Vec::new(),
                });
            }
            self.classes.len() - 1
        });
        let Some(class) = self.classes.get_mut(at) else { return };
        class.samples.push(sample.first_byte.as_secs_f64());
        let heard: usize = self.classes.iter().map(|class| class.samples.len()).sum();
        if heard as f64 >= HEARD * self.size as f64 {
            self.judge(allowed, heard as f64 / self.size as f64);
            let base = self.classes.iter().map(|class| class.base).fold(0.0, f64::max);
            self.restart(sample.newest);
            self.size = ((1.25 * self.spread / ERROR).powi(2) as u64).clamp(COHORT_MIN, COHORT_MAX);
            self.resting = Some(sample.now + Duration::from_secs_f64(base));
        }
    }

    fn restart(&mut self, newest: u64) {
        self.first = newest + 1;
        self.used = 0;
        for class in &mut self.classes {
            class.samples.clear();
        }
    }

    fn judge(&mut self, allowed: u32, heard: f64) {
        let used = f64::from(self.used);
        let Some(Verdict { ratio, error, base_error }) = self.read(heard, used) else { return };
        if self.seen < LEARN_SAMPLES {
            return;
        }
        let limit = if self.limit.is_finite() { self.limit } else { f64::from(allowed).min(used) };
        let slow = ratio.ln() > self.tolerance.ln() + BASE_ERRORS * base_error && ratio.ln() > ERRORS * error;
        self.slow = if slow { self.slow + 1 } else { 0 };
        self.good = if ratio < CALM { self.good + 1 } else { 0 };
        if self.good > 0 {
            self.cuts.clear();
        }
        if self.slow >= 2 || (slow && ratio > FAR * self.tolerance) {
            self.slow = 0;
            let futile = |(before, worse): &(f64, f64)| limit <= FUTILE_LIMIT * before && ratio > FUTILE_RATIO * worse;
            if self.cuts.iter().any(futile) {
                self.limit = f64::INFINITY;
                self.cuts.clear();
                for class in &mut self.classes {
                    class.base *= ratio;
                    class.cohorts = 0.0;
                }
                return;
            }
            self.cuts.push((limit, ratio));
            self.limit = (limit * (AIM / ratio).sqrt().max(CUT_MIN)).max(1.0);
        } else if ratio < CALM && self.limit.is_finite() && used >= USED * self.limit.floor() {
            let share = if self.good >= GOOD_WINDOWS { GROWTH_FAST } else { GROWTH };
            self.limit = (limit * (1.0 + share)).max(limit + 1.0);
        }
        if self.limit.is_finite() && self.limit > 2.0 * f64::from(allowed) {
            // Nothing has been slow for long, and something else binds.
            self.limit = f64::INFINITY;
        }
    }

    /// `heard`: the share of the cohort that answered.
    fn read(&mut self, heard: f64, used: f64) -> Option<Verdict> {
        let (mut weight, mut ratios, mut errors, mut bases, mut spreads) = (0.0, 0.0, 0.0, 0.0, 0.0);
        let never_slow = !self.limit.is_finite() && self.seen >= LEARN_SAMPLES;
        for class in &mut self.classes {
            let Some(median) = median(&mut class.samples, heard) else { continue };
            let count = class.samples.len() as f64;
            let spread = spread(&class.samples);
            // The standard error of a median is 1.25 times that of a mean.
            let own = 1.25 * spread / count.sqrt();
            if class.base == 0.0 {
                class.base = median;
                class.variance = own * own;
                class.load = used;
            }
            let same_load = class.cohorts < FIRM && used <= LOADED * class.load;
            let ratio = median.max(BASE_FLOOR) / class.base.max(BASE_FLOOR);
            let error = (own * own + class.variance).sqrt();
            let share = if ratio.ln() < -CLEARLY * error {
                BASE_DOWN
            } else if never_slow && ratio > CALM && ratio < self.tolerance * (BASE_ERRORS * class.variance.sqrt()).exp()
            {
                // Slower than usual and yet never too slow: what is usual was found too low.
                BASE_DRIFT
            } else if same_load || (ratio < CALM && ratio > 1.0 / CALM) {
                BASE_DRIFT.max(1.0 / (class.cohorts + 1.0))
            } else {
                0.0
            };
            if share > 0.0 {
                class.cohorts += 1.0;
                class.base *= (share * ratio.ln()).exp();
                class.load += share * (used - class.load);
                class.variance = (1.0 - share).powi(2) * class.variance + (share * own).powi(2);
            }
            weight += count;
            ratios += count * if same_load { 1.0 } else { ratio };
            errors += count * own;
            bases += count * class.variance.sqrt();
            spreads += count * spread;
        }
        if weight > 0.0 {
            self.spread = spreads / weight;
        }
        (weight > 0.0).then(|| Verdict { ratio: ratios / weight, error: errors / weight, base_error: bases / weight })
    }

    /// Something else tells how many may be in flight.
    pub fn release(&mut self) {
        self.limit = f64::INFINITY;
        self.cuts.clear();
        self.slow = 0;
    }
}

/// The median of all, of which only this share, the fastest, was heard of.
fn median(samples: &mut [f64], heard: f64) -> Option<f64> {
    let middle = ((samples.len() as f64 / heard / 2.0) as usize).min(samples.len().saturating_sub(1));
    (!samples.is_empty()).then(|| *samples.select_nth_unstable_by(middle, f64::total_cmp).1)
}

/// Standard deviation of the logarithms.
fn spread(samples: &[f64]) -> f64 {
    let count = samples.len() as f64;
    let logs = || samples.iter().map(|sample| sample.max(1e-6).ln());
    let mean = logs().sum::<f64>() / count;
    (logs().map(|log| (log - mean).powi(2)).sum::<f64>() / count).sqrt()
}
