//! The configuration, from text to values and back.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use tidegate::config::{Algorithm, Config, ConfigError, Overrides, file, show};

/// The environment of every test here: nothing comes from the machine.
fn env(name: &str) -> Option<String> {
    let value = match name {
        "CEILING" | "N" => "50",
        "EMPTY" => "",
        "HOST" | "UPSTREAM_HOST" => "api.example.com",
        "NAME" => "one",
        "OPENAI_BULK_KEY" | "OTLP_KEY" | "SECRET" => "sk-ab#: x\"y'",
        "PORT" => "8123",
        "RESOURCE" => "mine",
        "UPSTREAM" => "https://api.example.com",
        _ => return None,
    };
    Some(value.to_owned())
}

fn files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .expect("the directory is part of the repository");
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    assert!(!files.is_empty());
    files
}

fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("the file is part of the repository")
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    file::parse(text, "f", &env)
}

fn good_files() -> Vec<PathBuf> {
    [files("tests/config/valid"), files("config/examples"), files("config")].concat()
}

#[test]
fn every_good_file_loads() {
    for path in good_files() {
        if let Err(error) = file::load(&path, &env) {
            panic!("{error}");
        }
    }
}

#[test]
fn every_bad_file_fails_with_the_message_in_its_first_line() {
    let mut wrong = Vec::new();
    for path in files("tests/config/invalid") {
        let text = fs::read_to_string(&path).unwrap();
        let want = text.lines().next().unwrap().strip_prefix("# error: ").unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let found = match file::parse(&text, "f", &env) {
            Ok(_) => "it loads".to_owned(),
            Err(error) => error.to_string().strip_prefix("f:").unwrap().to_owned(),
        };
        if found != want {
            wrong.push(format!("{name}\n  found:  {found}\n  wanted: {want}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_example_of_a_sidecar_is_what_kubernetes_gets() {
    let [example, component] = ["config/examples/kubernetes-sidecar.yaml", "deploy/kubernetes/sidecar/tidegate.yaml"];
    assert_eq!(parse(&text(example)).unwrap(), parse(&text(component)).unwrap());
}

#[test]
fn every_example_of_a_provider_shows_the_line_its_sdks_need() {
    let stories = ["kubernetes-sidecar.yaml", "laptop.yaml", "two-upstreams.yaml"];
    for path in files("config/examples") {
        let (name, text) = (path.file_name().unwrap().to_str().unwrap(), fs::read_to_string(&path).unwrap());
        let comment: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        for sdk in ["Python", "Node"] {
            let line = comment.split('#').find(|line| line.trim().starts_with(sdk));
            let shown = line.is_some_and(|line| line.contains("http://127.0.0.1:8080"));
            assert!(shown || stories.contains(&name), "{name} does not show it for {sdk}");
        }
    }
}

#[test]
fn the_reference_states_the_defaults() {
    let reference = parse(&text("config/tidegate.yaml")).unwrap();
    assert_eq!(reference, Config::for_upstream("https://api.openai.com").unwrap());
}

/// How the lines of what needs a binary of its own begin.
const OTLP: [&str; 5] = ["# otlp:", "#   endpoint:", "#   sample:", "#   headers:", "#   service_name:"];

#[test]
fn the_optional_keys_of_the_reference_are_real() {
    // Every commented-out key, uncommented; `ceiling` excludes `tier`.
    let uncommented: String = text("config/tidegate.yaml")
        .lines()
        .skip_while(|line| !line.starts_with("listen"))
        .filter(|line| !line.contains("# ceiling:"))
        .filter(|line| cfg!(feature = "otlp") || !OTLP.iter().any(|key| line.starts_with(key)))
        .map(|line| match line.split_once("# ") {
            Some((indent, key)) if indent.trim().is_empty() => format!("{indent}{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = parse(&uncommented).unwrap();
    assert_eq!(config.otlp.is_some(), cfg!(feature = "otlp"));
    assert!(config.tls.is_some_and(|tls| tls.client_ca.is_some()));
    let upstream = &config.upstreams[0];
    assert_eq!((upstream.ceiling, upstream.rpm, upstream.tpm), (Some(50), Some(500), Some(200_000)));
    assert!(upstream.tls.ca.is_some() && upstream.tls.client.is_some() && upstream.tls.server_name.is_some());
}

#[test]
fn the_reference_states_the_defaults_of_every_algorithm() {
    let reference = text("config/tidegate.yaml");
    for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| *algorithm != Algorithm::Tide) {
        let name = algorithm.name();
        let own = reference.lines().filter_map(|line| line.trim().strip_prefix(&format!("#{name} ")));
        let keys: String = own.map(|key| format!("      {key}\n")).collect();
        assert_eq!(keys.is_empty(), algorithm == Algorithm::Fixed, "{name}");
        let with = |keys: &str| {
            parse(&format!("upstreams:\n  - url: http://h\n    limit:\n      algorithm: {name}\n{keys}")).unwrap()
        };
        assert_eq!(with(&keys), with(""), "{keys}");
        // Nothing but the algorithm's own keys is shown.
        let shown = show::effective(&with(""));
        let shown = shown.lines().find(|line| line.contains("limit:")).unwrap();
        assert_eq!(shown.matches(':').count(), 5 + keys.lines().count(), "{shown}");
    }
}

#[test]
fn the_effective_configuration_loads_again_and_is_the_same() {
    for path in good_files() {
        let config = file::load(&path, &env).unwrap();
        let shown = show::effective(&config);
        match file::parse(&shown, "shown", &|_| None) {
            Ok(again) => assert_eq!(again, config, "{}\n{shown}", path.display()),
            Err(error) => panic!("{}: {error}\n{shown}", path.display()),
        }
    }
}

#[test]
fn a_credential_is_shown_nowhere() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/valid/environment.yaml");
    let config = file::load(&path, &env).unwrap();
    let all = [show::effective(&config), show::accounts(&config), format!("{config:?}")].concat();
    assert!(!all.contains("sk-ab") && !all.contains("other\""), "{all}");
    // A variable in the wrong place may hold a secret too.
    let error = parse("upstreams: [{ url: http://h, ceiling: ${SECRET} }]").unwrap_err().to_string();
    assert!(error.contains("${SECRET}") && !error.contains("sk-ab"), "{error}");
}

#[test]
fn a_credential_is_hashed_verbatim_in_every_style() {
    let quoted =
        |value: &str| format!("upstreams: [{{ url: http://h, account: {{ tiers: [{{ {value}, ceiling: 1 }}] }} }}]");
    // printf %s "sk-ab#: x\"y'" | sha256sum
    let want = parse(&quoted(&format!("sha256: {SECRET_SHA256}"))).unwrap();
    for value in [
        "credential: ${SECRET}",
        "credential: '${SECRET}'",
        "credential: \"${SECRET}\"",
        "credential: Bearer ${SECRET}",
    ] {
        assert_eq!(parse(&quoted(value)).unwrap(), want, "{value}");
    }
}

#[test]
fn what_accounts_get_is_a_table() {
    let config = parse(
        "{tiers: {pro: 50}, upstreams: [
          {name: openai, url: http://h, tier: pro, account: {split_by_model: true, tiers: [{credential: a, ceiling: 200}]}},
          {name: b, url: http://h, match: {path_prefix: /b}, account: {by: upstream}, queue: {depth_max: 5, wait_max: 90s}},
          {name: c, url: http://h, match: {path_prefix: /c}, account: {by: {header: x-team}}, limit: {algorithm: fixed}},
          {name: d, url: http://h, match: {path_prefix: /d}, ceiling: 50, limit: {max: 20}}]}",
    );
    let want = "\
upstream  account                           in flight at most  from                   queue  wait at most
openai    credential ca978112…, per model   200                ceiling                10000  5m
openai    each other credential, per model  50                 tier pro               10000  5m
b         all requests together             found              from 10, at most 1000  5      1m30s
c         each value of x-team              10                 limit.initial, fixed   10000  5m
d         each credential                   20                 limit.max              10000  5m
";
    assert_eq!(show::accounts(&config.unwrap()), want);
}

#[test]
fn urls_are_normal_after_loading() {
    for (url, scheme, host, path) in [
        ("HTTPS://API.openai.com", "https", "API.openai.com", "/"),
        ("http://127.0.0.1:1/v1", "http", "127.0.0.1", "/v1"),
        ("http://[::1]:1", "http", "[::1]", "/"),
    ] {
        let upstream = Config::for_upstream(url).unwrap().upstreams.remove(0);
        assert_eq!(
            (upstream.url.scheme_str(), upstream.url.host(), upstream.url.path()),
            (Some(scheme), Some(host), path)
        );
        assert_eq!(upstream.name, host.trim_matches(['[', ']']));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let error = file::load(Path::new("/nonexistent/tidegate.yaml"), &env).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/tidegate.yaml: No such file"), "{error}");
}

#[test]
fn flags_are_laid_over_a_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples/two-upstreams.yaml");
    let overrides = Overrides { ceiling: Some("3".to_owned()), ..Overrides::default() };
    let config = Config::build(Some(&path), &overrides, &env).unwrap();
    assert!(config.upstreams.iter().all(|upstream| upstream.ceiling == Some(3) && upstream.tier.is_none()));
}

/// Checks what must hold for any text: no panic, and an error has one line and a place.
fn survives(text: &str) {
    let Err(error) = parse(text) else { return };
    let error = error.to_string();
    assert!(!error.contains('\n'), "{error}");
    let mut parts = error.splitn(4, ':');
    assert_eq!(parts.next(), Some("f"), "{error}");
    for place in [parts.next(), parts.next()] {
        let number: usize = place.and_then(|place| place.parse().ok()).unwrap_or_else(|| panic!("no place in {error}"));
        assert!(number > 0, "{error}");
    }
    assert!(parts.next().is_some_and(|message| message.len() > 5), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_reference_never_panics_and_its_errors_have_places(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..40, "[ -~\n\t\r\u{e000}-\u{e003}\u{feff}ü]{0,8}|[\\[\\]{}:,&*!|>'\"%@`#\\-?$\n\t ]{1,4}"), 1..12)
    ) {
        let mut chars: Vec<char> = text("config/tidegate.yaml").chars().collect();
        for (at, removed, inserted) in edits {
            let at = at.index(chars.len() + 1);
            let end = (at + removed).min(chars.len());
            chars.splice(at..end, inserted.chars());
        }
        survives(&chars.iter().collect::<String>());
    }

    #[test]
    fn any_word_is_shown_so_that_it_loads_again(word in "[^\0\u{e000}-\u{e003}]{1,20}") {
        let mut config = Config::for_upstream("https://h").unwrap();
        config.upstreams[0].tls.ca = Some(PathBuf::from(&word));
        let shown = show::effective(&config);
        prop_assert_eq!(parse(&shown).unwrap(), config, "{}", shown);
    }

    #[test]
    fn any_text_never_panics_and_its_errors_have_places(text in "([ \\[\\]{}:,&*!|>'\"%@`#\\-?$~ab0\n\t\r]|url|upstreams: |- |: ){0,60}") {
        survives(&text);
    }
}

const SECRET_SHA256: &str = "b0bc39944d18eada1fe601966e2ddd957540126b1a2f7615d08e28babadce119";
