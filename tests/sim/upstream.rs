//! The upstream of a simulation: a ceiling that may move, buckets and windows, a knee, faults, headers.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    time::{Duration, Instant},
};

use tidegate::control::{
    cost::{Demand, Usage},
    rng::Rng,
    signals::{Attribution, Budget, Budgets, Dimension, Refill, Signals},
};

use super::{
    scenario::{Bucket as BucketSpec, Headers, RetryAfter, Scenario, Window},
    world::normal,
};

#[derive(Debug, Clone, Copy)]
#[allow(clippy::large_enum_variant, reason = "short-lived, one at a time")]
pub enum Answer {
    Served,
    /// A 500 before any work.
    Failed,
    Refused {
        why: Attribution,
        dimension: Option<Dimension>,
        signals: Signals,
        /// How long the upstream thought about it.
        late: Duration,
    },
}

/// A bucket, or a window that turns.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub dimension: Dimension,
    limit: f64,
    rate: f64,
    level: f64,
    at: Instant,
    window: Window,
    period: Duration,
}

impl Bucket {
    pub fn new(spec: &BucketSpec, start: Instant) -> Self {
        let period = spec.period();
        let limit = spec.burst.unwrap_or(spec.limit);
        Self {
            dimension: spec.dimension(),
            limit,
            rate: spec.limit / period.as_secs_f64(),
            level: limit,
            at: start,
            window: spec.window,
            period,
        }
    }

    fn refill(&mut self, now: Instant) {
        match self.window {
            Window::Continuous => {
                let passed = now.saturating_duration_since(self.at).as_secs_f64();
                self.level = (self.level + self.rate * passed).min(self.limit);
                self.at = self.at.max(now);
            }
            Window::Fixed => {
                while now >= self.at + self.period {
                    self.at += self.period;
                    self.level = self.limit;
                }
            }
        }
    }

    fn wait(&self, amount: f64, now: Instant) -> Duration {
        if self.level >= amount {
            return Duration::ZERO;
        }
        match self.window {
            Window::Continuous => Duration::from_secs_f64((amount - self.level) / self.rate),
            Window::Fixed => (self.at + self.period).saturating_duration_since(now),
        }
    }

    fn report(&mut self, index: usize, headers: Headers, now: Instant) -> Budget {
        self.refill(now);
        let full = self.wait(self.limit, now);
        let fixed = self.window == Window::Fixed;
        let until = if fixed { (self.at + self.period).saturating_duration_since(now) } else { full };
        let (reset, window, refill) = match headers {
            Headers::Plain => (Some(until), None, None),
            Headers::Openai => (Some(until), None, Some(if fixed { Refill::Window } else { Refill::Continuous })),
            Headers::Ietf => (Some(Duration::from_secs(until.as_secs_f64().ceil() as u64)), Some(self.period), None),
            Headers::Bare | Headers::None => (None, None, None),
        };
        Budget {
            id: index as u32 + 1,
            dimension: self.dimension,
            limit: Some(self.limit as u64),
            remaining: self.level.max(0.0) as u64,
            reset,
            window,
            refill,
        }
    }
}

#[derive(Debug)]
struct Job {
    head_signals: Signals,
    output: u32,
    input: u32,
}

pub struct Upstream {
    scenario: Scenario,
    seed: u64,
    start: Instant,
    held: u32,
    buckets: Vec<Bucket>,
    known: Vec<Bucket>,
    rng: Rng,
    /// Work done by each job in service since the start: time, unless the knee slows it.
    clock: f64,
    at: Instant,
    reach: BinaryHeap<Reverse<(u64, usize, bool)>>,
    jobs: HashMap<usize, Job>,
}

impl Upstream {
    pub fn new(scenario: &Scenario, seed: u64, start: Instant) -> Self {
        let buckets: Vec<Bucket> = scenario.buckets().iter().map(|spec| Bucket::new(spec, start)).collect();
        Self {
            scenario: scenario.clone(),
            seed,
            start,
            held: 0,
            known: buckets.clone(),
            buckets,
            rng: Rng::new(seed ^ 0x9e37),
            clock: 0.0,
            at: start,
            reach: BinaryHeap::new(),
            jobs: HashMap::new(),
        }
    }

    pub fn held(&self) -> u32 {
        self.held
    }

    fn draw(&self, id: usize, what: u64) -> Rng {
        Rng::new(self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ what)
    }

    /// What request `id` asks for. The same for every driver, so that runs can be compared.
    pub fn demand(&self, id: usize) -> Demand {
        let mut rng = self.draw(id, 1);
        let (input, output_max) = self.scenario.asks(&mut rng);
        Demand { input_tokens: input, output_tokens_max: output_max, read: true, ..Demand::default() }
    }

    fn output(&self, id: usize) -> u32 {
        self.scenario.output_tokens(&mut self.draw(id, 2))
    }

    fn cost(&self, id: usize, dimension: Dimension) -> f64 {
        let input = f64::from(self.demand(id).input_tokens) * self.scenario.input_factor();
        let output = f64::from(self.output(id));
        match dimension {
            Dimension::Requests => 1.0,
            Dimension::InputTokens => input,
            Dimension::OutputTokens => output,
            Dimension::Tokens => input + output,
        }
    }

    /// What a served request counts for.
    pub fn worth(&self, id: usize, _: &Demand) -> f64 {
        self.cost(id, self.scenario.measure())
    }

