//! What can be counted exactly: instructions under callgrind, system calls under strace.
//!
//! Each is the difference of two runs over the difference of their requests, so that starting and ending cancel out.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};

use super::requests::CONNECTIONS;
use crate::{
    bed::{
        Bed, Kind, Setup,
        cpu::Cores,
        load::{Pool, Requests, Stop},
        wire,
    },
    table::{Bar, Line},
};

const FEW: u64 = 1024;
const MANY: u64 = 3072;

pub(super) async fn instructions(bed: &Bed) -> Result<Vec<Line>> {
    let tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=DIR/callgrind", "--log-file=DIR/valgrind"];
    let mut many = Line::new("user instructions per request, 64 connections", "", Bar::AtMost(30_000.0));
    let mut alone = Line::new("user instructions per request, one connection", "", Bar::None);
    // Envoy does not run under valgrind.
    for kind in bed.kinds.iter().copied().filter(|kind| *kind != Kind::Envoy) {
        for (line, connections) in [(&mut many, CONNECTIONS), (&mut alone, 1)] {
            let count = difference(bed, kind, connections, &tool, callgrind).await;
            line.add(kind, count.with_context(|| kind.name())?);
        }
    }
    Ok(vec![many, alone])
}

pub(super) async fn calls(bed: &Bed) -> Result<Vec<Line>> {
    let tool = ["strace", "-f", "-c", "-o", "DIR/strace"];
    let mut alone = Line::new("system calls per request, one connection", "", Bar::AtMost(6.1));
    alone.note("each step waits for the one before, so that no call can serve two requests: the most there can be");
    let mut many = Line::new("system calls per request, 64 connections", "", Bar::AtMost(6.1));
    for kind in bed.kinds.iter().copied() {
        for (line, connections) in [(&mut alone, 1), (&mut many, CONNECTIONS)] {
            let count = difference(bed, kind, connections, &tool, strace).await;
            line.add(kind, count.with_context(|| kind.name())?);
        }
    }
    Ok(vec![alone, many])
}

async fn difference(
    bed: &Bed,
    kind: Kind,
    connections: usize,
    tool: &[&str],
    read: fn(&Path) -> Result<u64>,
) -> Result<f64> {
    let under = tool.iter().map(|word| (*word).to_owned()).collect();
    let setup = Setup { cores: Cores::All, single: true, under, ..Setup::one() };
    let request = wire::chat();
    let mut counted = Vec::new();
    for requests in [FEW, MANY] {
        counted.push(read(&driven(bed, kind, &setup, connections, requests, &request).await?)?);
    }
    let [few, many] = counted[..] else { anyhow::bail!("two runs") };
    Ok((many as f64 - few as f64) / (MANY - FEW) as f64)
}

/// Starts a proxy, gives it exactly `number` requests, ends it, and says where its tool's file is.
pub(super) async fn driven(
    bed: &Bed,
    kind: Kind,
    setup: &Setup,
    connections: usize,
    number: u64,
    request: &Arc<[u8]>,
) -> Result<PathBuf> {
    let proxy = bed.start(kind, setup).await?;
    let mut pool = Pool::open(proxy.addr, connections, connections).await?;
    pool.run(&Requests::one(request.clone()), Stop::Count(number), &[]).await?;
    drop(pool);
    proxy.end().await
}

fn callgrind(dir: &Path) -> Result<u64> {
    let text = fs::read_to_string(dir.join("callgrind")).context("callgrind wrote nothing")?;
    let mut totals =
        text.lines().rev().filter_map(|line| line.strip_prefix("summary: ").or(line.strip_prefix("totals: ")));
    totals.next().and_then(|count| count.trim().parse().ok()).context("callgrind counted nothing")
}

fn strace(dir: &Path) -> Result<u64> {
    let text = fs::read_to_string(dir.join("strace")).context("strace wrote nothing")?;
    let total = text.lines().find(|line| line.ends_with(" total")).context("strace counted nothing")?;
    // % time, seconds, usecs/call, calls
    total.split_whitespace().nth(3).and_then(|calls| calls.parse().ok()).context("strace's columns are others")
}
