//! `tidegate serve`: start, reload, drain.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{DONE, FAILED, ServeArgs, USAGE, fail, refuse, say};
use crate::{
    app::App,
    config::{Config, ConfigError, Overrides},
    files, telemetry,
    watch::Watch,
};

pub(super) fn serve(args: ServeArgs) -> u8 {
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
        Err(error) => return refuse(&error),
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

pub(super) fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Config, ConfigError> {
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

pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    pub(super) async fn end(&mut self) {
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
