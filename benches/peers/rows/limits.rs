//! What the limiter costs: when it binds, with many accounts, and as connections and queue grow.

use anyhow::Result;

use super::requests::CONNECTIONS;
use crate::{
    bed::{
        Bed, Kind, Setup,
        load::{Pool, Requests, Stop},
        order, wire,
    },
    table::{Bar, Line, quantile},
};
use std::{sync::Arc, time::Duration};

const ACCOUNTS: usize = 10_000;
const LIMIT: u32 = 32;

pub(super) async fn row(bed: &Bed) -> Result<Vec<Line>> {
    Ok(vec![binding(bed).await?, accounts(bed, None).await?, accounts(bed, Some(20_000)).await?])
}

/// 1,000 clients, 32 of them served at a time, in 1 ms each.
async fn binding(bed: &Bed) -> Result<Line> {
    let setup = Setup { limit: Some(LIMIT), ..Setup::one() };
    let proxies = bed.start_all(&[Kind::Tidegate, Kind::Haproxy], &setup).await?;
    let requests = Requests::one(wire::post("/ms1", "sk-abcdefgh"));
    let mut line = Line::new("CPU per request, 1,000 clients, limit 32", "µs", Bar::Ratio(1.1));
    line.peers = vec![Kind::Haproxy];
    let mut pools = Vec::new();
    for proxy in &proxies {
        let mut pool = Pool::open(proxy.addr, 1000, 1000).await?;
        pool.run(&requests, Stop::After(bed.options.turn() * 10), &[]).await?;
        pools.push(pool);
    }
    for round in 0..bed.options.rounds(1) {
        for index in order(proxies.len(), round) {
            let (Some(proxy), Some(pool)) = (proxies.get(index), pools.get_mut(index)) else { continue };
            let turn = pool.run(&requests, Stop::After(bed.options.turn() * 2), &proxy.pids()).await?;
            line.add(proxy.kind, turn.cpu_per_request());
        }
    }
    Ok(line)
}

/// Zipf-distributed credentials against one, in turns, through the same process. The ratio stands as a figure.
async fn accounts(bed: &Bed, kept: Option<u32>) -> Result<Line> {
    let proxy = bed.start(Kind::Tidegate, &Setup { accounts: kept, ..Setup::one() }).await?;
    let all = (0..ACCOUNTS).map(|number| wire::post("/v1/chat/completions", &format!("sk-{number:08}"))).collect();
    let many = Requests::many(all, zipf(ACCOUNTS, 1 << 17));
    let one = Requests::one(wire::post("/v1/chat/completions", "sk-00000000"));
    let mut pool = Pool::open(proxy.addr, CONNECTIONS, CONNECTIONS).await?;
    // Long enough for the rarest to have come by.
    pool.run(&many, Stop::Count(1 << 17), &[]).await?;
    let kept = kept.map_or(String::new(), |kept| format!(" (accounts_max {kept})"));
    let mut line = Line::new(format!("10,000 accounts over one, CPU{kept}"), "×", Bar::AtMost(1.1));
    for _ in 0..bed.options.rounds(1) {
        let mut costs = Vec::new();
        for requests in [&many, &one] {
            let turn = pool.run(requests, Stop::After(bed.options.turn()), &proxy.pids()).await?;
            costs.push(turn.cpu_per_request());
        }
        if let [many, one] = costs[..] {
            line.add(Kind::Tidegate, many / one);
        }
    }
    Ok(line)
}

/// `draws` numbers below `range`, number n with a frequency of 1/(n+1).
fn zipf(range: usize, draws: usize) -> Vec<u32> {
    let mut sums = Vec::with_capacity(range);
    let mut sum = 0.0;
    for number in 1..=range {
        sum += 1.0 / number as f64;
        sums.push(sum);
    }
    // A fixed seed: every run draws the same.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 53) as f64 * sum
    };
    (0..draws).map(|_| draw()).map(|at| sums.partition_point(|sum| *sum < at) as u32).collect()
}

pub(super) async fn growth(bed: &Bed) -> Result<Vec<Line>> {
    let mut lines = connections(bed).await?;
    lines.extend(queue(bed).await?);
    Ok(lines)
}

