//! A client that knows everything: the ceiling at every moment and every bucket. What it gets done is what can be done.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tidegate::control::{
    attempt::Attempt,
    cost::{Cost, Demand},
};

use super::upstream::Upstream;

pub struct Oracle {
    /// Half a round trip: what leaves now arrives then.
    leg: Duration,
    queue: VecDeque<usize>,
    in_flight: u32,
    wake: Option<Instant>,
    every: Duration,
}

impl Oracle {
    pub fn new(rtt: Duration) -> Self {
        Self { leg: rtt / 2, queue: VecDeque::new(), in_flight: 0, wake: None, every: Duration::from_millis(100) }
    }

    pub fn arrive(&mut self, id: usize) {
        self.queue.push_back(id);
    }

    pub fn left(&mut self) {
        self.in_flight -= 1;
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        // A ceiling may rise while nothing else happens.
        (!self.queue.is_empty()).then(|| self.wake.unwrap_or(now + self.every).min(now + self.every))
    }

    pub fn next(&mut self, upstream: &mut Upstream, now: Instant) -> Option<(usize, Attempt)> {
        let id = *self.queue.front()?;
        match upstream.foresee(id, self.in_flight, now + self.leg) {
            Ok(()) => {}
            Err(wait) => {
                self.wake = wait.map(|wait| now + wait);
                return None;
            }
        }
        self.queue.pop_front();
        self.in_flight += 1;
        let attempt = Attempt {
            id: id as u64,
            sent: now,
            in_flight: self.in_flight,
            within: true,
            demand: Demand::default(),
            cost: Cost::default(),
            total: Cost::default(),
        };
        Some((id, attempt))
    }
}
