//! An upstream, a wire and any number of Tidegates, in virtual time: a heap of events and one seed.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    time::{Duration, Instant},
};

use tidegate::control::{
    attempt::Attempt,
    cost::{Demand, Usage},
    gate::{Event, GateCore, Heard, Turned, Waiter},
    limit::Outcome,
    queue::{FlowId, Place},
    retry::{Facts, Failure, Verdict},
    rng::Rng,
    signals::{Attribution, Signals},
};

use super::{
    oracle::Oracle,
    scenario::{Demand as Load, Says, Scenario},
    upstream::{Answer, Upstream},
};

/// What drives a client: the gate under test, or one that knows everything.
pub enum Driver {
    Gate(Box<GateCore<usize>>),
    Oracle(Oracle),
}

/// One proxy with its callers.
struct Client {
    driver: Driver,
    /// Requests of this client that wait, per flow: the reference for first come first served.
    waiting: BTreeSet<Place>,
    armed: Option<Instant>,
    next_arrival: Instant,
    /// Arrivals that are planned.
    coming: usize,
}

struct Request {
    client: usize,
    place: Place,
    arrived: Instant,
    demand: Demand,
    attempt: Option<Attempt>,
    failures: u32,
    done: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Arrive { client: usize },
    AtUpstream { request: usize },
    Refused { request: usize },
    Head { request: usize },
    Done { request: usize },
    Again { request: usize },
    Upstream,
    Wake { client: usize },
}

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Work done after the warm-up, in the scenario's measure.
    pub work: f64,
    /// The same by each client.
    pub shares: Vec<f64>,
    pub attempts: u64,
    pub refused: u64,
    pub done: u64,
    pub failed: u64,
    pub hopeless: u64,
    /// Queue waits of requests that were served, in seconds.
    pub waits: Vec<f64>,
    /// Time from admission to the last byte.
    pub latencies: Vec<f64>,
    /// Work in slices of a tenth of a second, for recovery times.
    pub slices: Vec<f64>,
    pub minds: u32,
    pub limit_at_end: u32,
}

pub struct World<'a> {
    scenario: &'a Scenario,
    start: Instant,
    now: Instant,
    due: BinaryHeap<Reverse<(Instant, u64, Due)>>,
    order: u64,
    rng: Rng,
    upstream: Upstream,
    clients: Vec<Client>,
    requests: Vec<Request>,
    answers: HashMap<usize, (Instant, Answer)>,
    upstream_planned: Option<Instant>,
    report: Report,
}

pub const SLICE: f64 = 0.1;

impl<'a> World<'a> {
    pub fn new(scenario: &'a Scenario, drivers: Vec<Driver>, seed: u64, start: Instant) -> Self {
        let clients = drivers
            .into_iter()
            .enumerate()
            .map(|(index, driver)| Client {
                driver,
                waiting: BTreeSet::new(),
                armed: None,
                next_arrival: start + scenario.starts(index),
                coming: 1,
            })
            .collect::<Vec<_>>();
        let report = Report { shares: vec![0.0; clients.len()], ..Report::default() };
        Self {
            start,
            now: start,
            due: BinaryHeap::new(),
            order: 0,
            rng: Rng::new(seed),
            upstream: Upstream::new(scenario, seed, start),
            clients,
            requests: Vec::new(),
            answers: HashMap::new(),
            upstream_planned: None,
            report,
            scenario,
        }
    }

    pub fn run(mut self) -> Report {
        let end = self.start + self.scenario.seconds();
        for client in 0..self.clients.len() {
            self.plan(self.clients[client].next_arrival, Due::Arrive { client });
        }
        while let Some(Reverse((at, _, due))) = self.due.pop() {
            if at > end {
                break;
            }
            assert!(self.order < 200_000_000, "events pile up");
            self.count_work(at);
            self.now = at;
            self.happen(due);
        }
        self.count_work(end);
        self.report.limit_at_end = match &self.clients[0].driver {
            Driver::Gate(core) => core.view(self.now).limit,
            Driver::Oracle(_) => 0,
        };
        self.report
    }

