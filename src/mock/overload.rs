//! Overload instead of refusals: beyond the knee, all requests share the server's time evenly.
//!
//! Service is measured on one clock of work that all requests share. It runs with the wall clock while at most `knee`
//! requests are being worked on, and slower by `knee / working` above that, which is processor sharing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::clock;

/// Timers are no finer than this.
const TICK: Duration = Duration::from_millis(1);

/// The clock of work.
#[derive(Debug)]
pub(super) struct WorkClock(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    knee: Option<u32>,
    working: u32,
    /// Work time that has passed up to `at`.
    passed: Duration,
    at: Instant,
}

/// A request that is being worked on, until it is dropped.
#[derive(Debug)]
pub(super) struct Working(Arc<WorkClock>);

impl Inner {
    fn advance(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        self.passed += match self.knee.filter(|knee| self.working > *knee) {
            Some(knee) => since.mul_f64(f64::from(knee) / f64::from(self.working)),
            None => since,
        };
    }
}

impl WorkClock {
    pub(super) fn new(knee: Option<u32>, now: Instant) -> Self {
        Self(Mutex::new(Inner { knee, working: 0, passed: Duration::ZERO, at: now }))
    }

    /// From `now` on the knee is there.
    pub(super) fn set_knee(&self, knee: Option<u32>, now: Instant) {
        let mut inner = self.0.lock();
        inner.advance(now);
        inner.knee = knee;
    }

    /// One more is worked on. The second value is the work time it starts at.
    pub(super) fn begin(self: &Arc<Self>, now: Instant) -> (Working, Duration) {
        let mut inner = self.0.lock();
        inner.advance(now);
        inner.working += 1;
        (Working(Arc::clone(self)), inner.passed)
    }

    /// When to look again whether the work time `due` has come; `None`: it has.
    ///
    /// The clock of work is never faster than the wall clock, so this is never too late, whatever joins or leaves
    /// meanwhile; in an overload it is too early, and whoever waits asks again.
    pub(super) fn look_again(&self, due: Duration, now: Instant) -> Option<Instant> {
        let mut inner = self.0.lock();
        inner.advance(now);
        let left = due.saturating_sub(inner.passed);
        (!left.is_zero()).then(|| now + left.max(TICK))
    }

    /// Waits until the work time `due` has come.
    pub(super) async fn reach(&self, due: Duration) {
        while let Some(at) = self.look_again(due, clock::now()) {
            tokio::time::sleep_until(at.into()).await;
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut inner = self.0.0.lock();
        inner.advance(clock::now());
        inner.working = inner.working.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn beyond_the_knee_everybody_is_slower() {
        let start = clock::now();
        let clock = Arc::new(WorkClock::new(Some(2), start));
        let begun: Vec<_> = (0..8).map(|_| clock.begin(start)).collect();
        assert_eq!(clock.look_again(SECOND, start), Some(start + SECOND));
        assert_eq!(clock.look_again(SECOND, start + 2 * SECOND), Some(start + 2 * SECOND + SECOND / 2));
        assert_eq!(clock.look_again(SECOND, start + 4 * SECOND), None);
        clock.set_knee(None, start + 4 * SECOND);
        assert_eq!(clock.look_again(2 * SECOND, start + 5 * SECOND), None, "without a knee it is the wall clock");
        drop(begun);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_share_a_server_end_together_and_late() {
        let start = clock::now();
        let clock = Arc::new(WorkClock::new(Some(10), start));
        let ask = |work: Duration| {
            let clock = Arc::clone(&clock);
            tokio::spawn(async move {
                let (_working, begun) = clock.begin(clock::now());
                clock.reach(begun + work).await;
                clock::now().duration_since(start).as_secs_f64()
            })
        };
        let short: Vec<_> = (0..20).map(|_| ask(SECOND)).collect();
        let long: Vec<_> = (0..20).map(|_| ask(2 * SECOND)).collect();
        // 40 share the time of 10 until the short ones are done after 4 s; the other 20 need 2 s more for their half.
        for (tasks, want) in [(short, 4.0), (long, 6.0)] {
            for task in tasks {
                let took = task.await.unwrap();
                assert!((want - 0.01..want + 0.1).contains(&took), "{took} s instead of {want} s");
            }
        }
    }
}
