//! How long a refusal takes to arrive: smoothed mean and deviation, as TCP does for its timer (RFC 6298, 2).

use std::time::Duration;

/// Taken before the first refusal was seen and no connect was timed either.
const UNKNOWN: Duration = Duration::from_millis(70);
/// Shortest time in which a full limit counts as unrefused: below it, timers and scheduling blur the picture.
const UNREFUSED_MIN: Duration = Duration::from_millis(20);
/// Longest such time: a server that queues for seconds before it refuses must not stop the search.
const UNREFUSED_MAX: Duration = Duration::from_secs(2);
/// Weight of a new refusal in the mean …
const MEAN: f64 = 1.0 / 8.0;
/// … and in the deviation.
const DEVIATION: f64 = 1.0 / 4.0;
/// Deviations beyond the mean that a refusal may take.
const DEVIATIONS: f64 = 4.0;
/// A refusal that took this many times as long as the shortest is late …
const LATE: f64 = 2.0;
/// … if it is by this many seconds.
const LATE_MIN: f64 = 0.02;
/// A little more than that, for what the machines need.
const SLACK: f64 = 1.1;

/// The round trip of refusals.
#[derive(Debug)]
pub struct Trip {
    /// Of refusals, in seconds: mean and deviation.
    known: Option<(f64, f64)>,
    /// The shortest connect, in seconds: an idea until a refusal has been seen. The longer ones had to wait for a
    /// processor, where many connect at once.
    connect: Option<f64>,
    /// The shortest there was, in seconds.
    least: Option<f64>,
    /// The mean, which is asked for with every attempt.
    takes: Duration,
}

impl Default for Trip {
    fn default() -> Self {
        Self { known: None, connect: None, least: None, takes: UNKNOWN }
    }
}

impl Trip {
    /// A connect took this long: an idea of what a refusal would.
    pub fn connected(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.connect = Some(self.connect.unwrap_or(took).min(took));
        if self.known.is_none() {
            self.least = self.connect;
        }
        self.takes = Duration::from_secs_f64(self.mean_and_deviation().0);
    }

    /// A refusal took this long.
    pub fn note(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        self.least = Some(self.least.unwrap_or(took).min(took));
        self.known = Some(match self.known {
            None => (took, took / 2.0),
            Some((mean, deviation)) => {
                (mean + MEAN * (took - mean), deviation + DEVIATION * ((took - mean).abs() - deviation))
            }
        });
        self.takes = Duration::from_secs_f64(self.mean_and_deviation().0);
    }

    /// A refusal that took this long was decided a while before it was said.
    #[must_use]
    pub fn is_late(&self, took: Duration) -> bool {
        self.least.is_some_and(|least| took.as_secs_f64() > LATE * least + LATE_MIN)
    }

    /// The mean.
    #[must_use]
    pub fn takes(&self) -> Duration {
        self.takes
    }

    /// Time after which an attempt that was not refused will not be any more.
    #[must_use]
    pub fn unrefused_after(&self) -> Duration {
        let (mean, deviation) = self.mean_and_deviation();
        Duration::from_secs_f64(SLACK * (mean + DEVIATIONS * deviation)).clamp(UNREFUSED_MIN, UNREFUSED_MAX)
    }

    fn mean_and_deviation(&self) -> (f64, f64) {
        let first = self.connect.unwrap_or(UNKNOWN.as_secs_f64());
        self.known.unwrap_or((first, first / 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_round_trip_is_trusted_and_a_scattered_one_gets_room() {
        let mut trip = Trip::default();
        let ms = Duration::from_millis;
        assert_eq!(trip.takes(), UNKNOWN);
        trip.connected(ms(999));
        trip.connected(ms(60));
        trip.connected(ms(200));
        assert!(trip.is_late(ms(500)) && !trip.is_late(ms(100)));
        assert_eq!(trip.takes(), ms(60));
        trip.note(ms(100));
        assert_eq!(trip.takes(), ms(100), "what a refusal took counts more than any connect");
        trip.connected(ms(1));
        assert_eq!(trip.takes(), ms(100));
        for _ in 0..50 {
            trip.note(ms(60));
        }
        assert!(trip.unrefused_after() < ms(70), "{:?}", trip.unrefused_after());
        for n in 0..50 {
            trip.note(ms(if n % 2 == 0 { 0 } else { 1000 }));
        }
        assert!(trip.unrefused_after() >= ms(1000), "{:?}", trip.unrefused_after());
    }
}
