//! YAML text → a tree whose every value knows its line and column.
//!
//! Bounded in size, depth and number of values, whatever the text is. Directives of YAML that a configuration has no
//! use for (tags, merge keys, several documents) are refused rather than half supported.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};

use super::{
    env::{self, Env, Masked},
    problem::{HIDDEN, Origin, Problem, excerpt},
};

/// A value, where it stands and how messages call it.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) origin: Origin,
    /// The key it belongs to, with the keys of the sections around it: `limit.min`.
    pub(super) key: String,
    pub(super) kind: Kind,
}

#[derive(Clone)]
pub(super) enum Kind {
    Mapping(Vec<(Key, Node)>),
    /// A key without a value, or `null`.
    Null,
    Scalar {
        text: String,
        /// The text as it stands in the file, variables by name; not that of a credential.
        shown: String,
    },
    Sequence(Vec<Node>),
}

/// Variables by name, as in messages: their values may be secrets.
impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mapping(entries) => f.debug_list().entries(entries).finish(),
            Self::Null => f.write_str("null"),
            Self::Scalar { shown, .. } => write!(f, "{shown:?}"),
            Self::Sequence(items) => f.debug_list().entries(items).finish(),
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) origin: Origin,
    pub(super) name: String,
}

/// Largest configuration file. A guess: a thousand upstreams fit.
pub(super) const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Reads one document.
pub(super) fn read(text: &str, env: Env<'_>) -> Result<Node, Problem> {
    if text.len() > FILE_BYTES_MAX {
        return Err(Origin::START.problem(TOO_LARGE));
    }
    let masked = Masked::new(text)?;
    let parser = Parser::new_from_str(&masked.text);
    Reader { parser, masked: &masked, env, anchors: HashMap::new(), nodes: 0 }.document()
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    masked: &'a Masked,
    env: Env<'a>,
    /// Values that an alias may repeat.
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn document(mut self) -> Result<Node, Problem> {
        let root = loop {
            match self.next()? {
                (Event::DocumentStart(_), _) => {
                    let (event, span) = self.next()?;
                    break self.node(event, span, "", 0)?;
                }
                (Event::StreamEnd, _) => return Err(Origin::START.problem(EMPTY)),
                _ => {}
            }
        };
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => break,
                (Event::DocumentStart(_), span) => {
                    return Err(origin(span).problem("a second document begins here; a configuration is one document"));
                }
                _ => {}
            }
        }
        match root.kind {
            Kind::Mapping(_) => Ok(root),
            Kind::Null => Err(Origin::START.problem(EMPTY)),
            Kind::Scalar { .. } | Kind::Sequence(_) => {
                Err(root.origin.problem("the file must be a mapping of keys, such as `listen: 127.0.0.1:8080`"))
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, key: &str, depth: usize) -> Result<Node, Problem> {
        let origin = origin(span);
        self.count(1, origin)?;
        if depth > DEPTH_MAX {
            return Err(origin.problem(too_deep()));
        }
        let (kind, anchor, tag) = match event {
            Event::Alias(anchor) => return self.alias(anchor, origin, key),
            Event::Scalar(text, style, anchor, tag) => {
                let filled = self.masked.fill(&text, span.start.index(), origin, self.env)?;
                let plain = style == ScalarStyle::Plain && !filled.substituted;
                let kind = if plain && matches!(filled.text.as_str(), "" | "~" | "null" | "Null" | "NULL") {
                    Kind::Null
                } else {
                    let hidden = holds_credential(key) && !filled.substituted;
                    let shown = if hidden { HIDDEN.to_owned() } else { filled.shown };
                    Kind::Scalar { text: filled.text, shown }
                };
                (kind, anchor, tag)
            }
            Event::SequenceStart(anchor, tag) => (self.sequence(key, depth)?, anchor, tag),
            Event::MappingStart(anchor, tag) => (self.mapping(key, depth)?, anchor, tag),
            Event::DocumentEnd
            | Event::DocumentStart(_)
            | Event::MappingEnd
            | Event::Nothing
            | Event::SequenceEnd
            | Event::StreamEnd
            | Event::StreamStart => return Err(origin.problem("not valid YAML: a value is missing")),
        };
        if let Some(tag) = tag {
            return Err(unsupported_tag(&tag, origin, key));
        }
        let node = Node { origin, key: key.to_owned(), kind };
        if anchor != 0 {
            self.count(size(&node), origin)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, origin: Origin, key: &str) -> Result<Node, Problem> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(origin.problem("this alias stands inside the value it repeats, or repeats a key"));
        };
        let node = Node { key: key.to_owned(), ..node.clone() };
        self.count(size(&node), origin)?;
        Ok(node)
    }

    fn sequence(&mut self, key: &str, depth: usize) -> Result<Kind, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Kind::Sequence(items)),
                (event, span) => items.push(self.node(event, span, key, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, key: &str, depth: usize) -> Result<Kind, Problem> {
        let mut entries = Vec::new();
        let mut lines = HashMap::new();
        loop {
            let (name, origin) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(Kind::Mapping(entries)),
                (event, span) => (key_name(event, origin(span))?, origin(span)),
            };
            if let Some(line) = lines.insert(name.clone(), line(origin)) {
                return Err(origin.problem(format_args!("`{}` is given twice; first in line {line}", excerpt(&name))));
            }
            let (event, span) = self.next()?;
            let inner = if matches!(key, "" | "upstreams") { name.clone() } else { format!("{key}.{name}") };
            let mut node = self.node(event, span, &inner, depth + 1)?;
            if let Kind::Null = node.kind {
                node.origin = origin; // the key; the value's own place may be a line further
            }
            entries.push((Key { origin, name }, node));
        }
    }

    /// Bounds the tree, and with it what aliases of aliases can grow to.
    fn count(&mut self, nodes: usize, origin: Origin) -> Result<(), Problem> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX {
            return Err(origin.problem(format_args!("more than {NODES_MAX} values, aliases counted in full")));
        }
        Ok(())
    }

    fn syntax(&self, error: &ScanError) -> Problem {
        let (mark, info) = (error.marker(), error.info());
        let (line, column) = (mark.line().max(1), mark.col() + 1);
        if info.contains("recursion") {
            return Origin::Place { line, column }.problem(too_deep());
        }
        match tab_column(&self.masked.text, line) {
            Some(column) if info.contains("tab") => {
                let origin = Origin::Place { line, column };
                origin.problem("not valid YAML: a tab stands where only spaces may indent")
            }
            Some(_) | None => {
                Origin::Place { line, column }.problem(format_args!("not valid YAML: {}", env::unmask(info)))
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Err(Origin::START.problem("not valid YAML: the text ends early")),
        }
    }
}

