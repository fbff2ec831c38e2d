//! What a gate does by the clock: pauses, quotas, rates, idleness, new settings.

use super::{
    super::{
        limit::{Algorithm, Outcome},
        queue::{Depths, FlowId, Ticket},
        rates::RateSettings,
        signals::{Attribution, Budget, Budgets, Dimension, Refill, Signals},
    },
    tests::{PATIENT, RTT, burst_through, fill, heard, settings, waiter},
    *,
};

const SECOND: Duration = Duration::from_secs(1);

fn join(core: &mut GateCore<usize>, wake: usize, now: Instant) {
    let place = core.arrive();
    core.enqueue(FlowId(0), place, waiter(wake, now), now).unwrap();
}

fn join_until(core: &mut GateCore<usize>, wake: usize, deadline: Instant, now: Instant) -> Result<Ticket, Turned> {
    let place = core.arrive();
    core.enqueue(FlowId(0), place, Waiter { deadline, ..waiter(wake, now) }, now)
}

#[test]
fn a_pause_holds_everybody_and_reopens_step_by_step() {
    let start = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, Some(50)), 1, start);
    core.pause(SECOND * 10, PauseReason::RetryAfter, start);
    for wake in 0..50 {
        assert!(core.try_enter(&Demand::default(), start).is_none());
        join(&mut core, wake, start);
    }
    assert!(core.next_grant(start + Duration::from_millis(9_999)).is_none());
    let mut now = core.wake_at(start).unwrap();
    assert!(now >= start + SECOND * 10 && now <= start + SECOND * 11);
    let mut steps = 0;
    while core.in_flight() < 50 {
        let before = core.in_flight();
        while core.next_grant(now).is_some() {}
        assert!(core.in_flight() <= (before * 2).max(1), "from {before} to {}", core.in_flight());
        steps += u32::from(core.in_flight() > before);
        now = core.wake_at(now).unwrap_or(now + Duration::from_millis(1));
    }
    assert!(steps >= 5, "{steps}");
    assert!(now < start + SECOND * 20, "{:?}", now - start);
    let events = core.take_events();
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Paused { .. })).count(), 1);
}

#[test]
fn a_shorter_pause_never_cuts_a_longer_one_and_none_is_longer_than_allowed() {
    let start = crate::clock::now();
    let mut core: GateCore<usize> = GateCore::new(settings(Algorithm::Tide, None), 1, start);
    core.pause(SECOND * 30, PauseReason::RetryAfter, start);
    core.pause(SECOND, PauseReason::Exhausted, start);
    assert!(core.view(start).paused.is_some_and(|(left, _)| left >= SECOND * 30));
    core.pause(SECOND * 86_400, PauseReason::RetryAfter, start);
    let (left, _) = core.view(start).paused.unwrap();
    assert!(left <= core.settings.retry.retry_after_max.mul_f64(1.11), "{left:?}");
}

#[test]
fn streams_that_outlast_a_pause_do_not_keep_it_closed() {
    let mut now = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, Some(50)), 1, now);
    fill(&mut core, &mut now, 20);
    core.pause(SECOND, PauseReason::RetryAfter, now);
    for wake in 0..30 {
        assert!(core.try_enter(&Demand::default(), now).is_none());
        join(&mut core, wake, now);
    }
    let end = now + SECOND * 10;
    while core.in_flight() < 50 && now < end {
        now = core.wake_at(now).unwrap_or(end);
        while core.next_grant(now).is_some() {}
    }
    assert_eq!(core.in_flight(), 50);
}

#[test]
fn those_who_cannot_wait_for_the_end_of_a_pause_are_told_at_once() {
    let start = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, Some(1)), 1, start);
    let first = core.try_enter(&Demand::default(), start).unwrap();
    join_until(&mut core, 1, start + SECOND * 5, start).unwrap();
    join_until(&mut core, 2, start + SECOND * 500, start).unwrap();
    let signals = Signals { retry_after: Some(SECOND * 20), ..Signals::default() };
    let now = start + RTT;
    let refused = Heard { signals, ..heard(&first, Outcome::Bounced(Attribution::Rate), now) };
    assert!(core.take_hopeless(now).is_empty(), "nothing has happened yet");
    core.observe(&first, &refused, now);
    core.leave(&first, true, now);
    let gone = core.take_hopeless(now);
    let [(1, Turned::Hopeless { retry_after, reason: PauseReason::RetryAfter })] = gone[..] else { panic!("{gone:?}") };
    assert!(retry_after >= SECOND * 20 && retry_after <= SECOND * 23, "{retry_after:?}");
    assert!(core.take_hopeless(now).is_empty(), "told once");
    // A newcomer hears it at the door, one that comes back at the next look.
    let turned = join_until(&mut core, 3, now + SECOND * 5, now).unwrap_err();
    assert!(matches!(turned, Turned::Hopeless { .. }), "{turned:?}");
    core.requeue(FlowId(0), Place(1), Waiter { deadline: start + SECOND * 5, ..waiter(0, now) });
    let gone = core.take_hopeless(now);
    assert!(matches!(gone[..], [(0, Turned::Hopeless { .. })]), "{gone:?}");
    assert_eq!(core.view(now).queued, 1);
    let now = core.wake_at(now).unwrap();
    assert!(core.next_grant(now).is_none() || core.in_flight() == 1);
}

