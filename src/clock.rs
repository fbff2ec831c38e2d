//! The only place that reads the clock. Everything else takes `now` as an argument.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::time::Sleep;

thread_local! {
    /// The instant that the running turn has read.
    static TURN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The current instant, or the one at which this turn read the clock. Inside a tokio runtime whose time is paused, it
/// follows that time.
#[must_use]
pub fn now() -> Instant {
    TURN.get().unwrap_or_else(read)
}

/// The current instant, which is the turn's from here on.
#[must_use]
pub fn read_anew() -> Instant {
    let now = read();
    if TURN.get().is_some() {
        TURN.set(Some(now));
    }
    now
}

#[expect(clippy::disallowed_methods, reason = "this is the one place the rule points to")]
fn read() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Runs one turn of a task, in which [`now`] stands still: an exchange would read the clock some twenty times, which is
/// a fortieth of what it costs. A turn is over in microseconds; nginx and HAProxy read their clocks once for all that
/// is ready.
pub fn turn<T>(run: impl FnOnce() -> T) -> T {
    /// Puts back what was there before, also if `run` panics.
    struct Before(Option<Instant>);
    impl Drop for Before {
        fn drop(&mut self) {
            TURN.set(self.0);
        }
    }
    let _before = Before(TURN.replace(Some(read())));
    run()
}

/// A timer that is set once and put off when it rings early, so that a deadline that moves with each request or each
/// piece of a body costs nothing unless it is near.
#[derive(Debug, Default)]
pub struct Alarm {
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// Ready when `by` has passed. Asked again with a later time, it waits for that one.
    pub fn poll_by(&mut self, by: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(by.into())));
        if sleep.deadline() > by.into() {
            sleep.as_mut().reset(by.into());
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= by.into() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(by.into());
        }
    }

    /// Runs `future`, until `by` at the latest. `None`: it took longer.
    pub async fn within<F: Future>(&mut self, by: Instant, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => self.poll_by(by, cx).map(|()| None),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_alarm_rings_at_the_time_it_was_last_asked_for() {
        let start = now();
        let mut alarm = Alarm::default();
        for (by_s, work_s, want) in [(10, 3, true), (20, 4, true), (9, 5, false), (30, 12, true), (22, 60, false)] {
            let by = start + Duration::from_secs(by_s);
            let done = alarm.within(by, tokio::time::sleep(Duration::from_secs(work_s))).await.is_some();
            assert_eq!(done, want, "{by_s} {work_s}");
            if !want {
                assert_eq!(now() - start, Duration::from_secs(by_s), "{by_s} {work_s}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_in_a_turn() {
        let start = now();
        tokio::time::advance(Duration::from_secs(1)).await;
        let inside = turn(|| {
            turn(|| assert_eq!(now() - start, Duration::from_secs(1)));
            now()
        });
        assert_eq!(inside - start, Duration::from_secs(1));
        drop(std::panic::catch_unwind(|| turn(|| panic!("inside"))));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(now() - start, Duration::from_secs(2));
    }
}
