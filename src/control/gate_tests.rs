use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use super::{
    super::{limit::Algorithm, retry::Backoff, retry::RetryPost},
    *,
};

const RTT: Duration = Duration::from_millis(4);

pub(super) fn settings(algorithm: Algorithm, ceiling: Option<u32>) -> GateSettings {
    GateSettings {
        limit: LimitSettings { algorithm, min: 1, max: 1000, initial: 10, decrease: 0.9 },
        ceiling,
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

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Arrive { id: usize },
    Head { id: usize, refused: bool },
    Done { id: usize },
    Wake,
}

#[derive(Debug, Default)]
struct Report {
    took: Duration,
    refused: usize,
    in_flight_max: u32,
    order: Vec<usize>,
}

/// `count` exchanges at once through a gate, at an upstream that refuses what is over `ceiling` after one round trip
/// and serves the rest in `service`. Everything in virtual time.
fn burst(settings: GateSettings, count: usize, ceiling: u32, service: impl Fn(usize) -> Duration) -> Report {
    let start = crate::clock::now();
    let mut gate: GateCore<usize> = GateCore::new(settings, 1);
    gate.note_connect(RTT / 4);
    let mut due: BinaryHeap<Reverse<(Instant, usize, Due)>> = BinaryHeap::new();
    let mut order = 0;
    let mut plan = |due: &mut BinaryHeap<_>, at: Instant, what: Due| {
        order += 1;
        due.push(Reverse((at, order, what)));
    };
    let mut sent = vec![(start, 0u32); count];
    let mut places = vec![Place(0); count];
    let mut held = 0u32;
    let mut report = Report::default();
    let mut done = BTreeSet::new();
    for id in 0..count {
        plan(&mut due, start, Due::Arrive { id });
    }
    while let Some(Reverse((now, _, what))) = due.pop() {
        let mut granted = Vec::new();
        match what {
            Due::Arrive { id } => {
                places[id] = gate.arrive();
                if gate.try_enter(now) {
                    granted.push(id);
                } else {
                    gate.enqueue(FlowId(0), places[id], id, now).expect("depth covers the burst");
                }
            }
            Due::Head { id, refused } => {
                let outcome = if refused { Outcome::Bounced(Attribution::Ceiling) } else { Outcome::Accepted };
                let (sent, in_flight) = sent[id];
                gate.observe(&Sample { sent, first_byte: now - sent, in_flight, outcome }, now);
                if refused {
                    report.refused += 1;
                    gate.leave(true, now);
                    gate.requeue(FlowId(0), places[id], id);
                }
            }
            Due::Done { id } => {
                held -= 1;
                gate.leave(false, now);
                assert!(done.insert(id), "{id} was served twice");
                report.took = now - start;
                report.order.push(id);
            }
            Due::Wake => {}
        }
        while let Some(id) = gate.next_grant(now) {
            granted.push(id);
        }
        for id in granted {
            let in_flight = gate.view(now).in_flight;
            report.in_flight_max = report.in_flight_max.max(in_flight);
            sent[id] = (now, in_flight);
            // The upstream decides half a round trip later; on this wire nothing overtakes.
            let refused = held >= ceiling;
            plan(&mut due, now + RTT, Due::Head { id, refused });
            if !refused {
                held += 1;
                plan(&mut due, now + RTT + service(id), Due::Done { id });
            }
        }
        if let Some(at) = gate.wake_at(now) {
            plan(&mut due, at.max(now + Duration::from_micros(100)), Due::Wake);
        }
        assert!(due.len() < 1_000_000, "timers pile up");
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
            let rounds = 500u32.div_ceil(ceiling);
            assert_eq!(report.in_flight_max, ceiling.min(500), "{algorithm:?} {ceiling}");
            assert_eq!(report.refused, 0);
            assert_eq!(report.took, (uniform(0) + RTT) * rounds, "{algorithm:?} {ceiling}");
        }
    }
}

#[test]
fn an_unknown_ceiling_is_found_within_a_tenth_of_the_ideal() {
    // 500 exchanges of 200 ms: the search for a ceiling of 50 has two seconds in all.
    for (ceiling, refused_max) in [(3, 25), (10, 12), (50, 60), (200, 100)] {
        let report = burst(settings(Algorithm::Tide, None), 500, ceiling, uniform);
        let ideal = (uniform(0) + RTT) * 500u32.div_ceil(ceiling);
        let share = report.took.as_secs_f64() / ideal.as_secs_f64();
        let bar = if ceiling == 200 { 1.35 } else { 1.10 };
        assert!(share <= bar, "ceiling {ceiling}: {share} of the ideal, {} refused", report.refused);
        assert!(report.refused <= refused_max, "ceiling {ceiling}: {} refused", report.refused);
    }
}

#[test]
fn aimd_and_fixed_answer_everything_at_a_ceiling_below_their_start() {
    for algorithm in [Algorithm::Aimd, Algorithm::Fixed] {
        let report = burst(settings(algorithm, None), 100, 4, uniform);
        assert_eq!(report.order.len(), 100);
    }
}

