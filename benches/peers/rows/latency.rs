//! What the proxy adds to an answer's time: with one connection, and at a fixed rate on 32.
//!
//! The same load goes straight to the origin in every round; what is left after taking that away is the proxy's. The
//! generator stays awake throughout, so that its own waking up is in no figure.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;

use crate::{
    bed::{
        Bed, Kind, Proxy, Setup,
        load::{Awake, Pool, Requests, Stop},
        order, wire,
    },
    table::{Bar, Line, quantile},
};

const PER_SECOND: u32 = 1000;
/// Percentiles are taken of so many rounds together: a turn has too few answers for the 99th.
const FOLDS: usize = 5;

pub(super) async fn row(bed: &Bed) -> Result<Vec<Line>> {
    let proxies = bed.start_all(&Kind::ALL, &Setup::one()).await?;
    let mut lines = measure(bed, &proxies, "one connection", 1).await?;
    lines.extend(measure(bed, &proxies, "1,000/s on 32 connections", 32).await?);
    Ok(lines)
}

async fn measure(bed: &Bed, proxies: &[Proxy], what: &str, connections: usize) -> Result<Vec<Line>> {
    let request = wire::chat();
    let requests = Requests::one(request.clone());
    let _awake = Awake::new();
    let mut pools = vec![Pool::open(bed.origin.plain, connections, connections).await?];
    for proxy in proxies {
        pools.push(Pool::open(proxy.addr, connections, connections).await?);
    }
    for pool in &mut pools {
        pool.run(&requests, Stop::After(bed.options.turn() * 2), &[]).await?;
    }
    let rounds = bed.options.rounds(1).max(2 * FOLDS);
    // `None`: straight to the origin.
    let mut folds: Vec<BTreeMap<Option<Kind>, Vec<f64>>> = vec![BTreeMap::new(); FOLDS];
    for round in 0..rounds {
        for index in order(pools.len(), round) {
            let Some(pool) = pools.get_mut(index) else { continue };
            let times = if connections == 1 {
                pool.run(&requests, Stop::After(bed.options.turn()), &[]).await?.latencies
            } else {
                pool.paced(&request, PER_SECOND, Duration::from_millis(250)).await?
            };
            let kind = index.checked_sub(1).and_then(|index| proxies.get(index)).map(|proxy| proxy.kind);
            if let Some(fold) = folds.get_mut(round * FOLDS / rounds) {
                fold.entry(kind).or_default().extend(times.iter().map(|time| time.as_secs_f64() * 1e6));
            }
        }
    }
    let mut lines = Vec::new();
    for (share, name, most) in [(0.5, "p50", 1.0), (0.99, "p99", 1.1)] {
        let mut line = Line::new(format!("added latency {name}, {what}"), "µs", Bar::Ratio(most));
        let mut direct = Vec::new();
        for fold in &folds {
            let base = fold.get(&None).map_or(0.0, |times| quantile(times, share));
            direct.push(base);
            for (kind, times) in fold {
                if let Some(kind) = kind {
                    line.add(*kind, quantile(times, share) - base);
                }
            }
        }
        line.note(format!("{:.0} µs straight to the origin", quantile(&direct, 0.5)));
        lines.push(line);
    }
    Ok(lines)
}
