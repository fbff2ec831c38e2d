//! What goes into a client's HTTP/1 stream in place of bytes that hyper writes.
//!
//! hyper has no way to be told either: what it answers to bytes that are no request, and the trailers of an answer
//! whose client did not send `TE: trailers` or whose upstream did not announce them.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Response};

/// The end of a chunked body without trailers, as hyper writes it.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// Its last line, which trailers go before.
pub(super) const LAST_LINE: &[u8] = b"\r\n";

/// Bytes that are sent in place of others.
pub(super) struct Insert {
    /// What is still to be sent.
    pub(super) bytes: Bytes,
    /// How many bytes of hyper's they stand for.
    pub(super) replaces: usize,
}

/// Whether bytes that end a chunked body are the last of `bytes`. It is for the caller to know that one ends there, or
/// not far before: hyper's answer to a bad request ends alike, but with a blank before.
pub(super) fn ends_body(bytes: &[u8]) -> bool {
    bytes.strip_suffix(LAST_CHUNK).is_some_and(|before| before.last().is_none_or(|byte| *byte == b'\n'))
}

/// The status, if `bytes` are an answer that hyper makes by itself.
pub(super) fn hypers_own(bytes: &[u8]) -> Option<u16> {
    let rest = bytes.strip_prefix(b"HTTP/1.")?;
    match rest.get(1..5)? {
        b" 400" => Some(400),
        b" 414" => Some(414),
        b" 431" => Some(431),
        _ => None,
    }
}

/// An answer as it goes over the wire. It is the last of its connection.
pub(super) fn answer(response: &Response<Bytes>) -> Bytes {
    let (status, body) = (response.status(), response.body());
    let mut bytes = BytesMut::with_capacity(512);
    bytes.put_slice(b"HTTP/1.1 ");
    bytes.put_slice(status.as_str().as_bytes());
    bytes.put_slice(b" ");
    bytes.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    bytes.put_slice(b"\r\n");
    lines(response.headers(), &mut bytes);
    bytes.put_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.put_slice(body);
    bytes.freeze()
}

/// Trailers, and the line that ends them.
pub(super) fn trailers(trailers: &HeaderMap) -> Bytes {
    let mut bytes = BytesMut::with_capacity(128);
    lines(trailers, &mut bytes);
    bytes.put_slice(LAST_LINE);
    bytes.freeze()
}

fn lines(headers: &HeaderMap, bytes: &mut BytesMut) {
    for (name, value) in headers {
        bytes.put_slice(name.as_str().as_bytes());
        bytes.put_slice(b": ");
        bytes.put_slice(value.as_bytes());
        bytes.put_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_body_is_told_from_the_end_of_a_head() {
        for (bytes, want) in [
            (&b"0\r\n\r\n"[..], true),
            (b"2\r\nhi\r\n0\r\n\r\n", true),
            (b"content-length: 0\r\n\r\n", false),
            (b"10\r\n\r\n", false),
            (b"0\r\n", false),
            (b"", false),
        ] {
            assert_eq!(ends_body(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn hypers_answers_are_known_by_their_status() {
        for (bytes, want) in [
            (&b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"[..], Some(400)),
            (b"HTTP/1.0 431 Request Header Fields Too Large\r\n", Some(431)),
            (b"HTTP/1.1 414 URI Too Long\r\n", Some(414)),
            (b"HTTP/1.1 100 Continue\r\n\r\n", None),
            (b"HTTP/1.1 200 OK\r\n", None),
            (b"400", None),
        ] {
            assert_eq!(hypers_own(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
