//! Configurations: any text is one, or has one error on one line with its place; what is printed as being in effect is
//! read again as the same; and what a variable holds never stands in an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::config::{file, show};

const SECRET: &str = "sk-Rk93hTq1";

fn variable(name: &str) -> Option<String> {
    match name {
        "KEY" => Some(SECRET.to_owned()),
        "N" => Some("7".to_owned()),
        "EMPTY" => Some(String::new()),
        "LINES" => Some("a: b\n# c\r\n\"".to_owned()),
        _ => None,
    }
}

fuzz_target!(|text: &str| {
    match file::parse(text, "f.yaml", &variable) {
        Ok(config) => {
            let shown = show::effective(&config);
            // Nothing of the environment is needed any more.
            match file::parse(&shown, "shown.yaml", &|_| None) {
                Ok(again) => {
                    assert_eq!(again, config, "{shown}");
                    assert_eq!(show::effective(&again), shown);
                }
                Err(error) => panic!("{error}\n{shown}"),
            }
            assert!(show::accounts(&config).lines().count() > config.upstreams.len());
        }
        Err(error) => has_place(&error.to_string(), text),
    }
});

fn has_place(error: &str, text: &str) {
    assert!(!error.contains(char::is_control), "more than a line: {error:?}");
    assert!(!error.contains(SECRET) || text.contains(SECRET), "it tells a secret: {error}");
    let mut parts = error.strip_prefix("f.yaml:").unwrap_or_default().splitn(3, ':');
    let mut number = || parts.next().and_then(|number| number.parse::<usize>().ok());
    let (Some(line), Some(column)) = (number(), number()) else { panic!("without a place: {error}") };
    // A lone carriage return ends a line to one reader and not to another: either may be right.
    let lines = 1 + text.split(['\n', '\r']).count();
    let longest = text.split('\n').map(|line| line.chars().count()).max().unwrap_or_default();
    assert!((1..=lines).contains(&line) && (1..=longest + 2).contains(&column), "no such place: {error}");
    assert!(parts.next().is_some_and(|message| message.len() > 2), "without a message: {error}");
}