fn full(core: &mut GateCore<u32>, now: Instant, count: u32) -> Vec<Sample> {
    (1..=count)
        .map(|in_flight| {
            core.arrive();
            assert!(core.try_enter(now));
            Sample { sent: now, first_byte: RTT, in_flight, outcome: Outcome::Bounced(Attribution::Unknown) }
        })
        .collect()
}

#[test]
fn forty_simultaneous_refusals_lower_the_limit_once() {
    let start = crate::clock::now();
    for algorithm in [Algorithm::Aimd, Algorithm::Tide] {
        let mut core: GateCore<u32> = GateCore::new(settings(algorithm, Some(50)), 1);
        let samples = full(&mut core, start, 50);
        for sample in &samples[10..] {
            core.observe(sample, start + RTT);
            core.leave(true, start + RTT);
        }
        assert!(!core.try_enter(start + RTT), "nothing leaves while the burst settles");
        assert_eq!(core.next_grant(start + RTT * 3), None);
        let changes = core.take_events().iter().filter(|event| matches!(event, Event::Limit(_))).count();
        assert_eq!(changes, 1, "{algorithm:?}");
        let want = if algorithm == Algorithm::Aimd { 45 } else { 10 };
        assert_eq!(core.view(start).limit, want, "{algorithm:?}");
    }
}

#[test]
fn a_pause_holds_everybody_and_reopens_step_by_step() {
    let start = crate::clock::now();
    let mut core: GateCore<u32> = GateCore::new(settings(Algorithm::Tide, Some(50)), 1);
    core.pause(Duration::from_secs(10), PauseReason::RetryAfter, start);
    for id in 0..50 {
        let place = core.arrive();
        assert!(!core.try_enter(start));
        core.enqueue(FlowId(0), place, id, start).unwrap();
    }
    assert_eq!(core.next_grant(start + Duration::from_millis(9_999)), None);
    let mut now = core.wake_at(start).unwrap();
    assert!(now >= start + Duration::from_secs(10) && now <= start + Duration::from_secs(11));
    let mut steps = Vec::new();
    while core.view(now).in_flight < 50 {
        let mut step = 0;
        while core.next_grant(now).is_some() {
            step += 1;
        }
        steps.push(step);
        now = core.wake_at(now).unwrap_or(now + Duration::from_millis(1));
    }
    assert_eq!(steps, [1, 1, 2, 4, 8, 16, 18]);
}

#[test]
fn streams_that_outlast_a_pause_do_not_keep_it_closed() {
    let start = crate::clock::now();
    let mut core: GateCore<u32> = GateCore::new(settings(Algorithm::Tide, Some(50)), 1);
    full(&mut core, start, 20);
    core.pause(Duration::from_secs(1), PauseReason::RetryAfter, start);
    for id in 0..30 {
        let place = core.arrive();
        assert!(!core.try_enter(start));
        core.enqueue(FlowId(0), place, id, start).unwrap();
    }
    let mut now = start;
    for _ in 0..20 {
        now = core.wake_at(now).unwrap_or(now);
        while core.next_grant(now).is_some() {}
    }
    assert_eq!(core.view(now).in_flight, 50);
}

#[test]
fn a_refusal_with_nothing_in_flight_backs_off_instead_of_asking_again() {
    let mut now = crate::clock::now();
    let mut core: GateCore<u32> = GateCore::new(settings(Algorithm::Tide, None), 1);
    let place = core.arrive();
    for n in 0..4 {
        assert!(core.try_enter(now), "attempt {n}");
        let sample =
            Sample { sent: now, first_byte: RTT, in_flight: 1, outcome: Outcome::Bounced(Attribution::Unknown) };
        now += RTT;
        core.observe(&sample, now);
        core.leave(true, now);
        core.requeue(FlowId(0), place, 7);
        let settled = core.wake_at(now).unwrap();
        assert_eq!(core.next_grant(settled), None);
        let again = core.wake_at(settled).unwrap();
        let waited = again - settled;
        let step = Duration::from_secs(1 << n);
        assert!(waited >= step && waited <= step + Duration::from_secs(1), "{n}: {waited:?}");
        now = again;
        assert_eq!(core.next_grant(now), Some(7));
        core.leave(true, now);
    }
}

#[test]
fn a_newcomer_cannot_overtake_and_a_full_queue_tells_when_to_come_back() {
    let start = crate::clock::now();
    let mut core: GateCore<u32> = GateCore::new(
        GateSettings { depths: Depths { total_max: 2, per_flow_max: 2 }, ..settings(Algorithm::Tide, Some(1)) },
        1,
    );
    core.arrive();
    assert!(core.try_enter(start));
    for id in 0..2 {
        let place = core.arrive();
        assert!(!core.try_enter(start));
        core.enqueue(FlowId(0), place, id, start).unwrap();
    }
    let place = core.arrive();
    let turned = core.enqueue(FlowId(0), place, 9, start).unwrap_err();
    assert_eq!(turned.full, Full::Total);
    assert!(turned.retry_after >= Duration::from_secs(1));
    core.leave(false, start);
    assert!(!core.try_enter(start), "two are waiting");
    assert_eq!(core.next_grant(start), Some(0));
}
