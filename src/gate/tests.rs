use std::time::Duration;

use super::*;
use crate::{
    control::{
        cost::Usage,
        limit::{Algorithm, LimitSettings},
        queue::Depths,
        rates::RateSettings,
        retry::{Backoff, RetryPost, RetrySettings},
        signals::Budget,
    },
    metrics::Metrics,
};

const FLOW: FlowId = FlowId(0);
const ANY: Demand = Demand { model: 0, input_tokens: 0, output_tokens_max: None, stream: false, read: true };

fn told(seconds: u64) -> Signals {
    Signals { retry_after: Some(Duration::from_secs(seconds)), ..Signals::default() }
}

fn gate(ceiling: u32, depth: usize) -> Arc<Gate> {
    rated(ceiling, depth, RateSettings::default(), Tasks::new())
}

fn rated(ceiling: u32, depth: usize, rates: RateSettings, tasks: Tasks) -> Arc<Gate> {
    let settings = GateSettings {
        limit: LimitSettings {
            algorithm: Algorithm::Tide,
            min: 1,
            max: 1000,
            initial: 10,
            aimd: Default::default(),
            gradient: Default::default(),
            tide: Default::default(),
            vegas: Default::default(),
        },
        ceiling: Some(ceiling),
        rates,
        depths: Depths { total_max: depth, per_flow_max: depth },
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
    };
    let metrics = Metrics::new().account("up", "acc");
    Arc::new(Gate::new("up".into(), "acc".into(), settings, 1, metrics, tasks))
}

fn soon() -> Instant {
    clock::now() + Duration::from_secs(600)
}

