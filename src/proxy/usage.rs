//! Which answers are read, while they pass, for the tokens they used.

use http::response;

use crate::{
    config::Upstream,
    control::cost::Tariff,
    provider::usage::{Readable, UsageScanner},
    upstream::Hold,
};

/// A JSON text up to this size costs a few microseconds to read, less than to pass it on.
const JSON_BYTES_FREE: u64 = 16 * 1024;

/// Tokens are paid for, or counted by the gate.
pub(super) fn is_wanted(settings: &Upstream, hold: &mut Hold) -> bool {
    settings.counts_spend() || hold.permit().is_some_and(|permit| permit.gate().wants_usage())
}

/// What reads an answer, if it is worth reading. `wanted`: not for the metric alone. `with_model`: who answered is to be
/// told too.
///
/// Else only where it costs nothing that could be measured: not what must be unpacked first, and not an embedding's
/// megabytes. What was only fetched says what was counted when it was made.
pub(super) fn reader(head: &response::Parts, tariff: &Tariff, wanted: bool, with_model: bool) -> Option<UsageScanner> {
    if !head.status.is_success() || *tariff == Tariff::Paid {
        return None;
    }
    let readable = Readable::of(&head.headers)?;
    (wanted || readable.is_cheap(JSON_BYTES_FREE)).then(|| readable.with_model(with_model).scanner())
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
            let is_read = |tariff, wanted| reader(&head, &tariff, wanted, false).is_some();
            assert_eq!((is_read(Tariff::None, false), is_read(Tariff::None, true)), (free, wanted), "{headers:?}");
            assert!(!is_read(Tariff::Paid, true), "it was only fetched");
        }
    }
}
