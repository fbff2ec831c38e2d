//! Reads what a request used from its answer as it passes by, and who answered: a copy is looked at, nothing is held back.
//!
//! Memory: the object with the numbers, at most `OBJECT_BYTES_MAX` of `walk`; for a compressed answer
//! also the window of its decoder.

use http::{HeaderMap, header};

pub use crate::control::cost::{Billed, Usage};
use inflate::Inflate;
use scan::Scan;

mod inflate;
mod model;
mod numbers;
mod scan;
#[cfg(test)]
mod tests;
mod walk;

/// Finds the usage in an answer, fed chunk by chunk.
pub struct UsageScanner {
    source: Source,
}

#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
enum Source {
    Plain(Scan),
    Packed(Box<Inflate>),
}

/// An answer in which usage may be looked for.
#[derive(Debug, Clone, Copy)]
pub struct Readable {
    is_events: bool,
    packing: Packing,
    /// Bytes of the body, where the head tells.
    bytes: Option<u64>,
    /// Who answered is wanted too.
    with_model: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Deflate,
}

impl Readable {
    /// One that is JSON or an event stream, as it is or compressed with gzip or deflate; `None` for any other.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let kind = headers.get(header::CONTENT_TYPE)?.as_bytes().split(|byte| *byte == b';').next()?;
        let kind = kind.trim_ascii();
        let is = |name: &[u8]| kind.eq_ignore_ascii_case(name);
        let is_events = is(b"text/event-stream");
        let is_more_json = || kind.last_chunk().is_some_and(|end: &[u8; 5]| end.eq_ignore_ascii_case(b"+json"));
        if !is_events && !is(b"application/json") && !is_more_json() {
            return None;
        }
        let mut codings = headers
            .get_all(header::CONTENT_ENCODING)
            .into_iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"));
        let packing = match (codings.next(), codings.next()) {
            (None, _) => Packing::None,
            (Some(one), None) if [&b"gzip"[..], b"x-gzip"].iter().any(|gzip| one.eq_ignore_ascii_case(gzip)) => {
                Packing::Gzip
            }
            (Some(one), None) if one.eq_ignore_ascii_case(b"deflate") => Packing::Deflate,
            (Some(_), _) => return None,
        };
        let told = || headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        Some(Self { is_events, packing, bytes: if is_events { None } else { told() }, with_model: false })
    }

    /// Whether to read it costs next to nothing: event streams, of which all but a few lines are skipped at the speed of a
    /// search, and JSON of at most `json_max` bytes; not what must be unpacked first.
    #[must_use]
    pub fn is_cheap(&self, json_max: u64) -> bool {
        self.packing == Packing::None && (self.is_events || self.bytes.is_some_and(|bytes| bytes <= json_max))
    }

    /// The same; what reads it looks also for the name of the model that answered, if `wanted`.
    #[must_use]
    pub fn with_model(self, wanted: bool) -> Self {
        Self { with_model: wanted, ..self }
    }

    /// What reads it.
    #[must_use]
    pub fn scanner(&self) -> UsageScanner {
        let expected = self.bytes.filter(|_| self.packing == Packing::None).and_then(|bytes| bytes.try_into().ok());
        let scan = if self.is_events { Scan::lines() } else { Scan::document(expected) };
        let scan = if self.with_model { scan.with_model() } else { scan };
        UsageScanner {
            source: match self.packing {
                Packing::None => Source::Plain(scan),
                Packing::Gzip => Source::Packed(Box::new(Inflate::gzip(scan))),
                Packing::Deflate => Source::Packed(Box::new(Inflate::deflate(scan))),
            },
        }
    }
}

impl UsageScanner {
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
        self.scan().usage()
    }

    /// The name of the model that answered, if it was [wanted](Readable::with_model) and found so far.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        self.scan().model()
    }

    fn scan(&self) -> &Scan {
        match &self.source {
            Source::Plain(scan) => scan,
            Source::Packed(inflate) => inflate.scan(),
        }
    }
}
