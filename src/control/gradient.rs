//! Gradient, as Netflix concurrency-limits defines it (`Gradient2Limit` inside `WindowedLimit`): compares the delay of
//! now with the delay of long.
//!
//! Samples s (time to first byte) are gathered in windows of 1 s, of which the mean and the most in flight, n, count;
//! a window of fewer than 10 is thrown away. For each window: long = average(s) over 600 windows; if long/s > 2,
//! long ← 0.95·long; n < L/2: hold; g = clamp(1.5·long/s, 0.5, 1); L ← 0.8·L + 0.2·(L·g + 4).
//!
//! Refusals do not move it, as in the library: an upstream that refuses is held off by the gate's pauses alone, and the
//! limit creeps up meanwhile. It is meant for upstreams that queue instead of refusing. Below ten answers per second no
//! window is ever ready and the limit stays where it began, unless `window` is longer or `window_samples_min` smaller.

use std::time::{Duration, Instant};

use super::limit::{Change, ChangeReason, Sample};

/// The long average is the plain mean of this many windows first. Source: `ExpAvgMeasurement(longWindow, 10)`.
const WARM_UP: u32 = 10;

/// The settings of [`Gradient`]. The defaults are Netflix's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientSettings {
    /// How many times the long average a window may take without shrinking the limit. At least 1.
    pub tolerance: f64,
    /// Share of the new estimate in the limit, `0 < smoothing <= 1`.
    pub smoothing: f64,
    /// Attempts added to each estimate, so that it grows while delay does not.
    pub queue: u32,
    /// Windows that the long average remembers: each new one weighs 2/(`long_window` + 1). At least 1.
    pub long_window: u32,
    /// Length of a window.
    pub window: Duration,
    /// Samples without which a window is thrown away. At least 1.
    pub window_samples_min: u32,
}

impl Default for GradientSettings {
    fn default() -> Self {
        Self {
            tolerance: 1.5,
            smoothing: 0.2,
            queue: 4,
            long_window: 600,
            window: Duration::from_secs(1),
            window_samples_min: 10,
        }
    }
}

/// The state of one account's limit.
#[derive(Debug)]
pub struct Gradient {
    /// The limit with its fraction, within `min ..= max`.
    estimate: f64,
    min: u32,
    max: u32,
    settings: GradientSettings,
    /// The long average, in seconds.
    long: f64,
    /// Windows in `long`, up to [`WARM_UP`].
    warm: u32,
    window: Window,
    /// When the window may be closed; `None`: the first sample closes it, as in the library.
    closes: Option<Instant>,
}

#[derive(Debug, Default)]
struct Window {
    samples: u32,
    sum: Duration,
    in_flight_max: u32,
}

impl Gradient {
    /// Begins at `initial` and stays within `min ..= max`.
    #[must_use]
    pub fn new(initial: u32, min: u32, max: u32, settings: GradientSettings) -> Self {
        Self {
            estimate: f64::from(initial.clamp(min, max)),
            min,
            max,
            settings,
            long: 0.0,
            warm: 0,
            window: Window::default(),
            closes: None,
        }
    }