fn too_deep() -> String {
    format!("values are nested more than {DEPTH_MAX} deep")
}

fn tab_column(text: &str, line: usize) -> Option<usize> {
    text.lines().nth(line.checked_sub(1)?)?.chars().position(|char| char == '\t').map(|index| index + 1)
}

fn key_name(event: Event<'_>, origin: Origin) -> Result<String, Problem> {
    let Event::Scalar(text, style, _, tag) = event else {
        return Err(origin.problem("a key must be a word"));
    };
    if env::has_reference(&text) {
        return Err(origin.problem("`${…}` is read in values only, not in keys"));
    }
    if style == ScalarStyle::Plain && text == "<<" {
        return Err(origin
            .problem("merge keys (`<<`) are not supported; write the keys out, or repeat a whole section by alias"));
    }
    match tag {
        Some(tag) => Err(unsupported_tag(&tag, origin, "")),
        None => Ok(text.into_owned()),
    }
}

fn unsupported_tag(tag: &Tag, origin: Origin, key: &str) -> Problem {
    let handle = if tag.handle == "tag:yaml.org,2002:" { "!!" } else { &tag.handle };
    // A credential that begins with `!` reads like a tag.
    let shown = if holds_credential(key) { HIDDEN.to_owned() } else { excerpt(&format!("{handle}{}", tag.suffix)) };
    origin.problem(format_args!("the tag `{shown}` is not supported; leave it out"))
}

/// Where a credential stands, or one that was put into the wrong place: its text is in no message.
fn holds_credential(key: &str) -> bool {
    matches!(key, "account.tiers" | "account.tiers.credential" | "account.tiers.sha256")
        || key.starts_with("otlp.headers")
}

fn size(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::Mapping(entries) => entries.iter().map(|(_, node)| size(node)).sum(),
        Kind::Null | Kind::Scalar { .. } => 0,
        Kind::Sequence(items) => items.iter().map(size).sum(),
    }
}

fn origin(span: Span) -> Origin {
    Origin::Place { line: span.start.line().max(1), column: span.start.col() + 1 }
}

fn line(origin: Origin) -> usize {
    match origin {
        Origin::Flag(_) => 0,
        Origin::Place { line, .. } => line,
    }
}

