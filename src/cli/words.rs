//! How arguments are read and named: with what the environment says, and blamed on whatever they came from.

use std::ffi::OsStr;

use clap::{
    Arg, Command, CommandFactory, Error,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{Cli, USAGE, fail, say};
use crate::config;

/// The command line. An empty variable is one that is not set; those of `serve` do not matter to other commands.
pub(super) fn command() -> Command {
    fn heed(arg: Arg, of_another: bool) -> Arg {
        let empty = arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if empty || of_another { arg.env(None::<&'static str>) } else { arg }
    }
    let has_subcommand = subcommand().is_some();
    Cli::command()
        .mut_args(|arg| heed(arg, has_subcommand))
        .mut_subcommands(|subcommand| subcommand.mut_args(|arg| heed(arg, false)))
}

fn arguments() -> impl Iterator<Item = String> {
    std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned())
}

/// The one that was asked for.
fn subcommand() -> Option<String> {
    arguments().next().filter(|first| Cli::command().find_subcommand(first).is_some())
}

/// The variable that stands for a flag, and what it says.
pub(super) fn variable(flag: &str) -> (String, Option<String>) {
    let name = format!("TIDEGATE_{}", flag.trim_start_matches('-').replace('-', "_").to_uppercase());
    let said = std::env::var(&name).ok().filter(|value| !value.is_empty());
    (name, said)
}

/// What to blame for the value of `flag`: itself if it was given, else its variable.
pub(super) fn named(flag: &str) -> String {
    let given = |argument: String| argument.split('=').next() == Some(flag);
    match variable(flag) {
        (name, Some(_)) if !arguments().any(given) => name,
        _ => flag.to_owned(),
    }
}

/// Help and version go to standard output; anything wrong is one line, like every other error.
pub(super) fn explain(error: &Error) -> u8 {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return say(&text);
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said: Vec<&str> = lines
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information, try"))
        .collect();
    let mut said = said.join(" ").trim_start_matches("error: ").to_owned();
    if let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) {
        let flag = argument.split(' ').next().unwrap_or_default();
        if flag.starts_with("--") && matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) {
            said = said.replace(&format!("'{argument}'"), &format!("'{}'", argument.replace(flag, &named(flag))));
        }
    }
    match meant(error) {
        Some(meant) => fail(USAGE, &format_args!("{said}; try {meant}")),
        None => {
            let of = subcommand().map_or_else(String::new, |name| format!(" {name}"));
            fail(USAGE, &format_args!("{said} (tidegate{of} --help shows what there is)"))
        }
    }
}

/// What somebody wants who names an API, or a file, and nothing else.
fn meant(error: &Error) -> Option<&'static str> {
    let kind = if error.kind() == ErrorKind::InvalidSubcommand {
        ContextKind::InvalidSubcommand
    } else {
        ContextKind::InvalidArg
    };
    let Some(ContextValue::String(given)) = error.get(kind) else { return None };
    if given.contains("://") {
        Some("--upstream URL")
    } else if given.ends_with(".yaml") || given.ends_with(".yml") {
        Some("--config FILE")
    } else {
        None
    }
}

/// Any text: what is wrong with it is said where files are read, too. Shells are told what there is.
#[derive(Debug, Clone)]
pub(super) struct PresetName;

impl TypedValueParser for PresetName {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(config::presets().into_iter().map(PossibleValue::new)))
    }
}
