//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::Parser;

use crate::bed::Kind;

/// Measures Tidegate beside nginx, HAProxy and Envoy and prints ratios.
#[derive(Debug, Parser)]
#[command(name = "benches/peers/run", bin_name = "benches/peers/run")]
pub(crate) struct Options {
    /// The tidegate binary to measure; the run script builds the release binary if none is named
    #[arg(long, value_name = "PATH", default_value = "target/release/tidegate")]
    pub tidegate: PathBuf,

    /// nginx; without it, or if it is not there, its column stays empty. The same for the other two
    #[arg(long, value_name = "PATH", default_value = "/usr/sbin/nginx")]
    pub nginx: PathBuf,

    #[arg(long, value_name = "PATH", default_value = "/usr/sbin/haproxy")]
    pub haproxy: PathBuf,

    #[arg(long, value_name = "PATH", default_value = "target/peers/envoy")]
    pub envoy: PathBuf,

    /// Only these rows (may be given several times); `--list` names them
    #[arg(long = "row", value_name = "NAME")]
    pub rows: Vec<String>,

    /// Rounds of each row: in a round every proxy has one turn
    #[arg(long, default_value_t = 30)]
    pub rounds: usize,

    /// A third of the rounds, for a first look
    #[arg(long)]
    pub quick: bool,

    /// Names the rows and ends
    #[arg(long)]
    pub list: bool,

    /// Keeps configurations, logs and the tools' files in this folder instead of a temporary one
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

impl Options {
    /// How many rounds a row runs whose turns take `share` times as long as usual.
    pub(crate) fn rounds(&self, share: usize) -> usize {
        (self.rounds / share / if self.quick { 3 } else { 1 }).max(3)
    }

    /// Proxies run in folders of their own: relative paths would miss there.
    pub(crate) fn resolve(&mut self) {
        for path in [&mut self.tidegate, &mut self.nginx, &mut self.haproxy, &mut self.envoy] {
            if let Ok(whole) = path.canonicalize() {
                *path = whole;
            }
        }
    }

    pub(crate) fn turn(&self) -> Duration {
        Duration::from_millis(150)
    }

    pub(crate) fn binary(&self, kind: Kind) -> &PathBuf {
        match kind {
            Kind::Tidegate => &self.tidegate,
            Kind::Nginx => &self.nginx,
            Kind::Haproxy => &self.haproxy,
            Kind::Envoy => &self.envoy,
        }
    }
}
