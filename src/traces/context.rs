//! W3C Trace Context: whose child a span is, and whether it is recorded at all.

use http::{HeaderMap, HeaderValue};
use opentelemetry::{SpanId, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

/// Which trace a span belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    /// The client's span; `None`: the trace begins here.
    pub(super) parent: Option<SpanId>,
    /// The client's `tracestate`, as it came.
    pub(super) state: String,
}

/// Longest `tracestate` that is kept: what every participant must be able to pass on (W3C Trace Context 3.3.1.5).
const STATE_BYTES_MAX: usize = 512;

impl Context {
    /// That of a new span, if it is to be recorded. `sample`: the share of traces that begin here and are.
    pub(super) fn of(headers: &HeaderMap, sample: f64) -> Option<Self> {
        let ids = RandomIdGenerator::default();
        match parent(headers) {
            Some(Parent { sampled: false, .. }) => None,
            Some(Parent { trace, span, .. }) => {
                Some(Self { trace, span: ids.new_span_id(), parent: Some(span), state: state(headers) })
            }
            None => {
                let trace = ids.new_trace_id();
                is_sampled(trace, sample).then(|| Self {
                    trace,
                    span: ids.new_span_id(),
                    parent: None,
                    state: String::new(),
                })
            }
        }
    }
}

/// By the lower half of the id, as OpenTelemetry's own samplers do it: who else decides by the same share decides the
/// same.
fn is_sampled(trace: TraceId, share: f64) -> bool {
    const ALL: u64 = 1 << 63;
    let [.., a, b, c, d, e, f, g, h] = trace.to_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < (share * ALL as f64) as u64
}

/// What a `traceparent` says.
struct Parent {
    trace: TraceId,
    span: SpanId,
    sampled: bool,
}

/// Two of them are as good as none.
fn parent(headers: &HeaderMap) -> Option<Parent> {
    let mut values = headers.get_all("traceparent").iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    parse(std::str::from_utf8(value.as_bytes()).ok()?)
}

/// `00-<32 digits>-<16 digits>-<2 digits>`; a later version may say more behind it.
fn parse(text: &str) -> Option<Parent> {
    let (known, more) = text.split_at_checked(55)?;
    let mut parts = known.split('-');
    let mut part = |digits: usize| parts.next().filter(|part| part.len() == digits && is_hex(part));
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let is_whole = if version == "00" { more.is_empty() } else { more.is_empty() || more.starts_with('-') };
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let is_valid = is_whole && version != "ff" && trace != TraceId::INVALID && span != SpanId::INVALID;
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
    is_valid.then_some(Parent { trace, span, sampled })
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn state(headers: &HeaderMap) -> String {
    let values: Vec<&str> = headers.get_all("tracestate").iter().filter_map(text).collect();
    let state = values.join(",");
    if state.len() > STATE_BYTES_MAX { String::new() } else { state }
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn a_traceparent_is_one_or_it_is_none() {
        for (text, want) in [
            (format!("00-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-03"), Some(true)),
            (format!("00-{TRACE}-{SPAN}-02"), Some(false)),
            (format!("cc-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-more"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01.more"), None),
            (format!("00-{TRACE}-{SPAN}-01-more"), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("00-{}-{SPAN}-01", TRACE.to_uppercase()), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (format!("00-{TRACE}-{SPAN}-0"), None),
            (format!("00-{TRACE}-{SPAN}-0x"), None),
            (format!("00-{SPAN}-{TRACE}-01"), None),
            (format!("0-0{TRACE}-{SPAN}-01"), None),
            (format!("00{TRACE}{SPAN}01---"), None),
            ("ü".repeat(30), None),
            (String::new(), None),
        ] {
            let found = parse(&text);
            assert_eq!(found.as_ref().map(|parent| parent.sampled), want, "{text}");
            if let Some(parent) = found {
                assert_eq!((parent.trace.to_string(), parent.span.to_string()), (TRACE.to_owned(), SPAN.to_owned()));
            }
        }
    }

    #[test]
    fn the_clients_flag_beats_our_share() {
        let (yes, no) = (format!("00-{TRACE}-{SPAN}-01"), format!("00-{TRACE}-{SPAN}-00"));
        for share in [0.0, 1.0] {
            let context = Context::of(&headers(&[("traceparent", &yes), ("tracestate", "a=1, b=2")]), share).unwrap();
            assert_eq!((context.trace.to_string(), context.parent.unwrap().to_string()), (TRACE.into(), SPAN.into()));
            assert_ne!(context.span.to_string(), SPAN);
            assert_eq!(context.state, "a=1, b=2");
            assert_eq!(Context::of(&headers(&[("traceparent", &no)]), share), None);
        }
        let twice = headers(&[("traceparent", &no), ("traceparent", &no), ("tracestate", "a=1")]);
        assert_eq!(Context::of(&twice, 0.0), None);
        let root = Context::of(&twice, 1.0).unwrap();
        assert_eq!((root.parent, root.state.as_str()), (None, ""), "a state without its parent means nothing");
    }

    #[test]
    fn a_long_or_split_state_stays_whole_or_goes() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let split =
            headers(&[("traceparent", &parent), ("tracestate", "a=1"), ("tracestate", ""), ("tracestate", "b=2")]);
        assert_eq!(Context::of(&split, 0.0).unwrap().state, "a=1,b=2");
        let long = headers(&[("traceparent", &parent), ("tracestate", &format!("a={}", "x".repeat(600)))]);
        assert_eq!(Context::of(&long, 0.0).unwrap().state, "");
    }

    #[test]
    fn a_share_is_kept() {
        let none = HeaderMap::new();
        for (share, want) in [(0.0, 0..=0), (0.25, 2_300..=2_700), (1.0, 10_000..=10_000)] {
            let taken = (0..10_000).filter(|_| Context::of(&none, share).is_some()).count();
            // 0.25: 4.6 standard deviations to either side.
            assert!(want.contains(&taken), "{share}: {taken}");
        }
    }
}
