use std::{io::Write, time::UNIX_EPOCH};

use flate2::{
    Compression,
    write::{DeflateEncoder, GzEncoder, ZlibEncoder},
};
use http::HeaderValue;
use proptest::prelude::*;

use super::{rows::ROWS, *};
use crate::provider::durations::DELAY_MAX;

fn head(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    lines.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
}

fn read_at_epoch(status: u16, headers: &HeaderMap, body: &[u8]) -> Refusal {
    read(Preset::Generic, StatusCode::from_u16(status).unwrap(), headers, body, UNIX_EPOCH)
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn each_providers_refusals_are_understood() {
    for row in ROWS {
        let refusal = read_at_epoch(row.status, &head(row.lines), row.body.as_bytes());
        assert_eq!(refusal.attribution, row.want, "{}", row.name);
        let delay = row.delay_ms.map(Duration::from_millis);
        assert_eq!(refusal.signals.retry_after, delay, "{}", row.name);
    }
}

#[test]
fn delays_in_prose_are_read() {
    for (text, want_ms) in [
        ("Please try again in 6m0s.", Some(360_000)),
        ("try again in 20 seconds", Some(20_000)),
        ("Try again in 1 minute and 30 seconds.", Some(90_000)),
        ("try again in 250 milliseconds, please", Some(250)),
        ("retry after 30.", Some(30_000)),
        ("retry after 30", Some(30_000)),
        ("try again in 5 seconds. 3 seconds more help", Some(5_000)),
        ("try again in a while, or retry in 2s", Some(2_000)),
        ("try again in 400 days", Some(86_400_000)),
        ("try again in 2 business days", None),
        ("try again in ", None),
        ("try again later", None),
        ("retry after -5 seconds", None),
    ] {
        let want = want_ms.map(Duration::from_millis);
        assert_eq!(read_at_epoch(429, &HeaderMap::new(), text.as_bytes()).signals.retry_after, want, "{text}");
    }
}

#[test]
fn the_refused_dimension_is_read() {
    use Dimension::{InputTokens, OutputTokens, Requests, Tokens};
    let message = |text: &str| format!(r#"{{"error":{{"message":"{text}"}}}}"#);
    let typed = |kind: &str, text: &str| format!(r#"{{"error":{{"message":"{text}","type":"{kind}"}}}}"#);
    let quota = |id: &str| format!(r#"{{"error":{{"details":[{{"violations":[{{"quotaId":"{id}"}}]}}]}}}}"#);
    for (body, want) in [
        (typed("tokens", "Rate limit reached"), Some(Tokens)),
        (typed("requests", "Rate limit reached"), Some(Requests)),
        (typed("tokens", "on input tokens per minute (ITPM): Limit 3"), Some(InputTokens)),
        (message("Rate limit reached for gpt-6 on tokens per min (TPM): Limit 10, Requested 2."), Some(Tokens)),
        (message("Rate limit reached for gpt-6 on requests per min (RPM): Limit 3, Used 3."), Some(Requests)),
        (message("Rate limit reached on requests per day (RPD)"), Some(Requests)),
        (message("on tokens per day (TPD)"), Some(Tokens)),
        (message("exceed your organization's rate limit of 30,000 input tokens per minute"), Some(InputTokens)),
        (message("rate limit of 8,000 output tokens per minute; reduce requests per minute"), Some(OutputTokens)),
        (message("Number of request tokens has exceeded your per-minute rate limit"), Some(InputTokens)),
        (message("Number of requests has exceeded your per-minute rate limit"), Some(Requests)),
        (message("have exceeded token rate limit of your current OpenAI S0 pricing tier"), Some(Tokens)),
        (message("Requests have exceeded call rate limit of your tier"), Some(Requests)),
        (message("Limit: OTPM"), Some(OutputTokens)),
        (message("Too many tokens, please wait before trying again."), Some(Tokens)),
        (message("Requests rate limit exceeded"), Some(Requests)),
        (message("limited to 40 API calls / minute"), Some(Requests)),
        (quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier"), Some(Requests)),
        (quota("GenerateContentInputTokensPerModelPerMinute-FreeTier"), Some(InputTokens)),
        (quota("OutputTokensPerMinute"), Some(OutputTokens)),
        (quota("TokensPerMinute"), Some(Tokens)),
        (message("429 Too Many Requests"), None),
        (message("the tpmix model is busy; grpm"), None),
        (message("Number of concurrent connections has exceeded your rate limit"), None),
        (typed("requests", "too many concurrent requests per key"), None),
        (r#"{"error":{"type":"requests","code":"credit_balance_exhausted"}}"#.to_owned(), None),
        (quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier"), None),
        (String::new(), None),
    ] {
        assert_eq!(read_at_epoch(429, &HeaderMap::new(), body.as_bytes()).signals.refused, want, "{body}");
    }
}

#[test]
fn text_beyond_the_bound_is_not_read() {
    let long_plain = format!("{}concurrent requests, try again in 9s", "x ".repeat(4096));
    let long_message = format!(r#"{{"error":{{"message":"{long_plain}"}}}}"#);
    let long_body = format!(r#"{{"pad":"{}","error":{{"type":"tokens"}}}}"#, "x".repeat(70_000));
    for body in [long_plain, long_message, long_body] {
        let refusal = read_at_epoch(429, &HeaderMap::new(), body.as_bytes());
        assert_eq!(refusal.attribution, Attribution::Unknown, "{} bytes", body.len());
        assert_eq!(refusal.signals.retry_after, None, "{} bytes", body.len());
    }
}

#[test]
fn compressed_bodies_are_read() {
    let body = br#"{"error":{"code":"insufficient_quota"}}"#;
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
    zlib.write_all(body).unwrap();
    let mut raw = DeflateEncoder::new(Vec::new(), Compression::fast());
    raw.write_all(body).unwrap();
    for (coding, encoded, want) in [
        ("gzip", gzip(body), Attribution::Quota),
        ("X-GZIP", gzip(body), Attribution::Quota),
        ("identity, gzip", gzip(body), Attribution::Quota),
        ("deflate", zlib.finish().unwrap(), Attribution::Quota),
        ("deflate", raw.finish().unwrap(), Attribution::Quota),
        ("identity", body.to_vec(), Attribution::Quota),
        ("br", body.to_vec(), Attribution::Unknown),
        ("gzip, gzip", gzip(&gzip(body)), Attribution::Unknown),
        ("gzip", body.to_vec(), Attribution::Unknown),
    ] {
        let refusal = read_at_epoch(429, &head(&[("content-encoding", coding)]), &encoded);
        assert_eq!(refusal.attribution, want, "{coding}");
    }
}

#[test]
fn a_gzip_bomb_stays_within_the_bound() {
    let bomb = gzip(&vec![b'x'; 8 * 1024 * 1024]);
    let headers = head(&[("content-encoding", "gzip")]);
    let decoded = decode(&headers, &bomb, 1000);
    assert_eq!(decoded.len(), 1000);
    assert!(matches!(decoded, std::borrow::Cow::Owned(copy) if copy.capacity() <= 64 * 1024));
}

#[test]
fn a_compressed_copy_that_is_cut_off_gives_its_beginning() {
    let text: String = (0..20_000).map(|n| format!("{n} ")).collect();
    let encoded = gzip(text.as_bytes());
    let headers = head(&[("content-encoding", "gzip")]);
    let decoded = decode(&headers, &encoded[..encoded.len() / 2], usize::MAX);
    assert!(decoded.len() > 1000, "{} bytes", decoded.len());
    assert!(text.as_bytes().starts_with(&decoded));
}

#[test]
fn nesting_without_end_says_nothing() {
    let body = "[{\"error\":".repeat(6_000);
    let refusal = read_at_epoch(429, &HeaderMap::new(), body.as_bytes());
    assert_eq!(refusal.attribution, Attribution::Unknown);
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "[\\[\\]{}:,\"]",
        "\"(error|message|type|code|status|details|violations|quotaId|retryDelay|metadata)\":",
        "(try again in|retry after|retry in) [0-9.]{0,25} ?(h|m|s|ms|days|seconds)?",
        "\\PC{0,8}",
    ];
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..300),
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes()),
        "(try again in|retry after) [0-9.]{0,25} ?(h|m|s|ms|days|seconds)?".prop_map(String::into_bytes),
        "[0-9.smh]{0,30}"
            .prop_map(|delay| { format!(r#"{{"error":{{"details":[{{"retryDelay":"{delay}"}}]}}}}"#).into_bytes() }),
    ]
}

proptest! {
    #[test]
    fn no_body_breaks_a_bound(
        status in 100_u16..1000,
        body in body(),
        coding in proptest::sample::select(&["", "gzip", "deflate", "br"][..]),
        is_encoded in any::<bool>(),
        max in 0_usize..400,
    ) {
        let headers = head(&[("content-encoding", coding)]);
        let body = if is_encoded { gzip(&body) } else { body };
        prop_assert!(decode(&headers, &body, max).len() <= max);
        let delay = read_at_epoch(status, &headers, &body).signals.retry_after;
        prop_assert!(delay.unwrap_or_default() <= DELAY_MAX);
    }
}
