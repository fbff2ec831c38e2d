//! The command line: arguments, help texts, exit codes.

use std::{
    future::Future,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    app::App,
    config::{Config, ConfigError, Overrides, show},
    demo::{self, DemoArgs},
    files,
    mock::{self, MockArgs},
    telemetry::{self, LogFormat, LogLevel},
    watch::Watch,
};

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
  tidegate --upstream https://api.openai.com --tier pro
      then point the client at it: OPENAI_BASE_URL=http://127.0.0.1:8080/v1
  tidegate --config tidegate.yaml
  tidegate demo

Every flag of `serve` can also be set in the environment, as TIDEGATE_<FLAG> (TIDEGATE_UPSTREAM, TIDEGATE_LOG_LEVEL, …).
A flag beats the environment, the environment beats the file.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy (the default)
    Serve(ServeArgs),
    /// Show what Tidegate is for: a burst of requests at a rate-limited API, without and with it
    Demo(DemoArgs),
    /// Run a rate-limited API to test against
    Mock(MockArgs),
    /// Validate a configuration and print the effective one, and what each account would get
    Check {
        /// The configuration file
        file: PathBuf,
    },
}

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
    #[arg(long, value_name = "N", env = "TIDEGATE_CEILING", hide_env_values = true)]
    ceiling: Option<u32>,
    /// What is known about the provider: auto, generic, openai, anthropic, gemini, … [default: by the host's name]
    #[arg(long, value_name = "NAME", env = "TIDEGATE_PRESET", hide_env_values = true)]
    preset: Option<String>,
    /// Configuration file (YAML); it is watched, and changes are taken while running
    #[arg(long, value_name = "FILE", env = "TIDEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", env = "TIDEGATE_LOG_FORMAT", hide_env_values = true, default_value = "text")]
    log_format: LogFormat,
    /// How much of Tidegate's own doings is logged; libraries, which print headers and keys, only warn
    #[arg(long, value_name = "LEVEL", env = "TIDEGATE_LOG_LEVEL", hide_env_values = true, default_value = "info")]
    log_level: LogLevel,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", env = "TIDEGATE_THREADS", hide_env_values = true)]
    threads: Option<usize>,
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
        Cli::command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches).map(|cli| (cli, matches)));
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
    })
}

/// Help and version go to standard output; anything wrong is one line, like every other error.
fn explain(error: &clap::Error) -> u8 {
    if !error.use_stderr() {
        say(&error.render().to_string());
        return DONE;
    }
    let text = error.render().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said: Vec<&str> = lines.into_iter().take_while(|line| !line.starts_with("Usage:")).collect();
    let said = said.join(" ");
    fail(USAGE, &format_args!("{} (tidegate --help shows what there is)", said.trim_start_matches("error: ")))
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
    telemetry::start(LogFormat::Text, LogLevel::Warn);
    files::make_room();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format_args!("cannot start: {error}")),
    };
    match runtime.block_on(work) {
        Ok(true) => DONE,
        Ok(false) => FAILED,
        Err(error) => fail(FAILED, &format_args!("{error:#}")),
    }
}

fn serve(args: ServeArgs) -> u8 {
    telemetry::start(args.log_format, args.log_level);
    let overrides = Overrides {
        upstream: args.upstream,
        listen: args.listen,
        admin: args.admin,
        tier: args.tier,
        ceiling: args.ceiling,
        preset: args.preset,
        threads: args.threads,
    };
    if args.config.is_none() && overrides.upstream.is_none() {
        return fail(
            USAGE,
            &"nothing to stand in front of: give --upstream URL or --config FILE (tidegate --help shows examples)",
        );
    }
    let mut source = Source::new(args.config, overrides);
    let config = match source.load() {
        Ok(config) => config,
        Err(error) => return fail(USAGE, &format_args!("configuration: {error}")),
    };
    files::make_room();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, &format_args!("cannot start: {error}")),
    };
    runtime.block_on(async {
        let signals = match Signals::new() {
            Ok(signals) => signals,
            Err(error) => return fail(FAILED, &format_args!("cannot listen for signals: {error}")),
        };
        let upstreams: Vec<String> = config.upstreams.iter().map(|upstream| upstream.url.to_string()).collect();
        let app = match App::start(config) {
            Ok(app) => app,
            Err(error) => return fail(USAGE, &error),
        };
        ready(&app, &upstreams.join(","));
        until_asked_to_end(&app, signals, source).await
    })
}

fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
    Config::build(file, overrides, &|name| std::env::var(name).ok())
}

/// Where the configuration comes from, again and again.
struct Source {
    file: Option<PathBuf>,
    overrides: Overrides,
    /// The file, and every file it names.
    watch: Watch,
}

impl Source {
    fn new(file: Option<PathBuf>, overrides: Overrides) -> Self {
        let mut watch = Watch::new();
        watch.follow(file.clone());
        Self { file, overrides, watch }
    }

    fn load(&mut self) -> Result<Config, ConfigError> {
        self.watch.mark();
        let config = load(self.file.as_deref(), &self.overrides)?;
        // Whether it is taken or not: what it lacks may come.
        self.watch.follow(self.file.iter().cloned().chain(config.files()));
        Ok(config)
    }
}

/// The one line that scripts wait for.
fn ready(app: &App, upstreams: &str) {
    let admin = app.admin.map_or_else(|| "off".to_owned(), |admin| format!("http://{admin}"));
    let scheme = if app.shared.snapshot.load().config.tls.is_some() { "https" } else { "http" };
    say(&format!("tidegate ready proxy={scheme}://{} admin={admin} upstream={upstreams}\n", app.proxy));
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn until_asked_to_end(app: &App, mut signals: Signals, mut source: Source) -> u8 {
    loop {
        let Signals { terminate, interrupt, hang_up } = &mut signals;
        let reason = tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = app.drain_asked.cancelled() => break,
            _ = hang_up.recv() => "SIGHUP",
            () = source.watch.changed() => "a file changed",
        };
        let taken = source
            .load()
            .map_err(|error| error.to_string())
            .and_then(|config| app.reload(config).map_err(|error| error.to_string()));
        app.shared.metrics.reloaded(taken.is_ok());
        match taken {
            Ok(()) => tracing::info!(reason, "configuration reloaded"),
            Err(error) => tracing::error!(reason, error, "configuration rejected; the former one stays in force"),
        }
    }
    tracing::info!("draining: waiting for running exchanges; a second signal ends at once");
    let cut = tokio::select! {
        cut = app.drain() => cut,
        () = signals.end() => return fail(FAILED, &"ended at once by a second signal"),
    };
    if cut > 0 {
        return fail(FAILED, &format_args!("drain: {cut} connections were still busy after drain.max and were cut"));
    }
    tracing::info!("drained");
    DONE
}

async fn mock(args: MockArgs) -> anyhow::Result<bool> {
    let mut signals = Signals::new()?;
    let mock = mock::start(&args)?;
    say(&format!("tidegate mock ready url=http://{}\n", mock.addr()));
    signals.end().await;
    Ok(true)
}

fn check(file: &Path) -> u8 {
    match load(Some(file), &Overrides::default()) {
        Ok(config) => {
            say(&format!("{}\n{}", show::effective(&config), show::accounts(&config)));
            DONE
        }
        Err(error) => fail(USAGE, &format_args!("configuration: {error}")),
    }
}

fn say(text: &str) {
    // Nobody reads any more: nothing to do about it.
    drop(io::stdout().write_all(text.as_bytes()));
    drop(io::stdout().flush());
}

fn fail(code: u8, why: &dyn std::fmt::Display) -> u8 {
    drop(writeln!(io::stderr(), "tidegate: {why}"));
    code
}