fn place(gate: &Gate) -> Place {
    gate.state.lock().core.arrive()
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_freed_slot_goes_to_the_longest_waiting() {
    let gate = gate(1, 10);
    let first = gate.admit(FLOW, place(&gate), ANY, soon()).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let waiters: Vec<_> = (0..3)
        .map(|id| {
            let (gate, order) = (Arc::clone(&gate), Arc::clone(&order));
            let first = place(&gate);
            tokio::spawn(async move {
                let permit = gate.admit(FLOW, first, ANY, soon()).await.unwrap();
                order.lock().push(id);
                drop(permit);
            })
        })
        .collect();
    settle().await;
    assert_eq!(gate.view().queued, 3);
    drop(first);
    for waiter in waiters {
        waiter.await.unwrap();
    }
    assert_eq!(*order.lock(), [0, 1, 2]);
    assert!(gate.idle_since().is_some());
}

#[tokio::test(start_paused = true)]
async fn leaving_the_queue_frees_the_place_and_leaving_with_a_grant_frees_the_slot() {
    let gate = gate(1, 1);
    let first = gate.admit(FLOW, place(&gate), ANY, soon()).await.unwrap();
    let mut waiting = Box::pin(gate.admit(FLOW, place(&gate), ANY, soon()));
    assert!(futures_pending(&mut waiting).await);
    let full = gate.admit(FLOW, place(&gate), ANY, soon()).await;
    assert!(matches!(full, Err(Refusal::Full { .. })), "{full:?}");
    drop(waiting);
    assert_eq!(gate.view().queued, 0);

    let mut granted = Box::pin(gate.admit(FLOW, place(&gate), ANY, soon()));
    assert!(futures_pending(&mut granted).await);
    drop(first);
    assert_eq!(gate.view().in_flight, 1, "the slot was handed over before the waiter looked");
    drop(granted);
    assert_eq!(gate.view().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_queue_full_of_vanished_waiters_is_passed_over() {
    let gate = gate(1, 2000);
    let first = gate.admit(FLOW, place(&gate), ANY, soon()).await.unwrap();
    let mut waiters: Vec<_> = (0..1000).map(|_| Box::pin(gate.admit(FLOW, place(&gate), ANY, soon()))).collect();
    for waiter in &mut waiters {
        assert!(futures_pending(waiter).await);
    }
    drop(waiters);
    drop(first);
    assert!(gate.idle_since().is_some());
    assert!(gate.admit(FLOW, place(&gate), ANY, soon()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_its_deadline_and_says_when_to_come_back() {
    let gate = gate(1, 10);
    let _first = gate.admit(FLOW, place(&gate), ANY, soon()).await.unwrap();
    let before = clock::now();
    let late = gate.admit(FLOW, place(&gate), ANY, before + Duration::from_secs(3)).await;
    assert!(matches!(late, Err(Refusal::TooLate { .. })), "{late:?}");
    assert_eq!(clock::now() - before, Duration::from_secs(3));
    assert_eq!(gate.view().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn a_paused_account_wakes_by_itself() {
    let gate = gate(2, 10);
    let mut first = gate.admit(FLOW, place(&gate), ANY, soon()).await.unwrap();
    let outcome = first.observe(Outcome::Bounced(Attribution::Rate), Some((429, &told(5))));
    assert_eq!(outcome, Outcome::Bounced(Attribution::Rate));
    drop(first);
    let last = gate.last_refusal().unwrap();
    assert_eq!((last.attribution, last.status), (Attribution::Rate, 429));
    assert_eq!(last.retry_after, Some(Duration::from_secs(5)));
    let before = clock::now();
    let permit = gate.admit(FLOW, place(&gate), ANY, soon()).await.unwrap();
    let waited = clock::now() - before;
    assert!(waited >= Duration::from_secs(5) && waited <= Duration::from_millis(5_600), "{waited:?}");
    drop(permit);
}

#[tokio::test(start_paused = true)]
async fn a_refused_exchange_waits_with_its_old_place_and_without_a_slot() {
    let gate = gate(1, 10);
    let first = place(&gate);
    let mut permit = gate.admit(FLOW, first, ANY, soon()).await.unwrap();
    let mut later = Box::pin(gate.admit(FLOW, place(&gate), ANY, soon()));
    assert!(futures_pending(&mut later).await);
    permit.sending();
    tokio::time::advance(Duration::from_millis(10)).await;
    permit.observe(Outcome::Bounced(Attribution::Ceiling), None);
    let again = tokio::spawn({
        let gate = Arc::clone(&gate);
        async move {
            drop(permit);
            gate.readmit(FLOW, first, ANY, soon()).await
        }
    });
    settle().await;
    assert_eq!(gate.view().in_flight, 0);
    assert_eq!(gate.view().queued, 2);
    let permit = again.await.unwrap().unwrap();
    assert!(futures_pending(&mut later).await, "the one who came later still waits");
    drop(permit);
    drop(later.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn whoever_cannot_wait_for_the_end_of_a_pause_is_told_when_it_begins() {
    let gate = gate(1, 10);
    let mut first = gate.admit(FLOW, place(&gate), ANY, soon()).await.unwrap();
    let mut impatient = Box::pin(gate.admit(FLOW, place(&gate), ANY, clock::now() + Duration::from_secs(10)));
    let mut patient = Box::pin(gate.admit(FLOW, place(&gate), ANY, soon()));
    assert!(futures_pending(&mut impatient).await && futures_pending(&mut patient).await);
    let began = clock::now();
    first.observe(Outcome::Bounced(Attribution::Rate), Some((429, &told(30))));
    drop(first);
    let refused = impatient.await;
    let Err(Refusal::Hopeless { retry_after, reason: PauseReason::RetryAfter }) = refused else {
        panic!("{refused:?}");
    };
    assert!(retry_after >= Duration::from_secs(30), "{retry_after:?}");
    let newcomer = gate.admit(FLOW, place(&gate), ANY, clock::now() + Duration::from_secs(10)).await;
    assert!(matches!(newcomer, Err(Refusal::Hopeless { .. })), "{newcomer:?}");
    assert_eq!(clock::now(), began);
    drop(patient.await.unwrap());
    assert!(clock::now() >= began + Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_spent_quota_blocks_its_model_and_an_unused_permit_counts_as_never_given() {
    let gate = gate(4, 10);
    let (poor, rich) = (Demand { model: 1, ..ANY }, Demand { model: 2, ..ANY });
    let mut permit = gate.admit(FLOW, place(&gate), poor, soon()).await.unwrap();
    permit.observe(Outcome::Bounced(Attribution::Quota), Some((429, &Signals::default())));
    drop(permit);
    assert!(gate.quota_spent(&poor).is_some() && gate.quota_blocks(&poor).is_some());
    assert!(gate.quota_spent(&rich).is_none() && gate.quota_blocks(&rich).is_none());
    let permit = gate.admit(FLOW, place(&gate), poor, soon()).await.unwrap();
    let served = gate.view().drain_per_second;
    permit.unused();
    assert_eq!((gate.view().in_flight, gate.view().drain_per_second), (0, served));
    tokio::time::advance(Duration::from_secs(31)).await;
    assert!(gate.quota_spent(&poor).is_none(), "looking does not make it the one that asks");
    assert!(gate.quota_spent(&poor).is_none() && gate.quota_blocks(&poor).is_none());
    assert!(gate.quota_spent(&poor).is_some(), "one asks already");
}

#[tokio::test(start_paused = true)]
async fn answers_are_read_for_their_usage_once_tokens_are_counted() {
    let gate = gate(4, 10);
    let mut signals = Signals::default();
    let remaining = 90;
    for (id, dimension) in [(1, Dimension::Requests), (2, Dimension::Tokens)] {
        assert!(!gate.wants_usage());
        let budget = Budget { id, dimension, limit: Some(100), remaining, reset: None, window: None, refill: None };
        signals.budgets.add(budget);
        let mut permit = gate.admit(FLOW, place(&gate), ANY, soon()).await.unwrap();
        permit.observe(Outcome::Accepted, Some((200, &signals)));
    }
    assert!(gate.wants_usage());
}

#[tokio::test(start_paused = true)]
async fn what_was_never_read_teaches_nothing_about_costs() {
    let usage = Usage { input_tokens: 1000, output_tokens: 1000, ..Usage::default() };
    for (read, want) in [(false, 256.0), (true, 1000.0)] {
        let gate = rated(4, 10, RateSettings { rpm: None, tpm: Some(600_000) }, Tasks::new());
        let permit = gate.admit(FLOW, place(&gate), Demand { read, model: 5, ..ANY }, soon()).await.unwrap();
        permit.finish(&usage);
        drop(permit);
        let left = || gate.view().rates[0].left.unwrap();
        let before = left();
        let permit = gate.admit(FLOW, place(&gate), Demand { model: 5, ..ANY }, soon()).await.unwrap();
        assert_eq!(before - left(), want, "read: {read}");
        drop(permit);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_stood_behind_one_that_left_waits_no_longer_than_it_must() {
    let tasks = Tasks::new();
    let gate = rated(10, 100, RateSettings { rpm: None, tpm: Some(6000) }, tasks.clone());
    let cost = |input_tokens| Demand { input_tokens, output_tokens_max: Some(0), ..ANY };
    let mut permits = Vec::new();
    for size in [500, 10] {
        while let Some(permit) = gate.enter(&cost(size)).1 {
            permits.push(permit);
            permits.truncate(1);
        }
    }
    drop(permits);
    let began = clock::now();
    let mut heads: Vec<_> =
        (0..20).map(|n| Box::pin(gate.admit(FLOW, place(&gate), cost(5000 - 200 * n), soon()))).collect();
    for head in &mut heads {
        assert!(futures_pending(head).await);
    }
    let small = tokio::spawn({
        let gate = Arc::clone(&gate);
        async move { gate.admit(FLOW, place(&gate), cost(200), soon()).await.map(drop) }
    });
    settle().await;
    // Each time the next one could leave a little earlier than the one before.
    for head in heads {
        drop(head);
        settle().await;
        assert_eq!(tasks.len(), 1, "one timer, however often it is set");
    }
    small.await.unwrap().unwrap();
    let waited = clock::now() - began;
    assert!(waited < Duration::from_secs(20), "the first of the heads alone would have waited longer: {waited:?}");
    settle().await;
    assert_eq!(tasks.len(), 0, "nothing is left to wait for");
}

#[tokio::test(start_paused = true)]
async fn one_that_leaves_lets_those_behind_it_in_at_once() {
    let gate = rated(10, 100, RateSettings { rpm: None, tpm: Some(6000) }, Tasks::new());
    let cost = |input_tokens| Demand { input_tokens, output_tokens_max: Some(0), ..ANY };
    let _first = gate.admit(FLOW, place(&gate), cost(50), soon()).await.unwrap();
    let mut dear = Box::pin(gate.admit(FLOW, place(&gate), cost(60_000), soon()));
    assert!(futures_pending(&mut dear).await);
    let mut cheap = Box::pin(gate.admit(FLOW, place(&gate), cost(10), soon()));
    assert!(futures_pending(&mut cheap).await);
    drop(dear);
    assert!(!futures_pending(&mut cheap).await);
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_nobody_took_costs_nothing() {
    let gate = rated(1, 100, RateSettings { rpm: Some(60), tpm: None }, Tasks::new());
    let left = || gate.view().rates[0].left.unwrap();
    let first = gate.admit(FLOW, place(&gate), ANY, soon()).await.unwrap();
    let mut second = Box::pin(gate.admit(FLOW, place(&gate), ANY, soon()));
    assert!(futures_pending(&mut second).await);
    let before = left();
    drop(first);
    assert!(left() < before, "granted");
    drop(second);
    assert_eq!((left(), gate.view().in_flight), (before, 0));
}

async fn futures_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
}
