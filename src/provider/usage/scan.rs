//! Splits an answer into what is worth walking through: of an event stream only the lines that may hold usage.

use std::sync::LazyLock;

use memchr::{memchr2, memmem, memrchr2};

use super::{
    Usage,
    model::ModelScan,
    numbers::Numbers,
    walk::{DEPTH_MAX, OBJECT_BYTES_MAX, Walk},
};
use crate::provider::{members, quotes};

/// Looks for usage in plain bytes.
#[derive(Default)]
pub(super) struct Scan {
    is_lines: bool,
    /// The current line was walked from its start.
    is_midline: bool,
    /// Bytes of the whole text, if that is known and nothing was seen yet.
    expected: Option<usize>,
    walk: Walk,
    numbers: Numbers,
    /// Who answered is looked for too.
    model: Option<Box<ModelScan>>,
}

/// Begins both keys, `"usage"` and `"usageMetadata"`.
const WORD: &[u8] = b"\"usage";
/// To prepare the search takes as long as to search a kilobyte.
static FINDER: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(WORD));

impl Scan {
    /// For one JSON text, of so many bytes if that is known.
    pub(super) fn document(expected: Option<usize>) -> Self {
        Self { expected, ..Self::default() }
    }

    /// For an event stream, where each line holds a JSON text.
    pub(super) fn lines() -> Self {
        Self { is_lines: true, ..Self::default() }
    }

    /// The same, and for who answered.
    pub(super) fn with_model(mut self) -> Self {
        self.model = Some(Box::new(ModelScan::new(self.is_lines)));
        self
    }

    pub(super) fn feed(&mut self, mut chunk: &[u8]) {
        if let Some(model) = &mut self.model {
            model.feed(chunk);
        }
        if !self.is_lines {
            match self.expected.take() {
                Some(bytes) if bytes == chunk.len() => self.read_whole(chunk),
                _ => self.walk.feed(chunk, &mut self.numbers),
            }
            return;
        }
        while !chunk.is_empty() {
            if !self.is_midline {
                // Lines that are here in full and lack the word are passed over; most chunks end with such a line.
                let word = FINDER.find(chunk).unwrap_or(chunk.len());
                let (passed, _) = chunk.split_at(word);
                let line_start = memrchr2(b'\n', b'\r', passed).map_or(0, |end| end + 1);
                chunk = chunk.get(line_start..).unwrap_or_default();
            }
            let end = memchr2(b'\n', b'\r', chunk);
            let (line, rest) = chunk.split_at(end.map_or(chunk.len(), |end| end + 1));
            self.walk.feed(line, &mut self.numbers);
            self.is_midline = end.is_none() && (self.is_midline || !line.is_empty());
            if end.is_some() {
                self.walk = Walk::default();
            }
            chunk = rest;
        }
    }

    /// Reads a text that is here in full, and finds in it what a walk would. A key is found by a search, as no string's
    /// content can look like one: its quotes would be escaped. How deep it lies is told by what follows it, which is
    /// little as a rule.
    fn read_whole(&mut self, text: &[u8]) {
        let mut read_to = 0;
        for at in FINDER.find_iter(text) {
            let (before, rest) = text.split_at(at);
            if at < read_to || quotes::is_escaped(before) {
                continue;
            }
            let rest = rest.strip_prefix(WORD).unwrap_or_default();
            let Some(rest) = rest.strip_prefix(b"\"").or_else(|| rest.strip_prefix(b"Metadata\"")) else { continue };
            let Some(object) = rest.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start) else {
                continue;
            };
            let is_object = object.first() == Some(&b'{');
            let Some(object) = members::value(object).filter(|_| is_object) else { continue };
            let depth = members::open_before(rest);
            if (1..=DEPTH_MAX as usize).contains(&depth) && object.len() <= OBJECT_BYTES_MAX {
                self.numbers.read(object);
                read_to = text.len() - rest.len() + object.len();
            }
        }
    }

    pub(super) fn model(&self) -> Option<&str> {
        self.model.as_ref()?.name()
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.numbers.usage()
    }
}