#[test]
fn a_pause_that_grows_tells_those_who_could_wait_for_the_shorter_one() {
    let now = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, Some(1)), 1, now);
    core.pause(SECOND * 2, PauseReason::RetryAfter, now);
    join_until(&mut core, 1, now + SECOND * 10, now).unwrap();
    assert!(core.take_hopeless(now).is_empty());
    core.pause(SECOND * 30, PauseReason::Exhausted, now);
    let gone = core.take_hopeless(now);
    assert!(matches!(gone[..], [(1, Turned::Hopeless { reason: PauseReason::Exhausted, .. })]), "{gone:?}");
}

#[test]
fn a_spent_quota_is_asked_for_by_one_at_a_time_until_there_is_one_again() {
    let mut now = crate::clock::now();
    let mut core: GateCore<usize> = GateCore::new(settings(Algorithm::Tide, None), 1, now);
    let demand = Demand { model: 7, ..Demand::default() };
    let other = Demand { model: 8, ..demand };
    assert!(!core.wants_demand());
    assert_eq!(core.quota_blocks(&demand, now), None);
    let attempt = core.try_enter(&demand, now).unwrap();
    now += RTT;
    core.observe(&attempt, &heard(&attempt, Outcome::Bounced(Attribution::Quota), now), now);
    core.leave(&attempt, true, now);
    assert_eq!(core.take_events(), [Event::Quota { spent: true }]);
    assert!(core.wants_demand());
    assert_eq!(core.view(now).quotas_spent, 1);
    assert_eq!(core.view(now).paused, None, "others may have some left");
    assert_eq!(core.quota_blocks(&other, now), None);
    let wait = core.quota_blocks(&demand, now).unwrap();
    assert!(!wait.is_zero());
    now += wait;
    assert_eq!(core.quota_blocks(&demand, now), None, "the canary");
    assert!(core.quota_blocks(&demand, now).is_some(), "only one");
    let attempt = core.try_enter(&demand, now).unwrap();
    now += RTT;
    core.observe(&attempt, &heard(&attempt, Outcome::Accepted, now), now);
    core.leave(&attempt, false, now);
    assert_eq!(core.take_events(), [Event::Quota { spent: false }]);
    assert_eq!(core.quota_blocks(&demand, now), None);
    assert!(!core.wants_demand());
}

#[test]
fn a_refused_rate_is_not_waited_for_longer_than_a_pause_may_last() {
    let start = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, None), 1, start);
    let attempt = core.try_enter(&Demand::default(), start).unwrap();
    let mut now = start + RTT;
    let signals = Signals { retry_after: Some(SECOND * 86_400), ..Signals::default() };
    core.observe(&attempt, &Heard { signals, ..heard(&attempt, Outcome::Bounced(Attribution::Rate), now) }, now);
    core.leave(&attempt, true, now);
    join(&mut core, 1, now);
    let latest = now + core.settings.retry.retry_after_max * 2;
    while core.next_grant(now).is_none() {
        now = core.wake_at(now).unwrap();
        assert!(now <= latest, "waits until {:?}", now - start);
    }
}

#[test]
fn a_refusal_that_says_come_back_at_once_is_not_taken_at_its_word_for_ever() {
    let start = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, None), 1, start);
    let (mut now, mut attempts) = (start, 0);
    join(&mut core, 1, now);
    while now < start + SECOND * 60 {
        let Some((_, attempt)) = core.next_grant(now) else {
            now = core.wake_at(now).unwrap();
            continue;
        };
        attempts += 1;
        now += RTT;
        let signals = Signals { retry_after: Some(Duration::ZERO), ..Signals::default() };
        core.observe(&attempt, &Heard { signals, ..heard(&attempt, Outcome::Bounced(Attribution::Rate), now) }, now);
        core.leave(&attempt, true, now);
        core.requeue(FlowId(0), Place(1), waiter(1, now));
    }
    assert!(attempts < 100, "asked {attempts} times in a minute");
}

