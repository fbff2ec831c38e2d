//! What requests ask for: in valid JSON exactly what a reader that builds the whole tree finds.
//!
//! Input: a path, an empty line, a body.

#![no_main]

use std::fmt;

use http::{HeaderMap, HeaderValue, header};
use libfuzzer_sys::fuzz_target;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;
use tidegate::provider::demand::{self, Told};
use tidegate_fuzz::head;

fuzz_target!(|data: &[u8]| {
    let (lines, body) = head(data);
    let Some(path) = lines.first().and_then(|path| std::str::from_utf8(path).ok()) else { return };
    let typed = |kind| Told::of(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]));
    let json = typed("application/json");
    let (demanded, model) = (demand::demand(&json, path, body), demand::model(path, body));
    assert_eq!(demanded.input_tokens as usize, body.len() / 4);
    assert_eq!(demanded, demand::demand(&Told::default(), path, body), "without a type");
    let by_path = demand::demand(&json, path, b"");
    let unread = demand::demand(&typed("text/plain"), path, body);
    assert_eq!(
        (unread.model, unread.stream, unread.output_tokens_max, unread.read),
        (by_path.model, by_path.stream, None, false)
    );
    if demand::model(path, b"").is_some() {
        assert_eq!((demanded.model, model), (by_path.model, demand::model(path, b"")));
    } else if let Ok(tree) = serde_json::from_slice::<Tree>(body) {
        let mut asked = Asked { read: matches!(tree, Tree::Object(_)), ..Asked::default() };
        asked.look(&tree, 1);
        assert_eq!(demanded.read, asked.read);
        assert_eq!(demanded.stream, asked.stream || by_path.stream);
        assert_eq!(demanded.output_tokens_max, asked.output_tokens_max);
        assert_eq!(model.as_deref(), asked.model.as_deref());
        let named = asked.model.map_or(0, |model| {
            let body = serde_json::json!({ "model": model }).to_string();
            demand::demand(&json, path, body.as_bytes()).model
        });
        assert_eq!(demanded.model, named);
    }
});

#[derive(Default)]
struct Asked {
    model: Option<String>,
    stream: bool,
    output_tokens_max: Option<u32>,
    read: bool,
}

impl Asked {
    /// `nested_max`: objects within each other that are looked into.
    fn look(&mut self, tree: &Tree, nested_max: u8) {
        let Tree::Object(members) = tree else { return };
        for (key, value) in members {
            match (key.as_str(), value) {
                ("model", Tree::Text(name)) => self.model = Some(name.clone()),
                ("stream", Tree::Flag(true)) => self.stream = true,
                (
                    "max_tokens" | "max_completion_tokens" | "max_output_tokens" | "maxOutputTokens" | "maxTokens",
                    Tree::Number(number),
                ) => self.output_tokens_max = self.output_tokens_max.max(count(number)),
                ("generationConfig" | "generation_config" | "inferenceConfig", settings) if nested_max > 0 => {
                    self.look(settings, nested_max - 1);
                }
                _ => {}
            }
        }
    }
}

fn count(number: &Number) -> Option<u32> {
    match (number.as_u64(), number.as_i64()) {
        (Some(count), _) => Some(u32::try_from(count).unwrap_or(u32::MAX)),
        (None, Some(_)) => None,
        (None, None) => number.as_f64().filter(|count| *count >= 0.0).map(|count| count as u32),
    }
}

/// A JSON text in full, with all members of an object in their order: `serde_json::Value` drops the earlier of two.
enum Tree {
    Object(Vec<(String, Tree)>),
    Text(String),
    Flag(bool),
    Number(Number),
    Other,
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Tree, E> {
        Ok(Tree::Flag(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(Tree::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Tree, E> {
        Ok(Number::from_f64(number).map_or(Tree::Other, Tree::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Tree, S::Error> {
        while items.next_element::<Tree>()?.is_some() {}
        Ok(Tree::Other)
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Tree, M::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Tree::Object(members))
    }
}
