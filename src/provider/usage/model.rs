//! Finds the name of the model that answered, which may be another than the one that was asked for. Not looked for unless
//! somebody wants to know.
//!
//! A walk like that for usage, with a narrower eye: a member called `model` may be anything, also near the top (users'
//! metadata come back in some answers).

use crate::provider::quotes;

/// A name with more bytes than this is none.
const NAME_BYTES_MAX: usize = 256;
/// Bytes that are looked at. Streams say it in their first event; Gemini's texts, and embeddings, at their end. A guess.
const LOOKED_AT_MAX: usize = 1024 * 1024;

/// Looks for the name until it is found.
#[derive(Default)]
pub(super) struct ModelScan {
    is_lines: bool,
    looked_at: usize,
    walk: Walk,
    name: Option<String>,
}

#[derive(Default)]
struct Walk {
    place: Place,
    /// Objects and arrays that are open.
    depth: u32,
    /// The outermost is an array (Gemini's), so its items are as good as the outermost.
    is_list: bool,
    /// The second is an item of such an array, or what is called like one of [`ENVELOPES`].
    is_inside: bool,
    /// The last string, where it may matter.
    text: Vec<u8>,
}

/// OpenAI's and Anthropic's word, and Gemini's. Azure's first event has an empty name.
const KEYS: [&[u8]; 2] = [b"model", b"modelVersion"];
/// Streams of Anthropic, and of OpenAI's Responses, begin with the whole answer so far.
const ENVELOPES: [&[u8]; 2] = [b"message", b"response"];

enum Place {
    Between(Expect),
    Within {
        /// It is the value of a key for the name.
        is_name: bool,
        is_escaped: bool,
    },
}

impl Default for Place {
    fn default() -> Self {
        Self::Between(Expect::Nothing)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Nothing,
    Colon(Key),
    Value(Key),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Name,
    Envelope,
}

impl ModelScan {
    pub(super) fn new(is_lines: bool) -> Self {
        Self { is_lines, ..Self::default() }
    }

    pub(super) fn feed(&mut self, mut chunk: &[u8]) {
        while !chunk.is_empty() && self.name.is_none() && self.looked_at < LOOKED_AT_MAX {
            let end = if self.is_lines { memchr::memchr2(b'\n', b'\r', chunk) } else { None };
            let (line, rest) = chunk.split_at(end.map_or(chunk.len(), |end| end + 1));
            self.name = self.walk.feed(line);
            self.looked_at = self.looked_at.saturating_add(line.len());
            if end.is_some() {
                self.walk = Walk::default();
            }
            chunk = rest;
        }
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl Walk {
    /// Until the name is found.
    fn feed(&mut self, chunk: &[u8]) -> Option<String> {
        let mut at = 0;
        loop {
            let rest = chunk.get(at..).filter(|rest| !rest.is_empty())?;
            match &mut self.place {
                Place::Within { is_name, is_escaped } => {
                    let is_name = *is_name;
                    if std::mem::take(is_escaped) {
                        self.keep(rest.get(..1).unwrap_or_default());
                        at += 1;
                        continue;
                    }
                    let end = quotes::closing(rest);
                    if end.is_none() {
                        *is_escaped = quotes::is_escaped(rest);
                    }
                    self.keep(rest.get(..end.unwrap_or(rest.len())).unwrap_or_default());
                    at += end? + 1;
                    if let Some(name) = is_name.then(|| text(&self.text)).flatten() {
                        return Some(name);
                    }
                    self.place = Place::Between(self.key().map_or(Expect::Nothing, Expect::Colon));
                }
                Place::Between(expect) => {
                    let is_structure = |byte: &u8| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']');
                    let skipped = if *expect == Expect::Nothing { rest.iter().position(is_structure)? } else { 0 };
                    at += skipped + 1;
                    match (rest.get(skipped)?, *expect) {
                        (b' ' | b'\t' | b'\n' | b'\r', _) => {}
                        (b':', Expect::Colon(key)) => *expect = Expect::Value(key),
                        (b'"', expect) => {
                            self.text.clear();
                            self.place =
                                Place::Within { is_name: expect == Expect::Value(Key::Name), is_escaped: false };
                        }
                        (byte @ (b'{' | b'['), expect) => {
                            match self.depth {
                                0 => self.is_list = *byte == b'[',
                                1 => {
                                    let is_known = self.is_list || expect == Expect::Value(Key::Envelope);
                                    self.is_inside = *byte == b'{' && is_known;
                                }
                                _ => {}
                            }
                            self.place = Place::default();
                            self.depth = self.depth.saturating_add(1);
                        }
                        (b'}' | b']', _) => {
                            *expect = Expect::Nothing;
                            self.depth = self.depth.saturating_sub(1);
                        }
                        _ => *expect = Expect::Nothing,
                    }
                }
            }
        }
    }

    /// Whether strings here may matter.
    fn is_near(&self) -> bool {
        match self.depth {
            1 => !self.is_list,
            2 => self.is_inside,
            _ => false,
        }
    }

    /// Adds to the last string, up to a byte more than it may have.
    fn keep(&mut self, more: &[u8]) {
        if self.is_near() {
            let free = (NAME_BYTES_MAX + 1).saturating_sub(self.text.len());
            self.text.extend_from_slice(more.get(..more.len().min(free)).unwrap_or_default());
        }
    }

    /// What the last string would be if it is a key.
    fn key(&self) -> Option<Key> {
        let is_one_of = |keys: &[&[u8]]| self.is_near() && keys.contains(&self.text.as_slice());
        if is_one_of(&KEYS) {
            Some(Key::Name)
        } else {
            (self.depth == 1 && is_one_of(&ENVELOPES)).then_some(Key::Envelope)
        }
    }
}

/// What stands between the quotes. `None`: nothing does, or no name.
fn text(quoted: &[u8]) -> Option<String> {
    if quoted.is_empty() || quoted.len() > NAME_BYTES_MAX {
        return None;
    }
    if quoted.contains(&b'\\') {
        return serde_json::from_slice(&[b"\"", quoted, b"\""].concat()).ok();
    }
    String::from_utf8(quoted.to_vec()).ok()
}
