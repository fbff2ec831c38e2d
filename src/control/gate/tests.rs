//! Bursts at an upstream with a ceiling, in virtual time.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use super::{
    super::{
        limit::{Algorithm, LimitSettings, Outcome},
        queue::{Depths, FlowId, Full},
        retry::{Backoff, RetryPost, RetrySettings},
        signals::{Attribution, Signals},
    },
    *,
};

pub(super) const RTT: Duration = Duration::from_millis(4);
/// Nobody in these tests has to give up.
pub(super) const PATIENT: Duration = Duration::from_secs(1_000_000);

pub(super) fn settings(algorithm: Algorithm, ceiling: Option<u32>) -> GateSettings {
    GateSettings {
        limit: LimitSettings {
            algorithm,
            min: 1,
            max: 1000,
            initial: 10,
            aimd: Default::default(),
            gradient: Default::default(),
            tide: Default::default(),
            vegas: Default::default(),
        },
        ceiling,
        rates: Default::default(),
        depths: Depths { total_max: 10_000, per_flow_max: 10_000 },
        retry: RetrySettings {
            attempts_max: 4,
            post: RetryPost::Refused,
            backoff: Backoff {
                base: Duration::from_secs(1),
                max: Duration::from_secs(60),
                jitter: Duration::from_secs(1),
            },
            retry_after_max: Duration::from_secs(60),
            budget: 0.2,
        },
    }
}

pub(super) fn waiter(wake: usize, now: Instant) -> Waiter<usize> {
    Waiter { demand: Demand::default(), deadline: now + PATIENT, wake }
}

pub(super) fn heard(attempt: &Attempt, outcome: Outcome, now: Instant) -> Heard {
    Heard { first_byte: now - attempt.sent, outcome, signals: Signals::default() }
}

/// Lets `count` newcomers in, step by step as the opening allows. Nothing is answered meanwhile.
pub(super) fn fill(core: &mut GateCore<usize>, now: &mut Instant, count: usize) -> Vec<Attempt> {
    for wake in 0..count {
        let place = core.arrive();
        core.enqueue(FlowId(0), place, waiter(wake, *now), *now).unwrap();
    }
    let mut attempts = Vec::new();
    for _ in 0..1000 {
        while let Some((_, attempt)) = core.next_grant(*now) {
            attempts.push(attempt);
        }
        if attempts.len() == count {
            return attempts;
        }
        *now = core.wake_at(*now).expect("there is room, so there is a time").max(*now + Duration::from_micros(100));
    }
    panic!("only {} of {count} entered", attempts.len())
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Arrive { id: usize },
    Head { id: usize, refused: bool },
    Done { id: usize },
    Wake,
}

#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) took: Duration,
    pub(super) refused: usize,
    pub(super) in_flight_max: u32,
    pub(super) order: Vec<usize>,
}

/// `count` exchanges at once through a new gate.
fn burst(settings: GateSettings, count: usize, ceiling: u32, service: impl Fn(usize) -> Duration) -> Report {
    let start = crate::clock::now();
    let mut gate = GateCore::new(settings, 1, start);
    gate.note_connect(RTT / 4);
    burst_through(&mut gate, start, count, ceiling, service)
}

