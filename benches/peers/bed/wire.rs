//! Just enough of HTTP/1.1: messages made beforehand, and where a received one ends.

use std::sync::Arc;

use memchr::memmem;

pub(crate) const REQUEST_BYTES: usize = 1024;
pub(crate) const ANSWER_BYTES: usize = 2048;
pub(crate) const MIB: usize = 1024 * 1024;

/// One event of a stream: `~` stands in it exactly once, so that readers can count events by it.
pub(crate) const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"~word\"}}]}\n\n";
pub(crate) const EVENT_MARK: u8 = b'~';

/// A request body of the shape clients of such APIs send, 1 KiB.
pub(crate) fn request_body() -> Vec<u8> {
    padded(
        "{\"model\":\"gpt-4o-mini\",\"temperature\":0.7,\"max_tokens\":300,\"messages\":[{\"role\":\"user\",\"content\":\"",
        "some words of a question, and more \\n ",
        "\"}]}",
        REQUEST_BYTES,
    )
}

/// An answer's body, 2 KiB.
pub(crate) fn answer_body() -> Vec<u8> {
    padded(
        "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"",
        "some words of an answer, and so on \\n ",
        "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":300,\"total_tokens\":500}}",
        ANSWER_BYTES,
    )
}

fn padded(before: &str, filling: &str, after: &str, bytes: usize) -> Vec<u8> {
    let room = bytes - before.len() - after.len();
    // Whole fillings, then blanks: no escape may be cut in two.
    let mut text = filling.repeat(room / filling.len());
    text.extend(std::iter::repeat_n(' ', room - text.len()));
    format!("{before}{text}{after}").into_bytes()
}

/// The head of a POST with `length` bytes to follow.
pub(crate) fn post_head(path: &str, key: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n\
         User-Agent: load\r\nAccept: */*\r\nContent-Length: {length}\r\n\r\n"
    )
}

/// The request of most rows.
pub(crate) fn chat() -> Arc<[u8]> {
    post("/v1/chat/completions", "sk-abcdefgh")
}

/// A whole POST of 1 KiB.
pub(crate) fn post(path: &str, key: &str) -> Arc<[u8]> {
    let mut bytes = post_head(path, key, REQUEST_BYTES).into_bytes();
    bytes.extend(request_body());
    bytes.into()
}

/// A GET.
pub(crate) fn get(path: &str) -> Arc<[u8]> {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer sk-abcdefgh\r\nAccept: */*\r\n\r\n")
        .into_bytes()
        .into()
}

/// Where a head ends, and what it says of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub bytes: usize,
    /// `None`: chunked, or no body.
    pub length: Option<usize>,
}

/// Reads a head if all of it is there.
pub(crate) fn head(bytes: &[u8]) -> Option<Head> {
    const LENGTH: &[u8] = b"content-length:";
    let end = memmem::find(bytes, b"\r\n\r\n")? + 4;
    let mut rest = bytes.get(..end)?;
    let mut length = None;
    while let Some(at) = memchr::memchr(b'\n', rest) {
        let (line, after) = rest.split_at(at + 1);
        if line.get(..LENGTH.len()).is_some_and(|name| name.eq_ignore_ascii_case(LENGTH)) {
            let value = line.get(LENGTH.len()..).unwrap_or_default().trim_ascii();
            length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        }
        rest = after;
    }
    Some(Head { bytes: end, length })
}

/// The path of a request line.
pub(crate) fn path(head: &[u8]) -> &[u8] {
    head.split(|byte| *byte == b' ').nth(1).unwrap_or_default()
}

/// Whether a chunked body has ended.
pub(crate) fn chunks_ended(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n0\r\n\r\n") || bytes == b"0\r\n\r\n"
}
