//! Streams of events: processor time per event, memory per stream, and how soon the first event comes.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::{
    bed::{Bed, Kind, Proxy, Setup, cpu, order, sse::Readers},
    table::{Bar, Line, quantile},
};

const GENERATIONS: usize = 5;
const SETTLE: Duration = Duration::from_millis(500);

/// A thousand streams through each proxy, all of them open at the same time.
pub(super) async fn thousand(bed: &Bed) -> Result<Vec<Line>> {
    let mut memory = Line::new("resident per stream, 1,000 streams", "KiB", Bar::AtMost(8.0));
    let mut first = Line::new("added time to first event p99, 1,000 streams", "µs", Bar::Ratio(1.2));
    let mut cpu_line = Line::new("CPU per event, 1,000 streams", "µs", Bar::Ratio(1.0));
    cpu_line.note("10 events a second and stream");
    first.note("opened 1,000 in a second, in processes just started");
    // Once opened, a stream costs a process less the second time: every generation is of new processes.
    let mut direct = Vec::new();
    let generations = if bed.options.quick { 3 } else { GENERATIONS };
    for generation in 0..generations {
        let proxies = bed.start_all(&Kind::ALL, &Setup::one()).await?;
        let mut streams = Vec::new();
        let base = straight(bed, 1000).await?;
        direct.push(base);
        for index in order(proxies.len(), generation) {
            let Some(proxy) = proxies.get(index) else { continue };
            let (readers, resident, p99) = open(bed, proxy, index, 1000).await?;
            memory.add(proxy.kind, resident);
            first.add(proxy.kind, p99 - base);
            streams.push((index, readers));
        }
        for round in 0..(bed.options.rounds(3) / 2).max(3) {
            for at in order(streams.len(), round) {
                let Some((index, readers)) = streams.get(at) else { continue };
                let Some(proxy) = proxies.get(*index) else { continue };
                cpu_line.add(proxy.kind, events(bed, proxy, *index, readers).await?);
            }
        }
        for (_, readers) in streams {
            readers.close().await;
        }
    }
    first.note(format!("{:.0} µs straight to the origin", quantile(&direct, 0.5)));
    Ok(vec![cpu_line, memory, first])
}

/// Five thousand through one proxy after the other: of files, one process may open only so many.
pub(super) async fn five_thousand(bed: &Bed) -> Result<Vec<Line>> {
    let mut memory = Line::new("resident per stream, 5,000 streams", "KiB", Bar::AtMost(8.0));
    let mut first = Line::new("added time to first event p99, 5,000 streams", "µs", Bar::Ratio(1.2));
    for generation in 0..if bed.options.quick { 1 } else { 3 } {
        let base = straight(bed, 5000).await?;
        for index in order(bed.kinds.len(), generation) {
            let Some(kind) = bed.kinds.get(index) else { continue };
            let proxy = bed.start(*kind, &Setup::one()).await?;
            let (readers, resident, p99) = open(bed, &proxy, index, 5000).await?;
            memory.add(*kind, resident);
            first.add(*kind, p99 - base);
            readers.close().await;
        }
    }
    Ok(vec![memory, first])
}

/// 99th percentile to the first event without a proxy, in µs.
async fn straight(bed: &Bed, number: usize) -> Result<f64> {
    let readers = Readers::open(bed.origin.plain, 100, number, Duration::from_millis(1)).await?;
    let p99 = late(&readers);
    readers.close().await;
    Ok(p99)
}

fn late(readers: &Readers) -> f64 {
    let times: Vec<_> = readers.first.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    quantile(&times, 0.99)
}

/// Opens streams; KiB each of them takes once events have gone through all, and the 99th percentile to the first.
async fn open(bed: &Bed, proxy: &Proxy, group: usize, number: usize) -> Result<(Readers, f64, f64)> {
    // One stream beforehand: the first one makes what is made once.
    Readers::open(proxy.addr, 101, 1, Duration::ZERO).await?.close().await;
    let pids = proxy.pids();
    let before = cpu::resident(&pids);
    let opened = Readers::open(proxy.addr, group, number, Duration::from_millis(1)).await;
    let readers = opened.with_context(|| proxy.kind.name())?;
    events(bed, proxy, group, &readers).await?;
    tokio::time::sleep(SETTLE).await;
    let resident = (cpu::resident(&pids) - before) / number as f64;
    let p99 = late(&readers);
    Ok((readers, resident, p99))
}

/// Processor time per event, in µs, over a third of a second.
async fn events(bed: &Bed, proxy: &Proxy, group: usize, readers: &Readers) -> Result<f64> {
    use std::sync::atomic::Ordering::Relaxed;

    let pids = proxy.pids();
    let (before, seen) = (cpu::spent(&pids), readers.events.load(Relaxed));
    let written = bed.origin.hub.tide(group, Duration::from_millis(300)).await;
    readers.wait(seen + written).await.with_context(|| proxy.kind.name())?;
    tokio::time::sleep(Duration::from_millis(2)).await;
    Ok((cpu::spent(&pids) - before).as_secs_f64() * 1e6 / written as f64)
}