/// A bucket of requests, or a window of them, as an upstream keeps it.
#[derive(Debug)]
struct Bucket {
    limit: f64,
    period: Duration,
    refill: Refill,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(limit: u32, period: Duration, refill: Refill, at: Instant) -> Self {
        Self { limit: f64::from(limit), period, refill, level: f64::from(limit), at }
    }

    fn takes(&mut self, now: Instant) -> bool {
        match self.refill {
            Refill::Continuous => {
                let share = (now - self.at).as_secs_f64() / self.period.as_secs_f64();
                self.level = (self.level + self.limit * share).min(self.limit);
                self.at = now;
            }
            Refill::Window => {
                while now >= self.at + self.period {
                    self.at += self.period;
                    self.level = self.limit;
                }
            }
        }
        // Thousands of additions of fractions do not quite add up to one.
        let fits = self.level >= 1.0 - 1e-6;
        self.level -= if fits { 1.0 } else { 0.0 };
        fits
    }

    fn says(&self, now: Instant) -> Signals {
        let reset = match self.refill {
            Refill::Continuous => self.period.mul_f64(((self.limit - self.level) / self.limit).max(0.0)),
            Refill::Window => self.at + self.period - now,
        };
        let mut budgets = Budgets::default();
        budgets.add(Budget {
            id: 1,
            dimension: Dimension::Requests,
            limit: Some(self.limit as u64),
            remaining: self.level as u64,
            reset: Some(reset),
            window: None,
            refill: Some(self.refill),
        });
        Signals { budgets, ..Signals::default() }
    }
}

/// `count` at once, each answered after one round trip. Returns how long it took and how many were refused.
fn drain(core: &mut GateCore<usize>, start: Instant, count: usize, bucket: Option<&mut Bucket>) -> (Duration, usize) {
    let (mut now, mut done, mut refused) = (start, 0, 0);
    let mut bucket = bucket;
    for wake in 0..count {
        join(core, wake, now);
    }
    for _ in 0..count * 50 {
        let mut sent = Vec::new();
        while let Some(grant) = core.next_grant(now) {
            let fits = bucket.as_mut().is_none_or(|bucket| bucket.takes(now));
            let signals = bucket.as_ref().map(|bucket| bucket.says(now)).unwrap_or_default();
            sent.push((grant, fits, signals));
        }
        if sent.is_empty() {
            now = core.wake_at(now).expect("somebody waits").max(now + Duration::from_micros(10));
            continue;
        }
        now += RTT;
        for ((wake, attempt), fits, signals) in sent {
            let outcome = if fits { Outcome::Accepted } else { Outcome::Bounced(Attribution::Rate) };
            core.observe(&attempt, &Heard { signals, ..heard(&attempt, outcome, now) }, now);
            core.leave(&attempt, !fits, now);
            if fits {
                done += 1;
            } else {
                refused += 1;
                core.requeue(FlowId(0), Place(wake as u64 + 1), waiter(wake, now));
            }
        }
        if done == count {
            return (now - start, refused);
        }
    }
    panic!("only {done} of {count} done after {:?}", now - start)
}

#[test]
fn a_reported_bucket_is_drawn_at_its_rate_without_a_refusal() {
    let start = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, None), 1, start);
    let mut bucket = Bucket::new(60, SECOND * 6, Refill::Continuous, start);
    let (took, refused) = drain(&mut core, start, 360, Some(&mut bucket));
    assert_eq!(refused, 0);
    let ideal = SECOND * 30;
    assert!(took > ideal.mul_f64(0.95) && took < ideal.mul_f64(1.1), "{took:?}");
}

