//! JSON Schema of the configuration, for editors: which keys there are is asked of the types that read the file, what
//! they mean is taken from `config/tidegate.yaml`, what their values may be stands in `kinds`.

mod kinds;
mod reference;
mod trace;

use serde_json::{Map, Value, json};

use super::file::Root;
pub use kinds::presets;
use reference::{Entry, entries};
use trace::Shape;

/// The schema. Tests compare it with what loads and what does not.
#[must_use]
pub fn schema() -> Value {
    // The types are known; a test holds them to be shapes there are words for.
    let root = trace::shape_of::<Root>().unwrap_or(Shape::Section(Vec::new()));
    let about = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of Tidegate",
        "required": ["upstreams"],
        "$defs": { "environment": { "type": "string", "pattern": r"(^|[^$])\$\{[A-Za-z_][A-Za-z0-9_]*\}" } },
    });
    with(place(&root, "", &entries()), about)
}

fn place(shape: &Shape, path: &str, entries: &[Entry]) -> Value {
    let mut schema = match shape {
        Shape::List(item) => json!({ "type": ["array", "null"], "items": place(item, &format!("{path}[]"), entries) }),
        Shape::Named => {
            json!({ "type": ["object", "null"], "additionalProperties": value(&format!("{path}{{}}")) })
        }
        Shape::Section(fields) => section(fields, path, entries),
        Shape::Value => value(path),
        Shape::ValueOr(other) => {
            let section = with(place(other, path, entries), json!({ "type": "object" }));
            json!({ "anyOf": [value(path), section] })
        }
    };
    if path == "upstreams" {
        schema = with(schema, json!({ "type": "array", "minItems": 1 }));
    }
    let entry = entries.iter().find(|entry| entry.path == path);
    let known = entry.map(|entry| entry.text.as_str()).filter(|text| !text.is_empty());
    if let Some(text) = known.or_else(|| kinds::explanation(path)) {
        schema = with(schema, json!({ "description": text }));
    }
    if let Some(default) = entry.and_then(|entry| entry.default.as_ref()).filter(|_| *shape == Shape::Value) {
        schema = with(schema, json!({ "default": default }));
    }
    schema
}

fn section(fields: &[(&'static str, Shape)], path: &str, entries: &[Entry]) -> Value {
    let properties: Map<String, Value> = fields
        .iter()
        .map(|(name, shape)| {
            let path = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
            ((*name).to_owned(), place(shape, &path, entries))
        })
        .collect();
    let section = json!({ "properties": properties, "additionalProperties": false });
    let required: &[&str] = match path {
        "tls" => &["cert", "key"],
        "upstreams[]" => &["url"],
        "upstreams[].balance" => &["header"],
        "upstreams[].prices[]" => &["model", "input", "output"],
        _ => &[],
    };
    if required.is_empty() {
        // A section whose lines are all comments.
        with(section, json!({ "type": ["object", "null"] }))
    } else {
        with(section, json!({ "type": "object", "required": required }))
    }
}

/// Both together; what `more` says holds.
fn with(mut schema: Value, more: Value) -> Value {
    if let (Value::Object(schema), Value::Object(more)) = (&mut schema, more) {
        schema.extend(more);
    }
    schema
}

/// Any value may come from the environment.
fn value(path: &str) -> Value {
    let kind = kinds::at(path).map_or_else(|| json!({}), kinds::Kind::schema);
    json!({ "anyOf": [kind, { "$ref": "#/$defs/environment" }] })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(shape: &Shape, path: &str, found: &mut Vec<String>) {
        match shape {
            Shape::List(item) => values(item, &format!("{path}[]"), found),
            Shape::Named => found.push(format!("{path}{{}}")),
            Shape::Section(fields) => {
                for (name, shape) in fields {
                    values(shape, &if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") }, found);
                }
            }
            Shape::Value => found.push(path.to_owned()),
            Shape::ValueOr(other) => {
                found.push(path.to_owned());
                values(other, path, found);
            }
        }
    }

    #[test]
    fn every_value_has_a_kind_and_every_key_is_explained() {
        let mut paths = Vec::new();
        values(&trace::shape_of::<Root>().unwrap(), "", &mut paths);
        assert!(paths.len() > 70, "{paths:?}");
        let entries = entries();
        for path in &paths {
            assert!(kinds::at(path).is_some(), "{path} has no kind");
            let explained = entries.iter().any(|entry| entry.path == *path && !entry.text.is_empty());
            let listed = path.ends_with("[]") || path.ends_with("{}");
            assert!(explained || listed || kinds::explanation(path).is_some(), "{path} is not explained");
        }
        // Names of tiers are the user's own.
        for entry in entries.iter().filter(|entry| !entry.path.starts_with("tiers.")) {
            let known = paths.iter().any(|path| path.starts_with(&entry.path));
            assert!(known, "config/tidegate.yaml explains {}, which there is not", entry.path);
        }
    }
}
