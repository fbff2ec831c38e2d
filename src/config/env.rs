//! `${NAME}`: values from the environment.
//!
//! References are found before the YAML is parsed and replaced by as many characters that mean nothing to YAML, so
//! that `${KEY}` may stand where a brace could not, and every column stays what it was. What the variable holds is
//! put in only after parsing, into one finished scalar: it can never become a key, a comment or a second value.

use super::problem::{Origin, Problem};

/// Where variables come from: `std::env::var` in the program, a table in tests.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A text whose references are masked, and where each of them stood.
pub(super) struct Masked {
    pub(super) text: String,
    /// In order of appearance.
    references: Vec<Reference>,
}

struct Reference {
    /// In characters, from the start of the text.
    index: usize,
    name: String,
    origin: Origin,
}

/// What a scalar became.
pub(super) struct Filled {
    /// With variables replaced.
    pub(super) text: String,
    /// As it stands in the file; the only form fit for messages, since a variable may hold a secret.
    pub(super) shown: String,
    /// Whether a variable was put in.
    pub(super) substituted: bool,
}

impl Masked {
    /// Fails on characters no configuration has a use for.
    pub(super) fn new(source: &str) -> Result<Self, Problem> {
        let source = source.strip_prefix('\u{feff}').unwrap_or(source);
        let mut masked = Self { text: String::with_capacity(source.len()), references: Vec::new() };
        let (mut line, mut column, mut index, mut rest) = (1, 1, 0, source);
        while let Some(char) = rest.chars().next() {
            let origin = Origin::Place { line, column };
            let escaped = rest.strip_prefix("$${").map(|after| (true, after));
            let opened = escaped.or_else(|| rest.strip_prefix("${").map(|after| (false, after)));
            if let Some((escaped, after)) = opened {
                let width = if escaped { 3 } else { 2 };
                let name = name_before_brace(after);
                match (escaped, name) {
                    (true, _) => masked.text.extend([ESCAPE, PAD, PAD]),
                    (false, Some(name)) => {
                        masked.text.extend([OPEN, OPEN]);
                        masked.references.push(Reference { index, name: name.to_owned(), origin });
                    }
                    (false, None) => masked.text.push_str("${"),
                }
                (index, column, rest) = (index + width, column + width, after);
                if let Some(name) = name {
                    masked.text.push_str(name);
                    masked.text.push(CLOSE);
                    let width = name.len() + 1; // names are ASCII
                    (index, column) = (index + width, column + width);
                    rest = rest.get(width..).unwrap_or_default();
                }
                continue;
            }
            if (char.is_control() && !matches!(char, '\n' | '\r' | '\t')) || (OPEN..=PAD).contains(&char) {
                return Err(origin.problem(format_args!("the character {} is not allowed", char.escape_unicode())));
            }
            masked.text.push(char);
            rest = rest.get(char.len_utf8()..).unwrap_or_default();
            index += 1;
            column += 1;
            if char == '\n' || (char == '\r' && !rest.starts_with('\n')) {
                (line, column) = (line + 1, 1);
            }
        }
        Ok(masked)
    }

    /// Puts variables into the scalar `text`, which began at `origin` and at character `start`.
    pub(super) fn fill(&self, text: &str, start: usize, origin: Origin, env: Env<'_>) -> Result<Filled, Problem> {
        let mut filled = Filled { text: String::with_capacity(text.len()), shown: unmask(text), substituted: false };
        let first = self.references.partition_point(|reference| reference.index < start);
        let mut later = self.references.iter().skip(first);
        let mut rest = text;
        while let Some(at) = rest.find([OPEN, CLOSE, ESCAPE, '$']) {
            let (before, from) = rest.split_at(at);
            filled.text.push_str(before);
            if let Some(after) = from.strip_prefix(ESCAPED) {
                filled.text.push_str("${");
                rest = after;
            } else if let Some(after) = from.strip_prefix(CLOSE) {
                filled.text.push('}'); // of an escaped reference
                rest = after;
            } else if let Some((name, after)) = from.strip_prefix([OPEN]).and_then(|from| from.split_once(CLOSE)) {
                let name = name.trim_start_matches(OPEN);
                let origin = later.find(|reference| reference.name == name).map_or(origin, |found| found.origin);
                let value = env(name).ok_or_else(|| {
                    origin.problem(format_args!(
                        "the environment variable `{name}` is not set; write `$${{` for a literal `${{`"
                    ))
                })?;
                filled.text.push_str(&value);
                filled.substituted = true;
                rest = after;
            } else if from.starts_with("${") {
                return Err(origin.problem(
                    "`${` must be followed by the name of an environment variable and `}`, such as `${NAME}`; write `$${` for a literal `${`",
                ));
            } else {
                let mut chars = from.chars();
                filled.text.extend(chars.next());
                rest = chars.as_str();
            }
        }
        filled.text.push_str(rest);
        Ok(filled)
    }
}

