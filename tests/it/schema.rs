//! The schema against what loads: whatever it says of a file, the program says too.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tidegate::config::{file, schema};

fn env(_name: &str) -> Option<String> {
    Some("7".to_owned())
}

/// Files of a folder, by name, with their texts.
fn files(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn validator() -> jsonschema::Validator {
    jsonschema::draft202012::new(&schema()).unwrap()
}

#[test]
fn the_schema_is_one() {
    jsonschema::draft202012::meta::validate(&schema()).unwrap();
}

#[test]
fn every_good_file_validates() {
    let validator = validator();
    for (name, text) in ["config", "config/examples", "tests/config/valid"].into_iter().flat_map(files) {
        // `{ a: ${NAME} }`, which others take for a mapping.
        let Ok(value) = yaml_serde::from_str::<Value>(&text) else {
            assert!(name.ends_with("environment.yaml"), "{name} is no YAML to others");
            continue;
        };
        let errors: Vec<_> =
            validator.iter_errors(&value).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}");
    }
}

/// What no schema can tell: what holds between keys, what the environment has, how the text is written.
const NOT_OF_SHAPE: [&str; 38] = [
    "account-tier-both-keys",
    "account-tier-by-credential",
    "account-tier-by-upstream",
    "account-tier-empty-credential",
    "account-tier-no-key",
    "account-tier-no-tier",
    "account-tier-twice",
    "admin-is-listen",
    "alpha-above-beta",
    "backoff-base-above-max",
    "buffer-above-total",
    "ceiling-not-a-number",
    "client-cert-without-key",
    "deadline-zero",
    "header-bytes-small",
    "initial-above-max",
    "key-in-environment",
    "key-twice",
    "limit-key-of-aimd",
    "limit-key-of-gradient",
    "limit-key-of-tide",
    "limit-key-of-vegas",
    "min-above-ceiling",
    "min-above-max",
    "name-twice",
    "otlp-header-host",
    "prefix-twice",
    "roots-none-without-ca",
    "server-name",
    "tag",
    "threshold-above-alpha",
    "tier-and-ceiling",
    "tier-unknown",
    "timeout-zero",
    "tls-cert-without-key",
    "url-port",
    "variable-default",
    "variable-unset",
];

#[test]
fn what_is_wrong_in_itself_does_not_validate() {
    let validator = validator();
    let mut passed = Vec::new();
    for (name, text) in files("tests/config/invalid") {
        // What is no YAML to any reader is no matter of the schema.
        let Ok(value) = yaml_serde::from_str::<Value>(&text) else { continue };
        let name = Path::new(&name).file_stem().unwrap().to_str().unwrap().to_owned();
        if validator.is_valid(&value) && !NOT_OF_SHAPE.contains(&name.as_str()) {
            passed.push(name);
        }
    }
    assert!(passed.is_empty(), "{passed:?}");
}

/// Every place of the schema: its pointer in a file, and what may stand there.
fn places(schema: &Value, path: &str, found: &mut Vec<(String, Value)>) {
    found.push((path.to_owned(), schema.clone()));
    if let Some(properties) = schema["properties"].as_object() {
        for (name, of) in properties {
            places(of, &format!("{path}/{name}"), found);
        }
    }
    if schema["items"].is_object() {
        places(&schema["items"], &format!("{path}/-"), found);
    }
    for other in schema["anyOf"].as_array().into_iter().flatten().filter(|other| other["properties"].is_object()) {
        places(other, path, found);
    }
}

/// A file that holds `value` at `path`, and else only what must be there.
fn file_with(path: &str, value: &Value) -> Value {
    let mut inner = value.clone();
    for name in path.split('/').skip(1).collect::<Vec<_>>().into_iter().rev() {
        inner = if name == "-" { json!([inner]) } else { json!({ name: inner }) };
    }
    if inner.is_object() {
        if inner["upstreams"].is_null() {
            inner["upstreams"] = json!([{}]);
        }
        if let Some(upstream) = inner["upstreams"].get_mut(0).filter(|upstream| upstream.is_object()) {
            if upstream["url"].is_null() {
                upstream["url"] = json!("http://h");
            }
            let own = [
                ("aimd", "decrease timeout"),
                ("vegas", "alpha beta threshold probe"),
                ("gradient", "tolerance smoothing queue long_window window window_samples_min"),
            ];
            let key = path.strip_prefix("/upstreams/-/limit/").unwrap_or("-");
            if let Some((owner, _)) = own.iter().find(|(_, keys)| keys.split(' ').any(|known| known == key)) {
                upstream["limit"]["algorithm"] = json!(owner);
            }
        }
    }
    inner
}

#[test]
fn unknown_keys_and_values_of_the_wrong_kind_fail_in_both() {
    let (validator, mut found) = (validator(), Vec::new());
    places(&schema(), "", &mut found);
    assert!(found.len() > 80, "{}", found.len());
    let mut disagree = Vec::new();
    let mut check = |path: &str, value: Value, want: Option<bool>| {
        let file = file_with(path, &value);
        let (valid, loads) = (validator.is_valid(&file), file::parse(&file.to_string(), "f", &env));
        if valid != loads.is_ok() || want.is_some_and(|want| valid != want) {
            disagree.push(format!(
                "{path} = {value}: schema {valid}, program {:?}",
                loads.map(|_| "loads").map_err(|e| e.to_string())
            ));
        }
    };
    for (path, place) in &found {
        if path.starts_with("/otlp") && !cfg!(feature = "otlp") {
            // Known all the same: the file is written for another binary.
            continue;
        }
        if place["properties"].is_object() {
            check(path, json!({ "no_such_key": 1 }), Some(false));
            check(path, json!("a text"), Some(false));
            check(path, json!([1, 2]), Some(false));
        } else if place["items"].is_object() {
            check(path, json!("a text"), Some(false));
            check(path, json!({ "a": 1 }), Some(false));
        } else if place["additionalProperties"].is_object() {
            check(path, json!([1]), Some(false));
            check(path, json!({ "name": { "a": 1 } }), Some(false));
            check(path, json!({ "name": "x" }), Some(path == "/otlp/headers"));
        } else {
            check(path, json!([1]), Some(false));
            check(path, json!({ "a": { "b": 1 } }), Some(false));
            if !path.ends_with("/url") {
                check(path, json!(null), Some(false));
            }
            // What holds by default may be written down.
            if let Some(default) = place.get("default") {
                check(path, default.clone(), Some(true));
            }
            for value in [json!("two words"), json!(-1), json!(0.5), json!(99_999_999_999_u64), json!(true)] {
                // Text that must exist elsewhere: a tier, a file, a host.
                let any_text = place["anyOf"][0]["type"] == json!(["string", "number"]);
                // The program takes `5` for the text it is written as; other readers do not.
                let text = place["anyOf"][0]["type"] == json!("string");
                if !any_text && (value.is_string() || !text) {
                    check(path, value, None);
                }
            }
        }
    }
    assert!(disagree.is_empty(), "{}", disagree.join("\n"));
}