/// `count` exchanges at once through a gate, at an upstream that refuses what is over `ceiling` after one round trip
/// and serves the rest in `service`. Everything in virtual time.
pub(super) fn burst_through(
    gate: &mut GateCore<usize>,
    start: Instant,
    count: usize,
    ceiling: u32,
    service: impl Fn(usize) -> Duration,
) -> Report {
    let mut due: BinaryHeap<Reverse<(Instant, usize, Due)>> = BinaryHeap::new();
    let mut order = 0;
    let mut plan = |due: &mut BinaryHeap<_>, at: Instant, what: Due| {
        order += 1;
        due.push(Reverse((at, order, what)));
    };
    let mut attempts: Vec<Option<Attempt>> = vec![None; count];
    let mut places = vec![Place(0); count];
    let mut held = 0u32;
    let mut armed: Option<Instant> = None;
    let mut report = Report::default();
    let mut done = BTreeSet::new();
    for id in 0..count {
        plan(&mut due, start, Due::Arrive { id });
    }
    while let Some(Reverse((now, events, what))) = due.pop() {
        assert!(events < 1_000_000, "events pile up");
        let mut granted = Vec::new();
        match what {
            Due::Arrive { id } => {
                places[id] = gate.arrive();
                match gate.try_enter(&Demand::default(), now) {
                    Some(attempt) => granted.push((id, attempt)),
                    None => {
                        gate.enqueue(FlowId(0), places[id], waiter(id, now), now).expect("depth covers the burst");
                    }
                }
            }
            Due::Head { id, refused } => {
                let outcome = if refused { Outcome::Bounced(Attribution::Ceiling) } else { Outcome::Accepted };
                let attempt = attempts[id].unwrap();
                gate.observe(&attempt, &heard(&attempt, outcome, now), now);
                if refused {
                    report.refused += 1;
                    gate.leave(&attempt, true, now);
                    gate.requeue(FlowId(0), places[id], waiter(id, now));
                }
            }
            Due::Done { id } => {
                held -= 1;
                gate.leave(&attempts[id].unwrap(), false, now);
                assert!(done.insert(id), "{id} was served twice");
                report.took = now - start;
                report.order.push(id);
            }
            Due::Wake => armed = None,
        }
        while let Some(grant) = gate.next_grant(now) {
            granted.push(grant);
        }
        for (id, attempt) in granted {
            report.in_flight_max = report.in_flight_max.max(attempt.in_flight);
            attempts[id] = Some(attempt);
            // The upstream decides half a round trip later; on this wire nothing overtakes.
            let refused = held >= ceiling;
            plan(&mut due, now + RTT, Due::Head { id, refused });
            if !refused {
                held += 1;
                plan(&mut due, now + RTT + service(id), Due::Done { id });
            }
        }
        if let Some(at) = gate.wake_at(now).map(|at| at.max(now + Duration::from_micros(100)))
            && armed.is_none_or(|armed| at < armed)
        {
            armed = Some(at);
            plan(&mut due, at, Due::Wake);
        }
    }
    assert_eq!(done.len(), count, "every exchange is answered");
    assert!(gate.is_idle());
    report
}

fn uniform(_: usize) -> Duration {
    Duration::from_millis(200)
}

#[test]
fn a_known_ceiling_is_used_to_the_full_and_never_passed() {
    for ceiling in [1, 3, 10, 50, 200] {
        for algorithm in [Algorithm::Tide, Algorithm::Aimd, Algorithm::Fixed] {
            let report = burst(settings(algorithm, Some(ceiling)), 500, ceiling, uniform);
            let ideal = (uniform(0) + RTT) * 500u32.div_ceil(ceiling);
            assert_eq!(report.in_flight_max, ceiling, "{algorithm:?} {ceiling}");
            assert_eq!(report.refused, 0);
            // A large one is opened step by step, which costs a part of one service and no more.
            assert!(report.took < ideal + uniform(0), "{algorithm:?} {ceiling}: {:?} of {ideal:?}", report.took);
            let small = ceiling <= settings(algorithm, None).limit.initial;
            assert!(!small || report.took == ideal, "{algorithm:?} {ceiling}: {:?}", report.took);
        }
    }
}

#[test]
fn an_unknown_ceiling_is_found_within_a_tenth_of_the_ideal() {
    for (ceiling, count, refused_max) in [(3, 500, 25), (10, 500, 15), (50, 1000, 60), (200, 4000, 120)] {
        let report = burst(settings(Algorithm::Tide, None), count, ceiling, uniform);
        let ideal = (uniform(0) + RTT) * (count as u32).div_ceil(ceiling);
        let share = report.took.as_secs_f64() / ideal.as_secs_f64();
        assert!(share <= 1.10, "ceiling {ceiling}: {share} of the ideal, {} refused", report.refused);
        assert!(report.refused <= refused_max, "ceiling {ceiling}: {} refused", report.refused);
    }
}

#[test]
fn every_algorithm_answers_everything_at_a_ceiling_below_its_start() {
    for algorithm in Algorithm::ALL {
        let report = burst(settings(algorithm, None), 100, 4, uniform);
        assert_eq!(report.order.len(), 100, "{algorithm:?}");
    }
}

#[test]
fn exchanges_of_very_different_length_are_all_answered_below_the_ceiling() {
    let service = |id: usize| Duration::from_millis(20 + (id as u64 * 7919) % 3000);
    for algorithm in Algorithm::ALL {
        let report = burst(settings(algorithm, Some(20)), 300, 20, service);
        assert_eq!((report.order.len(), report.refused), (300, 0), "{algorithm:?}");
        assert!(report.in_flight_max <= 20);
    }
}