/// Whether variables would be put into this text.
pub(super) fn has_reference(text: &str) -> bool {
    text.contains([OPEN, ESCAPE])
}

/// The text as it stands in the file.
pub(super) fn unmask(text: &str) -> String {
    if !text.contains([OPEN, CLOSE, ESCAPE]) {
        return text.to_owned();
    }
    text.replace(ESCAPED, "$${").replace(OPENED, "${").replace(CLOSE, "}")
}

/// `NAME` of `NAME}…`: a letter or `_`, then letters, digits and `_`.
fn name_before_brace(text: &str) -> Option<&str> {
    let (name, rest) = text.split_at(text.find(|char: char| !char.is_ascii_alphanumeric() && char != '_')?);
    let valid = rest.starts_with('}') && !name.is_empty() && !name.starts_with(|first: char| first.is_ascii_digit());
    valid.then_some(name)
}

// Four characters of the private use area, refused in the file itself: nothing else can look like a reference.
const OPEN: char = '\u{e000}';
const CLOSE: char = '\u{e001}';
const ESCAPE: char = '\u{e002}';
const PAD: char = '\u{e003}';
const OPENED: &str = "\u{e000}\u{e000}";
const ESCAPED: &str = "\u{e002}\u{e003}\u{e003}";

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> Result<String, String> {
        let env = |name: &str| match name {
            "A" => Some("x".to_owned()),
            "B" => Some("y: ${A} #\n".to_owned()),
            _ => None,
        };
        let masked = Masked::new(text).map_err(|problem| problem.in_file("f").to_string())?;
        assert_eq!(masked.text.chars().count(), text.chars().count(), "columns must stay");
        assert_eq!(unmask(&masked.text), text);
        match masked.fill(&masked.text, 0, Origin::START, &env) {
            Ok(filled) => Ok(filled.text),
            Err(problem) => Err(problem.in_file("f").to_string()),
        }
    }

    #[test]
    fn references_are_replaced_once_and_verbatim() {
        for (text, want) in [
            ("plain", "plain"),
            ("$", "$"),
            ("a$b $$ c", "a$b $$ c"),
            ("${A}", "x"),
            ("${A}${A}", "xx"),
            ("ü-${A}-ü", "ü-x-ü"),
            ("${B}", "y: ${A} #\n"),
            ("$${A}", "${A}"),
            ("$$${A}", "$${A}"),
            ("$${A}${A}$${", "${A}x${"),
            ("}", "}"),
        ] {
            assert_eq!(fill(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn an_unset_variable_is_named_with_its_place() {
        let error = fill("${A}\n  ü ${C}").unwrap_err();
        assert_eq!(error, "f:2:5: the environment variable `C` is not set; write `$${` for a literal `${`");
    }

    #[test]
    fn a_reference_without_a_name_is_an_error() {
        for text in ["${}", "${1}", "${A", "${A:-b}", "${ A }"] {
            assert!(fill(text).unwrap_err().contains("must be followed by the name"), "{text}");
        }
    }

    #[test]
    fn characters_that_could_forge_a_reference_are_refused() {
        for text in ["\u{e000}\u{e000}A\u{e001}", "a\0b", "\u{1b}"] {
            assert!(fill(text).unwrap_err().ends_with("is not allowed"), "{text:?}");
        }
    }
}