    fn plan(&mut self, at: Instant, due: Due) {
        self.order += 1;
        self.due.push(Reverse((at, self.order, due)));
    }

    /// Slots held until `at` are work done, where slots are the measure.
    fn count_work(&mut self, at: Instant) {
        if self.scenario.counts_slots() {
            let held = f64::from(self.upstream.held()) * (at - self.now).as_secs_f64();
            self.add_work(held);
        }
    }

    fn add_work(&mut self, work: f64) {
        let since = (self.now - self.start).as_secs_f64();
        let slice = (since / SLICE) as usize;
        if self.report.slices.len() <= slice {
            self.report.slices.resize(slice + 1, 0.0);
        }
        self.report.slices[slice] += work;
        if since >= self.scenario.warmup() {
            self.report.work += work;
        }
    }

    fn leg(&mut self) -> Duration {
        let half = self.scenario.rtt().as_secs_f64() / 2.0;
        let jitter = self.scenario.jitter();
        let factor = if jitter > 0.0 { (jitter * normal(&mut self.rng) - jitter * jitter / 2.0).exp() } else { 1.0 };
        Duration::from_secs_f64(half * factor)
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Arrive { client } => self.arrive(client),
            Due::AtUpstream { request } => self.at_upstream(request),
            Due::Refused { request } | Due::Head { request } => self.heard(request),
            Due::Done { request } => self.ended(request),
            Due::Again { request } => self.again(request),
            Due::Upstream => {
                self.upstream_planned.take_if(|at| *at <= self.now);
            }
            Due::Wake { client } => {
                self.clients[client].armed.take_if(|at| *at <= self.now);
                self.pump(client);
            }
        }
        self.upstream_runs();
    }

    fn arrive(&mut self, client: usize) {
        if let Some(until) = self.scenario.rests(client, (self.now - self.start).as_secs_f64()) {
            self.plan(self.start + Duration::from_secs_f64(until), Due::Arrive { client });
            return;
        }
        self.clients[client].coming = self.clients[client].coming.saturating_sub(1);
        let id = self.requests.len();
        let demand = self.upstream.demand(id);
        self.requests.push(Request {
            client,
            place: Place(0),
            arrived: self.now,
            demand,
            attempt: None,
            failures: 0,
            done: false,
        });
        match &mut self.clients[client].driver {
            Driver::Gate(core) => {
                let place = core.arrive();
                self.requests[id].place = place;
                if let Some(attempt) = core.try_enter(&demand, self.now) {
                    self.send(id, attempt);
                } else {
                    self.wait(id);
                }
            }
            Driver::Oracle(oracle) => oracle.arrive(id),
        }
        if let Load::PerSecond(rate) = self.scenario.demand(client) {
            let gap = -(1.0 - self.rng.unit()).ln() / rate;
            self.plan(self.now + Duration::from_secs_f64(gap), Due::Arrive { client });
        }
        self.pump(client);
    }

    fn wait(&mut self, id: usize) {
        let Request { client, place, demand, attempt, arrived, .. } = self.requests[id];
        let deadline = arrived + self.scenario.wait_max();
        let Driver::Gate(core) = &mut self.clients[client].driver else { return };
        let waiter = Waiter { demand, deadline, wake: id };
        if attempt.is_some() {
            core.requeue(FlowId(0), place, waiter);
        } else if let Err(turned) = core.enqueue(FlowId(0), place, waiter, self.now) {
            self.requests[id].done = true;
            self.report.hopeless += u64::from(matches!(turned, Turned::Hopeless { .. }));
            self.report.failed += 1;
            return;
        }
        self.clients[client].waiting.insert(place);
    }

    fn pump(&mut self, client: usize) {
        let mut granted = Vec::new();
        let now = self.now;
        let this = &mut self.clients[client];
        match &mut this.driver {
            Driver::Gate(core) => {
                while let Some((id, attempt)) = core.next_grant(now) {
                    let place = self.requests[id].place;
                    assert_eq!(this.waiting.first(), Some(&place), "first come first served");
                    this.waiting.remove(&place);
                    granted.push((id, attempt));
                }
                for (id, _) in core.take_hopeless(now) {
                    this.waiting.remove(&self.requests[id].place);
                    self.requests[id].done = true;
                    self.report.hopeless += 1;
                    self.report.failed += 1;
                }
                let view = core.view(now);
                assert_eq!(view.queued, this.waiting.len(), "nobody is lost");
                assert!(view.in_flight <= view.ceiling.unwrap_or(u32::MAX), "the ceiling holds");
                let wake = core.wake_at(now);
                // Work conservation: whoever waits does so for a slot, or for a time that is known.
                assert!(view.queued == 0 || view.in_flight > 0 || wake.is_some(), "nothing will ever move: {view:?}");
                if let Some(at) = wake {
                    assert!(core.next_grant(now).is_none(), "a slot is left free");
                    let at = at.max(now + Duration::from_micros(100));
                    if this.armed.is_none_or(|armed| at < armed) {
                        this.armed = Some(at);
                        self.order += 1;
                        self.due.push(Reverse((at, self.order, Due::Wake { client })));
                    }
                }
                for event in core.take_events() {
                    self.report.minds += u32::from(matches!(event, Event::Mind { .. }));
                }
            }
            Driver::Oracle(oracle) => {
                while let Some((id, attempt)) = oracle.next(&mut self.upstream, now) {
                    granted.push((id, attempt));
                }
                if let Some(at) = oracle.wake_at(now) {
                    let at = at.max(now + Duration::from_micros(100));
                    if this.armed.is_none_or(|armed| at < armed) {
                        this.armed = Some(at);
                        self.order += 1;
                        self.due.push(Reverse((at, self.order, Due::Wake { client })));
                    }
                }
            }
        }
        let starved = match &self.clients[client].driver {
            Driver::Gate(core) => core.view(now).queued,
            Driver::Oracle(oracle) => oracle.queued(),
        };
        for (id, attempt) in granted {
            self.send(id, attempt);
        }
        if let Load::Endless { waiting } = self.scenario.demand(client) {
            for _ in starved + self.clients[client].coming..waiting {
                self.plan(now, Due::Arrive { client });
                self.clients[client].coming += 1;
            }
        }
    }

    fn send(&mut self, id: usize, attempt: Attempt) {
        self.report.attempts += 1;
        if self.requests[id].attempt.is_none() {
            self.report.waits.push((self.now - self.requests[id].arrived).as_secs_f64());
        }
        self.requests[id].attempt = Some(attempt);
        let leg = self.leg();
        self.plan(self.now + leg, Due::AtUpstream { request: id });
    }

    fn at_upstream(&mut self, id: usize) {
        let demand = self.requests[id].demand;
        let answer = self.upstream.enter(id, &demand, self.now);
        match answer {
            Answer::Refused { late, .. } => {
                let at = self.now + late + self.leg();
                self.answers.insert(id, (at, answer));
                self.plan(at, Due::Refused { request: id });
            }
            Answer::Failed => {
                let at = self.now + self.leg();
                self.answers.insert(id, (at, answer));
                self.plan(at, Due::Refused { request: id });
            }
            Answer::Served => {}
        }
    }

    /// Heads and ends that the upstream reached by now, and when the next comes.
    fn upstream_runs(&mut self) {
        for (id, is_head) in self.upstream.reached(self.now) {
            let at = self.now + self.leg();
            if is_head {
                let answer = Answer::Served;
                self.answers.insert(id, (at, answer));
                self.upstream.note_head(id, self.now);
                self.plan(at, Due::Head { request: id });
            } else {
                if !self.scenario.counts_slots() {
                    let work = self.upstream.worth(id, &self.requests[id].demand);
                    self.add_work(work);
                }
                if (self.now - self.start).as_secs_f64() >= self.scenario.warmup() {
                    self.report.shares[self.requests[id].client] += 1.0;
                }
                let at = at.max(self.answers.get(&id).map_or(at, |(head, _)| *head));
                self.plan(at, Due::Done { request: id });
            }
        }
        if let Some(at) = self.upstream.next(self.now) {
            let at = at.max(self.now + Duration::from_nanos(1));
            if self.upstream_planned.is_none_or(|planned| at < planned) {
                self.upstream_planned = Some(at);
                self.plan(at, Due::Upstream);
            }
        }
    }

    /// A head, a refusal or a failure arrives.
    fn heard(&mut self, id: usize) {
        let Some((_, answer)) = self.answers.remove(&id) else { return };
        let client = self.requests[id].client;
        let Some(attempt) = self.requests[id].attempt else { return };
        let first_byte = self.now - attempt.sent;
        let (outcome, signals) = match answer {
            Answer::Served => (Outcome::Accepted, self.upstream.signals_at_head(id)),
            Answer::Failed => (Outcome::Ignored, Signals::default()),
            Answer::Refused { why, dimension, signals, .. } => {
                self.report.refused += 1;
                let (why, refused) = match self.scenario.says() {
                    Says::Kind => (why, dimension),
                    Says::Nothing => (Attribution::Unknown, None),
                };
                (Outcome::Bounced(why), Signals { refused, ..signals })
            }
        };
        let now = self.now;
        if matches!(answer, Answer::Served) {
            match &mut self.clients[client].driver {
                Driver::Gate(core) => {
                    core.observe(&attempt, &Heard { first_byte, outcome, signals }, now);
                }
                Driver::Oracle(_) => {}
            }
            self.pump(client);
            return;
        }
        match &mut self.clients[client].driver {
            Driver::Gate(core) => {
                let outcome = core.observe(&attempt, &Heard { first_byte, outcome, signals }, now);
                let bounced = matches!(outcome, Outcome::Bounced(_));
                core.leave(&attempt, bounced, now);
                self.requests[id].failures += u32::from(!bounced);
                let failure = match outcome {
                    Outcome::Bounced(attribution) => Failure::Bounced(attribution),
                    _ => Failure::Server,
                };
                let facts = Facts {
                    failure,
                    replayable: true,
                    idempotent: true,
                    keyed: false,
                    reused: false,
                    failures: self.requests[id].failures,
                    signals,
                    remaining: (self.requests[id].arrived + self.scenario.wait_max()).saturating_duration_since(now),
                };
                match core.verdict(&facts, now) {
                    Verdict::Retry { after } => self.plan(now + after, Due::Again { request: id }),
                    Verdict::Return => {
                        self.requests[id].done = true;
                        self.report.failed += 1;
                    }
                }
            }
            Driver::Oracle(oracle) => {
                oracle.left();
                oracle.arrive(id);
            }
        }
        self.pump(client);
    }

    fn again(&mut self, id: usize) {
        self.wait(id);
        self.pump(self.requests[id].client);
    }

    fn ended(&mut self, id: usize) {
        let client = self.requests[id].client;
        let Some(attempt) = self.requests[id].attempt else { return };
        assert!(!self.requests[id].done, "{id} was served twice");
        self.requests[id].done = true;
        self.report.done += 1;
        self.report.latencies.push((self.now - attempt.sent).as_secs_f64());
        let usage: Option<Usage> = self.upstream.usage(id);
        match &mut self.clients[client].driver {
            Driver::Gate(core) => {
                if let Some(usage) = usage {
                    core.finish(&attempt, &usage);
                }
                core.leave(&attempt, false, self.now);
            }
            Driver::Oracle(oracle) => oracle.left(),
        }
        self.pump(client);
    }
}

pub fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.unit()).ln()).sqrt() * (std::f64::consts::TAU * rng.unit()).cos()
}
