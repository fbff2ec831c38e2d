//! A proxy that runs: started, found ready, ended.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Bed, config,
    cpu::{self, Cores},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Tidegate,
    Nginx,
    Haproxy,
    Envoy,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Tidegate, Self::Nginx, Self::Haproxy, Self::Envoy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tidegate => "tidegate",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
        }
    }
}

/// How a proxy is to run.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Worker threads (processes); `None`: one per core, for Tidegate by its own default.
    pub threads: Option<usize>,
    pub cores: Cores,
    /// HTTP/2 towards the clients.
    pub h2: bool,
    /// TLS towards the origin.
    pub tls: bool,
    /// Most requests in flight; `None`: so many that it never binds.
    pub limit: Option<u32>,
    /// How many accounts Tidegate is to keep; `None`: its default.
    pub accounts: Option<u32>,
    /// One process that a tool can watch.
    pub single: bool,
    /// A tool to run it under.
    pub under: Vec<String>,
    pub env: Vec<(&'static str, &'static str)>,
    /// Instead of the binary named on the command line.
    pub binary: Option<PathBuf>,
}

impl Setup {
    pub(crate) fn one() -> Self {
        Self {
            threads: Some(1),
            cores: Cores::First,
            h2: false,
            tls: false,
            limit: None,
            accounts: None,
            single: false,
            under: Vec::new(),
            env: Vec::new(),
            binary: None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub kind: Kind,
    pub addr: SocketAddr,
    pub dir: PathBuf,
    child: Child,
    under_tool: bool,
    /// From the start to the first accepted connection.
    pub born: Instant,
}

impl Proxy {
    pub(super) async fn start(bed: &Bed, kind: Kind, setup: &Setup) -> Result<Self> {
        let mut proxy = Self::spawn(bed, kind, setup)?;
        proxy.ready().await.with_context(|| format!("{} did not start", kind.name()))?;
        Ok(proxy)
    }

    /// Starts the process and does not wait for it.
    pub(crate) fn spawn(bed: &Bed, kind: Kind, setup: &Setup) -> Result<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let dir = bed.dir.join(format!("{}.{}", kind.name(), STARTED.fetch_add(1, Relaxed)));
        fs::create_dir_all(&dir)?;
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut words = config::command(bed, kind, setup, addr.port(), &dir)?;
        if let (Some(first), Some(binary)) = (words.first_mut(), &setup.binary) {
            *first = binary.display().to_string();
        }
        let here = dir.display().to_string();
        let words: Vec<_> = setup.under.iter().map(|word| word.replace("DIR", &here)).chain(words).collect();
        let (first, rest) = words.split_first().context("nothing to start")?;
        let mut command = Command::new(first);
        command.args(rest).envs(setup.env.iter().copied()).current_dir(&dir).process_group(0);
        command
            .stdin(Stdio::null())
            .stdout(File::create(dir.join("stdout"))?)
            .stderr(File::create(dir.join("stderr"))?);
        let born = Instant::now();
        let child = cpu::with_cores(setup.cores, || command.spawn())?.with_context(|| first.clone())?;
        Ok(Self { kind, addr, dir, child, under_tool: !setup.under.is_empty(), born })
    }

    async fn ready(&mut self) -> Result<()> {
        while TcpStream::connect(self.addr).await.is_err() {
            if self.child.try_wait()?.is_some() || self.born.elapsed() > Duration::from_secs(60) {
                bail!("{}", fs::read_to_string(self.dir.join("stderr")).unwrap_or_default().trim_end());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Its processes.
    pub(crate) fn pids(&self) -> Vec<u32> {
        cpu::tree(self.child.id())
    }

    /// How often Tidegate has lowered its limit because answers came late: then the limit may have bound after all.
    pub(crate) async fn cuts(&self) -> Result<u64> {
        let said = fs::read_to_string(self.dir.join("stdout"))?;
        let admin = said.split_once("admin=http://").and_then(|(_, rest)| rest.split_whitespace().next());
        let mut stream = TcpStream::connect(admin.context("no admin address")?).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        let changes = page.lines().filter(|line| line.starts_with("tidegate_limit_changes_total"));
        let by_delay = changes.filter(|line| line.contains("reason=\"delay\""));
        Ok(by_delay.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// Asks it to end and waits, so that a tool it runs under can write down what it saw.
    pub(crate) async fn end(mut self) -> Result<PathBuf> {
        self.ask();
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > Duration::from_secs(60) {
                bail!("{} does not end", self.kind.name());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(self.dir.clone())
    }

    /// A tool that only watches would let go of the proxy when asked: then the proxy is.
    fn ask(&self) {
        let pids = self.pids();
        let watched = if self.under_tool && pids.len() > 1 { 1 } else { 0 };
        if let Some(pid) = pids.get(watched) {
            cpu::signal(*pid, Signal::TERM);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let pids = self.pids();
        self.ask();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        pids.into_iter().rev().for_each(|pid| cpu::signal(pid, Signal::KILL));
        self.child.wait().map_or_else(|error| eprintln!("peers: {error}"), drop);
    }
}
