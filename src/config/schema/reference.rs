//! What `config/tidegate.yaml`, the reference, says about each key: what it means, and its default.

use serde_json::{Value, json};

const REFERENCE: &str = include_str!("../../../config/tidegate.yaml");

/// A key of the reference.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its path; `[]` is every item of a list.
    pub(super) path: String,
    /// The comment behind it.
    pub(super) text: String,
    /// What holds when it is left out; `None`: the line is an example or a section.
    pub(super) default: Option<Value>,
}

/// Read line by line: the reference has one key a line, and a test holds that all of them are found.
pub(super) fn entries() -> Vec<Entry> {
    let mut above: Vec<(usize, String)> = Vec::new();
    let mut entries = Vec::new();
    for line in REFERENCE.lines() {
        let Some((indent, item, example, rest)) = key_line(line) else { continue };
        let Some((key, rest)) = rest.split_once(':') else { continue };
        while above.last().is_some_and(|(deeper, _)| *deeper >= indent) {
            above.pop();
        }
        if let Some((_, list)) = above.last_mut().filter(|_| item) {
            list.push_str("[]");
        }
        let path = above.iter().map(|(_, name)| name.as_str()).chain([key]).collect::<Vec<_>>().join(".");
        let (value, text) = rest.split_once(" # ").unwrap_or((rest, ""));
        let value = value.trim();
        let default = (!example && !value.is_empty() && !value.starts_with(['[', '{'])).then(|| scalar(value));
        above.push((indent, key.to_owned()));
        entries.push(Entry { path, text: text.trim().to_owned(), default });
    }
    entries
}

/// Indent, whether it begins an item of a list, whether it is commented out, and the line from its key on.
fn key_line(line: &str) -> Option<(usize, bool, bool, &str)> {
    let spaces = |text: &str| text.len() - text.trim_start().len();
    let mut indent = spaces(line);
    let mut rest = line.trim_start();
    let example = rest.starts_with('#');
    if let Some(hidden) = rest.strip_prefix('#') {
        // `#aimd decrease: …` names its algorithm first.
        let (_, behind) = hidden.split_once(' ')?;
        indent += spaces(behind);
        rest = behind.trim_start();
    }
    let item = rest.starts_with("- ");
    if item {
        indent += 2;
        rest = rest.get(2..)?;
    }
    let key = rest.split(':').next().unwrap_or_default();
    let is_key =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'0'..=b'9'));
    (is_key && rest.contains(':')).then_some((indent, item, example, rest))
}

fn scalar(text: &str) -> Value {
    match text {
        "true" => json!(true),
        "false" => json!(false),
        _ => text
            .parse::<u64>()
            .map(|number| json!(number))
            .or_else(|_| text.parse::<f64>().map(|number| json!(number)))
            .unwrap_or_else(|_| json!(text)),
    }
}