    pub fn ceiling(&self, at: Instant) -> u32 {
        self.scenario.ceiling_at(at.saturating_duration_since(self.start).as_secs_f64())
    }

    /// For the oracle: whether `id` may arrive at `at`; if so it is spent.
    pub fn foresee(&mut self, id: usize, in_flight: u32, at: Instant) -> Result<(), Option<Duration>> {
        let limit = self.scenario.knee().unwrap_or(u32::MAX).min(self.ceiling(at));
        if in_flight >= limit {
            return Err(None);
        }
        let costs: Vec<f64> = self.known.iter().map(|bucket| self.cost(id, bucket.dimension)).collect();
        for (bucket, cost) in self.known.iter_mut().zip(&costs) {
            bucket.refill(at);
            let wait = bucket.wait(*cost, at);
            if !wait.is_zero() {
                return Err(Some(wait));
            }
        }
        for (bucket, cost) in self.known.iter_mut().zip(&costs) {
            bucket.level -= cost;
        }
        Ok(())
    }

    pub fn enter(&mut self, id: usize, _: &Demand, now: Instant) -> Answer {
        self.advance(now);
        if self.rng.unit() < self.scenario.errors() {
            return Answer::Failed;
        }
        let late = self.scenario.late(&mut self.rng);
        if self.held >= self.ceiling(now) {
            return self.refuse(Attribution::Ceiling, None, Duration::ZERO, late, now);
        }
        let costs: Vec<f64> = self.buckets.iter().map(|bucket| self.cost(id, bucket.dimension)).collect();
        for (index, cost) in costs.iter().enumerate() {
            self.buckets[index].refill(now);
            let wait = self.buckets[index].wait(*cost, now);
            if !wait.is_zero() {
                let dimension = self.buckets[index].dimension;
                return self.refuse(Attribution::Rate, Some(dimension), wait, late, now);
            }
        }
        for (bucket, cost) in self.buckets.iter_mut().zip(&costs) {
            bucket.level -= cost;
        }
        self.held += 1;
        let service = self.scenario.service(&mut self.draw(id, 3));
        let first = self.scenario.first_byte(service, &mut self.draw(id, 4));
        self.reach.push(Reverse((nanos(self.clock + first), id, true)));
        self.reach.push(Reverse((nanos(self.clock + service.max(first + 1e-6)), id, false)));
        let input = self.cost(id, Dimension::InputTokens) as u32;
        self.jobs.insert(id, Job { head_signals: Signals::default(), output: self.output(id), input });
        Answer::Served
    }

    fn refuse(
        &mut self,
        why: Attribution,
        dimension: Option<Dimension>,
        wait: Duration,
        late: Duration,
        now: Instant,
    ) -> Answer {
        let told = match (why, self.scenario.retry_after()) {
            (_, RetryAfter::None) | (Attribution::Ceiling, RetryAfter::Exact | RetryAfter::Seconds) => None,
            (_, RetryAfter::Exact) => Some(wait),
            (_, RetryAfter::Seconds) => Some(Duration::from_secs(wait.as_secs_f64().ceil().max(1.0) as u64)),
            (_, RetryAfter::AlwaysOne) => Some(Duration::from_secs(1)),
        };
        let signals = Signals { retry_after: told, budgets: self.budgets(now), ..Signals::default() };
        Answer::Refused { why, dimension, signals, late }
    }

    fn budgets(&mut self, now: Instant) -> Budgets {
        let mut budgets = Budgets::default();
        let headers = self.scenario.headers();
        if headers != Headers::None {
            for (index, bucket) in self.buckets.iter_mut().enumerate() {
                budgets.add(bucket.report(index, headers, now));
            }
        }
        budgets
    }

    fn pace(&self) -> f64 {
        self.scenario.knee().map_or(1.0, |knee| (f64::from(knee) / f64::from(self.held.max(1))).min(1.0))
    }

    fn advance(&mut self, now: Instant) {
        self.clock += self.pace() * now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
    }

    /// Requests whose head (`true`) or end was reached by now.
    pub fn reached(&mut self, now: Instant) -> Vec<(usize, bool)> {
        self.advance(now);
        let mut reached = Vec::new();
        while let Some(Reverse((at, id, is_head))) = self.reach.peek().copied() {
            if at > nanos(self.clock) + 1000 {
                break;
            }
            self.reach.pop();
            self.held -= u32::from(!is_head);
            reached.push((id, is_head));
        }
        reached
    }

    /// When the next head or end is reached, if nothing changes.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let Reverse((at, _, _)) = self.reach.peek()?;
        let left = (*at as f64 / 1e9 - self.clock).max(0.0) / self.pace();
        Some(now + Duration::from_secs_f64(left))
    }

    pub fn note_head(&mut self, id: usize, now: Instant) {
        let budgets = self.budgets(now);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.head_signals = Signals { budgets, ..Signals::default() };
        }
    }

    pub fn signals_at_head(&self, id: usize) -> Signals {
        self.jobs.get(&id).map(|job| job.head_signals).unwrap_or_default()
    }

    pub fn usage(&mut self, id: usize) -> Option<Usage> {
        let job = self.jobs.remove(&id)?;
        self.scenario.tells_usage().then_some(Usage {
            input_tokens: job.input,
            output_tokens: job.output,
            ..Usage::default()
        })
    }
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// Log-normal with this mean.
pub fn log_normal(mean: f64, sigma: f64, rng: &mut Rng) -> f64 {
    mean * (sigma * normal(rng) - sigma * sigma / 2.0).exp()
}
