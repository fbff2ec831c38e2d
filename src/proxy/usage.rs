//! Which answers are read, while they pass, for the tokens they used.

use http::response;

use crate::provider::usage::{Readable, UsageScanner};

/// A JSON text up to this size costs a few microseconds to read, less than to pass it on.
const JSON_BYTES_FREE: u64 = 16 * 1024;

/// What reads an answer, if it is worth reading. `wanted`: the gate counts tokens.
///
/// Without that it is for the metric alone, and then only where it costs nothing that could be measured. Not what must be
/// unpacked first, and not an embedding's megabytes.
pub(super) fn reader(head: &response::Parts, wanted: bool) -> Option<UsageScanner> {
    if !head.status.is_success() {
        return None;
    }
    let readable = Readable::of(&head.headers)?;
    (wanted || readable.is_cheap(JSON_BYTES_FREE)).then(|| readable.scanner())
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