#[test]
fn forty_simultaneous_refusals_lower_the_limit_once() {
    for algorithm in [Algorithm::Aimd, Algorithm::Tide] {
        for kind in [Attribution::Ceiling, Attribution::Unknown] {
            let settings = settings(algorithm, Some(50));
            let mut now = crate::clock::now();
            let mut core = GateCore::new(settings, 1, now);
            let attempts = fill(&mut core, &mut now, 50);
            core.take_events();
            now += RTT;
            for attempt in &attempts[10..] {
                core.observe(attempt, &heard(attempt, Outcome::Bounced(kind), now), now);
                core.leave(attempt, true, now);
            }
            let changes = core.take_events().iter().filter(|event| matches!(event, Event::Limit(_))).count();
            assert_eq!(changes, 1, "{algorithm:?}");
            // Ten of fifty were not refused: that is how many the upstream holds.
            let cut = (50.0 * settings.limit.aimd.decrease) as u32;
            assert_eq!(core.view(now).limit, if algorithm == Algorithm::Aimd { cut } else { 10 }, "{algorithm:?}");
        }
    }
}

#[test]
fn a_refusal_with_nothing_in_flight_backs_off_instead_of_asking_again() {
    let mut now = crate::clock::now();
    let settings = settings(Algorithm::Tide, None);
    let mut core = GateCore::new(settings, 1, now);
    let place = core.arrive();
    let mut attempt = core.try_enter(&Demand::default(), now).unwrap();
    for n in 0..4 {
        now += RTT;
        core.observe(&attempt, &heard(&attempt, Outcome::Bounced(Attribution::Unknown), now), now);
        core.leave(&attempt, true, now);
        core.requeue(FlowId(0), place, waiter(7, now));
        assert!(core.next_grant(now).is_none(), "attempt {n}");
        let again = core.wake_at(now).unwrap();
        let (least, most) = (settings.retry.backoff.base * (1 << n), settings.retry.backoff.jitter);
        assert!(again - now >= least && again - now <= least + most, "{n}: {:?}", again - now);
        assert!(core.next_grant(again - Duration::from_millis(1)).is_none());
        now = again;
        attempt = core.next_grant(now).unwrap().1;
    }
}

#[test]
fn a_newcomer_cannot_overtake_and_a_full_queue_tells_when_to_come_back() {
    let now = crate::clock::now();
    let depths = Depths { total_max: 2, per_flow_max: 2 };
    let mut core = GateCore::new(GateSettings { depths, ..settings(Algorithm::Tide, Some(1)) }, 1, now);
    core.arrive();
    let first = core.try_enter(&Demand::default(), now).unwrap();
    for wake in 0..2 {
        let place = core.arrive();
        assert!(core.try_enter(&Demand::default(), now).is_none());
        core.enqueue(FlowId(0), place, waiter(wake, now), now).unwrap();
    }
    let place = core.arrive();
    let turned = core.enqueue(FlowId(0), place, waiter(9, now), now).unwrap_err();
    let Turned::Full { full: Full::Total, depth_max: 2, retry_after } = turned else { panic!("{turned:?}") };
    assert!(retry_after >= Duration::from_secs(1));
    core.leave(&first, false, now);
    assert!(core.try_enter(&Demand::default(), now).is_none(), "two are waiting");
    assert_eq!(core.next_grant(now).unwrap().0, 0);
    assert!(core.next_grant(now).is_none());
}

#[test]
fn one_that_left_the_queue_is_not_granted_and_one_that_was_granted_cannot_leave_it() {
    let now = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, Some(1)), 1, now);
    let first = core.try_enter(&Demand::default(), now).unwrap();
    let tickets: Vec<_> = (0..3)
        .map(|wake| {
            let place = core.arrive();
            core.enqueue(FlowId(0), place, waiter(wake, now), now).unwrap()
        })
        .collect();
    assert!(core.cancel(tickets[0]));
    assert!(!core.cancel(tickets[0]));
    core.leave(&first, false, now);
    assert_eq!(core.next_grant(now).unwrap().0, 1);
    assert!(!core.cancel(tickets[1]), "its slot is taken");
    assert!(core.cancel(tickets[2]));
    assert_eq!(core.view(now).queued, 0);
    assert_eq!(core.in_flight(), 1);
}