    /// How many attempts may be in flight.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.estimate as u32
    }

    /// An attempt was accepted.
    pub fn accepted(&mut self, sample: &Sample) -> Option<Change> {
        self.window.samples = self.window.samples.saturating_add(1);
        self.window.sum = self.window.sum.saturating_add(sample.first_byte);
        self.window.in_flight_max = self.window.in_flight_max.max(sample.in_flight);
        if self.closes.is_some_and(|closes| sample.now <= closes) {
            return None;
        }
        self.closes = Some(sample.now + self.settings.window);
        let window = std::mem::take(&mut self.window);
        if window.samples < self.settings.window_samples_min {
            return None;
        }
        self.update(window.sum.as_secs_f64() / f64::from(window.samples), window.in_flight_max)
    }

    /// One window: its mean in seconds and the most in flight.
    fn update(&mut self, mean: f64, in_flight: u32) -> Option<Change> {
        // A delay below the clock's resolution must not divide by zero.
        let mean = mean.max(1e-9);
        let long = self.remember(mean);
        if long / mean > 2.0 {
            self.long *= 0.95;
        }
        if f64::from(in_flight) < self.estimate / 2.0 {
            return None;
        }
        let GradientSettings { tolerance, smoothing, queue, .. } = self.settings;
        let gradient = (tolerance * long / mean).clamp(0.5, 1.0);
        let wanted = self.estimate * gradient + f64::from(queue);
        let from = self.value();
        self.estimate =
            (self.estimate * (1.0 - smoothing) + wanted * smoothing).clamp(f64::from(self.min), f64::from(self.max));
        let to = self.value();
        let reason = if to > from { ChangeReason::Growth } else { ChangeReason::Delay };
        (to != from).then_some(Change { from, to, reason })
    }

    fn remember(&mut self, mean: f64) -> f64 {
        if self.warm < WARM_UP {
            self.warm += 1;
            self.long += (mean - self.long) / f64::from(self.warm);
        } else {
            self.long += (mean - self.long) * 2.0 / (f64::from(self.settings.long_window) + 1.0);
        }
        self.long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(in_flight: u32, first_byte_ms: u64, now: Instant) -> Sample {
        Sample::of(in_flight, Duration::from_millis(first_byte_ms), now)
    }

    fn gradient(limit: u32) -> Gradient {
        Gradient::new(limit, 1, 1000, GradientSettings::default())
    }

    fn near(found: f64, want: f64, why: &str) {
        assert!((found - want).abs() < 1e-6, "{why}: {found}, not {want}");
    }

    #[test]
    fn each_step_follows_from_the_gradient() {
        for (limit, long, mean, in_flight, want, why) in [
            (100, 1.0, 1.0, 100, 100.8, "g = 1: 80 + 0.2·(100 + 4)"),
            (100, 1.0, 1.4, 100, 100.8, "within the tolerance: g = 1"),
            (100, 1.0, 2.0, 100, 95.8, "g = 0.75: 80 + 0.2·(75 + 4)"),
            (100, 1.0, 9.0, 100, 90.8, "g = 0.5 at least: 80 + 0.2·(50 + 4)"),
            (100, 1.0, 2.0, 50, 95.8, "half of it is in use"),
            (100, 1.0, 2.0, 49, 100.0, "less than half of it is in use"),
            (1000, 1.0, 1.0, 1000, 1000.0, "the top"),
            (1, 1.0, 3.0, 1, 1.7, "g = 0.5: 0.8 + 0.2·(0.5 + 4)"),
        ] {
            let mut gradient = gradient(limit);
            // As if the average had been warm and would not move with one more window.
            (gradient.long, gradient.warm, gradient.settings.long_window) = (long, WARM_UP, u32::MAX);
            gradient.update(mean, in_flight);
            assert!((gradient.estimate - want).abs() < 1e-4, "{why}: {}, not {want}", gradient.estimate);
        }
    }

    #[test]
    fn the_long_average_is_a_mean_first_then_fades_and_falls_faster_after_overload() {
        let mut gradient = gradient(10);
        for seconds in 1..=10 {
            gradient.remember(f64::from(seconds));
        }
        near(gradient.long, 5.5, "the mean of 1 … 10");
        near(gradient.remember(11.51), 5.5 + 6.01 * 2.0 / 601.0, "an average over 600");
        gradient.long = 6.01;
        gradient.update(3.005, 0);
        near(gradient.long, 6.0, "6.01 - 3.005·2/601, less than twice the mean");
        gradient.long = 6.01;
        gradient.update(0.0601, 0);
        near(gradient.long, 0.95 * (6.01 - 5.9499 * 2.0 / 601.0), "above twice the mean: 5 % less");
    }

    #[test]
    fn windows_last_a_second_and_need_ten_samples() {
        let start = crate::clock::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut gradient = gradient(100);
        assert_eq!(gradient.accepted(&sample(100, 100, at(0))), None, "opens the first window");
        for n in 1..=8 {
            assert_eq!(gradient.accepted(&sample(100, 100, at(n))), None);
        }
        assert_eq!(gradient.accepted(&sample(100, 100, at(1001))), None, "nine samples");
        assert_eq!(gradient.warm, 0, "a window of nine is thrown away");
        for n in 0..9 {
            gradient.accepted(&sample(if n == 3 { 100 } else { 10 }, 100, at(1002 + n)));
        }
        assert_eq!(gradient.accepted(&sample(10, 1100, at(2001))), None, "not longer than a second");
        gradient.accepted(&sample(10, 200, at(2002)));
        near(gradient.long, 2.2 / 11.0, "the mean of nine times 0.1, 1.1 and 0.2");
        near(gradient.estimate, 100.8, "the most in flight was 100");
    }

    #[test]
    fn rising_delay_shrinks_it_and_the_change_says_so() {
        let mut gradient = gradient(100);
        for _ in 0..WARM_UP {
            gradient.update(1.0, 0);
        }
        let change = gradient.update(4.0, 100);
        assert_eq!(change.map(|change| (change.from, change.reason)), Some((100, ChangeReason::Delay)));
        let growth = gradient.update(1.0, 100);
        assert_eq!(growth.map(|change| change.reason), Some(ChangeReason::Growth));
    }
}
