//! The rows of the table, each with what it starts, the load it gives, and the bar.

pub(crate) mod allocations;
mod bodies;
mod counts;
mod latency;
mod limits;
mod memory;
mod requests;
mod sse;

use std::{future::Future, pin::Pin, process::ExitCode, time::Instant};

use anyhow::{Result, ensure};

use crate::{
    bed::Bed,
    table::{self, Line},
};

type Run<'a> = Pin<Box<dyn Future<Output = Result<Vec<Line>>> + 'a>>;
type Row = (&'static str, for<'a> fn(&'a Bed) -> Run<'a>);

const ROWS: [Row; 15] = [
    ("cpu-1", |bed| Box::pin(requests::plain(bed, 1))),
    ("cpu-2", |bed| Box::pin(requests::plain(bed, 2))),
    ("instructions", |bed| Box::pin(counts::instructions(bed))),
    ("calls", |bed| Box::pin(counts::calls(bed))),
    ("allocations", |bed| Box::pin(allocations::row(bed))),
    ("latency", |bed| Box::pin(latency::row(bed))),
    ("sse", |bed| Box::pin(sse::thousand(bed))),
    ("sse-5000", |bed| Box::pin(sse::five_thousand(bed))),
    ("memory", |bed| Box::pin(memory::row(bed))),
    ("start", |bed| Box::pin(memory::start(bed))),
    ("bodies", |bed| Box::pin(bodies::row(bed))),
    ("h2", |bed| Box::pin(requests::h2(bed))),
    ("tls", |bed| Box::pin(requests::tls(bed))),
    ("limits", |bed| Box::pin(limits::row(bed))),
    ("growth", |bed| Box::pin(limits::growth(bed))),
];

pub(crate) async fn run(bed: &Bed) -> Result<ExitCode> {
    let wanted = &bed.options.rows;
    if bed.options.list {
        ROWS.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    }
    for name in wanted {
        ensure!(ROWS.iter().any(|(row, _)| row == name), "there is no row {name}: --list names them");
    }
    let mut lines = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for (name, row) in ROWS {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name) {
            continue;
        }
        let start = Instant::now();
        match row(bed).await {
            Ok(row) => {
                eprintln!("peers: {name}: {:.0} s", start.elapsed().as_secs_f64());
                lines.extend(row);
            }
            Err(error) => {
                eprintln!("peers: {name}: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    println!("{}", table::render(&lines));
    Ok(code)
}

/// Says so where turns measured the load generator: `own` has its share of time, in percent.
fn judge(line: &mut Line, own: &Line) {
    for (kind, shares) in &own.figures {
        let busy = shares.iter().filter(|share| **share > 90.0).count();
        if busy > 0 {
            let (name, turns) = (kind.name(), shares.len());
            line.note(format!("load generator was the bottleneck in {busy} of {turns} turns with {name}"));
        }
    }
}
