//! The gate against a plain model of it: anything may happen in any order, and what an upstream says may be absurd.

use proptest::{prelude::*, sample::select};

use super::{
    super::{
        limit::{Algorithm, Outcome},
        queue::{Depths, FlowId, Full, Ticket},
        rates::RateSettings,
        retry::Failure,
        signals::{Attribution, Signals},
        tide::DelayGuard,
    },
    absurd::{demands, option, signals, times, tokens},
    tests::settings,
    *,
};

const FLOWS: usize = 4;
const DAY: Duration = Duration::from_secs(86_400);
/// What jitter, spread and round trips add to a wait.
const SLACK: Duration = Duration::from_secs(3600);
const STEPS_MAX: usize = 10_000;
/// So many timers in a row that move neither anybody nor the clock by much are a busy loop.
const IDLE_STEPS_MAX: usize = 60;

#[derive(Debug, Clone)]
pub(super) enum Op {
    Arrive { flow: usize, demand: Demand, patience: Duration },
    Cancel { nth: usize },
    Requeue { nth: usize, patience: Duration },
    Observe { nth: usize, outcome: Outcome, signals: Box<Signals> },
    Leave { nth: usize, bounced: bool },
    Finish { nth: usize, usage: Usage },
    Pause { during: Duration },
    Retune { to: Box<GateSettings> },
    Step { by: Duration },
    ToWake,
}

#[derive(Debug, Clone, Copy)]
struct Exchange {
    flow: usize,
    place: Place,
    demand: Demand,
    deadline: Instant,
    ticket: Option<Ticket>,
}

/// What the gate should be doing, in lists.
pub(super) struct Model {
    core: GateCore<usize>,
    settings: GateSettings,
    pub(super) now: Instant,
    exchanges: Vec<Exchange>,
    /// Flows with waiters in the order of their turns, each with its waiters in the order of arrival.
    waiting: Vec<(usize, Vec<usize>)>,
    inside: Vec<(usize, Attempt)>,
    /// Left the gate after an attempt, and may come back.
    outside: Vec<usize>,
    /// Turns that others had since each flow's own.
    passed_over: [usize; FLOWS],
    pub(super) granted: usize,
}

impl Model {
    pub(super) fn new(settings: GateSettings) -> Self {
        let now = crate::clock::now();
        Self {
            core: GateCore::new(settings, 1, now),
            settings,
            now,
            exchanges: Vec::new(),
            waiting: Vec::new(),
            inside: Vec::new(),
            outside: Vec::new(),
            passed_over: [0; FLOWS],
            granted: 0,
        }
    }

    pub(super) fn run(settings: GateSettings, ops: &[Op]) -> Self {
        let mut model = Self::new(settings);
        for op in ops {
            model.apply(op);
        }
        model.answers_everybody();
        model
    }

    fn queued(&self) -> usize {
        self.waiting.iter().map(|(_, list)| list.len()).sum()
    }

    fn queued_in(&self, flow: usize) -> usize {
        self.waiting.iter().find(|(id, _)| *id == flow).map_or(0, |(_, list)| list.len())
    }

