//! What the targets share. Inputs are text wherever that is possible: seeds can then be read, and dictionaries help.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The time at which everything happens: 21 November 2026, 00:00 UTC.
#[must_use]
pub fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_219_200)
}

/// The lines up to the first empty one, without their ends, and what follows it.
#[must_use]
pub fn head(mut data: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut lines = Vec::new();
    while !data.is_empty() {
        let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
        let (line, rest) = data.split_at(end);
        data = rest.get(1..).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    (lines, data)
}

/// The header lines among these; hyper lets no others through.
#[must_use]
pub fn headers(lines: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value[1..].trim_ascii()))
        {
            headers.append(name, value);
        }
    }
    headers
}

/// Cuts `data` into pieces, some of them empty; the seed says where.
pub fn pieces(data: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut state = u32::from(seed) << 1 | 1;
    let mut rest = data;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        let longest = if state & 0x100 == 0 { 4 } else { 64 };
        let (piece, after) = rest.split_at((state as usize % longest).min(rest.len()));
        rest = after;
        Some(piece)
    })
}
