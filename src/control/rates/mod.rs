//! The rate gate: attempts leave as fast as the upstream's budgets come back, not faster.
//!
//! Three kinds of knowledge, the first that exists counts for its dimension:
//!
//! * **shadows** of budgets the upstream reports in its answers;
//! * a **configured** rate, as a bucket of our own, which holds besides whatever the upstream reports;
//! * a **pacer** that measures the delivered rate, once a dimension without a shadow has been refused.

mod pacer;
mod shadow;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    attempt::Attempt,
    cost::Cost,
    signals::{Budget, Budgets, Dimension, Refill},
};
use pacer::Pacer;
use shadow::{Shadow, Totals};

/// Rates that are known from the start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RateSettings {
    /// Requests per minute.
    pub rpm: Option<u32>,
    /// Tokens per minute, input and output together.
    pub tpm: Option<u64>,
}

/// Budgets followed per account: several per model, and models come and go.
const SHADOWS_MAX: usize = 64;

/// Attempts that may not have arrived yet, at most so many are told apart.
const ON_THE_WAY_MAX: usize = 1000;

/// A closed budget is asked about after this long, unless it is [set](Rates::tune) otherwise.
const ASK_AFTER: Duration = Duration::from_secs(60);

/// So many bursts of refusals that the known budgets did not foresee, and the rate is measured besides: what is known is
/// wrong.
const SURPRISES_MAX: u32 = 3;

/// What is known of one rate, for metrics and `/status`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateView {
    /// What is counted.
    pub dimension: Dimension,
    /// Where the knowledge comes from.
    pub source: RateSource,
    /// Units per second.
    pub per_second: f64,
    /// Units that are left, where that is known.
    pub left: Option<f64>,
    /// Units of the full budget, where that is known.
    pub limit: Option<f64>,
}

/// Where the knowledge of a rate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateSource {
    /// `rpm:` or `tpm:` in the configuration.
    Configured,
    /// Measured between refusals.
    Measured,
    /// Reported by the upstream.
    Reported,
}

impl RateSource {
    /// The word used in `/status`.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Measured => "measured",
            Self::Reported => "reported",
        }
    }
}

/// All rates of one account.
#[derive(Debug)]
pub struct Rates {
    configured: Vec<Shadow>,
    shadows: Vec<Shadow>,
    pacers: Vec<Paced>,
    /// What all attempts so far were taken to cost.
    total: Cost,
    /// The same before each attempt that may not have arrived yet, and when that one left.
    on_the_way: VecDeque<(Instant, Cost)>,
    pace: f64,
    ask_after: Duration,
}

#[derive(Debug)]
struct Paced {
    dimension: Dimension,
    /// What one attempt costs about: pacers count in attempts.
    unit: f64,
    pacer: Pacer,
}

impl Rates {
    /// `pace`: share of a measured rate that is used.
    #[must_use]
    pub fn new(settings: &RateSettings, pace: f64, now: Instant) -> Self {
        let mut rates = Self {
            configured: Vec::new(),
            shadows: Vec::new(),
            pacers: Vec::new(),
            total: Cost::default(),
            on_the_way: VecDeque::new(),
            pace,
            ask_after: ASK_AFTER,
        };
        rates.configure(settings, now);
        rates
    }

    /// `pace`: as in [`new`](Self::new). `ask_after`: a budget that is closed for longer, by what the upstream said, is
    /// asked about with one attempt then; it may have been wrong, or changed its mind.
    pub fn tune(&mut self, pace: f64, ask_after: Duration) {
        self.ask_after = ask_after;
        self.pace = pace;
        for paced in &mut self.pacers {
            paced.pacer.set_pace(pace);
        }
    }

    /// Takes new configured rates.
    pub fn configure(&mut self, settings: &RateSettings, now: Instant) {
        let none = Attempt {
            id: 1,
            sent: now,
            in_flight: 0,
            within: true,
            demand: super::cost::Demand::default(),
            cost: Cost::default(),
            total: self.total,
        };
        let known = [(Dimension::Requests, settings.rpm.map(u64::from)), (Dimension::Tokens, settings.tpm)];
        self.configured = known
            .into_iter()
            .filter_map(|(dimension, limit)| {
                let limit = limit?;
                let budget = Budget {
                    id: 0,
                    dimension,
                    limit: Some(limit),
                    remaining: limit,
                    reset: None,
                    window: Some(Duration::from_secs(60)),
                    refill: Some(Refill::Continuous),
                };
                let totals = Totals { arrived: self.total, now: self.total };
                Some(Shadow::new(&budget, 0, &none, totals, now))
            })
            .collect();
    }

