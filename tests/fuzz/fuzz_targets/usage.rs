//! Usage in answers, and who gave them: the same however the bytes are cut and packed. In valid JSON the usage is that of
//! the objects that a plain walk over the text finds.
//!
//! Input: a byte of which the lowest bit says that it is an event stream, the next two how it is packed, the fourth that
//! the rest is packed already; a byte that says how to cut; an answer.

#![no_main]

use std::io::{ErrorKind, Read, Write};

use flate2::{Compression, bufread, write};
use http::{HeaderMap, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use tidegate::provider::usage::{Readable, Usage, UsageScanner};
use tidegate_fuzz::pieces;

/// The usage, and the model's name.
type Found = (Option<Usage>, Option<String>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zlib,
    Raw,
}

fuzz_target!(|data: &[u8]| {
    let [kind, seed, answer @ ..] = data else { return };
    let is_stream = kind & 1 == 1;
    let packing = [Packing::None, Packing::Gzip, Packing::Zlib, Packing::Raw][usize::from(kind >> 1 & 3)];
    if kind & 8 == 8 && packing != Packing::None {
        unpack(is_stream, packing, *seed, answer);
        return;
    }
    let found = whole(is_stream, Packing::None, answer);
    cut(is_stream, Packing::None, *seed, answer, &found);
    if packing != Packing::None {
        cut(is_stream, packing, *seed, &pack(packing, answer), &found);
    }
    if !is_stream && serde_json::from_slice::<serde::de::IgnoredAny>(answer).is_ok() {
        assert_eq!(found.0, by_walk(answer), "{}", String::from_utf8_lossy(answer));
        assert_eq!(found, at_once(answer), "{}", String::from_utf8_lossy(answer));
    }
    let (usage, model) = found;
    if let Some(usage) = usage {
        assert!(is_stream || answer.windows(6).any(|word| word == b"\"usage"), "{usage:?} from nowhere");
    }
    if let Some(model) = model {
        assert!(answer.windows(6).any(|word| word == b"\"model") && !model.is_empty(), "{model} from nowhere");
    }
});

/// Bytes that claim to be packed.
fn unpack(is_stream: bool, packing: Packing, seed: u8, packed: &[u8]) {
    let mut unpacked = Vec::new();
    let max = 1024 * 1024;
    let read = match packing {
        Packing::Gzip => bufread::GzDecoder::new(packed).take(max).read_to_end(&mut unpacked),
        Packing::Zlib => bufread::ZlibDecoder::new(packed).take(max).read_to_end(&mut unpacked),
        Packing::Raw | Packing::None => bufread::DeflateDecoder::new(packed).take(max).read_to_end(&mut unpacked),
    };
    let found = whole(is_stream, packing, packed);
    match read {
        // A bomb: how much of it is looked at depends on how it comes.
        Ok(_) if unpacked.len() as u64 == max => {}
        // `deflate` is told by its first bytes: without the wrapper it may look as if it had one.
        Ok(_) if packing != Packing::Raw => {
            assert_eq!(found, whole(is_stream, Packing::None, &unpacked));
            cut(is_stream, packing, seed, packed, &found);
        }
        Ok(_) => cut(is_stream, packing, seed, packed, &found),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => cut(is_stream, packing, seed, packed, &found),
        // Damaged: how much came before is a matter of the cuts; that nothing breaks is all there is to say.
        Err(_) => drop(fed(is_stream, packing, pieces(packed, seed))),
    }
}

fn cut(is_stream: bool, packing: Packing, seed: u8, answer: &[u8], want: &Found) {
    assert_eq!(fed(is_stream, packing, [answer].into_iter()), *want, "whole");
    assert_eq!(fed(is_stream, packing, answer.chunks(1)), *want, "byte by byte");
    assert_eq!(fed(is_stream, packing, pieces(answer, seed)), *want, "in pieces");
}

fn whole(is_stream: bool, packing: Packing, answer: &[u8]) -> Found {
    fed(is_stream, packing, [answer].into_iter())
}

fn fed<'a>(is_stream: bool, packing: Packing, chunks: impl Iterator<Item = &'a [u8]>) -> Found {
    let kind = if is_stream { "text/event-stream; charset=utf-8" } else { "application/json" };
    let mut headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
    let coding = match packing {
        Packing::None => None,
        Packing::Gzip => Some("gzip"),
        Packing::Zlib | Packing::Raw => Some("deflate"),
    };
    headers.extend(coding.map(|coding| (header::CONTENT_ENCODING, HeaderValue::from_static(coding))));
    let mut scanner = Readable::of(&headers).expect("this kind of answer is read").with_model(true).scanner();
    chunks.for_each(|chunk| scanner.feed(chunk));
    found_by(&scanner)
}

