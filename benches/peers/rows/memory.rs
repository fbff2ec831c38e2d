//! Resident memory: idle, per idle connection, per waiting request. And the time from start to first answer.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{
    bed::{
        Bed, Kind, Proxy, Setup,
        cpu::{self, Cores},
        load::{Client, Pool, Requests, Stop},
        order, wire,
    },
    table::{Bar, Line},
};

const CONNECTIONS: usize = 4000;
const LIMIT: u32 = 32;
const SETTLE: Duration = Duration::from_secs(1);

pub(super) async fn row(bed: &Bed) -> Result<Vec<Line>> {
    let mut idle = Line::new("resident, idle after one request", "MiB", Bar::AtMost(12.0));
    let mut connection = Line::new("resident per idle connection", "KiB", Bar::AtMost(4.0));
    let mut fresh = Line::new("resident per connection that has sent nothing", "KiB", Bar::None);
    let mut queued = Line::new("resident per queued request of 1 KiB", "KiB", Bar::AtMost(8.0));
    idle.note("one worker per core; of processes that share pages each counts them");
    connection.note("4,000 connections, each has had one answer");
    queued.note("4,000 requests behind a limit of 32, connections included");
    for kind in bed.kinds.iter().copied() {
        let proxy = bed.start(kind, &Setup { threads: None, cores: Cores::All, ..Setup::one() }).await?;
        Client::connect(proxy.addr).await?.exchange(&wire::chat()).await?;
        tokio::time::sleep(SETTLE).await;
        idle.add(kind, cpu::resident(&proxy.pids()) / 1024.0);
        drop(proxy);

        let (silent, after) = connections(bed, kind).await?;
        fresh.add(kind, silent);
        connection.add(kind, after);
        // nginx has no queue.
        if matches!(kind, Kind::Tidegate | Kind::Haproxy) {
            queued.add(kind, waiting(bed, kind).await?);
        }
    }
    Ok(vec![idle, connection, fresh, queued])
}

async fn warm(proxy: &Proxy) -> Result<()> {
    let requests = Requests::one(wire::chat());
    let mut pool = Pool::open(proxy.addr, 64, 64).await?;
    pool.run(&requests, Stop::Count(1000), &[]).await?;
    drop(pool);
    tokio::time::sleep(SETTLE).await;
    Ok(())
}

/// KiB per connection, before and after each of them has had an answer.
async fn connections(bed: &Bed, kind: Kind) -> Result<(f64, f64)> {
    let proxy = bed.start(kind, &Setup::one()).await?;
    warm(&proxy).await?;
    let pids = proxy.pids();
    let before = cpu::resident(&pids);
    let mut pool = Pool::open(proxy.addr, CONNECTIONS, 64).await?;
    tokio::time::sleep(SETTLE).await;
    let silent = (cpu::resident(&pids) - before) / CONNECTIONS as f64;
    let requests = Requests::one(wire::chat());
    pool.run(&requests, Stop::Count(CONNECTIONS as u64), &pids).await?;
    tokio::time::sleep(SETTLE).await;
    Ok((silent, (cpu::resident(&pids) - before) / CONNECTIONS as f64))
}

/// KiB per request that waits behind a limit; all must be answered in the end.
async fn waiting(bed: &Bed, kind: Kind) -> Result<f64> {
    let proxy = bed.start(kind, &Setup { limit: Some(LIMIT), ..Setup::one() }).await?;
    warm(&proxy).await?;
    let pids = proxy.pids();
    bed.origin.release(false);
    let before = cpu::resident(&pids);
    let request = wire::post("/hold", "sk-abcdefgh");
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Client::connect(proxy.addr).await?;
        client.send(&request).await?;
        clients.push(client);
    }
    tokio::time::sleep(SETTLE).await;
    let under_way = bed.origin.waiting.load(Relaxed);
    ensure!(under_way == u64::from(LIMIT), "{under_way} in flight with a limit of {LIMIT}");
    let resident = (cpu::resident(&pids) - before) / CONNECTIONS as f64;
    bed.origin.release(true);
    for client in &mut clients {
        client.answer().await?;
    }
    Ok(resident)
}

pub(super) async fn start(bed: &Bed) -> Result<Vec<Line>> {
    let mut line = Line::new("start to first answer", "ms", Bar::AtMost(20.0));
    let request = wire::chat();
    for round in 0..bed.options.rounds(2) {
        for index in order(bed.kinds.len(), round) {
            let Some(kind) = bed.kinds.get(index) else { continue };
            let proxy = Proxy::spawn(bed, *kind, &Setup { threads: None, ..Setup::one() })?;
            let client = loop {
                if let Ok(client) = Client::connect(proxy.addr).await {
                    break client;
                }
                ensure!(proxy.born.elapsed() < Duration::from_secs(20), "{} does not start", kind.name());
                let again = Instant::now() + Duration::from_micros(100);
                while Instant::now() < again {
                    tokio::task::yield_now().await;
                }
            };
            let mut client = client;
            client.exchange(&request).await?;
            line.add(*kind, proxy.born.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(vec![line])
}
