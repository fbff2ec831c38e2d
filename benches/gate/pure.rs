//! The core alone: nanoseconds and heap allocations. Its clock is virtual; only the rounds themselves are timed.

use std::{
    collections::VecDeque,
    hint::black_box,
    time::{Duration, Instant},
};

use stats_alloc::Region;
use tidegate::control::{
    attempt::Attempt,
    gate::{GateCore, Heard, Waiter},
    limit::{Algorithm, Outcome},
    queue::FlowId,
    signals::{Budget, Budgets, Dimension, Refill, Signals},
};

use crate::{COUNTED, DEMAND, WAITING, settings};

const ROUNDS: usize = 5;
const EXCHANGES: u32 = 50_000;
const CEILING: u32 = 50;
const FLOWS: u32 = 16;
/// Virtual time between two exchanges.
const TICK: Duration = Duration::from_micros(200);

/// As much of everything as an answer may say, and never near its end.
fn budgets(count: u32) -> Signals {
    let mut budgets = Budgets::default();
    for (id, dimension) in (0..count).zip(Dimension::ALL.into_iter().cycle()) {
        budgets.add(Budget {
            id,
            dimension,
            limit: Some(1_000_000_000_000),
            remaining: 999_999_999_000,
            reset: Some(Duration::from_secs(30)),
            window: Some(Duration::from_secs(60)),
            refill: Some(if id % 2 == 0 { Refill::Continuous } else { Refill::Window }),
        });
    }
    Signals { budgets, ..Signals::default() }
}

struct Run {
    core: GateCore<u32>,
    now: Instant,
    heard: Heard,
    inside: VecDeque<Attempt>,
    joined: u32,
    granted: u32,
}

impl Run {
    fn new(algorithm: Algorithm, signals: Signals) -> Self {
        let now = Instant::now();
        let heard = Heard { first_byte: Duration::from_millis(200), outcome: Outcome::Accepted, signals };
        Self {
            core: GateCore::new(settings(algorithm, CEILING), 1, now),
            now,
            heard,
            inside: VecDeque::new(),
            joined: 0,
            granted: 0,
        }
    }

    fn uncontended(&mut self) {
        self.now += TICK;
        let attempt = self.core.try_enter(&DEMAND, self.now).expect("nobody is in the way");
        self.ends(&attempt);
    }

    fn ends(&mut self, attempt: &Attempt) {
        black_box(self.core.observe(attempt, &self.heard, self.now));
        self.core.leave(attempt, false, self.now);
    }

    fn joins(&mut self) {
        self.joined += 1;
        let place = self.core.arrive();
        let waiter = Waiter { demand: DEMAND, deadline: self.now + Duration::from_secs(3600), wake: self.joined };
        let ticket = self.core.enqueue(FlowId(u64::from(self.joined % FLOWS)), place, waiter, self.now);
        black_box(ticket.expect("there is room"));
    }

    fn pump(&mut self) {
        while let Some((_, attempt)) = self.core.next_grant(self.now) {
            self.inside.push_back(attempt);
            self.granted += 1;
        }
    }

    /// One ends, one enters, one joins; about ten thousand wait all the time.
    fn contended(&mut self) {
        self.now += TICK;
        if let Some(attempt) = self.inside.pop_front() {
            self.ends(&attempt);
        }
        self.pump();
        black_box(self.core.wake_at(self.now));
        if self.joined - self.granted < WAITING {
            self.joins();
        }
    }
}

/// Best time of a round, and the allocations of the last.
fn measure(name: &str, algorithm: Algorithm, run: &mut Run, exchange: fn(&mut Run)) {
    for _ in 0..EXCHANGES {
        exchange(run);
    }
    run.core.take_events();
    let (mut best, mut allocations, mut bytes) = (Duration::MAX, 0, 0);
    for _ in 0..ROUNDS {
        let region = Region::new(COUNTED);
        let start = Instant::now();
        for _ in 0..EXCHANGES {
            exchange(run);
        }
        best = best.min(start.elapsed());
        let heap = region.change();
        (allocations, bytes) = (heap.allocations + heap.reallocations, heap.bytes_allocated);
        run.core.take_events();
    }
    let each = |count: usize| count as f64 / f64::from(EXCHANGES);
    let nanos = best.as_nanos() as f64 / f64::from(EXCHANGES);
    println!("{name:<22} {:<6} {nanos:>9.0} {:>12.3} {:>11.1}", algorithm.name(), each(allocations), each(bytes));
}

/// Prints the table.
pub(crate) fn table() {
    println!("{:<22} {:<6} {:>9} {:>12} {:>11}", "one exchange", "limit", "ns", "allocations", "heap bytes");
    for algorithm in [Algorithm::Tide, Algorithm::Aimd] {
        measure("uncontended", algorithm, &mut Run::new(algorithm, Signals::default()), Run::uncontended);
        measure("6 reported budgets", algorithm, &mut Run::new(algorithm, budgets(6)), Run::uncontended);
        let mut run = Run::new(algorithm, Signals::default());
        (0..WAITING).for_each(|_| run.joins());
        measure("10 000 waiting", algorithm, &mut run, Run::contended);
        let mut run = Run::new(algorithm, budgets(6));
        (0..WAITING).for_each(|_| run.joins());
        measure("10 000 and 6 budgets", algorithm, &mut run, Run::contended);
    }
}
