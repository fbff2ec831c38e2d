//! Sums of money in answers, always in dollars.

use http::HeaderValue;
use serde::Deserialize;

use crate::control::cost::COST_NANOS_MAX;

/// The billionths of a dollar that the JSON value at the beginning of `text` says. `None`: it says none, or more than is
/// believed.
pub(super) fn told_nanos(text: &[u8]) -> Option<u64> {
    let dollars = Option::<f64>::deserialize(&mut serde_json::Deserializer::from_slice(text)).ok()??;
    let nanos = (dollars * 1e9).round();
    // The casts drop nothing: the numbers are whole, and small.
    (dollars >= 0.0 && nanos <= COST_NANOS_MAX as f64).then_some(nanos as u64)
}

/// The dollars a header says: a decimal number and nothing else. Debts are negative.
#[must_use]
pub fn dollars(value: &HeaderValue) -> Option<f64> {
    let text = value.to_str().ok()?.trim();
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let dollars: f64 = if is_plain { text.parse().ok()? } else { return None };
    dollars.is_finite().then_some(dollars)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_read_to_the_billionth() {
        for (text, want) in [
            ("0.00014,", Some(140_000)),
            ("1.4e-05}", Some(14_000)),
            ("0", Some(0)),
            ("3 ", Some(3_000_000_000)),
            ("0.1", Some(100_000_000)),
            ("0.0000000004", Some(0)),
            ("-0.1", None),
            ("10000", Some(COST_NANOS_MAX)),
            ("10001", None),
            ("1e999", None),
            ("null", None),
            ("\"0.1\"", None),
            ("{\"total\":1}", None),
            ("", None),
        ] {
            assert_eq!(told_nanos(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn a_balance_is_a_decimal_number() {
        for (text, want) in [
            ("12.34", Some(12.34)),
            (" 7 ", Some(7.0)),
            ("-0.5", Some(-0.5)),
            ("0", Some(0.0)),
            (".5", Some(0.5)),
            ("$12.34", None),
            ("12,34", None),
            ("1.2.3", None),
            ("1e3", None),
            ("inf", None),
            ("NaN", None),
            ("--1", None),
            ("-", None),
            (".", None),
            ("", None),
        ] {
            assert_eq!(dollars(&HeaderValue::from_str(text).unwrap()), want, "{text}");
        }
        assert_eq!(dollars(&HeaderValue::from_str(&"9".repeat(400)).unwrap()), None);
    }
}
