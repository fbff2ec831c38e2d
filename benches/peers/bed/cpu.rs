//! Processor time and memory, from the kernel's own books.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Where a proxy may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cores {
    /// The first core alone; load generator and origin have the last.
    First,
    /// All of them, shared with load generator and origin.
    All,
}

/// Puts this thread on the last core. What it starts is put elsewhere by [`with_cores`].
pub(crate) fn pin_self() -> Result<()> {
    set(count() - 1..count())
}

/// Runs `start` with the affinity a child is to inherit.
pub(crate) fn with_cores<T>(cores: Cores, start: impl FnOnce() -> T) -> Result<T> {
    match cores {
        Cores::First => set(0..1)?,
        Cores::All => set(0..count())?,
    }
    let started = start();
    pin_self()?;
    Ok(started)
}

fn set(cores: std::ops::Range<usize>) -> Result<()> {
    let mut set = CpuSet::new();
    cores.for_each(|core| set.set(core));
    sched_setaffinity(None, &set).context("cannot choose a core")
}

/// Cores of this machine, counted before this thread was put on one.
pub(crate) fn count() -> usize {
    static CORES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *CORES.get_or_init(|| sched_getaffinity(None).map_or(1, |set| set.count() as usize))
}

/// A process and all that descend from it.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        for task in tasks(pid) {
            let children = fs::read_to_string(format!("{task}/children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

fn tasks(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path().to_string_lossy().into_owned()).collect()
}

/// Time on a processor of all threads of all these processes.
pub(crate) fn spent(pids: &[u32]) -> Duration {
    pids.iter().flat_map(|pid| tasks(*pid)).map(|task| schedstat(&format!("{task}/schedstat"))).sum()
}

/// Time on a processor of this thread: load generator and origin.
pub(crate) fn own() -> Duration {
    schedstat("/proc/thread-self/schedstat")
}

fn schedstat(path: &str) -> Duration {
    let text = fs::read_to_string(path).unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// Resident memory in KiB, now and at its highest since [`reset_peak`]. Pages that processes share count in each.
pub(crate) fn resident(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| status(*pid, "VmRSS:")).sum()
}

pub(crate) fn peak(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| status(*pid, "VmHWM:")).sum()
}

pub(crate) fn reset_peak(pids: &[u32]) -> Result<()> {
    for pid in pids {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").context("clear_refs")?;
    }
    Ok(())
}

fn status(pid: u32, field: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0.0)
}

/// Asks for an end, or makes one.
pub(crate) fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Gone already is as good.
        rustix::process::kill_process(pid, signal).unwrap_or_default();
    }
}
