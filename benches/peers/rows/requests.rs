//! Processor time per request: HTTP/1.1 on one and two threads, HTTP/2 from clients, TLS to the origin.

use anyhow::Result;

use super::judge;
use crate::{
    bed::{
        Bed, Kind, Proxy, Setup,
        cpu::Cores,
        h2load,
        load::{Pool, Requests, Stop},
        order, wire,
    },
    table::{Bar, Line},
};

pub(crate) const CONNECTIONS: usize = 64;

pub(super) async fn plain(bed: &Bed, threads: usize) -> Result<Vec<Line>> {
    let cores = if threads == 1 { Cores::First } else { Cores::All };
    let setup = Setup { threads: Some(threads), cores, ..Setup::one() };
    let what = format!("HTTP/1.1, {threads} thread{}", if threads == 1 { "" } else { "s" });
    let mut lines = closed(bed, &setup, &what, 1.0).await?;
    if threads > 1 {
        lines
            .iter_mut()
            .take(1)
            .for_each(|line| line.note("the proxy shares its cores with load generator and origin"));
    }
    Ok(lines)
}

pub(super) async fn tls(bed: &Bed) -> Result<Vec<Line>> {
    let setup = Setup { tls: true, ..Setup::one() };
    let mut lines = closed(bed, &setup, "TLS to the origin", 1.05).await?;
    if let Some(rate) = lines.get_mut(1) {
        rate.bar = Bar::None;
    }
    Ok(lines)
}

/// 64 connections, one request each at a time, as fast as it goes.
async fn closed(bed: &Bed, setup: &Setup, what: &str, most: f64) -> Result<Vec<Line>> {
    let proxies = bed.start_all(&Kind::ALL, setup).await?;
    let requests = Requests::one(wire::chat());
    let mut pools = Vec::new();
    for proxy in &proxies {
        let mut pool = Pool::open(proxy.addr, CONNECTIONS, CONNECTIONS).await?;
        pool.run(&requests, Stop::After(bed.options.turn() * 3), &proxy.pids()).await?;
        pools.push(pool);
    }
    let mut cpu = Line::new(format!("CPU per request, {what}"), "µs", Bar::Ratio(most));
    let mut rate = Line::new(format!("requests per second, {what}"), "1/s", Bar::RatioAtLeast(1.0));
    let mut own = Line::new(format!("load generator and origin busy, {what}"), "%", Bar::None);
    for round in 0..bed.options.rounds(1) {
        for index in order(proxies.len(), round) {
            let (Some(proxy), Some(pool)) = (proxies.get(index), pools.get_mut(index)) else { continue };
            let turn = pool.run(&requests, Stop::After(bed.options.turn()), &proxy.pids()).await?;
            cpu.add(proxy.kind, turn.cpu_per_request());
            rate.add(proxy.kind, turn.rate());
            own.add(proxy.kind, turn.own * 100.0);
        }
    }
    judge(&mut rate, &own);
    note_cuts(&mut cpu, &proxies).await?;
    Ok(vec![cpu, rate, own])
}

pub(super) async fn h2(bed: &Bed) -> Result<Vec<Line>> {
    let proxies = bed.start_all(&Kind::ALL, &Setup { h2: true, ..Setup::one() }).await?;
    let mut pools = Vec::new();
    for proxy in &proxies {
        let mut pool = h2load::Pool::open(proxy.addr, 4, CONNECTIONS / 4).await?;
        pool.run(bed.options.turn() * 3, &proxy.pids()).await?;
        pools.push(pool);
    }
    let mut cpu = Line::new("CPU per request, HTTP/2 from clients", "µs", Bar::Ratio(1.3));
    cpu.note("4 connections with 16 streams each");
    for round in 0..bed.options.rounds(1) {
        for index in order(proxies.len(), round) {
            let (Some(proxy), Some(pool)) = (proxies.get(index), pools.get_mut(index)) else { continue };
            let turn = pool.run(bed.options.turn(), &proxy.pids()).await?;
            cpu.add(proxy.kind, turn.cpu_per_request());
        }
    }
    note_cuts(&mut cpu, &proxies).await?;
    Ok(vec![cpu])
}

/// The rows suppose a limit that does not bind. If it did for a while, the reader should know.
async fn note_cuts(line: &mut Line, proxies: &[Proxy]) -> Result<()> {
    for proxy in proxies.iter().filter(|proxy| proxy.kind == Kind::Tidegate) {
        let cuts = proxy.cuts().await?;
        if cuts > 0 {
            line.note(format!("tidegate lowered its limit {cuts} times, since answers came late on this machine"));
        }
    }
    Ok(())
}