async fn connections(bed: &Bed) -> Result<Vec<Line>> {
    const SIZES: [usize; 4] = [10, 100, 1000, 10_000];
    let requests = Requests::one(wire::chat());
    let mut grown = Line::new("CPU growth, 10 to 10,000 connections", "×", Bar::AtMost(1.2));
    grown.note("up to 64 requests under way, connections take turns; nginx to compare");
    let mut costs: Vec<_> =
        SIZES.iter().map(|size| Line::new(format!("CPU per request, {size} connections"), "µs", Bar::None)).collect();
    // One after the other: two times as many files are more than a process may open in some places.
    for kind in bed.kinds.iter().copied().filter(|kind| matches!(kind, Kind::Tidegate | Kind::Nginx)) {
        let proxy = bed.start(kind, &Setup::one()).await?;
        let mut pools = Vec::new();
        for size in SIZES {
            let mut pool = Pool::open(proxy.addr, size, size.min(CONNECTIONS)).await?;
            pool.run(&requests, Stop::Count(size.max(1000) as u64), &[]).await?;
            pools.push(pool);
        }
        for round in 0..bed.options.rounds(2) {
            for index in order(SIZES.len(), round) {
                let (Some(pool), Some(line)) = (pools.get_mut(index), costs.get_mut(index)) else { continue };
                let turn = pool.run(&requests, Stop::After(bed.options.turn() * 2), &proxy.pids()).await?;
                line.add(kind, turn.cpu_per_request());
            }
        }
        grow(&mut grown, &costs, kind);
    }
    costs.insert(0, grown);
    Ok(costs)
}

async fn queue(bed: &Bed) -> Result<Vec<Line>> {
    // The last is a little less than what the queue holds by default.
    const QUEUED: [usize; 3] = [1, 100, 9900];
    let mut grown = Line::new("CPU growth, 1 to 9,900 queued", "×", Bar::AtMost(1.2));
    grown.note("limit 32, 1 ms each; measured while the queue stands");
    let mut costs: Vec<_> =
        QUEUED.iter().map(|size| Line::new(format!("CPU per request, {size} queued"), "µs", Bar::None)).collect();
    let proxy = bed.start(Kind::Tidegate, &Setup { limit: Some(LIMIT), ..Setup::one() }).await?;
    let requests: Arc<Requests> = Requests::one(wire::post("/ms1", "sk-abcdefgh"));
    let mut pools = Vec::new();
    for size in QUEUED {
        let clients = size + LIMIT as usize;
        let mut pool = Pool::open(proxy.addr, clients, clients).await?;
        pool.run(&requests, Stop::Count(2 * clients as u64), &[]).await?;
        pools.push(pool);
    }
    for round in 0..bed.options.rounds(4) {
        for index in order(QUEUED.len(), round) {
            let (Some(pool), Some(line)) = (pools.get_mut(index), costs.get_mut(index)) else { continue };
            // Filling and draining a queue of 10,000 are outside.
            let fill = Duration::from_millis(if index == 2 { 1500 } else { 100 });
            let stop = Stop::Middle(fill, Duration::from_millis(500));
            let turn = pool.run(&requests, stop, &proxy.pids()).await?;
            line.add(Kind::Tidegate, turn.cpu_per_request());
        }
    }
    grow(&mut grown, &costs, Kind::Tidegate);
    costs.insert(0, grown);
    Ok(costs)
}

/// The dearest size over the smallest one, round by round.
fn grow(grown: &mut Line, costs: &[Line], kind: Kind) {
    let median = |line: &&Line| line.figures.get(&kind).map_or(0.0, |costs| quantile(costs, 0.5));
    let dearest = costs.iter().skip(1).max_by(|one, other| median(one).total_cmp(&median(other)));
    let of = |line: Option<&Line>| line.and_then(|line| line.figures.get(&kind)).cloned().unwrap_or_default();
    for (dearest, first) in of(dearest).iter().zip(of(costs.first())) {
        grown.add(kind, dearest / first);
    }
}
