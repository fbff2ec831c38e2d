//! The command line: arguments, help texts, exit codes.

mod health;
mod papers;
mod serve;
mod words;

use std::{
    future::Future,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueHint, parser::ValueSource};

use crate::{
    app::{self, StartError},
    config::{ConfigError, Overrides, show},
    demo::{self, DemoArgs},
    files,
    mock::{self, MockArgs},
    remote::RemoteError,
    telemetry::{self, LogFormat, LogLevel},
    top::{self, TopArgs},
};
use serve::{Signals, load, serve};
use words::{PresetName, command, explain, named, variable};

/// A local reverse proxy that keeps any client inside a rate-limited API's limits: it caps what is in flight, queues
/// the rest, and retries refusals unseen.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

const EXAMPLES: &str = "\
Examples:
  tidegate demo
      see what it is for, in half a minute
  tidegate --upstream https://api.openai.com --tier pro
      then point the client at it: OPENAI_BASE_URL=http://127.0.0.1:8080/v1
  tidegate init --preset anthropic
  tidegate --config tidegate.yaml
      the same from a file, which `tidegate check` looks over
  open http://127.0.0.1:9090
      the status page: what is going on, and what holds it back; `tidegate top` shows it in a terminal
  tidegate mock --ceiling 10 --rpm 600
      a rate-limited API to try it against: --upstream http://127.0.0.1:8081

Every flag of `serve` can also be set in the environment, as TIDEGATE_<FLAG> (TIDEGATE_UPSTREAM, TIDEGATE_LOG_LEVEL, …).
A flag beats the environment, the environment beats the file.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (the default)
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// Show what Tidegate is for: a burst of requests at a rate-limited API, without and with it
    Demo(DemoArgs),
    /// Run a rate-limited API to test against
    Mock(MockArgs),
    /// Validate a configuration and print the effective one, what each account would get, and what is unwise
    #[command(after_help = "Examples:\n  tidegate check tidegate.yaml\n  tidegate init - | tidegate check -")]
    Check {
        /// The configuration file; `-`: standard input
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Ask a running Tidegate whether it takes work: exit code 0 if it does, 1 if not
    Healthcheck(health::HealthArgs),
    /// Watch a running Tidegate in the terminal
    Top(TopArgs),
    /// Write a commented configuration to start from
    Init(papers::InitArgs),
    /// Print the JSON Schema of the configuration, for editors
    #[command(after_help = "Examples:\n  tidegate schema > tidegate.schema.json\n      and on top of the file: \
        # yaml-language-server: $schema=tidegate.schema.json")]
    Schema,
    /// Print a completion script for a shell
    Completions(papers::CompletionsArgs),
    /// Print the manual page
    Man(papers::ManArgs),
}

const SERVE_EXAMPLES: &str = "\
Examples:
  tidegate serve --upstream https://api.anthropic.com --ceiling 20
  tidegate serve --config tidegate.yaml --listen 127.0.0.1:0 --log-level debug
  TIDEGATE_UPSTREAM=https://api.openai.com tidegate serve";

#[derive(Debug, Args)]
struct ServeArgs {
    /// The API to stand in front of, for example https://api.openai.com
    #[arg(long, value_name = "URL", env = "TIDEGATE_UPSTREAM", hide_env_values = true)]
    upstream: Option<String>,
    /// Address of the proxy; port 0 takes a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", env = "TIDEGATE_LISTEN", hide_env_values = true)]
    listen: Option<String>,
    /// Address of metrics, status page and health checks, or `off` [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDR", env = "TIDEGATE_ADMIN", hide_env_values = true)]
    admin: Option<String>,
    /// The account's tier: free (10 in flight), pro (50), enterprise (200), or one of the file's
    #[arg(long, value_name = "NAME", env = "TIDEGATE_TIER", hide_env_values = true)]
    tier: Option<String>,
    /// Most attempts in flight per account, instead of a tier; neither: the limit is found
    #[arg(long, value_name = "N", env = "TIDEGATE_CEILING", hide_env_values = true, allow_negative_numbers = true)]
    ceiling: Option<String>,
    /// What is known about the provider: auto, generic, openai, anthropic, gemini, … [default: by the host's name]
    #[arg(long, value_name = "NAME", env = "TIDEGATE_PRESET", hide_env_values = true, value_parser = PresetName, hide_possible_values = true)]
    preset: Option<String>,
    /// Configuration file (YAML); it is watched, and changes are taken while running
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG", hide_env_values = true, value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// How log lines look [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT", env = "TIDEGATE_LOG_FORMAT", hide_env_values = true)]
    log_format: Option<LogFormat>,
    /// How much of Tidegate's own doings is logged; libraries, which print headers and keys, only warn
    #[arg(long, value_name = "LEVEL", env = "TIDEGATE_LOG_LEVEL", hide_env_values = true, default_value = "info")]
    log_level: LogLevel,
    /// Worker threads, or `auto` [default: one per core]
    #[arg(long, value_name = "N", env = "TIDEGATE_THREADS", hide_env_values = true, allow_negative_numbers = true)]
    threads: Option<String>,
}

