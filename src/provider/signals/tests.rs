use std::{collections::HashSet, time::UNIX_EPOCH};

use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::provider::durations::DELAY_MAX;

/// Thu, 21 Aug 2025 12:40:00 GMT.
const DATE: &str = "Thu, 21 Aug 2025 12:40:00 GMT";

/// An hour after `DATE`: a skewed clock that no result may depend on.
fn local_now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_755_783_600)
}

fn head(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.append("date", HeaderValue::from_static(DATE));
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

fn refused(lines: &[(&'static str, &'static str)]) -> Signals {
    from_head(Preset::Generic, StatusCode::TOO_MANY_REQUESTS, &head(lines), local_now)
}

type Lines = &'static [(&'static str, &'static str)];

#[test]
fn the_most_trusted_readable_delay_wins() {
    for (name, lines, want_ms) in [
        ("seconds", &[("retry-after", "20")] as Lines, Some(20_000)),
        ("fraction", &[("retry-after", "1.5")], Some(1_500)),
        ("zero", &[("retry-after", "0")], Some(0)),
        ("milliseconds first", &[("retry-after", "2"), ("retry-after-ms", "1234.5")], Some(1_234)),
        ("Azure services", &[("retry-after", "2"), ("x-ms-retry-after-ms", "750")], Some(750)),
        ("Amazon, milliseconds", &[("x-amz-retry-after", "1500")], Some(1_500)),
        ("after retry-after", &[("x-amz-retry-after", "1500"), ("retry-after", "3")], Some(3_000)),
        ("gateway", &[("x-ratelimit-retry-after", "4")], Some(4_000)),
        ("garbage falls through", &[("retry-after-ms", "soon"), ("retry-after", "3")], Some(3_000)),
        ("IMF-fixdate", &[("retry-after", "Thu, 21 Aug 2025 12:40:59 GMT")], Some(59_000)),
        ("RFC 850", &[("retry-after", "Thursday, 21-Aug-25 12:40:59 GMT")], Some(59_000)),
        ("asctime", &[("retry-after", "Thu Aug 21 12:40:59 2025")], Some(59_000)),
        ("date in the past", &[("retry-after", "Thu, 21 Aug 2025 12:39:00 GMT")], Some(0)),
        ("the longer of two", &[("retry-after", "3"), ("retry-after", "9")], Some(9_000)),
        ("one of two is garbage", &[("retry-after", "x"), ("retry-after", "9")], Some(9_000)),
        ("a month is capped", &[("retry-after", "2592000")], Some(86_400_000)),
        (
            "more digits than any type",
            &[("retry-after", "99999999999999999999999999999999999999999")],
            Some(86_400_000),
        ),
        ("negative", &[("retry-after", "-5")], None),
        ("exponent", &[("retry-after", "1e3")], None),
        ("empty", &[("retry-after", "")], None),
        ("prose date", &[("retry-after", "Tue Feb 16 2021 09:02:42 GMT+0100 (CET)")], None),
    ] {
        let want = want_ms.map(Duration::from_millis);
        let got = refused(lines).retry_after;
        let got = got.map(|delay| Duration::from_millis(u64::try_from(delay.as_millis()).unwrap()));
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn a_date_is_compared_with_the_local_clock_only_without_a_date_header() {
    let mut headers = head(&[("retry-after", "Thu, 21 Aug 2025 13:40:30 GMT")]);
    headers.remove("date");
    let signals = from_head(Preset::Generic, StatusCode::SERVICE_UNAVAILABLE, &headers, local_now);
    assert_eq!(signals.retry_after, Some(Duration::from_secs(30)));
}

#[test]
fn a_polling_hint_is_not_a_delay() {
    let headers = head(&[("retry-after", "5")]);
    for status in [StatusCode::OK, StatusCode::ACCEPTED, StatusCode::SEE_OTHER] {
        assert_eq!(from_head(Preset::Generic, status, &headers, local_now).retry_after, None, "{status}");
    }
}

#[test]
fn the_verdict_on_retrying_is_read_exactly() {
    for (lines, want) in [
        (&[("x-should-retry", "true")] as Lines, Some(true)),
        (&[("x-should-retry", "false")], Some(false)),
        (&[("x-should-retry", "True")], None),
        (&[("x-should-retry", "1")], None),
        (&[("x-should-retry", "true"), ("x-should-retry", "false")], Some(false)),
        (&[], None),
    ] {
        assert_eq!(refused(lines).should_retry, want, "{lines:?}");
    }
}

#[test]
fn each_providers_budgets_are_read() {
    for row in rows::all() {
        let got = from_head(row.preset, StatusCode::TOO_MANY_REQUESTS, &head(row.lines), local_now);
        let budgets: Vec<Budget> = got.budgets.iter().copied().collect();
        let without_ids: Vec<Budget> = budgets.iter().map(|budget| Budget { id: 0, ..*budget }).collect();
        assert_eq!(without_ids, row.told, "{}", row.name);
        let ids: HashSet<u32> = budgets.iter().map(|budget| budget.id).collect();
        assert_eq!(ids.len(), budgets.len(), "ids of {}", row.name);
    }
}

#[test]
fn a_budget_keeps_its_id_from_answer_to_answer() {
    let id = |name, count| {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(count));
        from_head(Preset::Generic, StatusCode::OK, &headers, local_now).budgets.iter().next().unwrap().id
    };
    assert_eq!(id("x-ratelimit-remaining-tokens", "3"), id("x-ratelimit-remaining-tokens", "9"));
    assert_ne!(id("x-ratelimit-remaining-tokens", "3"), id("x-ratelimit-remaining-requests", "3"));
    assert_eq!(id("ratelimit", "\"a\";r=1"), id("ratelimit", "\"a\";r=7;t=9"));
    assert_ne!(id("ratelimit", "\"a\";r=1"), id("ratelimit", "\"b\";r=1"));
}

#[test]
fn of_more_budgets_than_are_kept_the_exhausted_stay() {
    let mut headers = HeaderMap::new();
    for count in 0..20 {
        let name = format!("x-ratelimit-remaining-{}tokens-minute", "project-".repeat(count));
        let left = if count < 18 { "5" } else { "0" };
        headers.insert(HeaderName::try_from(name).unwrap(), HeaderValue::from_static(left));
    }
    let signals = from_head(Preset::Generic, StatusCode::OK, &headers, local_now);
    assert_eq!(signals.budgets.iter().count(), Budgets::MAX);
    assert_eq!(signals.budgets.iter().filter(|budget| budget.remaining == 0).count(), 2);
}

#[test]
fn a_rejected_status_beside_a_success_is_no_budget() {
    let headers = head(&[
        ("anthropic-ratelimit-unified-status", "rejected"),
        ("anthropic-ratelimit-unified-reset", "1755781800"),
    ]);
    assert!(from_head(Preset::Anthropic, StatusCode::OK, &headers, local_now).budgets.is_empty());
}

#[test]
fn a_header_that_is_not_text_is_not_said() {
    let mut headers = HeaderMap::new();
    for name in ["retry-after", "x-ratelimit-remaining", "x-should-retry", "ratelimit", "date"] {
        headers.append(name, HeaderValue::from_bytes(b"\xff\xfe0").unwrap());
    }
    let signals = from_head(Preset::Generic, StatusCode::TOO_MANY_REQUESTS, &headers, local_now);
    assert_eq!(signals, Signals::default());
}

const NAMES: [&str; 33] = [
    "date",
    "retry-after",
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "x-amz-retry-after",
    "x-ratelimit-retry-after",
    "x-should-retry",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-limit",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "ratelimitbysize-remaining",
    "ratelimitbysize-reset",
    "x-ratelimit-remaining-tokens-month",
    "x-ratelimit-used",
    "ratelimitbysize-query-cost",
    "x-tokenlimit-remaining",
    "x-ratelimit-remaining-tokens-generated",
    "x-trial-endpoint-call-remaining",
    "anthropic-ratelimit-unified-status",
    "anthropic-ratelimit-unified-reset",
    "x-ratelimit-remaining-requests-day",
    "x-ratelimit-remaining-requests-minute",
];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(&NAMES[..]).prop_map(str::to_owned),
        "(x-|anthropic-)(ratelimit|tokenlimit)(-(remaining|limit|reset|used|tokens|input|prompt|day|month|x)){0,5}",
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        "(rejected|allowed|remaining=0, reset=9{0,30}|\"a\";r=0;t=9{0,30}|\"a\";q=1;w=9{0,30})"
            .prop_map(String::into_bytes),
        "[-0-9.,;=\"rtqwhms \\\\]{0,30}".prop_map(String::into_bytes),
        (0_u64..3).prop_map(|count| count.to_string().into_bytes()),
        any::<u64>().prop_map(|count| count.to_string().into_bytes()),
    ]
}

proptest! {
    #[test]
    fn no_head_breaks_a_bound(
        status in 100_u16..1000,
        preset in proptest::sample::select(&Preset::ALL[..]),
        lines in proptest::collection::vec((name(), value()), 0..30),
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.append(HeaderName::try_from(name).unwrap(), value);
            }
        }
        let status = StatusCode::from_u16(status).unwrap();
        let signals = from_head(preset, status, &headers, local_now);
        prop_assert!(signals.retry_after.unwrap_or_default() <= DELAY_MAX);
        for budget in signals.budgets.iter() {
            prop_assert!(budget.reset.unwrap_or_default() <= DELAY_MAX);
            prop_assert!(budget.limit != Some(0));
            prop_assert!(budget.window.is_none_or(|window| !window.is_zero() && window <= 400 * DELAY_MAX));
        }
    }
}

#[test]
fn no_header_that_is_read_is_overlooked() {
    let names = RETRY_AFTER.map(|(name, _)| name).into_iter().chain(counters::prefixes()).chain([
        "ratelimit",
        "ratelimit-remaining",
        "anthropic-ratelimit-unified-status",
        "x-should-retry",
    ]);
    for name in names {
        assert!(BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)), "{name}");
    }
}