    /// Whether anything is counted in tokens, so that it is worth knowing what requests ask for.
    #[must_use]
    pub fn counts_tokens(&self) -> bool {
        let shadows = self.configured.iter().chain(&self.shadows).map(|shadow| shadow.dimension);
        shadows.chain(self.pacers.iter().map(|paced| paced.dimension)).any(|dimension| dimension != Dimension::Requests)
    }

    /// Lets the clocks inside run up to `now`. `trip`: how long a refusal takes to arrive.
    pub fn advance(&mut self, trip: Duration, now: Instant) {
        for shadow in self.configured.iter_mut().chain(&mut self.shadows) {
            shadow.advance(trip, now);
        }
        for paced in &mut self.pacers {
            paced.pacer.advance(self.total.of(paced.dimension) / paced.unit, trip, now);
        }
    }

    /// Time until an attempt of this cost may leave; zero: now. After [`advance`](Self::advance).
    pub fn wait(&mut self, cost: &Cost, model: u64, trip: Duration, now: Instant) -> Duration {
        let own = self.shadows.iter().filter(|shadow| shadow.model == model && model != 0);
        let own = own.map(|shadow| shadow.leaves_in(cost, &self.total, self.ask_after, trip, now)).max();
        self.wait_of_all(cost, trip, now).max(own.unwrap_or_default())
    }

    /// The part of [`wait`](Self::wait) that is not for a budget of one model alone.
    pub fn wait_of_all(&mut self, cost: &Cost, trip: Duration, now: Instant) -> Duration {
        let configured = self.configured.iter().map(|shadow| shadow.wait(cost, &self.total, trip, now));
        let common = self.shadows.iter().filter(|shadow| shadow.model == 0);
        let common = common.map(|shadow| shadow.leaves_in(cost, &self.total, self.ask_after, trip, now));
        let wait = configured.chain(common).max().unwrap_or_default();
        let paced = self.pacers.iter_mut().filter(|paced| cost.of(paced.dimension) > 0.0);
        let paced = paced.map(|paced| paced.pacer.wait(cost.of(paced.dimension) / paced.unit, trip, now)).max();
        wait.max(paced.unwrap_or_default())
    }

    /// Time until it fits by what the upstream said, whenever somebody may ask before that.
    pub fn opens_in(&mut self, cost: &Cost, model: u64, trip: Duration, now: Instant) -> Duration {
        let covering = self.shadows.iter().filter(|shadow| shadow.covers(model));
        let said = covering.map(|shadow| shadow.wait(cost, &self.total, trip, now)).max().unwrap_or_default();
        self.wait(cost, model, trip, now).max(said)
    }

