use proptest::prelude::*;

use super::*;

/// Thu, 21 Aug 2025 12:40:00 GMT.
const NOW_EPOCH: u64 = 1_755_780_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_EPOCH)
}

fn millis(millis: u64) -> Option<Duration> {
    Some(Duration::from_millis(millis))
}

#[test]
fn durations_are_read_by_their_units() {
    for (text, want) in [
        ("12ms", millis(12)),
        ("1s", millis(1_000)),
        ("8.64s", millis(8_640)),
        ("6m0s", millis(360_000)),
        ("1m30s", millis(90_000)),
        ("120ms", millis(120)),
        ("1h2m3.5s", millis(3_723_500)),
        ("2m59.56s", millis(179_560)),
        ("34.074824224s", Some(Duration::from_nanos(34_074_824_224))),
        ("65205s", millis(65_205_000)),
        ("900ms", millis(900)),
        ("1500\u{b5}s", Some(Duration::from_micros(1500))),
        ("7us8ns", Some(Duration::from_nanos(7_008))),
        ("48h", Some(DELAY_MAX)),
        ("99999999999999999999999999h", Some(DELAY_MAX)),
        ("", None),
        ("12", None),
        ("s", None),
        ("-5s", None),
        ("1.s", None),
        ("1.2.3s", None),
        ("5 s", None),
        ("1d", None),
    ] {
        assert_eq!(duration(text), want, "{text}");
    }
}

#[test]
fn resets_are_told_apart_by_magnitude_and_form() {
    for (text, want) in [
        ("0", millis(0)),
        ("1.5", millis(1_500)),
        (" 37 ", millis(37_000)),
        ("99999999", Some(DELAY_MAX)),
        ("1755780030", millis(30_000)),
        ("1755780030.25", millis(30_250)),
        ("1755780030500", millis(30_500)),
        ("1755779000", millis(0)),
        ("100000000", millis(0)),
        ("99999999999999999999999999999999", Some(DELAY_MAX)),
        ("6m0s", millis(360_000)),
        ("2025-08-21T12:40:59Z", millis(59_000)),
        ("2025-08-21T14:40:59.25+02:00", millis(59_250)),
        ("2025-08-21t08:10:59z", millis(0)),
        ("2025-08-21T08:10:59-04:30", millis(59_000)),
        ("1955-08-21T08:10:59Z", millis(0)),
        ("Thu, 21 Aug 2025 12:40:07 GMT", millis(7_000)),
        ("Tue Feb 16 2021 09:02:42 GMT+0100 (CET)", None),
        ("2025-08-21T12:40:59", None),
        ("2025-13-21T12:40:59Z", None),
        ("2025-08-21T12:40:5\u{e9}Z", None),
        ("-1", None),
        ("soon", None),
        ("NaN", None),
        ("1e3", None),
    ] {
        assert_eq!(reset(text, now()).map(|(after, _)| after), want, "{text}");
    }
}

#[test]
fn the_notation_of_a_reset_is_kept() {
    for (text, want) in [
        ("30", Notation::Delta),
        ("99999999.9", Notation::Delta),
        ("100000000", Notation::Epoch),
        ("1755780030", Notation::Epoch),
        ("1755780030500", Notation::Epoch),
        ("6m0s", Notation::Units),
        ("2025-08-21T12:40:59Z", Notation::Date),
        ("Thu, 21 Aug 2025 12:40:07 GMT", Notation::Date),
    ] {
        assert_eq!(reset(text, now()).map(|(_, notation)| notation), Some(want), "{text}");
    }
}

#[test]
fn dates_are_read_in_all_three_forms() {
    for text in ["Thu, 21 Aug 2025 12:40:59 GMT", "Thursday, 21-Aug-25 12:40:59 GMT", "Thu Aug 21 12:40:59 2025"] {
        assert_eq!(until_date(text, now()), millis(59_000), "{text}");
    }
}

#[test]
fn leap_days_and_century_years_fall_on_the_right_day() {
    for (date, days) in [((1970, 1, 1), 0), ((2000, 2, 29), 11_016), ((2000, 3, 1), 11_017), ((2100, 3, 1), 47_541)] {
        assert_eq!(days_since_epoch(date.0, date.1, date.2), days, "{date:?}");
    }
}

proptest! {
    #[test]
    fn no_text_breaks_a_bound(text in "\\PC*", shaped in "[-+0-9hmsunTZ:. ,]{0,40}") {
        for text in [text, shaped] {
            let after_reset = reset(&text, now()).map(|(after, _)| after);
            for found in [duration(&text), after_reset, until_date(&text, now())] {
                prop_assert!(found.unwrap_or_default() <= DELAY_MAX);
            }
        }
    }
}
