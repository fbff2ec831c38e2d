//! What one exchange costs the gate: admission, observation and departure.
//!
//! `cargo bench --bench gate`. First a table of the core alone, with its heap allocations; then, by criterion, the gate as
//! threads share it: `alone` on one thread, whole and step by step; `4 threads` that do nothing else, on one gate and on
//! a gate each; `through the queue`, where every exchange has to wait for a slot. A word behind `--` picks among the
//! latter.
//!
//! What `on one gate` takes longer than `on a gate each` is what sharing costs: waiting for the lock, and counters that
//! travel between cores. It is the worst case: a thread that relays is at the gate for about a fiftieth of its time. With
//! fewer free cores than threads, only those that run at once can be in each other's way, and the difference shrinks.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the real clock")]
#![expect(clippy::expect_used, clippy::print_stdout, reason = "a benchmark fails loudly and prints its table")]

mod pure;
mod shared;

use std::{alloc::System, time::Duration};

use criterion::Criterion;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tidegate::control::{
    cost::Demand,
    gate::GateSettings,
    limit::{Algorithm, LimitSettings},
    queue::Depths,
    rates::RateSettings,
    retry::{Backoff, RetryPost, RetrySettings},
};

#[global_allocator]
static COUNTED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const WAITING: u32 = 10_000;
const DEMAND: Demand = Demand { model: 1, input_tokens: 1000, output_tokens_max: Some(500), stream: false, read: true };

fn settings(algorithm: Algorithm, ceiling: u32) -> GateSettings {
    GateSettings {
        limit: LimitSettings {
            algorithm,
            min: 1,
            max: ceiling.max(1000),
            initial: 10,
            aimd: Default::default(),
            gradient: Default::default(),
            tide: Default::default(),
            vegas: Default::default(),
        },
        ceiling: Some(ceiling),
        rates: RateSettings::default(),
        depths: Depths { total_max: WAITING as usize + 1, per_flow_max: WAITING as usize + 1 },
        retry: RetrySettings {
            attempts_max: 4,
            post: RetryPost::Refused,
            backoff: Backoff { base: Duration::from_secs(1), max: Duration::from_secs(60), jitter: Duration::ZERO },
            retry_after_max: Duration::from_secs(60),
            budget: 0.2,
        },
    }
}

fn main() {
    pure::table();
    let mut criterion = Criterion::default().configure_from_args();
    shared::benches(&mut criterion);
    criterion.final_summary();
}