    /// Nothing is known that anybody could have to wait for.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.configured.is_empty() && self.shadows.is_empty() && self.pacers.is_empty()
    }

    /// An attempt leaves. Returns what all attempts up to it were taken to cost.
    pub fn spend(&mut self, id: u64, cost: &Cost, model: u64, now: Instant) -> Cost {
        if self.on_the_way.len() >= ON_THE_WAY_MAX {
            self.on_the_way.pop_front();
        }
        self.on_the_way.push_back((now, self.total));
        self.total = self.total + *cost;
        for shadow in self.configured.iter_mut().chain(self.shadows.iter_mut().filter(|shadow| shadow.covers(model))) {
            shadow.spend(cost, now);
        }
        for paced in self.pacers.iter_mut().filter(|paced| cost.of(paced.dimension) > 0.0) {
            paced.pacer.spend(id, cost.of(paced.dimension) / paced.unit, now);
        }
        self.total
    }

    /// An attempt never left.
    pub fn refund(&mut self, attempt: &Attempt) {
        let model = attempt.demand.model;
        for shadow in self.configured.iter_mut().chain(self.shadows.iter_mut().filter(|shadow| shadow.covers(model))) {
            shadow.refund(&attempt.cost);
        }
    }

    /// What the answer to `attempt` reported.
    pub fn reported(&mut self, attempt: &Attempt, budgets: &Budgets, trip: Duration, now: Instant) {
        let model = attempt.demand.model;
        // What left a round trip ago was there when this answer left, and so was what left before its own request.
        let is_there = |left: Instant| left + trip < now || left <= attempt.sent;
        while self.on_the_way.front().is_some_and(|(left, _)| is_there(*left)) {
            self.on_the_way.pop_front();
        }
        let arrived = self.on_the_way.front().map_or(self.total, |(_, before)| *before);
        let totals = Totals { arrived, now: self.total };
        for budget in budgets.iter() {
            let at = self.shadows.iter().position(|shadow| shadow.id == budget.id && shadow.model == model);
            if let Some(shadow) = at.and_then(|at| self.shadows.get_mut(at)) {
                shadow.report(budget, attempt, totals, trip, now);
            } else if budget.limit.is_some() || budget.reset.is_some() {
                // A bare number that remains says nothing about how it comes back.
                self.make_room();
                self.shadows.push(Shadow::new(budget, model, attempt, totals, now));
                // What is reported need not be measured.
                self.pacers.retain(|paced| paced.dimension != budget.dimension);
            }
        }
        self.shadows.retain_mut(|shadow| {
            let silent = shadow.model == model && !budgets.iter().any(|budget| budget.id == shadow.id);
            !(silent && shadow.unmentioned())
        });
    }

    /// The budget that was reported longest ago gives way.
    fn make_room(&mut self) {
        if self.shadows.len() < SHADOWS_MAX {
            return;
        }
        let oldest = self.shadows.iter().enumerate().min_by_key(|(_, shadow)| shadow.heard).map(|(at, _)| at);
        if let Some(at) = oldest {
            self.shadows.swap_remove(at);
        }
    }

    /// An attempt was refused for want of `dimension` (`None`: not said which). `told`: how long to wait. `false`: it
    /// contradicts what is known, and nothing was learnt from it that would hold the next one back.
    pub fn refused(
        &mut self,
        attempt: &Attempt,
        dimension: Option<Dimension>,
        told: Option<Duration>,
        now: Instant,
    ) -> bool {
        let covers = |shadow: &&mut Shadow| {
            shadow.covers(attempt.demand.model) && dimension.is_none_or(|dimension| dimension == shadow.dimension)
        };
        let mut known: Vec<&mut Shadow> = self.configured.iter_mut().chain(&mut self.shadows).filter(covers).collect();
        // Those with as good as nothing left explain it; else whatever is closest to that has to.
        let is_explained = known.iter().any(|shadow| shadow.explains());
        if is_explained {
            known.retain(|shadow| shadow.explains());
        } else {
            known.sort_by(|a, b| a.share().total_cmp(&b.share()));
            known.truncate(1);
        }
        let holds = is_explained || known.iter().any(|shadow| shadow.kind() == Refill::Continuous);
        let surprises = known.into_iter().map(|shadow| shadow.refused(attempt, now)).min();
        if surprises.is_some_and(|surprises| surprises < SURPRISES_MAX) {
            return holds;
        }
        let dimension = dimension.unwrap_or(Dimension::Requests);
        let total = attempt.total.of(dimension);
        match self.pacers.iter_mut().find(|paced| paced.dimension == dimension) {
            Some(Paced { unit, pacer, .. }) => {
                pacer.refused(attempt, attempt.cost.of(dimension) / *unit, total / *unit, told, now);
            }
            None => {
                let unit = attempt.cost.of(dimension).max(1.0);
                self.pacers.push(Paced {
                    dimension,
                    unit,
                    pacer: Pacer::new(attempt, total / unit, self.pace, told, now),
                });
            }
        }
        true
    }

    /// The measured rate of requests, per second; 0: none is.
    #[must_use]
    pub fn measured(&self) -> f64 {
        self.pacers
            .iter()
            .find(|paced| paced.dimension == Dimension::Requests)
            .map_or(0.0, |paced| paced.pacer.measured_rate() * paced.unit)
    }

    /// What is known, the tightest of each dimension and source.
    #[must_use]
    pub fn view(&self) -> Vec<RateView> {
        let shadow = |source| {
            move |shadow: &Shadow| RateView {
                dimension: shadow.dimension,
                source,
                per_second: shadow.rate(),
                left: Some(shadow.level()),
                limit: Some(shadow.limit),
            }
        };
        let measured = self.pacers.iter().map(|paced| RateView {
            dimension: paced.dimension,
            source: RateSource::Measured,
            per_second: paced.pacer.used() * paced.unit,
            left: None,
            limit: None,
        });
        let configured = self.configured.iter().map(shadow(RateSource::Configured));
        configured.chain(self.shadows.iter().map(shadow(RateSource::Reported))).chain(measured).collect()
    }
}

#[cfg(test)]
mod tests;
