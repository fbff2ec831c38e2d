//! Delays, dates and epochs: within their cap, and as independent readers read them.

#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use tidegate::provider::door::{self, DELAY_MAX};
use tidegate_fuzz::now;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let times = [now(), SystemTime::UNIX_EPOCH];
    for unit in [Duration::from_secs(1), Duration::from_millis(1), DELAY_MAX] {
        let count = door::count_of(unit, text);
        let want = decimal(text.trim()).map(|number| (number * unit.as_secs_f64()).min(DELAY_MAX.as_secs_f64()));
        assert!(near(count, want), "{text:?} of {unit:?}: {count:?}, not {want:?}");
    }
    let (duration, want) = (door::duration(text), go_duration(text.trim()));
    assert!(near(duration, want), "{text:?}: {duration:?}, not {want:?}");

    for now in times {
        let until = door::until_date(text, now);
        assert!(until.is_none_or(|until| until <= DELAY_MAX));
        if is_utc(text.trim())
            && let Ok(at) = humantime::parse_rfc3339(text.trim())
        {
            assert_eq!(until, Some(at.duration_since(now).unwrap_or_default().min(DELAY_MAX)), "{text:?}");
        }
        let reset = door::reset(text, now);
        assert!(reset.is_none_or(|reset| reset <= DELAY_MAX));
        assert_eq!(
            reset.is_some(),
            decimal(text.trim()).is_some() || duration.is_some() || until.is_some(),
            "{text:?}"
        );
        if let Some(seconds) = decimal(text.trim()).filter(|seconds| *seconds < 1e8) {
            assert!(near(reset, Some(seconds.min(DELAY_MAX.as_secs_f64()))), "{text:?}: {reset:?}");
        }
    }
});

fn near(got: Option<Duration>, want: Option<f64>) -> bool {
    match (got, want) {
        (None, None) => true,
        (Some(got), Some(want)) => {
            // What is cut off after a billionth, times the largest unit, and what a float cannot hold.
            got <= DELAY_MAX && (got.as_secs_f64() - want).abs() <= 2e-4_f64.max(want * 1e-9)
        }
        _ => false,
    }
}

/// Looks like `2026-11-21T00:00:59.5Z`. The other reader takes more, such as `ZZ`, and a leap second is another second to
/// it.
fn is_utc(text: &str) -> bool {
    let Some(text) = text.strip_suffix('Z') else { return false };
    let (time, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    time.len() == 19
        && !time.contains(['+', 'Z'])
        && !time.ends_with(":60")
        && is_digits(fraction)
        && fraction.len() <= 9
}

/// `[0-9]+(\.[0-9]+)?`.
fn decimal(text: &str) -> Option<f64> {
    let is_digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    (is_digits(whole) && is_digits(fraction)).then(|| text.parse().ok()).flatten()
}

fn go_duration(text: &str) -> Option<f64> {
    let mut total = None;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| c.is_alphabetic())?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = Some(total.unwrap_or(0.0) + decimal(number)? * seconds);
        rest = after;
    }
    total.map(|total| total.min(DELAY_MAX.as_secs_f64()))
}
