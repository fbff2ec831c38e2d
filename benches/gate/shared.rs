//! The gate with its lock, its clock and its metrics, as the exchanges of all threads share it.

use std::{
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use criterion::Criterion;
use stats_alloc::Region;
use tidegate::{
    clock,
    control::{
        limit::{Algorithm, Outcome},
        queue::FlowId,
        signals::Signals,
    },
    gate::{Gate, Permit},
    metrics::Metrics,
    tasks::Tasks,
};
use tokio::{runtime, task};

use crate::{COUNTED, DEMAND, settings};

const THREADS: usize = 4;
/// More than are ever in flight.
const WIDE: u32 = 100_000;
/// In flight at once where the steps are timed one by one, so that reading the clock is no part of what is read.
const BATCH: u64 = 512;
/// Who goes through the queue, and how many may at once.
const TASKS: u64 = 100;
const SLOTS: u32 = 10;

pub(crate) fn benches(criterion: &mut Criterion) {
    alone(criterion);
    together(criterion);
    queued(criterion);
}

fn gate(ceiling: u32) -> Arc<Gate> {
    let mut settings = settings(Algorithm::Tide, ceiling);
    // However late this machine makes an answer: what is measured here is no lower limit.
    settings.limit.min = ceiling;
    let metrics = Metrics::new().account("upstream", "account");
    Arc::new(Gate::new("upstream".into(), "account".into(), settings, 1, metrics, Tasks::new()))
}

/// As in an exchange, the clock is read once in each turn.
fn admit(gate: &Arc<Gate>) -> Permit {
    clock::turn(|| {
        let (_place, permit) = gate.enter(&DEMAND);
        let mut permit = permit.expect("nobody is in the way");
        permit.sending();
        permit
    })
}

fn observe(permit: &mut Permit) {
    let said = Some((200, &Signals::default()));
    clock::turn(|| permit.observe(Outcome::Accepted, said));
}

fn leave(permit: Permit) {
    clock::turn(|| drop(permit));
}

fn exchange(gate: &Arc<Gate>) {
    let mut permit = admit(gate);
    observe(&mut permit);
    leave(permit);
}

#[derive(Clone, Copy)]
enum Step {
    Admit,
    Observe,
    Leave,
}

fn alone(criterion: &mut Criterion) {
    let gate = gate(WIDE);
    heap(&gate);
    let mut group = criterion.benchmark_group("alone");
    group.bench_function("exchange", |bencher| bencher.iter(|| exchange(&gate)));
    for (name, step) in [("admit", Step::Admit), ("observe", Step::Observe), ("leave", Step::Leave)] {
        group.bench_function(name, |bencher| bencher.iter_custom(|count| one_step(&gate, count, step)));
    }
    group.finish();
}

/// Counting allocations must not be what makes threads wait for each other: there are none to count.
fn heap(gate: &Arc<Gate>) {
    const EXCHANGES: u32 = 10_000;
    (0..EXCHANGES).for_each(|_| exchange(gate));
    let region = Region::new(COUNTED);
    (0..EXCHANGES).for_each(|_| exchange(gate));
    let each = region.change().allocations as f64 / f64::from(EXCHANGES);
    println!("\nallocations of an exchange at the shared gate: {each:.3}\n");
}

/// What `count` times this step take, of exchanges of which many are in flight.
fn one_step(gate: &Arc<Gate>, count: u64, step: Step) -> Duration {
    let mut inside = Vec::with_capacity(BATCH as usize);
    let (mut left, mut spent) = (count, Duration::ZERO);
    while left > 0 {
        let batch = left.min(BATCH);
        left -= batch;
        let start = Instant::now();
        inside.extend((0..batch).map(|_| admit(gate)));
        let admitted = Instant::now();
        inside.iter_mut().for_each(observe);
        let observed = Instant::now();
        inside.drain(..).for_each(leave);
        spent += match step {
            Step::Admit => admitted - start,
            Step::Observe => observed - admitted,
            Step::Leave => observed.elapsed(),
        };
    }
    spent
}

fn together(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("{THREADS} threads"));
    for (name, count) in [("on one gate", 1), ("on a gate each", THREADS)] {
        let gates: Vec<_> = (0..count).map(|_| gate(WIDE)).collect();
        group.bench_function(name, |bencher| bencher.iter_custom(|count| by_threads(&gates, count)));
    }
    group.finish();
}

/// From when the first thread begins until the last is done, with `count` exchanges among them.
fn by_threads(gates: &[Arc<Gate>], count: u64) -> Duration {
    let (each, ready) = (count.div_ceil(THREADS as u64), Barrier::new(THREADS));
    let run = |gate: &Arc<Gate>| {
        ready.wait();
        let began = Instant::now();
        (0..each).for_each(|_| exchange(gate));
        (began, Instant::now())
    };
    let times: Vec<_> = thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = gates.iter().cycle().take(THREADS).map(|gate| scope.spawn(move || run(gate))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no exchange fails")).collect()
    });
    let began = times.iter().map(|(began, _)| *began).min();
    let ended = times.iter().map(|(_, ended)| *ended).max();
    ended.zip(began).map_or(Duration::ZERO, |(ended, began)| ended - began)
}

fn queued(criterion: &mut Criterion) {
    let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("a runtime can be had");
    let mut group = criterion.benchmark_group("through the queue");
    group.bench_function(format!("{TASKS} tasks for {SLOTS} slots"), |bencher| {
        bencher.iter_custom(|count| runtime.block_on(by_tasks(count)));
    });
    group.finish();
}

async fn by_tasks(count: u64) -> Duration {
    let gate = gate(SLOTS);
    let mut tasks = task::JoinSet::new();
    let began = Instant::now();
    for flow in 0..TASKS {
        let gate = Arc::clone(&gate);
        tasks.spawn(async move {
            for _ in 0..count.div_ceil(TASKS) {
                let (place, permit) = gate.enter(&DEMAND);
                let mut permit = match permit {
                    Some(permit) => permit,
                    None => {
                        let deadline = clock::now() + Duration::from_secs(3600);
                        gate.admit(FlowId(flow), place, DEMAND, deadline).await.expect("there is room and time")
                    }
                };
                permit.sending();
                // The upstream's part of it: everybody else asks meanwhile.
                task::yield_now().await;
                observe(&mut permit);
                leave(permit);
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no exchange fails");
    }
    began.elapsed()
}
