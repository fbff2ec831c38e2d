//! Budgets that are for one model, closed for long, or reported wrongly; and refusals for overload.

use super::{
    super::{
        limit::{Algorithm, Outcome},
        queue::{FlowId, Ticket},
        signals::{Attribution, Budget, Dimension, Refill, Signals},
        tide::TideSettings,
    },
    tests::{RTT, heard, settings, waiter},
    *,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn of_model(model: u64) -> Demand {
    Demand { model, input_tokens: 10, read: true, ..Demand::default() }
}

fn requests(limit: u64, remaining: u64, reset: Duration) -> Signals {
    let mut said = Signals::default();
    said.budgets.add(Budget {
        id: 1,
        dimension: Dimension::Requests,
        limit: Some(limit),
        remaining,
        reset: Some(reset),
        window: None,
        refill: Some(Refill::Window),
    });
    said
}

/// One exchange of this model, answered with this.
fn exchange(core: &mut GateCore<usize>, demand: &Demand, outcome: Outcome, signals: Signals, now: &mut Instant) {
    let attempt = core.try_enter(demand, *now).expect("it may leave");
    answer(core, &attempt, outcome, signals, now);
}

fn answer(core: &mut GateCore<usize>, attempt: &Attempt, outcome: Outcome, signals: Signals, now: &mut Instant) {
    *now += RTT;
    core.observe(attempt, &Heard { signals, ..heard(attempt, outcome, *now) }, *now);
    core.leave(attempt, matches!(outcome, Outcome::Bounced(_)), *now);
}

fn join(
    core: &mut GateCore<usize>,
    wake: usize,
    demand: Demand,
    patience: Duration,
    now: Instant,
) -> Result<Ticket, Turned> {
    let place = core.arrive();
    core.enqueue(FlowId(0), place, Waiter { demand, deadline: now + patience, wake }, now)
}

#[test]
fn a_model_without_budget_does_not_stand_in_the_way_of_another() {
    let mut now = crate::clock::now();
    let mut core: GateCore<usize> = GateCore::new(settings(Algorithm::Tide, Some(10)), 1, now);
    let (spent, free) = (of_model(1), of_model(2));
    exchange(&mut core, &free, Outcome::Accepted, requests(600, 599, SECOND * 60), &mut now);
    exchange(&mut core, &spent, Outcome::Accepted, requests(600, 0, SECOND * 30), &mut now);
    now += SECOND;
    assert!(core.try_enter(&spent, now).is_none());
    join(&mut core, 1, spent, SECOND * 100, now).unwrap();
    assert!(core.next_grant(now).is_none());
    assert!(matches!(join(&mut core, 2, spent, SECOND, now), Err(Turned::Hopeless { .. })), "it knows it cannot wait");
    join(&mut core, 3, free, SECOND, now).expect("the other has budget");
    assert_eq!(core.next_grant(now).map(|(wake, _)| wake), Some(3));
    assert!(core.take_hopeless(now).is_empty());
    let wake = core.wake_at(now).unwrap();
    assert!(wake > now + SECOND * 20 && wake < now + SECOND * 40, "{:?}", wake - now);
    assert_eq!(core.next_grant(wake).map(|(wake, _)| wake), Some(1));
}

#[test]
fn only_those_who_wait_for_the_spent_budget_are_told() {
    let mut now = crate::clock::now();
    let mut core: GateCore<usize> = GateCore::new(settings(Algorithm::Fixed, Some(2)), 1, now);
    let (first, second) = (of_model(1), of_model(2));
    exchange(&mut core, &first, Outcome::Accepted, requests(600, 500, SECOND * 60), &mut now);
    let inside: Vec<Attempt> = [first, second].iter().map(|demand| core.try_enter(demand, now).unwrap()).collect();
    for (wake, demand) in [(1, first), (2, second), (3, first)] {
        join(&mut core, wake, demand, SECOND * 20, now).unwrap();
    }
    answer(&mut core, &inside[1], Outcome::Accepted, requests(600, 0, SECOND * 50), &mut now);
    let told: Vec<usize> = core.take_hopeless(now).into_iter().map(|(wake, _)| wake).collect();
    assert_eq!(told, [2]);
    assert_eq!(core.next_grant(now).map(|(wake, _)| wake), Some(1));
}

#[test]
fn whoever_cannot_wait_for_a_far_reset_is_told_at_once_and_one_in_a_while_asks() {
    let mut now = crate::clock::now();
    let mut core: GateCore<usize> = GateCore::new(settings(Algorithm::Tide, None), 1, now);
    let demand = of_model(1);
    exchange(&mut core, &demand, Outcome::Accepted, requests(1000, 0, HOUR * 24), &mut now);
    let turned = join(&mut core, 1, demand, SECOND * 300, now).unwrap_err();
    let Turned::Hopeless { retry_after, .. } = turned else { panic!("{turned:?}") };
    assert!(retry_after > HOUR * 23, "{retry_after:?}");
    join(&mut core, 2, demand, HOUR * 100, now).unwrap();
    assert!(core.take_hopeless(now).is_empty());
    assert!(core.view(now).paused.is_some(), "it is shown");
    let (start, mut asked) = (now, Vec::new());
    while now < start + HOUR {
        now = core.wake_at(now).unwrap().max(now);
        let Some((wake, attempt)) = core.next_grant(now) else { continue };
        asked.push((now - start).as_secs());
        let left = HOUR * 24 - (now - start);
        answer(&mut core, &attempt, Outcome::Bounced(Attribution::Rate), requests(1000, 0, left), &mut now);
        core.requeue(FlowId(0), Place(2), waiter(wake, now));
    }
    assert!((3..=8).contains(&asked.len()), "after {asked:?}");
    assert!((60..90).contains(&asked[0]), "after {asked:?}");
}

#[test]
fn when_the_head_leaves_the_next_is_judged_by_what_it_needs_itself() {
    let mut now = crate::clock::now();
    let mut settings = settings(Algorithm::Fixed, Some(10));
    settings.rates.tpm = Some(6000);
    let mut core: GateCore<usize> = GateCore::new(settings, 1, now);
    let asks = |input_tokens| Demand { model: 1, input_tokens, output_tokens_max: Some(1), read: true, stream: false };
    exchange(&mut core, &asks(5900), Outcome::Accepted, Signals::default(), &mut now);
    let large = join(&mut core, 1, asks(5000), HOUR, now).unwrap();
    join(&mut core, 2, asks(400), SECOND * 30, now).expect("alone it would not have to wait for long");
    let late = core.take_hopeless(now);
    assert_eq!(late.len(), 1, "behind the large one it has to");
    assert!(core.cancel(large));
    assert!(core.take_hopeless(now).is_empty());
    join(&mut core, 3, asks(400), SECOND * 30, now).expect("the large one is gone");
    assert!(core.wake_at(now).unwrap() < now + SECOND * 10);
}

#[test]
fn one_stray_refusal_does_not_halve_a_window() {
    let mut now = crate::clock::now();
    let mut core: GateCore<usize> = GateCore::new(settings(Algorithm::Fixed, Some(1000)), 1, now);
    let demand = of_model(1);
    exchange(&mut core, &demand, Outcome::Accepted, requests(600, 599, SECOND * 60), &mut now);
    exchange(&mut core, &demand, Outcome::Bounced(Attribution::Rate), Signals::default(), &mut now);
    now += SECOND * 30;
    let mut left = 0;
    for _ in 0..100 {
        while let Some(attempt) = core.try_enter(&demand, now) {
            left += 1;
            core.leave(&attempt, false, now);
        }
        now += SECOND / 10;
    }
    assert!((500..600).contains(&left), "{left} of the 599 that were left");
}

#[test]
fn a_refusal_for_overload_is_an_overload() {
    let mut now = crate::clock::now();
    let mut core: GateCore<usize> = GateCore::new(settings(Algorithm::Aimd, None), 1, now);
    let before = core.view(now).limit;
    let attempt = core.try_enter(&Demand::default(), now).unwrap();
    now += RTT;
    let outcome = Outcome::Bounced(Attribution::Overload);
    assert_eq!(core.observe(&attempt, &heard(&attempt, outcome, now), now), Outcome::Overloaded);
    assert!(core.view(now).limit < before);
}

#[test]
fn models_that_are_asked_for_no_more_give_way_to_new_ones() {
    let mut now = crate::clock::now();
    let mut core: GateCore<usize> = GateCore::new(settings(Algorithm::Fixed, Some(10)), 1, now);
    for model in 1..200 {
        exchange(&mut core, &of_model(model), Outcome::Accepted, requests(600, 0, SECOND * 600), &mut now);
    }
    assert!(core.try_enter(&of_model(199), now).is_none(), "the last one's budget is known");
    assert!(core.view(now).rates.len() <= 64);
}

#[test]
fn new_constants_of_an_algorithm_keep_what_it_learnt() {
    let now = crate::clock::now();
    let mut core: GateCore<usize> = GateCore::new(settings(Algorithm::Tide, None), 1, now);
    core.limit.overloaded(10);
    let learnt = core.view(now).limit;
    let mut changed = settings(Algorithm::Tide, None);
    assert_ne!(learnt, changed.limit.initial);
    changed.limit.tide = TideSettings { probe_answers: 50, pace: 0.9, ..changed.limit.tide };
    core.retune(changed, now);
    assert_eq!(core.view(now).limit, learnt);
    changed.limit.max = 20;
    core.retune(changed, now);
    assert_eq!(core.view(now).limit, changed.limit.initial, "another range is another search");
}
