//! Walks through JSON, however it is cut, and reads the objects called `usage` near its top.
//!
//! Keeps only whether it is inside a string, how deep it is, and the beginning of the current string. A string's
//! content is therefore never taken for a key; nor is a tool's argument of that name, which lies deeper.

use super::numbers::Numbers;
use crate::provider::quotes;

/// An object with more than this is not a usage: known ones have less than 1 KiB.
pub(super) const OBJECT_BYTES_MAX: usize = 4 * 1024;

/// The objects that count are in the text's own (`usage`), in one of its members (`message.usage`, `response.usage`,
/// `delta.usage`, `x_groq.usage`), or in one of its items (Gemini's array).
pub(super) const DEPTH_MAX: u32 = 2;

#[derive(Default)]
pub(super) struct Walk {
    place: Place,
    /// Objects and arrays that are open.
    depth: u32,
    /// The usage that is being copied.
    copied: Option<Copied>,
}

enum Place {
    /// Between strings.
    Between(Expect),
    /// In a string; `key` counts the bytes that agree with the keys so far.
    Within { key: Key, is_escaped: bool },
}

impl Default for Place {
    fn default() -> Self {
        Self::Between(Expect::Nothing)
    }
}

/// What would make the last string the key of a usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Nothing,
    Colon,
    Object,
}

/// The beginning of a string, as far as a key is long.
#[derive(Default)]
struct Key {
    bytes: [u8; KEY_BYTES_MAX],
    len: usize,
}

const KEYS: [&[u8]; 2] = [b"usage", b"usageMetadata"];
const KEY_BYTES_MAX: usize = 13;

impl Key {
    /// Longer strings count one byte too many, and so are none.
    fn extend(&mut self, more: &[u8]) {
        let len = self.len.saturating_add(more.len());
        if let Some(free) = self.bytes.get_mut(self.len..len) {
            free.copy_from_slice(more);
        }
        self.len = len.min(KEY_BYTES_MAX + 1);
    }

    fn is_usage(&self) -> bool {
        self.bytes.get(..self.len).is_some_and(|key| KEYS.contains(&key))
    }
}

/// The bytes of an object that opened at a depth.
struct Copied {
    bytes: Vec<u8>,
    depth: u32,
}

impl Walk {
    pub(super) fn feed(&mut self, chunk: &[u8], numbers: &mut Numbers) {
        let mut at = 0;
        // Where the copy goes on.
        let mut from = 0;
        while let Some(rest) = chunk.get(at..).filter(|rest| !rest.is_empty()) {
            match &mut self.place {
                Place::Within { key, is_escaped } => {
                    if std::mem::take(is_escaped) {
                        at += 1;
                        continue;
                    }
                    let end = quotes::closing(rest);
                    if key.len <= KEY_BYTES_MAX {
                        key.extend(rest.get(..end.unwrap_or(rest.len())).unwrap_or_default());
                    }
                    let Some(end) = end else {
                        *is_escaped = quotes::is_escaped(rest);
                        break;
                    };
                    at += end + 1;
                    let is_key = self.copied.is_none() && (1..=DEPTH_MAX).contains(&self.depth) && key.is_usage();
                    self.place = Place::Between(if is_key { Expect::Colon } else { Expect::Nothing });
                }
                Place::Between(expect) => {
                    // Numbers are passed over: an embedding has a megabyte of them.
                    let skipped = match expect {
                        Expect::Nothing => {
                            rest.iter().position(|byte| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']'))
                        }
                        Expect::Colon | Expect::Object => Some(0),
                    };
                    let Some((skipped, byte)) = skipped.and_then(|at| Some((at, rest.get(at)?))) else { break };
                    at += skipped + 1;
                    match (byte, *expect) {
                        (b' ' | b'\t' | b'\n' | b'\r', _) => {}
                        (b':', Expect::Colon) => *expect = Expect::Object,
                        (b'"', _) => self.place = Place::Within { key: Key::default(), is_escaped: false },
                        (b'{' | b'[', _) => {
                            if *byte == b'{' && *expect == Expect::Object {
                                self.copied = Some(Copied { bytes: Vec::new(), depth: self.depth });
                                from = at - 1;
                            }
                            *expect = Expect::Nothing;
                            self.depth = self.depth.saturating_add(1);
                        }
                        (b'}' | b']', _) => {
                            *expect = Expect::Nothing;
                            self.depth = self.depth.saturating_sub(1);
                            if self.copied.as_ref().is_some_and(|copied| copied.depth == self.depth) {
                                let object = chunk.get(from..at).unwrap_or_default();
                                if self.copied.as_ref().is_some_and(|copied| copied.bytes.is_empty()) {
                                    // Here from beginning to end.
                                    let fits = object.len() <= OBJECT_BYTES_MAX;
                                    numbers.read(if fits { object } else { &[] });
                                } else {
                                    self.copy(object);
                                    if let Some(copied) = &self.copied {
                                        numbers.read(&copied.bytes);
                                    }
                                }
                                self.copied = None;
                            }
                        }
                        _ => *expect = Expect::Nothing,
                    }
                }
            }
        }
        self.copy(chunk.get(from..).unwrap_or_default());
    }

    /// Adds to the copy, if there is one; gives it up if it grows too long.
    fn copy(&mut self, more: &[u8]) {
        if let Some(copied) = &mut self.copied {
            if copied.bytes.len() + more.len() > OBJECT_BYTES_MAX {
                self.copied = None;
            } else {
                copied.bytes.extend_from_slice(more);
            }
        }
    }
}
