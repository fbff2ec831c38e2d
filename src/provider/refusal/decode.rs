//! Undoes the content coding of a copy of a body, within a bound.

use std::{borrow::Cow, io::Read};

use flate2::bufread::{DeflateDecoder, GzDecoder, ZlibDecoder};
use http::{HeaderMap, header};

/// The first `max` bytes of `body` without its `Content-Encoding`: gzip or deflate.
///
/// Empty if the coding is another, or more than one. A copy that is cut off or damaged gives what came before that.
#[must_use]
pub fn decode<'a>(headers: &HeaderMap, body: &'a [u8], max: usize) -> Cow<'a, [u8]> {
    let mut codings = headers
        .get_all(header::CONTENT_ENCODING)
        .into_iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|coding| coding.trim_ascii().to_ascii_lowercase())
        .filter(|coding| !coding.is_empty() && coding != b"identity");
    let coding = match (codings.next(), codings.next()) {
        (None, _) => return Cow::Borrowed(body.get(..max).unwrap_or(body)),
        (Some(coding), None) => coding,
        (Some(_), Some(_)) => return Cow::Borrowed(&[]),
    };
    match coding.as_slice() {
        b"gzip" | b"x-gzip" => Cow::Owned(inflate(GzDecoder::new(body), max)),
        b"deflate" => {
            let inflated = inflate(ZlibDecoder::new(body), max);
            // RFC 9110, 8.4.1.2: some send the deflate data without the zlib wrapper.
            Cow::Owned(if inflated.is_empty() { inflate(DeflateDecoder::new(body), max) } else { inflated })
        }
        _ => Cow::Borrowed(&[]),
    }
}

fn inflate(decoder: impl Read, max: usize) -> Vec<u8> {
    let mut inflated = Vec::new();
    let max = u64::try_from(max).unwrap_or(u64::MAX);
    // An error ends the data early; what precedes it stays in the buffer and may still tell the reason.
    drop(decoder.take(max).read_to_end(&mut inflated));
    inflated
}