/// Finished well.
const DONE: u8 = 0;
/// Failed while running.
const FAILED: u8 = 1;
/// Wrong use or configuration.
const USAGE: u8 = 2;

/// Runs the program.
#[must_use]
pub fn run() -> ExitCode {
    let parsed =
        command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches).map(|cli| (cli, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return ExitCode::from(explain(&error)),
    };
    ExitCode::from(match cli.command {
        None => serve(without_contradictions(cli.serve, &matches)),
        Some(Command::Serve(args)) => match matches.subcommand() {
            Some((_, matches)) => serve(without_contradictions(args, matches)),
            None => serve(args),
        },
        Some(Command::Demo(args)) => in_runtime(demo::run(args)),
        Some(Command::Mock(args)) => in_runtime(mock(args)),
        Some(Command::Check { file }) => check(&file),
        Some(Command::Healthcheck(args)) => health::check(args),
        Some(Command::Top(args)) => match top::run(&args) {
            Ok(()) => DONE,
            // Whoever read it has seen enough.
            Err(error) if error.downcast_ref().map(io::Error::kind) == Some(io::ErrorKind::BrokenPipe) => DONE,
            Err(error) => {
                let misused = matches!(error.downcast_ref(), Some(RemoteError::Address(_)));
                fail(if misused { USAGE } else { FAILED }, &format_args!("top: {error:#}"))
            }
        },
        Some(Command::Init(args)) => papers::init(&args),
        Some(Command::Schema) => papers::schema(),
        Some(Command::Completions(args)) => papers::completions(&args),
        Some(Command::Man(args)) => papers::man(&args),
    })
}

/// `--tier` on the command line beats `TIDEGATE_CEILING` in the environment, and the other way round.
fn without_contradictions(mut args: ServeArgs, matches: &ArgMatches) -> ServeArgs {
    let from_flag = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
    match (from_flag("tier"), from_flag("ceiling")) {
        (true, false) => args.ceiling = None,
        (false, true) => args.tier = None,
        (true, true) | (false, false) => {}
    }
    args
}

fn in_runtime(work: impl Future<Output = anyhow::Result<bool>>) -> u8 {
    telemetry::start(Some(LogFormat::Text), LogLevel::Warn);
    files::make_room();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format_args!("cannot start: {error}")),
    };
    match runtime.block_on(work) {
        Ok(true) => DONE,
        Ok(false) => FAILED,
        Err(error) => {
            let misused = matches!(error.downcast_ref(), Some(StartError::Bind { .. }));
            fail(if misused { USAGE } else { FAILED }, &format_args!("{error:#}"))
        }
    }
}

async fn mock(args: MockArgs) -> anyhow::Result<bool> {
    let mut signals = Signals::new()?;
    let mock = mock::start(&args).map_err(|error| StartError::bind("listen", args.listen, &error))?;
    say(&format!("tidegate mock ready url=http://{}\n", mock.addr()));
    signals.end().await;
    Ok(true)
}

/// What `serve` would make of the file here: with this environment, and the files it names.
fn check(file: &Path) -> u8 {
    let set = |flag: &str| variable(flag).1;
    let overrides = Overrides {
        upstream: set("--upstream"),
        listen: set("--listen"),
        admin: set("--admin"),
        tier: set("--tier"),
        ceiling: set("--ceiling"),
        preset: set("--preset"),
        threads: set("--threads"),
    };
    let file = if file == Path::new("-") { Path::new("/dev/stdin") } else { file };
    let config = match load(Some(file), &overrides) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    if let Err(error) = app::check(&config) {
        return fail(USAGE, &error);
    }
    let said = say(&format!("{}\n{}", show::effective(&config), show::accounts(&config)));
    for advice in config.advice() {
        fail(DONE, &format_args!("warning: {advice}"));
    }
    said
}

/// A configuration that cannot be used, with the remedy where there is one.
fn refuse(error: &ConfigError) -> u8 {
    match error {
        ConfigError::Read { error: cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
            fail(USAGE, &format_args!("configuration: {error}; `tidegate init` writes one to start from"))
        }
        ConfigError::Flag { flag, message } => fail(USAGE, &format_args!("configuration: {}: {message}", named(flag))),
        ConfigError::Read { .. } | ConfigError::Place { .. } => fail(USAGE, &format_args!("configuration: {error}")),
    }
}

/// The exit code: a text that was not written is not done, unless whoever read it has seen enough.
fn say(text: &str) -> u8 {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => DONE,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => DONE,
        Err(error) => fail(FAILED, &format_args!("cannot write to standard output: {error}")),
    }
}

fn fail(code: u8, why: &dyn std::fmt::Display) -> u8 {
    drop(writeln!(io::stderr(), "tidegate: {why}"));
    code
}