    pub(super) fn apply(&mut self, op: &Op) {
        match *op {
            Op::Arrive { flow, demand, patience } => self.arrive(flow, demand, self.now + patience),
            Op::Cancel { nth } => {
                let all: Vec<usize> = self.waiting.iter().flat_map(|(_, list)| list.iter().copied()).collect();
                if let Some(id) = all.get(nth % all.len().max(1)).copied() {
                    let ticket = self.exchanges[id].ticket.unwrap();
                    assert!(self.core.cancel(ticket), "{id} waits");
                    assert!(!self.core.cancel(ticket), "{id} has left");
                    self.forget(id);
                }
            }
            Op::Requeue { nth, patience } if !self.outside.is_empty() => {
                let id = self.outside.remove(nth % self.outside.len());
                self.exchanges[id].deadline = self.now + patience;
                let Exchange { flow, place, demand, deadline, .. } = self.exchanges[id];
                let ticket = self.core.requeue(FlowId(flow as u64), place, Waiter { demand, deadline, wake: id });
                self.joined(id, ticket);
            }
            Op::Observe { nth, outcome, ref signals } if !self.inside.is_empty() => {
                let (_, attempt) = self.inside[nth % self.inside.len()];
                self.observe(&attempt, outcome, **signals);
            }
            Op::Leave { nth, bounced } if !self.inside.is_empty() => {
                let (id, attempt) = self.inside.remove(nth % self.inside.len());
                self.core.leave(&attempt, bounced, self.now);
                self.outside.push(id);
            }
            Op::Finish { nth, usage } if !self.inside.is_empty() => {
                let (_, attempt) = self.inside[nth % self.inside.len()];
                self.core.finish(&attempt, &usage);
            }
            Op::Pause { during } => self.core.pause(during, PauseReason::RetryAfter, self.now),
            Op::Retune { ref to } => {
                self.settings = **to;
                self.core.retune(**to, self.now);
            }
            Op::Step { by } => self.now += by,
            Op::ToWake => self.now = self.core.wake_at(self.now).unwrap_or(self.now).max(self.now),
            Op::Requeue { .. } | Op::Observe { .. } | Op::Leave { .. } | Op::Finish { .. } => {}
        }
        self.pump();
        self.check();
    }

    fn arrive(&mut self, flow: usize, demand: Demand, deadline: Instant) {
        let id = self.exchanges.len();
        let place = self.core.arrive();
        assert!(self.exchanges.last().is_none_or(|last| last.place < place));
        self.exchanges.push(Exchange { flow, place, demand, deadline, ticket: None });
        if let Some(blocked) = self.core.quota_blocks(&demand, self.now) {
            assert!(blocked <= DAY);
        }
        if let Some(attempt) = self.core.try_enter(&demand, self.now) {
            assert_eq!(self.queued(), 0, "a newcomer overtook");
            self.entered(id, attempt);
            return;
        }
        let Depths { total_max, per_flow_max } = self.settings.depths;
        let waiter = Waiter { demand, deadline, wake: id };
        match self.core.enqueue(FlowId(flow as u64), place, waiter, self.now) {
            Ok(ticket) => {
                assert!(self.queued() < total_max && self.queued_in(flow) < per_flow_max);
                self.joined(id, ticket);
            }
            Err(Turned::Full { full: Full::Total, .. }) => assert!(self.queued() >= total_max),
            Err(Turned::Full { full: Full::Flow, .. }) => assert!(self.queued_in(flow) >= per_flow_max),
            Err(Turned::Hopeless { retry_after, .. }) => assert!(self.now + retry_after > deadline),
        }
    }

    fn observe(&mut self, attempt: &Attempt, outcome: Outcome, signals: Signals) {
        let first_byte = self.now - attempt.sent;
        let understood = self.core.observe(attempt, &Heard { first_byte, outcome, signals }, self.now);
        let failure = match (outcome, understood) {
            (Outcome::Bounced(_), Outcome::Bounced(attribution)) => Failure::Bounced(attribution),
            (Outcome::Overloaded | Outcome::Bounced(Attribution::Overload), Outcome::Overloaded) => Failure::Overload,
            (said, heard) if said == heard => return,
            (said, heard) => panic!("{said:?} was understood as {heard:?}"),
        };
        let remaining = DAY;
        let facts = Facts {
            failure,
            replayable: true,
            idempotent: true,
            keyed: false,
            reused: false,
            failures: 1,
            signals,
            remaining,
        };
        if let Verdict::Retry { after } = self.core.verdict(&facts, self.now) {
            assert!(after <= self.settings.retry.retry_after_max * 2, "{after:?}");
        }
    }

