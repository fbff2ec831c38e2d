//! Every algorithm against every scenario, in virtual time: `cargo bench --bench limiter`.
//!
//! One seed each. Utilisation is work done over what somebody who knows everything gets done; refused is the share of
//! attempts that the upstream refused; wait is the 99th percentile of time in the queue over the oracle's; recovery is
//! the time from a step until nine tenths of the possible work is done again.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    dead_code,
    reason = "shares the modules of the simulation, which may panic"
)]

#[path = "../tests/sim/measure.rs"]
mod measure;
#[path = "../tests/sim/oracle.rs"]
mod oracle;
#[path = "../tests/sim/scenario.rs"]
mod scenario;
#[path = "../tests/sim/upstream.rs"]
mod upstream;
#[path = "../tests/sim/world.rs"]
mod world;

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tidegate::control::limit::Algorithm;

fn main() {
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_string_lossy().contains(&filter));
    paths.sort();
    let scenarios: Vec<_> = paths.iter().map(|path| measure::load(path)).collect();
    let jobs: Vec<_> =
        (0..scenarios.len()).flat_map(|scenario| Algorithm::ALL.map(|algorithm| (scenario, algorithm))).collect();
    let (next, cells) = (AtomicUsize::new(0), Mutex::new(vec![String::new(); jobs.len()]));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((scenario, algorithm)) = jobs.get(at) else { break };
                    let scenario = &scenarios[*scenario];
                    let cell = cell(scenario, &measure::measure(scenario, *algorithm, 1));
                    cells.lock().unwrap()[at] = cell;
                }
            });
        }
    });
    println!("utilisation | refused | p99 wait in s | recovery in s");
    print!("{:<64}", "scenario");
    Algorithm::ALL.iter().for_each(|algorithm| print!(" {:<30}", algorithm.name()));
    println!();
    for (scenario, row) in scenarios.iter().zip(cells.into_inner().unwrap().chunks(Algorithm::ALL.len())) {
        print!("{:<64}", scenario.name);
        row.iter().for_each(|cell| print!(" {cell:<30}"));
        println!();
    }
}

fn cell(scenario: &scenario::Scenario, row: &measure::Figures) -> String {
    let recovery = match scenario.steps.is_empty() {
        true => "-".to_owned(),
        false if row.recovery.is_finite() => format!("{:.1}", row.recovery),
        false => "never".to_owned(),
    };
    let (utilisation, refused) = (row.utilisation * 100.0, row.refused * 100.0);
    format!("{utilisation:5.1} % {refused:5.2} % {:7.1} {recovery:>5}", row.wait_p99)
}
