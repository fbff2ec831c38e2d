//! Tidegate beside nginx, HAProxy and Envoy: every figure of the table in `README.md` here, in one run.
//!
//! `benches/peers/run` finds or installs the peers and starts this. How to read what it prints stands in that page.
//!
//! One thread is both load generator and origin, on a core of its own; the proxies have the other. Everything it starts
//! ends with it, also after Ctrl-C.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the real clock")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its tables, and how far it is")]

mod bed;
mod options;
mod rows;
mod table;

use std::{env, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{bed::Bed, options::Options};

fn main() -> ExitCode {
    if env::var_os(rows::allocations::AS_TIDEGATE).is_some() {
        return tidegate::cli::run();
    }
    let options = Options::parse_from(env::args().filter(|arg| arg != "--bench"));
    match run(options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> Result<ExitCode> {
    bed::cpu::pin_self()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let mut hangup = signal(SignalKind::terminate())?;
            let bed = Bed::new(options).await?;
            tokio::select! {
                // Dropping the rows ends the proxies they have started.
                result = rows::run(&bed) => result,
                _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
                _ = hangup.recv() => Ok(ExitCode::from(143)),
            }
        })
        .context("the run could not be finished")
}