    fn joined(&mut self, id: usize, ticket: Ticket) {
        self.exchanges[id].ticket = Some(ticket);
        let Exchange { flow, place, .. } = self.exchanges[id];
        match self.waiting.iter_mut().find(|(other, _)| *other == flow) {
            Some((_, list)) => {
                let at = list.iter().take_while(|other| self.exchanges[**other].place < place).count();
                list.insert(at, id);
            }
            None => {
                self.waiting.push((flow, vec![id]));
                self.passed_over[flow] = 0;
            }
        }
    }

    fn forget(&mut self, id: usize) {
        for (_, list) in &mut self.waiting {
            list.retain(|other| *other != id);
        }
        self.waiting.retain(|(_, list)| !list.is_empty());
    }

    fn entered(&mut self, id: usize, attempt: Attempt) {
        assert!(self.inside.iter().all(|(other, _)| *other != id), "{id} is inside already");
        assert!(attempt.in_flight <= self.settings.ceiling.unwrap_or(u32::MAX), "above the ceiling");
        assert_eq!(attempt.in_flight as usize, self.inside.len() + 1);
        assert_eq!((attempt.sent, attempt.demand), (self.now, self.exchanges[id].demand));
        self.inside.push((id, attempt));
        self.granted += 1;
    }

    pub(super) fn pump(&mut self) {
        while let Some((id, attempt)) = self.core.next_grant(self.now) {
            let turn = self.waiting.iter().position(|(_, list)| list.contains(&id)).expect("it waits");
            let (flow, mut list) = self.waiting.remove(turn);
            let at = list.iter().position(|other| *other == id).unwrap();
            list.remove(at);
            // Whoever had been there before was passed over for want of a budget of another model.
            let before = self.waiting.iter().take(turn).flat_map(|(_, list)| list).chain(&list[..at]);
            let passed: Vec<u64> = before.map(|other| self.exchanges[*other].demand.model).collect();
            assert!(!passed.contains(&self.exchanges[id].demand.model), "the oldest of the flow whose turn it is");
            self.passed_over[flow] = 0;
            for (other, _) in self.waiting.iter().filter(|_| passed.is_empty()) {
                self.passed_over[*other] += 1;
                assert!(self.passed_over[*other] < FLOWS, "flow {other} is starved");
            }
            if !list.is_empty() {
                self.waiting.push((flow, list));
            }
            self.entered(id, attempt);
        }
        for (id, turned) in self.core.take_hopeless(self.now) {
            let Turned::Hopeless { retry_after, .. } = turned else { panic!("{turned:?}") };
            assert!(self.exchanges[id].deadline < self.now + retry_after, "{id} could have waited");
            assert!(self.waiting.iter().any(|(_, list)| list.contains(&id)), "{id} did not wait");
            self.forget(id);
        }
    }

    fn check(&mut self) {
        let view = self.core.view(self.now);
        assert_eq!(view.in_flight as usize, self.inside.len());
        assert_eq!(self.core.in_flight(), view.in_flight);
        assert_eq!(view.queued, self.queued(), "somebody was lost");
        assert_eq!(self.core.is_idle(), self.inside.is_empty() && self.queued() == 0);
        assert!(view.limit >= 1, "{view:?}");
        assert!(view.drain_per_second.is_finite() && view.drain_per_second >= 0.0, "{view:?}");
        for rate in &view.rates {
            let numbers = [Some(rate.per_second), rate.left, rate.limit];
            assert!(numbers.iter().flatten().all(|n| n.is_finite() && *n >= 0.0), "{rate:?}");
        }
        assert!(self.core.wait_estimate(self.now) <= DAY);
        let events = self.core.take_events();
        assert!(events.iter().all(|event| !matches!(event, Event::Limit(change) if change.from == change.to)));
        let wake = self.core.wake_at(self.now);
        assert!(self.queued() > 0 || wake.is_none(), "nobody waits for {wake:?}");
        assert!(self.queued() == 0 || !self.inside.is_empty() || wake.is_some(), "nothing will ever move: {view:?}");
        if let Some(at) = wake {
            assert!(at >= self.now, "{:?} ago", self.now - at);
            assert!(at <= self.now + DAY + SLACK, "in {:?}", at - self.now);
        }
    }