/// The deepest setting lies at 5; the rest is air. Bounds the recursion.
const DEPTH_MAX: usize = 16;
/// A guess: a thousand upstreams with every key given come to half of it.
const NODES_MAX: usize = 100_000;
const EMPTY: &str = "the file holds no configuration; the least is `upstreams: [{ url: https://api.openai.com }]`";
const TOO_LARGE: &str = "the file is larger than 1 MiB";

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        read(text, &|_| None).unwrap_err().in_file("f").to_string()
    }

    #[test]
    fn texts_that_are_no_configuration_are_refused_at_their_place() {
        let (deep, deeper) = (format!("a: {}", "[".repeat(20)), format!("a: {}", "[".repeat(100_000)));
        let bomb = (0..30).fold("a0: &a0 [x, x, x]\n".to_owned(), |text, n| {
            format!("{text}a{}: &a{} [*a{n}, *a{n}, *a{n}]\n", n + 1, n + 1)
        });
        let large = "#".repeat(FILE_BYTES_MAX + 1);
        for (text, want) in [
            ("", "f:1:1: the file holds no configuration"),
            ("# nothing\n", "f:1:1: the file holds no configuration"),
            ("---\n", "f:1:1: the file holds no configuration"),
            ("- a\n", "f:1:1: the file must be a mapping"),
            ("word\n", "f:1:1: the file must be a mapping"),
            ("a: 1\n---\nb: 2\n", "f:2:1: a second document begins here"),
            ("a: 1\nb: 2\na: 3\n", "f:3:1: `a` is given twice; first in line 1"),
            ("a:\n\tb: 1\n", "f:2:1: not valid YAML: a tab"),
            ("a: [\n", "f:2:1: not valid YAML"),
            ("a: !!str x\n", "f:1:10: the tag `!!str` is not supported"),
            ("a: &x [*x]\n", "f:1:8: this alias stands inside"),
            ("a: *x\n", "f:1:4: not valid YAML"),
            ("${A}: 1\n", "f:1:1: `${…}` is read in values only"),
            ("? [a]\n: 1\n", "f:1:3: a key must be a word"),
            ("a: {<<: 1}", "f:1:5: merge keys"),
            (&deep, "f:1:20: values are nested more than 16 deep"),
            (&deeper, "f:1:259: values are nested more than 16 deep"),
            (&bomb, "f:10:10: more than 100000 values"),
            (&large, "f:1:1: the file is larger than 1 MiB"),
        ] {
            let error = error(text);
            assert!(error.starts_with(want), "{error}, wanted {want}");
        }
    }

    #[test]
    fn a_long_text_is_read_or_refused_in_bounded_time() {
        for piece in [
            "- ", "? ", "a: ", "[", "{", "{a: ", "[a, ", "'", "\"", "|\n", ">\n ", "&a ", "*a ", "!a ", "#", "a\n",
            "- a\n", "- - a\n", "${A}", "- ${A}\n", "${", "$${", "${a", "$${A}", "$", "\\", "\r", "%", "---\n",
            "...\n", "a,", "@", "`", ": ", "ü",
        ] {
            for start in ["", "a: ", "a: [", "a: {", "a: \"", "a: '", "a: |\n ", "a:\n "] {
                let text = format!("{start}{}", piece.repeat(30_000 / piece.len()));
                let begun = std::time::SystemTime::now();
                drop(read(&text, &|_| Some("x".repeat(10)))); // only that it ends
                let seconds = begun.elapsed().unwrap_or_default().as_secs();
                assert!(seconds < 10, "{start:?} and many {piece:?}: {seconds} s");
            }
        }
    }

    #[test]
    fn an_alias_repeats_its_value() {
        let root = read("a: &x {b: 1}\nc: *x\n", &|_| None).unwrap();
        let Kind::Mapping(entries) = root.kind else { panic!("not a mapping") };
        let Kind::Mapping(repeated) = &entries[1].1.kind else { panic!("not a mapping") };
        assert_eq!(repeated[0].0.name, "b");
    }

    #[test]
    fn a_variable_stays_one_value_in_every_style() {
        let secret = "sk-ab#: x\"y', {z} [\n- ${A}\\";
        let env = |name: &str| (name == "KEY").then(|| secret.to_owned());
        for text in
            ["a: ${KEY}", "a: '${KEY}'", "a: \"${KEY}\"", "{a: ${KEY}}", "{a: ${KEY}, b: $${KEY}}", "a: |-\n  ${KEY}"]
        {
            let root = read(text, &env).unwrap();
            let Kind::Mapping(entries) = root.kind else { panic!("{text}") };
            let Kind::Scalar { text: value, shown } = &entries[0].1.kind else { panic!("{text}") };
            assert_eq!(value, secret, "{text}");
            assert_eq!(shown, "${KEY}", "{text}");
        }
    }

    #[test]
    fn comments_are_left_alone() {
        read("# ${UNSET}\na: 1 # ${UNSET} ${\n", &|_| None).unwrap();
    }
}