#[test]
fn a_configured_rate_paces_from_the_start() {
    let start = crate::clock::now();
    let rates = RateSettings { rpm: Some(60), tpm: None };
    let mut core = GateCore::new(GateSettings { rates, ..settings(Algorithm::Tide, None) }, 1, start);
    let mut bucket = Bucket::new(60, SECOND * 60, Refill::Continuous, start);
    for wake in 0..180 {
        join(&mut core, wake, start);
    }
    let (mut now, mut granted) = (start, 0);
    for _ in 0..10_000 {
        while let Some((_, attempt)) = core.next_grant(now) {
            granted += 1;
            assert!(bucket.takes(now), "{granted} after {:?}", now - start);
            core.observe(&attempt, &heard(&attempt, Outcome::Accepted, now), now);
            core.leave(&attempt, false, now);
        }
        let Some(at) = core.wake_at(now) else { break };
        now = at.max(now + Duration::from_micros(10));
    }
    assert_eq!(granted, 180);
    let ideal = SECOND * 120;
    assert!(now - start > ideal.mul_f64(0.95) && now - start < ideal.mul_f64(1.1), "{:?}", now - start);
    assert!(!core.wants_demand(), "requests are counted, not tokens");
}

#[test]
fn one_request_a_minute_works() {
    for refill in [Refill::Continuous, Refill::Window] {
        let start = crate::clock::now();
        let mut core = GateCore::new(settings(Algorithm::Tide, None), 1, start);
        let mut bucket = Bucket::new(1, SECOND * 60, refill, start);
        let (took, refused) = drain(&mut core, start, 6, Some(&mut bucket));
        assert!(took >= SECOND * 300 && took < SECOND * 400, "{refill:?}: {took:?}");
        assert!(refused <= 12, "{refill:?}: {refused} refused");
    }
    let start = crate::clock::now();
    let rates = RateSettings { rpm: Some(1), tpm: None };
    let mut core = GateCore::new(GateSettings { rates, ..settings(Algorithm::Tide, None) }, 1, start);
    let (took, _) = drain(&mut core, start, 6, None);
    assert!(took >= SECOND * 299 && took < SECOND * 330, "{took:?}");
}

#[test]
fn an_idle_account_keeps_what_it_learnt() {
    let start = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, None), 1, start);
    let service = |_| Duration::from_millis(200);
    let report = burst_through(&mut core, start, 600, 20, service);
    let learnt = core.view(start + report.took).limit;
    assert!((18..=22).contains(&learnt), "{learnt}");
    let later = start + report.took + SECOND * 3600;
    assert_eq!(core.view(later).limit, learnt);
    let again = burst_through(&mut core, later, 600, 20, service);
    assert!(again.refused <= report.refused / 2 + 3, "{} refused, {} before", again.refused, report.refused);
    let ideal = Duration::from_millis(204) * 30;
    assert!(again.took < ideal.mul_f64(1.1), "{:?}", again.took);
}

#[test]
fn new_settings_keep_the_queue_and_the_slots() {
    for algorithm in Algorithm::ALL {
        let mut now = crate::clock::now();
        let mut core = GateCore::new(settings(Algorithm::Tide, Some(30)), 1, now);
        let attempts = fill(&mut core, &mut now, 30);
        for wake in 100..140 {
            join(&mut core, wake, now);
        }
        core.retune(settings(algorithm, Some(12)), now);
        assert_eq!((core.in_flight(), core.view(now).queued), (30, 40), "{algorithm:?}");
        assert!(core.view(now).limit <= 12);
        let mut order = Vec::new();
        let mut inside = attempts;
        for _ in 0..2000 {
            now += RTT;
            if let Some(attempt) = inside.pop() {
                core.observe(&attempt, &heard(&attempt, Outcome::Accepted, now), now);
                core.leave(&attempt, false, now);
            }
            assert!(core.in_flight() < 30, "{algorithm:?}");
            while let Some((wake, attempt)) = core.next_grant(now) {
                assert!(core.in_flight() <= 12, "{algorithm:?}: the new ceiling holds");
                order.push(wake);
                inside.insert(0, attempt);
            }
        }
        assert_eq!(order, (100..140).collect::<Vec<_>>(), "{algorithm:?}");
        assert!(core.is_idle());
    }
}

#[test]
fn new_settings_that_change_nothing_keep_what_was_learnt() {
    let start = crate::clock::now();
    let mut core = GateCore::new(settings(Algorithm::Tide, None), 1, start);
    let report = burst_through(&mut core, start, 600, 20, |_| Duration::from_millis(200));
    let now = start + report.took;
    let learnt = core.view(now).limit;
    let depths = Depths { total_max: 7, per_flow_max: 7 };
    core.retune(GateSettings { depths, ..settings(Algorithm::Tide, None) }, now);
    assert_eq!(core.view(now).limit, learnt);
    core.retune(settings(Algorithm::Fixed, None), now);
    assert_ne!(core.view(now).limit, learnt);
    assert!(core.wait_estimate(now) <= PATIENT);
}