/// Of an answer that tells its length and comes in one piece.
fn at_once(answer: &[u8]) -> Found {
    let headers = HeaderMap::from_iter([
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CONTENT_LENGTH, HeaderValue::from(answer.len())),
    ]);
    let mut scanner = Readable::of(&headers).expect("this kind of answer is read").with_model(true).scanner();
    scanner.feed(answer);
    found_by(&scanner)
}

fn found_by(scanner: &UsageScanner) -> Found {
    (scanner.usage(), scanner.model().map(str::to_owned))
}

fn pack(packing: Packing, answer: &[u8]) -> Vec<u8> {
    fn all<W: Write>(mut packer: W, answer: &[u8], finish: fn(W) -> std::io::Result<Vec<u8>>) -> Vec<u8> {
        packer.write_all(answer).and_then(|()| finish(packer)).expect("a Vec takes all")
    }
    let (to, level) = (Vec::new(), Compression::fast());
    match packing {
        Packing::None => answer.to_vec(),
        Packing::Gzip => all(write::GzEncoder::new(to, level), answer, write::GzEncoder::finish),
        Packing::Zlib => all(write::ZlibEncoder::new(to, level), answer, write::ZlibEncoder::finish),
        Packing::Raw => all(write::DeflateEncoder::new(to, level), answer, write::DeflateEncoder::finish),
    }
}

/// What the objects say that a walk over valid JSON finds, each given to the scanner alone, one after another.
fn by_walk(json: &[u8]) -> Option<Usage> {
    let mut lines = Vec::new();
    for object in objects(json) {
        lines.extend_from_slice(b"data: {\"usage\":");
        // In valid JSON a line can only end between words.
        lines.extend(object.iter().map(|byte| if b"\r\n".contains(byte) { b' ' } else { *byte }));
        lines.extend_from_slice(b"}\n\n");
    }
    whole(true, Packing::None, &lines).0
}

/// The objects called `usage` or `usageMetadata` in the outermost container or in one of its members.
fn objects(json: &[u8]) -> Vec<&[u8]> {
    let spaces = |at: usize| at + json[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let string_end = |start: usize| {
        let mut at = start + 1;
        while json[at] != b'"' {
            at += if json[at] == b'\\' { 2 } else { 1 };
        }
        at
    };
    let (mut found, mut depth, mut at, mut open) = (Vec::new(), 0_usize, 0, None);
    while at < json.len() {
        match json[at] {
            b'"' => {
                let (start, end) = (at + 1, string_end(at));
                at = end;
                let key = &json[start..end];
                let colon = spaces(end + 1);
                if open.is_none()
                    && (1..=2).contains(&depth)
                    && [&b"usage"[..], b"usageMetadata"].contains(&key)
                    && json.get(colon) == Some(&b':')
                    && json[spaces(colon + 1)] == b'{'
                {
                    at = spaces(colon + 1);
                    open = Some((at, depth));
                    depth += 1;
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if let Some((start, _)) = open.filter(|(_, outside)| *outside == depth) {
                    found.push(&json[start..=at]);
                    open = None;
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}
