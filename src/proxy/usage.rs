//! Which answers are read, while they pass, for the tokens they used.

use http::{header, response};

use crate::provider::usage::UsageScanner;

/// A JSON text up to this size costs a few microseconds to read, less than to pass it on.
const JSON_BYTES_FREE: u64 = 16 * 1024;

/// What reads an answer, if it is worth reading. `wanted`: the gate counts tokens.
///
/// Without that it is for the metric alone, and then only where it costs nothing that could be measured: event streams,
/// of which all but a few lines are skipped at the speed of `memchr`, and short JSON. Not what must be unpacked first,
/// and not an embedding's megabytes.
pub(super) fn reader(head: &response::Parts, wanted: bool) -> Option<Box<UsageScanner>> {
    let headers = &head.headers;
    let starts = |value: &http::HeaderValue| value.as_bytes().starts_with(b"text/event-stream");
    let is_stream = || headers.get(header::CONTENT_TYPE).is_some_and(starts);
    let length = || headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse::<u64>().ok();
    let is_short = || length().is_some_and(|bytes| bytes <= JSON_BYTES_FREE);
    let is_free = || !headers.contains_key(header::CONTENT_ENCODING) && (is_stream() || is_short());
    let is_worth = head.status.is_success() && (wanted || is_free());
    is_worth.then(|| UsageScanner::for_response(headers)).flatten().map(Box::new)
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    #[test]
    fn what_costs_something_is_read_only_if_wanted() {
        for (status, headers, free, wanted) in [
            (200, &[("content-type", "text/event-stream; charset=utf-8")][..], true, true),
            (200, &[("content-type", "application/json"), ("content-length", "900")], true, true),
            (200, &[("content-type", "application/json"), ("content-length", "900000")], false, true),
            (200, &[("content-type", "application/json")], false, true),
            (200, &[("content-type", "text/event-stream"), ("content-encoding", "gzip")], false, true),
            (200, &[("content-type", "text/plain"), ("content-length", "9")], false, false),
            (404, &[("content-type", "application/json"), ("content-length", "9")], false, false),
        ] {
            let mut builder = Response::builder().status(status);
            for (name, value) in headers {
                builder = builder.header(*name, *value);
            }
            let (head, ()) = builder.body(()).unwrap().into_parts();
            assert_eq!((reader(&head, false).is_some(), reader(&head, true).is_some()), (free, wanted), "{headers:?}");
        }
    }
}