    /// From here on the upstream serves everything and says nothing: then everybody has a turn.
    pub(super) fn answers_everybody(&mut self) {
        self.pump();
        let mut idle = 0;
        for _ in 0..STEPS_MAX {
            for (_, attempt) in std::mem::take(&mut self.inside) {
                self.observe(&attempt, Outcome::Accepted, Signals::default());
                self.core.leave(&attempt, false, self.now);
            }
            self.pump();
            if self.inside.is_empty() {
                if self.queued() == 0 {
                    assert!(self.core.is_idle());
                    return;
                }
                let wake = self.core.wake_at(self.now).expect("somebody waits and nobody is inside");
                idle = if wake > self.now + Duration::from_millis(1) { 0 } else { idle + 1 };
                assert!(idle < IDLE_STEPS_MAX, "a busy loop: {:?}", self.core.view(self.now));
                self.now = wake.max(self.now + Duration::from_nanos(1));
                self.pump();
            } else {
                idle = 0;
            }
            self.check();
        }
        panic!("{} still wait: {:?}", self.queued(), self.core.view(self.now));
    }
}

fn outcomes() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        3 => Just(Outcome::Accepted),
        1 => Just(Outcome::Ignored),
        1 => Just(Outcome::Overloaded),
        4 => select(&Attribution::ALL[..]).prop_map(Outcome::Bounced),
    ]
}

fn any_settings() -> impl Strategy<Value = GateSettings> {
    let rates = (option(select(&[1u32, 60, u32::MAX][..])), option(select(&[1u64, 1000, u64::MAX][..])));
    let ceiling = option(select(&[1u32, 2, 7, 50][..]));
    let range = select(&[(1u32, 10u32, 1000u32), (1, 1, 1), (3, 3, 12)][..]);
    let share = select(&[0.0, 0.5, 1.0][..]);
    (select(&Algorithm::ALL[..]), ceiling, rates, range, select(&DelayGuard::ALL[..]), share).prop_map(
        |(algorithm, ceiling, (rpm, tpm), (min, initial, max), delay_guard, min_share)| {
            let mut settings = settings(algorithm, ceiling);
            settings.rates = RateSettings { rpm, tpm };
            (settings.limit.min, settings.limit.initial, settings.limit.max) = (min, initial, max);
            (settings.limit.tide.delay_guard, settings.limit.tide.min_share) = (delay_guard, min_share);
            settings.depths = Depths { total_max: 12, per_flow_max: 5 };
            settings
        },
    )
}

fn ops() -> impl Strategy<Value = Op> {
    let nth = 0..64usize;
    let usage = (tokens(), tokens()).prop_map(|(input_tokens, output_tokens)| Usage {
        input_tokens,
        output_tokens,
        ..Usage::default()
    });
    prop_oneof![
        8 => (0..FLOWS, demands(), times())
            .prop_map(|(flow, demand, patience)| Op::Arrive { flow, demand, patience }),
        1 => nth.clone().prop_map(|nth| Op::Cancel { nth }),
        4 => (nth.clone(), times()).prop_map(|(nth, patience)| Op::Requeue { nth, patience }),
        6 => (nth.clone(), outcomes(), signals())
            .prop_map(|(nth, outcome, signals)| Op::Observe { nth, outcome, signals: Box::new(signals) }),
        5 => (nth.clone(), any::<bool>()).prop_map(|(nth, bounced)| Op::Leave { nth, bounced }),
        1 => (nth, usage).prop_map(|(nth, usage)| Op::Finish { nth, usage }),
        1 => times().prop_map(|during| Op::Pause { during }),
        1 => any_settings().prop_map(|to| Op::Retune { to: Box::new(to) }),
        4 => times().prop_map(|by| Op::Step { by }),
        4 => Just(Op::ToWake),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nobody_is_lost_overtaken_or_left_waiting(
        settings in any_settings(),
        ops in proptest::collection::vec(ops(), 1..150),
    ) {
        Model::run(settings, &ops);
    }
}
