//! Reads the sources and keeps the architecture true: `control` pure, dependencies in one direction, files small.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Which rooms a room may call. Leaves (`clock`, `fault`, `files`, `metrics`, `remote`, `tasks`, `telemetry`, `watch`) are open to
/// all but `control`.
const MAY_CALL: [(&str, &[&str]); 20] = [
    ("admin", &["control", "gate", "metrics", "proxy"]),
    ("app", &["admin", "config", "gate", "metrics", "proxy", "server", "traces", "upstream"]),
    ("cli", &["app", "config", "demo", "mock", "top"]),
    ("config", &["control", "provider"]),
    ("control", &[]),
    ("demo", &["app", "config", "mock"]),
    ("clock", &[]),
    ("fault", &["provider"]),
    ("files", &[]),
    ("gate", &["control", "metrics"]),
    ("metrics", &["control", "fault"]),
    ("mock", &["control"]),
    ("provider", &["control"]),
    ("proxy", &["config", "control", "gate", "provider", "traces", "upstream"]),
    ("remote", &[]),
    ("server", &["config", "proxy"]),
    ("upstream", &["config", "control", "gate"]),
    ("top", &["config"]),
    ("traces", &["config", "control", "provider", "upstream"]),
    ("watch", &[]),
];
const LEAVES: [&str; 8] = ["clock", "fault", "files", "metrics", "remote", "tasks", "telemetry", "watch"];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    assert!(found.len() > 20, "the sources were not found");
    found
        .into_iter()
        .map(|(path, text)| (path.strip_prefix(&root).unwrap().to_owned(), text))
        .filter(|(path, _)| !path.to_string_lossy().ends_with("tests.rs"))
        .collect()
}

/// `control/gate.rs` and `clock.rs` are in the rooms `control` and `clock`.
fn room(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Without comments and without what stands in `#[cfg(test)]` modules at a file's end.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line))
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn control_is_pure() {
    let banned = [
        "async ",
        ".await",
        "tokio",
        "tracing",
        "hyper",
        "Instant::now",
        "SystemTime",
        "rand::",
        "std::fs",
        "std::net",
        "std::env",
        "std::thread",
        "println!",
        "prometheus",
        "serde",
        "Mutex",
        "Atomic",
    ];
    for (path, text) in sources().into_iter().filter(|(path, _)| room(path) == "control") {
        for (number, line) in code(&text) {
            for word in banned {
                assert!(!line.contains(word), "{}:{number}: `{word}` in the pure core: {line}", path.display());
            }
        }
    }
}

#[test]
fn rooms_call_only_whom_they_may() {
    for (path, text) in sources() {
        let room = room(&path);
        if ["lib", "main", "tasks", "telemetry"].contains(&room.as_str()) {
            continue;
        }
        let (_, allowed) = MAY_CALL
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("{}: the room `{room}` is not in the table", path.display()));
        for called in called_rooms(&text) {
            let leaf = room != "control" && LEAVES.contains(&called.as_str());
            assert!(
                called == room || leaf || allowed.contains(&called.as_str()),
                "{}: `{room}` may not call `{called}`",
                path.display()
            );
        }
    }
}

/// First segments after `crate::`, also inside `use crate::{a::x, b}`.
fn called_rooms(text: &str) -> Vec<String> {
    let text: String = code(text).map(|(_, line)| format!("{line}\n")).collect();
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if !rest.starts_with('{') {
            found.push(name(rest));
            continue;
        }
        let mut depth = 0;
        let mut expects = false;
        for (at, c) in rest.char_indices() {
            match c {
                '{' => {
                    depth += 1;
                    expects = depth == 1;
                }
                '}' => depth -= 1,
                ',' if depth == 1 => expects = true,
                c if expects && c.is_alphabetic() => {
                    found.push(name(&rest[at..]));
                    expects = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

#[test]
fn some_things_stand_in_one_place_only() {
    for (word, place) in [
        ("saphyr_parser", "config/tree.rs"),
        ("process::exit", "main.rs"),
        ("Instant::now()", "clock.rs"),
        ("tokio::spawn", "tasks.rs"),
        ("with_label_values", "metrics/mod.rs"),
    ] {
        for (path, text) in sources() {
            if path == Path::new(place) || (room(&path) == "mock" && word == "tokio::spawn") {
                continue;
            }
            for (number, line) in code(&text) {
                assert!(!line.contains(word), "{}:{number}: `{word}` belongs in {place}", path.display());
            }
        }
    }
}

#[test]
fn files_are_walks_not_marches() {
    for (path, text) in sources() {
        let lines = code(&text).count();
        assert!(lines <= 500, "{}: {lines} lines; is it one concern?", path.display());
    }
    let main = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/main.rs")).unwrap();
    assert!(main.lines().count() <= 60);
}

#[test]
fn doors_are_for_the_fuzz_targets_alone() {
    let sources = sources();
    let doors: Vec<_> = sources.iter().filter(|(path, _)| path.ends_with("door.rs")).collect();
    assert!(!doors.is_empty(), "the doors were not found");
    for (door, _) in doors {
        let (_, room) = sources.iter().find(|(path, _)| *path == door.with_file_name("mod.rs")).unwrap();
        assert!(room.contains("#[cfg(fuzzing)]\npub mod door;"), "{}: in every build", door.display());
        assert_eq!(room.matches("mod door").count(), 1, "{}: declared twice", door.display());
    }
}

/// What is fuzzed is what is shipped: a package that both lock files have is the same version in both.
#[test]
fn the_fuzz_targets_use_our_versions() {
    let packages = |file: &str| -> Vec<(String, String)> {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let value = |line: &str| line.split('"').nth(1).unwrap().to_owned();
        let lines: Vec<_> = text.lines().collect();
        let pairs = lines.windows(2).filter(|pair| pair[0].starts_with("name = "));
        pairs.map(|pair| (value(pair[0]), value(pair[1]))).collect()
    };
    let ours = packages("Cargo.lock");
    for (name, version) in packages("tests/fuzz/Cargo.lock") {
        let mut versions = ours.iter().filter(|(known, _)| *known == name).map(|(_, version)| version).peekable();
        assert!(
            versions.peek().is_none() || versions.any(|known| *known == version),
            "tests/fuzz/Cargo.lock has {name} {version}; cp Cargo.lock tests/fuzz/ && \
             cargo metadata --manifest-path tests/fuzz/Cargo.toml"
        );
    }
}
