//! Bodies of refusals: whatever they hold, delays stay within their cap, packing changes nothing, and an array around
//! the error changes nothing either.
//!
//! Input: a status, header lines, an empty line, a body.

#![no_main]

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use http::{HeaderValue, StatusCode, header};
use libfuzzer_sys::fuzz_target;
use tidegate::provider::{
    door::DELAY_MAX,
    presets::Preset,
    refusal::{self, Attribution},
};
use tidegate_fuzz::{head, headers, now};

fuzz_target!(|data: &[u8]| {
    let (lines, body) = head(data);
    let Some((first, rest)) = lines.split_first() else { return };
    let Ok(status) = StatusCode::from_bytes(first) else { return };
    let mut headers = headers(rest);

    let plain = refusal::read(Preset::Generic, status, &headers, body, now());
    assert!(plain.signals.retry_after.is_none_or(|delay| delay <= DELAY_MAX), "{plain:?}");
    let is_timely = matches!(plain.attribution, Attribution::Rate | Attribution::Unknown);
    assert!(plain.signals.refused.is_none() || is_timely, "{plain:?}");
    // Which one is tried follows from the input; all of them each time would take most of the time.
    let preset = Preset::ALL[body.len() % Preset::ALL.len()];
    let known = refusal::read(preset, status, &headers, body, now());
    assert_eq!(known.signals.retry_after, plain.signals.retry_after, "{preset:?}");
    // A preset knows windows, and an empty budget of a month is a quota.
    let is_known = |attribution| attribution == plain.attribution || attribution == Attribution::Quota;
    assert!(is_known(known.attribution), "{preset:?}: {known:?}, {plain:?}");
    for max in [0, 1, 64, 4096] {
        assert!(refusal::decode(&headers, body, max).len() <= max);
    }

    if headers.contains_key(header::CONTENT_ENCODING) {
        return;
    }
    if body.first() == Some(&b'{') && body.iter().filter(|byte| b"{[".contains(byte)).count() < 100 {
        let wrapped = [b"[", body, b"]"].concat();
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
        if is_json {
            assert_eq!(refusal::read(Preset::Generic, status, &headers, &wrapped, now()), plain, "in an array");
        }
    }
    if body.len() % 4 != 0 {
        return;
    }
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(body).expect("a Vec takes all");
    let packed = packer.finish().expect("a Vec takes all");
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    assert_eq!(refusal::decode(&headers, &packed, body.len()), body);
    assert_eq!(refusal::read(Preset::Generic, status, &headers, &packed, now()), plain, "packed");
});
