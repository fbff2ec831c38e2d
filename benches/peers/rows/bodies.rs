//! Bodies of 64 MiB, both ways: processor time per MiB, and memory above what it was.

use std::sync::Arc;

use anyhow::Result;

use crate::{
    bed::{
        Bed, Kind, Proxy, Setup, cpu,
        load::Client,
        order,
        origin::BODY_MIB,
        wire::{self, MIB},
    },
    table::{Bar, Line},
};

pub(super) async fn row(bed: &Bed) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (up, way) in [(false, "to the client"), (true, "to the origin")] {
        let mut cpu_line = Line::new(format!("CPU per MiB, 64 MiB {way}"), "µs", Bar::Ratio(1.1));
        let mut extra = Line::new(format!("extra resident, 64 MiB {way}"), "MiB", Bar::AtMost(1.0));
        extra.note("the first body of a process that has had one small request");
        let proxies = bed.start_all(&Kind::ALL, &Setup::one()).await?;
        let mut clients = Vec::new();
        for proxy in &proxies {
            let mut client = Client::connect(proxy.addr).await?;
            client.exchange(&wire::chat()).await?;
            clients.push(client);
        }
        let block = Arc::new(vec![b'x'; 256 * 1024]);
        for round in 0..bed.options.rounds(2) {
            for index in order(proxies.len(), round) {
                let (Some(proxy), Some(client)) = (proxies.get(index), clients.get_mut(index)) else { continue };
                let (cpu, peak) = body(proxy, client, up, &block).await?;
                cpu_line.add(proxy.kind, cpu);
                if round == 0 {
                    extra.add(proxy.kind, peak);
                }
            }
        }
        lines.extend([cpu_line, extra]);
    }
    Ok(lines)
}

/// Sends or fetches one body: µs per MiB, and MiB at the highest above what was resident before.
async fn body(proxy: &Proxy, client: &mut Client, up: bool, block: &[u8]) -> Result<(f64, f64)> {
    let pids = proxy.pids();
    cpu::reset_peak(&pids)?;
    let (resident, before) = (cpu::resident(&pids), cpu::spent(&pids));
    if up {
        client.send(wire::post_head("/up", "sk-abcdefgh", BODY_MIB * MIB).as_bytes()).await?;
        for _ in 0..BODY_MIB * MIB / block.len() {
            client.send(block).await?;
        }
        client.answer().await?;
    } else {
        client.exchange(&wire::get("/down")).await?;
    }
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    let cpu = (cpu::spent(&pids) - before).as_secs_f64() * 1e6 / BODY_MIB as f64;
    Ok((cpu, (cpu::peak(&pids) - resident) / 1024.0))
}
