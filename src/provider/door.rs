//! What the fuzz targets in `tests/fuzz` call of this room beside what it exports. Compiled for them alone, so that
//! nothing of it is reachable in a release.

use std::time::{Duration, SystemTime};

use super::durations;

/// `durations::DELAY_MAX`.
pub const DELAY_MAX: Duration = durations::DELAY_MAX;

/// `durations::count_of`.
#[must_use]
pub fn count_of(unit: Duration, text: &str) -> Option<Duration> {
    durations::count_of(unit, text)
}

/// `durations::duration`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    durations::duration(text)
}

/// `durations::until_date`.
#[must_use]
pub fn until_date(text: &str, now: SystemTime) -> Option<Duration> {
    durations::until_date(text, now)
}

/// `durations::reset`, without its notation.
#[must_use]
pub fn reset(text: &str, now: SystemTime) -> Option<Duration> {
    durations::reset(text, now).map(|(after, _)| after)
}
