//! Passes over JSON without reading it, at the speed of a search: of a megabyte of prompt only the ends of its strings
//! are looked at. What is looked for is then read by serde_json.
//!
//! Text that is not JSON is passed over in some way that ends; the upstream will say what is wrong with it.

use std::borrow::Cow;

use super::quotes;

/// The members of an object.
pub(super) struct Members<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Members<'a> {
    /// `None`: the text is no object.
    pub(super) fn of(text: &'a [u8]) -> Option<Self> {
        let at = after_blanks(text, 0);
        (text.get(at) == Some(&b'{')).then_some(Self { text, at: at + 1 })
    }

    /// The next key, and the text from its value on. [`pass`](Self::pass) comes before the next one.
    pub(super) fn next_key(&mut self) -> Option<(Cow<'a, [u8]>, &'a [u8])> {
        let start = after_blanks(self.text, self.at);
        let rest = self.text.get(start..)?.strip_prefix(b"\"")?;
        let (end, key) = match quotes::near(rest) {
            Some(end) => (start + end + 2, Cow::Borrowed(rest.get(..end)?)),
            None => {
                let end = string_end(self.text, start)?;
                let quoted = self.text.get(start..end)?;
                let key = match memchr::memchr(b'\\', quoted) {
                    Some(_) => Cow::Owned(serde_json::from_slice::<String>(quoted).ok()?.into_bytes()),
                    None => Cow::Borrowed(self.text.get(start + 1..end - 1)?),
                };
                (end, key)
            }
        };
        let colon = after_blanks(self.text, end);
        if self.text.get(colon) != Some(&b':') {
            return None;
        }
        self.at = after_blanks(self.text, colon + 1);
        Some((key, self.text.get(self.at..)?))
    }

    /// Passes over the value. `None`: it was the last.
    pub(super) fn pass(&mut self) -> Option<()> {
        let end = after_blanks(self.text, value_end(self.text, self.at)?);
        self.at = end + 1;
        (self.text.get(end) == Some(&b',')).then_some(())
    }
}

pub(super) fn after_blanks(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

/// Where the string that begins at `at` is over.
fn string_end(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    Some(at + quotes::closing(text.get(at + 1..)?)? + 2)
}

/// How many objects and arrays end in `text` that do not begin there.
pub(super) fn open_before(text: &[u8]) -> usize {
    let (mut at, mut inside, mut open) = (0, 0_usize, 0);
    while let Some(next) = text.get(at..).and_then(|rest| rest.iter().position(is_structure)) {
        at += next;
        match text.get(at) {
            Some(b'"') => match string_end(text, at) {
                Some(end) => at = end,
                None => return open,
            },
            Some(b'{' | b'[') => {
                inside += 1;
                at += 1;
            }
            _ => {
                open += usize::from(inside == 0);
                inside = inside.saturating_sub(1);
                at += 1;
            }
        }
    }
    open
}

/// The value at the beginning of `text`.
pub(super) fn value(text: &[u8]) -> Option<&[u8]> {
    text.get(..value_end(text, 0)?)
}

fn is_structure(byte: &u8) -> bool {
    // Brackets and braces differ in one bit, and this is asked of every byte between two strings.
    let brace = byte | 0x20;
    *byte == b'"' || brace == b'{' || brace == b'}'
}

fn ends_word(byte: &u8) -> bool {
    matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n')
}

/// Where the value that begins at `at` is over.
fn value_end(text: &[u8], mut at: usize) -> Option<usize> {
    let mut depth = 0_usize;
    loop {
        let rest = text.get(at..)?;
        at = match rest.first()? {
            b'"' => string_end(text, at)?,
            b'{' | b'[' => {
                depth += 1;
                at + 1
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at + 1
            }
            // A number, a word, or what separates them.
            _ if depth == 0 => return Some(at + rest.iter().position(ends_word)?),
            _ => at + rest.iter().position(is_structure)?,
        };
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_found_and_passed_over() {
        for (text, want) in [
            (r#"{}"#, ""),
            (r#" { "a" : 1 , "b" : [ {"x":"]}"}, 2 ] ,"c":"\\" } "#, "a b c"),
            (r#"{"a":"\"","b\u0063":{"d":[]},"e":-1.5e3,"f":null}"#, "a bc e f"),
            (r#"{"a":1,"b":"cut off"#, "a b"),
            (r#"{"a":1,"b""#, "a"),
            (r#"{"a":1]"b":2}"#, "a"),
            (r#"{"a":1 "b":2}"#, "a"),
            (r#"{"a"#, ""),
            (r#"{1:2}"#, ""),
            (r#"[{"a":1}]"#, ""),
            ("", ""),
        ] {
            let mut keys = Vec::new();
            if let Some(mut members) = Members::of(text.as_bytes()) {
                while let Some((key, _)) = members.next_key() {
                    keys.push(String::from_utf8(key.into_owned()).unwrap());
                    if members.pass().is_none() {
                        break;
                    }
                }
            }
            assert_eq!(keys.join(" "), want, "{text}");
        }
    }
}
