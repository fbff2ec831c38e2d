//! Answers in forms that many share, and the traps.

use super::{DAY, MINUTE, Row, flows, of, per, requests, reset, tokens, turns};
use crate::{control::signals::Budget, provider::presets::Preset};

const fn row(name: &'static str, lines: &'static [(&'static str, &'static str)], told: &'static [Budget]) -> Row {
    Row { name, preset: Preset::Generic, lines, told }
}

#[rustfmt::skip] // one case, a few lines
pub(in super::super) const ROWS: &[Row] = &[
    row("delta seconds", &[("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", "12")],
        &[reset(12_000, of(60, requests(5)))]),
    row("just below an epoch is a delta, and capped", &[("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", "99999999")],
        &[reset(86_400_000, requests(5))]),
    row("an epoch that has passed", &[("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", "1755779999")],
        &[turns(reset(0, requests(5)))]),
    row("an epoch far off is capped", &[("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", "99999999999999999999")],
        &[turns(reset(86_400_000, requests(5)))]),
    row("what is used is counted by windows, even with a delta",
        &[("x-ratelimit-remaining", "598.0"), ("x-ratelimit-used", "2"), ("x-ratelimit-reset", "417")],
        &[turns(reset(417_000, requests(598)))]),
    row("hyphen variant", &[("x-rate-limit-limit", "15"), ("x-rate-limit-remaining", "0"), ("x-rate-limit-reset", "12")],
        &[reset(12_000, of(15, requests(0)))]),
    row("an HTTP-date, against the Date header",
        &[("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", "Thu, 21 Aug 2025 12:40:07 GMT")],
        &[reset(7_000, requests(1))]),
    row("RFC 3339 outside Anthropic does not settle the refill",
        &[("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", "2025-08-21T12:40:07Z")], &[reset(7_000, requests(1))]),
    row("milliseconds are not minutes", &[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "120ms")],
        &[flows(reset(120, tokens(0)))]),
    row("zero of zero is unknown",
        &[("x-ratelimit-limit", "0"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "12")], &[]),
    row("a negative limit is unknown", &[("x-ratelimit-limit", "-5"), ("x-ratelimit-remaining", "3")], &[]),
    row("minus a half is unknown", &[("x-ratelimit-remaining", "-0.5")], &[]),
    row("an unreadable limit is not said", &[("x-ratelimit-limit", "many"), ("x-ratelimit-remaining", "3")], &[requests(3)]),
    row("a limit alone is no budget", &[("x-ratelimit-limit", "60"), ("x-ratelimit-reset", "12")], &[]),
    row("exhausted without a reset", &[("x-ratelimit-remaining", "0")], &[requests(0)]),
    row("a reset that cannot be read",
        &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "Tue Feb 16 2021 09:02:42 GMT+0100 (CET)")], &[requests(0)]),
    row("sent twice, in lines and in a list: the stricter", &[
        ("x-ratelimit-limit", "10"), ("x-ratelimit-limit", "-1"), ("x-ratelimit-limit", "12"),
        ("x-ratelimit-remaining", "7"), ("x-ratelimit-remaining", "9, 4"), ("x-ratelimit-remaining", "x"),
        ("x-ratelimit-reset", "3"), ("x-ratelimit-reset", "2"), ("x-ratelimit-reset", "soon"),
    ], &[reset(3_000, of(10, requests(4)))]),
    row("a resource of its own is left alone", &[("x-ratelimit-remaining-images", "0"), ("x-ratelimit-reset-images", "5")], &[]),
    row("more digits than any type", &[("x-ratelimit-remaining", "99999999999999999999999999")],
        &[requests(9_223_372_036_854_775_807)]),
    row("IETF draft 03",
        &[("ratelimit-limit", "10, 10;w=1, 50;w=60"), ("ratelimit-remaining", "7"), ("ratelimit-reset", "5")],
        &[per(1, reset(5_000, of(10, requests(7))))]),
    row("IETF draft 06, exhausted", &[
        ("ratelimit-limit", "50"), ("ratelimit-remaining", "0"), ("ratelimit-reset", "5"),
        ("ratelimit-policy", "10;w=1, 50;w=60"),
    ], &[per(MINUTE, reset(5_000, of(50, requests(0))))]),
    row("IETF draft 06, a window of a day",
        &[("ratelimit-limit", "1000"), ("ratelimit-remaining", "40"), ("ratelimit-policy", "10;w=1, 1000;w=86400")],
        &[per(DAY, of(1000, requests(40)))]),
    row("IETF draft 06, zero of zero", &[("ratelimit-limit", "0"), ("ratelimit-remaining", "0")], &[]),
    row("IETF names with an epoch", &[("ratelimit-remaining", "2"), ("ratelimit-reset", "1755780030")],
        &[turns(reset(30_000, requests(2)))]),
    row("IETF draft 07", &[("ratelimit", "limit=100, remaining=50, reset=5"), ("ratelimit-policy", "100;w=60")],
        &[per(MINUTE, reset(5_000, of(100, requests(50))))]),
    row("IETF draft 07, exhausted", &[("ratelimit", "limit=100, remaining=0, reset=5")],
        &[reset(5_000, of(100, requests(0)))]),
    row("IETF current form", &[("ratelimit", "\"default\";r=50;t=30")], &[reset(30_000, requests(50))]),
    row("IETF current form, exhausted", &[("ratelimit", "\"default\";r=0;t=30")], &[reset(30_000, requests(0))]),
    row("IETF current form, burst, day, tokens, bytes and places in flight", &[
        ("ratelimit", "\"burst\";r=40;t=8, \"a \\\"day\\\", long\" ; r=0 ; t=600"),
        ("ratelimit", "\"flight\";r=0;t=1, \"tokens\";r=900, \"bytes\";r=0;t=9"),
        ("ratelimit-policy", "\"burst\";q=100;w=60;pk=:YWJj:,\"a \\\"day\\\", long\";q=1000;w=86400"),
        ("ratelimit-policy", "\"flight\";q=4;qu=\"concurrent-requests\", \"tokens\";q=1000;qu=\"tokens\";w=1"),
        ("ratelimit-policy", "\"bytes\";q=4096;qu=\"content-bytes\";w=60"),
    ], &[
        per(MINUTE, reset(8_000, of(100, requests(40)))),
        per(DAY, reset(600_000, of(1000, requests(0)))),
        per(1, of(1000, tokens(900))),
    ]),
    row("IETF, the stricter of two partitions", &[("ratelimit", "\"a\";r=5;pk=:YQ==:, \"a\";r=3;pk=:Yg==:")], &[requests(3)]),
    row("IETF, a quota of 0 and windows of no or too much time", &[
        ("ratelimit", "\"a\";r=0, \"b\";r=5, \"c\";r=6"),
        ("ratelimit-policy", "\"a\";q=0;w=60, \"b\";q=9;w=0, \"c\";q=9;w=18446744073709551615"),
    ], &[of(9, requests(5)), per(366 * DAY, of(9, requests(6)))]),
    row("IETF, malformed", &[("ratelimit", "\"default;r=5, r=, ;;=,\"x\";t=30"), ("ratelimit-policy", ";;;\"")], &[]),
];
