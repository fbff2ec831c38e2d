use std::time::Duration;

use super::*;
use crate::{
    control::{
        limit::{Algorithm, LimitSettings, Outcome},
        queue::Depths,
        retry::{Backoff, RetryPost, RetrySettings},
    },
    metrics::Metrics,
};

const FLOW: FlowId = FlowId(0);

fn gate(ceiling: u32, depth: usize) -> Arc<Gate> {
    let settings = GateSettings {
        limit: LimitSettings { algorithm: Algorithm::Tide, min: 1, max: 1000, initial: 10, decrease: 0.9 },
        ceiling: Some(ceiling),
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
    Arc::new(Gate::new("up".into(), "acc".into(), settings, 1, metrics, Tasks::new()))
}

fn soon() -> Instant {
    clock::now() + Duration::from_secs(600)
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_freed_slot_goes_to_the_longest_waiting() {
    let gate = gate(1, 10);
    let first = gate.admit(FLOW, gate.arrive(), soon()).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let waiters: Vec<_> = (0..3)
        .map(|id| {
            let (gate, order) = (Arc::clone(&gate), Arc::clone(&order));
            let place = gate.arrive();
            tokio::spawn(async move {
                let permit = gate.admit(FLOW, place, soon()).await.unwrap();
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
    let first = gate.admit(FLOW, gate.arrive(), soon()).await.unwrap();
    let mut waiting = Box::pin(gate.admit(FLOW, gate.arrive(), soon()));
    assert!(futures_pending(&mut waiting).await);
    let full = gate.admit(FLOW, gate.arrive(), soon()).await;
    assert!(matches!(full, Err(Refusal::Full { .. })), "{full:?}");
    drop(waiting);
    assert_eq!(gate.view().queued, 0);

    let mut granted = Box::pin(gate.admit(FLOW, gate.arrive(), soon()));
    assert!(futures_pending(&mut granted).await);
    drop(first);
    assert_eq!(gate.view().in_flight, 1, "the slot was handed over before the waiter looked");
    drop(granted);
    assert_eq!(gate.view().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_queue_full_of_vanished_waiters_is_passed_over() {
    let gate = gate(1, 2000);
    let first = gate.admit(FLOW, gate.arrive(), soon()).await.unwrap();
    let mut waiters: Vec<_> = (0..1000).map(|_| Box::pin(gate.admit(FLOW, gate.arrive(), soon()))).collect();
    for waiter in &mut waiters {
        assert!(futures_pending(waiter).await);
    }
    drop(waiters);
    drop(first);
    assert!(gate.idle_since().is_some());
    assert!(gate.admit(FLOW, gate.arrive(), soon()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_at_its_deadline_and_says_when_to_come_back() {
    let gate = gate(1, 10);
    let _first = gate.admit(FLOW, gate.arrive(), soon()).await.unwrap();
    let before = clock::now();
    let late = gate.admit(FLOW, gate.arrive(), before + Duration::from_secs(3)).await;
    assert!(matches!(late, Err(Refusal::TooLate { .. })), "{late:?}");
    assert_eq!(clock::now() - before, Duration::from_secs(3));
    assert_eq!(gate.view().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn a_paused_account_wakes_by_itself() {
    let gate = gate(2, 10);
    let signals = Signals { retry_after: Some(Duration::from_secs(5)), ..Signals::default() };
    gate.note_signals(&signals, Some((Attribution::Rate, 429)));
    let before = clock::now();
    let permit = gate.admit(FLOW, gate.arrive(), soon()).await.unwrap();
    let waited = clock::now() - before;
    assert!(waited >= Duration::from_secs(5) && waited <= Duration::from_millis(5_600), "{waited:?}");
    drop(permit);
}

#[tokio::test(start_paused = true)]
async fn a_refused_exchange_waits_with_its_old_place_and_without_a_slot() {
    let gate = gate(1, 10);
    let place = gate.arrive();
    let mut permit = gate.admit(FLOW, place, soon()).await.unwrap();
    let mut later = Box::pin(gate.admit(FLOW, gate.arrive(), soon()));
    assert!(futures_pending(&mut later).await);
    permit.sending();
    tokio::time::advance(Duration::from_millis(10)).await;
    permit.observe(Outcome::Bounced(Attribution::Ceiling));
    let again = tokio::spawn({
        let gate = Arc::clone(&gate);
        async move {
            drop(permit);
            gate.readmit(FLOW, place, soon()).await
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

async fn futures_pending<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_pending())).await
}
