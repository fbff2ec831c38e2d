//! Reads what a request used from its answer as it passes by: a copy is looked at, nothing is held back.
//!
//! Memory: the object with the numbers, at most `OBJECT_BYTES_MAX` of `walk`; for a compressed answer
//! also the window of its decoder.

use http::{HeaderMap, header};

pub use crate::control::cost::Usage;
use inflate::Inflate;
use scan::Scan;

mod inflate;
mod numbers;
mod scan;
#[cfg(test)]
mod tests;
mod walk;

/// Finds the usage in an answer, fed chunk by chunk.
pub struct UsageScanner {
    source: Source,
}

enum Source {
    Plain(Scan),
    Packed(Box<Inflate>),
}

impl UsageScanner {
    /// One for an answer that is JSON or an event stream, as it is or compressed with gzip or deflate; `None` for any
    /// other.
    #[must_use]
    pub fn for_response(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(header::CONTENT_TYPE)?.as_bytes().split(|byte| *byte == b';').next()?;
        let kind = kind.trim_ascii().to_ascii_lowercase();
        let scan = match kind.as_slice() {
            b"text/event-stream" => Scan::lines(),
            json if json == b"application/json" || json.ends_with(b"+json") => Scan::document(),
            _ => return None,
        };
        let mut codings = headers
            .get_all(header::CONTENT_ENCODING)
            .into_iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(|coding| coding.trim_ascii().to_ascii_lowercase())
            .filter(|coding| !coding.is_empty() && coding != b"identity");
        let source = match (codings.next().as_deref(), codings.next()) {
            (None, _) => Source::Plain(scan),
            (Some(b"gzip" | b"x-gzip"), None) => Source::Packed(Box::new(Inflate::gzip(scan))),
            (Some(b"deflate"), None) => Source::Packed(Box::new(Inflate::deflate(scan))),
            (Some(_), _) => return None,
        };
        Some(Self { source })
    }

    /// Looks at the next bytes of the answer.
    pub fn feed(&mut self, chunk: &[u8]) {
        match &mut self.source {
            Source::Plain(scan) => scan.feed(chunk),
            Source::Packed(inflate) => inflate.feed(chunk),
        }
    }

    /// What was found so far; of a stream whose numbers grow, the last.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        match &self.source {
            Source::Plain(scan) => scan.usage(),
            Source::Packed(inflate) => inflate.scan().usage(),
        }
    }
}
