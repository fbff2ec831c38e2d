//! The test bed: origin, load, and the proxies between them.

pub(crate) mod config;
pub(crate) mod cpu;
pub(crate) mod h2load;
pub(crate) mod load;
pub(crate) mod origin;
pub(crate) mod proxy;
pub(crate) mod sse;
pub(crate) mod wire;

use std::{env, fs, path::PathBuf, process, time::Duration};

use anyhow::{Context, Result};

use crate::options::Options;

pub(crate) use proxy::{Kind, Proxy, Setup};

/// What every row works with.
#[derive(Debug)]
pub(crate) struct Bed {
    pub options: Options,
    pub dir: PathBuf,
    pub origin: origin::Origin,
    /// The proxies that are there, Tidegate first.
    pub kinds: Vec<Kind>,
}

impl Bed {
    pub(crate) async fn new(mut options: Options) -> Result<Self> {
        options.resolve();
        anyhow::ensure!(options.tidegate.exists(), "{} is not there", options.tidegate.display());
        let dir =
            options.keep.clone().unwrap_or_else(|| env::temp_dir().join(format!("tidegate-peers.{}", process::id())));
        fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let origin = origin::Origin::start(&dir).await?;
        let kinds = Kind::ALL.into_iter().filter(|kind| options.binary(*kind).exists()).collect();
        Ok(Self { options, dir, origin, kinds })
    }

    /// Starts one proxy and waits until it accepts.
    pub(crate) async fn start(&self, kind: Kind, setup: &Setup) -> Result<Proxy> {
        Proxy::start(self, kind, setup).await
    }

    /// Starts all that `wanted` names and that are there.
    pub(crate) async fn start_all(&self, wanted: &[Kind], setup: &Setup) -> Result<Vec<Proxy>> {
        let mut started = Vec::new();
        for kind in self.kinds.iter().filter(|kind| wanted.contains(kind)) {
            started.push(self.start(*kind, setup).await?);
        }
        // What a proxy does once after its start should not fall into its first turn.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Ok(started)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if self.options.keep.is_none()
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            eprintln!("peers: {}: {error}", self.dir.display());
        }
    }
}

/// The order of turns in a round: everybody is first once.
pub(crate) fn order(len: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..len).map(move |index| (index + round) % len)
}
