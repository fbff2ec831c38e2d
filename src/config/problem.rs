//! What can be wrong with a configuration, and where.

use std::fmt::Display;

/// Why there is no configuration. Always one line; the place comes first.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag (or its environment variable) is wrong.
    #[error("{flag}: {message}")]
    Flag {
        /// The flag, with its dashes.
        flag: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A place in the file is wrong.
    #[error("{path}:{line}:{column}: {message}")]
    Place {
        /// The file, as it was named.
        path: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// The file cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file, as it was named.
        path: String,
        /// Why not; part of the text already, hence not a source.
        error: std::io::Error,
    },
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A flag of the command line.
    Flag(&'static str),
    /// A place in the file; both count from 1.
    Place { line: usize, column: usize },
}

impl Origin {
    pub(super) const START: Self = Self::Place { line: 1, column: 1 };

    pub(super) fn problem(self, message: impl Display) -> Problem {
        Problem { origin: Some(self), message: one_line(&message.to_string()) }
    }
}

/// A `ConfigError` that does not know the file's name yet.
#[derive(Debug)]
pub(super) struct Problem {
    /// `None` only until the reader of the surrounding value adds its own place.
    origin: Option<Origin>,
    message: String,
}

impl Problem {
    /// The place of `origin`, unless a more precise one is known.
    pub(super) fn or_at(mut self, origin: Origin) -> Self {
        self.origin.get_or_insert(origin);
        self
    }

    /// The same, with one more thing that would do.
    pub(super) fn or(mut self, other: &str) -> Self {
        self.message.push_str(&format!(", or {other}"));
        self
    }

    pub(super) fn in_file(self, path: &str) -> ConfigError {
        match self.origin.unwrap_or(Origin::START) {
            Origin::Flag(flag) => ConfigError::Flag { flag, message: self.message },
            Origin::Place { line, column } => {
                ConfigError::Place { path: one_line(path), line, column, message: self.message }
            }
        }
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl serde::de::Error for Problem {
    fn custom<T: Display>(message: T) -> Self {
        Self { origin: None, message: one_line(&message.to_string()) }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let hint = match nearest(field, expected.iter().copied()) {
            Some(known) => format!("did you mean `{known}`?"),
            None if expected.is_empty() => "no key is known here".to_owned(),
            None => format!("known here: {}", expected.join(", ")),
        };
        // A credential with its tier behind it, `sk-…: pro`, is what somebody may write here.
        let is_word = field.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
        let shown = if is_word || !expected.contains(&"credential") { excerpt(field) } else { HIDDEN.to_owned() };
        Self::custom(format_args!("unknown key `{shown}`; {hint}"))
    }
}

/// The candidate that was probably meant: at most a third of the letters differ.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(WORD_CHARS_MAX).flat_map(char::to_lowercase).collect();
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|&(distance, candidate)| distance <= 1.max(candidate.len() / 3))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// What stands for a text that may be a secret.
pub(super) const HIDDEN: &str = "…";

/// Text from outside, cut to a length that fits in a message.
pub(super) fn excerpt(text: &str) -> String {
    if text.chars().count() <= WORD_CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(WORD_CHARS_MAX - 1).chain(['…']).collect()
}

/// Letters to insert, remove or replace (Levenshtein).
fn distance(word: &[char], other: &str) -> usize {
    let mut row: Vec<usize> = (0..=word.len()).collect();
    for (index, letter) in other.chars().enumerate() {
        let mut next = vec![index + 1];
        for (&known, pair) in word.iter().zip(row.windows(2)) {
            let [diagonal, above] = *pair else { continue };
            let left = next.last().copied().unwrap_or_default();
            next.push((diagonal + usize::from(known != letter)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// Control characters escaped, so that a message is one line on every terminal.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() || matches!(char, '\u{2028}' | '\u{2029}') {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
    line
}

/// A guess: longer than every key and tier name, shorter than a terminal is wide.
const WORD_CHARS_MAX: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_finds_its_neighbour() {
        for (word, want) in [
            ("tiar", Some("tier")),
            ("ceilling", Some("ceiling")),
            ("depthmax", Some("depth_max")),
            ("TIER", Some("tier")),
            ("elephant", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, ["tier", "ceiling", "depth_max"]), want, "{word}");
        }
    }

    #[test]
    fn a_message_never_breaks_its_line() {
        let error = Origin::START.problem("a\nb\u{2028}c\u{1b}[1m").in_file("x\ny.yaml");
        assert_eq!(error.to_string(), "x\\ny.yaml:1:1: a\\nb\\u{2028}c\\u{1b}[1m");
    }
}
