//! Splits an answer into what is worth walking through: of an event stream only the lines that may hold usage.

use memchr::{memchr2, memmem, memrchr2};

use super::{Usage, numbers::Numbers, walk::Walk};

/// Looks for usage in plain bytes.
#[derive(Default)]
pub(super) struct Scan {
    is_lines: bool,
    /// The current line was walked from its start.
    is_midline: bool,
    walk: Walk,
    numbers: Numbers,
}

/// Begins both keys, `"usage"` and `"usageMetadata"`.
const WORD: &[u8] = b"\"usage";

impl Scan {
    /// For one JSON text.
    pub(super) fn document() -> Self {
        Self::default()
    }

    /// For an event stream, where each line holds a JSON text.
    pub(super) fn lines() -> Self {
        Self { is_lines: true, ..Self::default() }
    }

    pub(super) fn feed(&mut self, mut chunk: &[u8]) {
        if !self.is_lines {
            self.walk.feed(chunk, &mut self.numbers);
            return;
        }
        while !chunk.is_empty() {
            if !self.is_midline {
                // Lines that are here in full and lack the word are passed over; most chunks end with such a line.
                let word = memmem::find(chunk, WORD).unwrap_or(chunk.len());
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

    pub(super) fn usage(&self) -> Option<Usage> {
        self.numbers.usage()
    }
}
