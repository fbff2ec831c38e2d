//! The notations in which upstreams write delays: numbers, Go and protobuf durations, dates, epochs.
//!
//! Every result lies between zero and [`DELAY_MAX`]; what follows no notation is `None`. Nothing here overflows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[cfg(test)]
mod tests;

/// Longest delay that is reported, whatever was said. A guess: the longest window with a reset is a day.
pub(super) const DELAY_MAX: Duration = Duration::from_secs(24 * 60 * 60);

const SECOND: u128 = 1_000_000_000;

/// A count of `unit`s: digits with an optional fraction, as in `2` and `1.5`.
pub(super) fn count_of(unit: Duration, text: &str) -> Option<Duration> {
    nanos(text.trim(), unit.as_nanos()).map(capped)
}

/// A Go duration (`1h2m3.5s`, `120ms`); the protobuf JSON form (`34.07s`) is a case of it. A bare number is not.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        // The unit is all that precedes the next digit, so that `120ms` cannot be read as `120m`.
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        total = total.saturating_add(nanos(number, unit_nanos(unit)?)?);
        rest = tail;
    }
    Some(capped(total))
}

/// Time from `now` to the date in `text`: the three forms of RFC 9110, 5.6.7, or RFC 3339. Zero if it has passed.
pub(super) fn until_date(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    date(text).or_else(|| rfc3339(text)).map(|at| until(at, now))
}

/// A date in one of the three forms of RFC 9110, 5.6.7.
pub(super) fn date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text.trim()).ok()
}

/// How a reset was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    /// A date.
    Date,
    /// Seconds from now.
    Delta,
    /// A Unix time, in seconds or milliseconds.
    Epoch,
    /// A number with its unit, or several.
    Units,
}

/// The value of a reset header: seconds from now, an epoch in seconds or milliseconds, a duration, or a date.
///
/// The first three share their header names between providers; only the magnitude tells them apart.
pub(super) fn reset(text: &str, now: SystemTime) -> Option<(Duration, Notation)> {
    let text = text.trim();
    let Some(seconds) = nanos(text, SECOND) else {
        let units = duration(text).map(|after| (after, Notation::Units));
        return units.or_else(|| Some((until_date(text, now)?, Notation::Date)));
    };
    if seconds < EPOCH_SECONDS_MIN * SECOND {
        Some((capped(seconds), Notation::Delta))
    } else if seconds < EPOCH_MILLIS_MIN * SECOND {
        Some((until_epoch(seconds, now), Notation::Epoch))
    } else {
        Some((until_epoch(seconds / 1000, now), Notation::Epoch))
    }
}

/// From here on a bare number is an epoch in seconds (March 1973); below, a delay (up to three years).
const EPOCH_SECONDS_MIN: u128 = 100_000_000;
/// From here on a bare number is an epoch in milliseconds (March 1973); below, one in seconds (up to the year 5138).
const EPOCH_MILLIS_MIN: u128 = 100_000_000_000;

fn until_epoch(nanos: u128, now: SystemTime) -> Duration {
    u64::try_from(nanos)
        .ok()
        .and_then(|nanos| UNIX_EPOCH.checked_add(Duration::from_nanos(nanos)))
        .map_or(DELAY_MAX, |at| until(at, now))
}

fn until(at: SystemTime, now: SystemTime) -> Duration {
    at.duration_since(now).unwrap_or_default().min(DELAY_MAX)
}

fn capped(nanos: u128) -> Duration {
    u64::try_from(nanos).map_or(DELAY_MAX, |nanos| Duration::from_nanos(nanos).min(DELAY_MAX))
}

fn unit_nanos(unit: &str) -> Option<u128> {
    match unit {
        "h" => Some(3600 * SECOND),
        "m" => Some(60 * SECOND),
        "s" => Some(SECOND),
        "ms" => Some(1_000_000),
        "us" | "\u{b5}s" | "\u{3bc}s" => Some(1_000), // both code points that print as µ
        "ns" => Some(1),
        _ => None,
    }
}

/// `[0-9]+(\.[0-9]+)?` units, in nanoseconds.
fn nanos(text: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let whole = u128::from(digits(whole)?);
    digits(fraction)?;
    let billionths = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0, |sum: u128, digit| sum * 10 + u128::from(digit - b'0'));
    Some(whole.saturating_mul(unit).saturating_add(billionths * unit / SECOND))
}

/// One or more digits; a number too big for the type is its maximum.
fn digits(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn rfc3339(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.split_once(['T', 't', ' '])?;
    let (clock, zone) = clock.split_at(clock.find(['Z', 'z', '+', '-'])?);
    let mut date = date.splitn(3, '-');
    let days = days_since_epoch(
        field(date.next()?, 4, 0..=9999)?,
        field(date.next()?, 2, 1..=12)?,
        field(date.next()?, 2, 1..=31)?,
    );
    let mut clock = clock.splitn(3, ':');
    let hours = field(clock.next()?, 2, 0..=23)?;
    let minutes = field(clock.next()?, 2, 0..=59)?;
    let second = clock.next()?;
    // 60 is a leap second. Two digits, then perhaps a fraction.
    field(second.get(..2)?, 2, 0..=60)?;
    let second = u64::try_from(nanos(second, SECOND)?).ok()?;
    let seconds = days * 86_400 + hours * 3600 + minutes * 60 - zone_seconds(zone)?;
    // Before 1970 is long past, and the past is all the same.
    let seconds = u64::try_from(seconds).unwrap_or(0);
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + Duration::from_nanos(second))
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if matches!(zone, "Z" | "z") {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    Some(sign * (field(hours, 2, 0..=23)? * 3600 + field(minutes, 2, 0..=59)? * 60))
}

fn field(text: &str, width: usize, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
    let value = i64::try_from(digits(text)?).ok()?;
    (text.len() == width && range.contains(&value)).then_some(value)
}

/// Days from 1 January 1970. Source: Howard Hinnant, "chrono-compatible low-level date algorithms", `days_from_civil`.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}
