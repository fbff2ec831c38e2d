//! The limiter over real sockets, held against the limiter in virtual time: a proxy in front of the mock has to reach
//! what the simulation of the same scenario reaches.
//!
//! The table of both: `cargo nextest run --test sockets --no-capture`. A scenario is a file of the form that `tests/sim`
//! has, and the mock is set up from the same file. Work is measured alike on both sides and divided by what the simulation's
//! oracle gets done, so no expected figure is written down anywhere. Service times scatter a little in all of them:
//! where they do not, the simulation's answers come in step for ever, which real ones never do.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::let_underscore_must_use,
    clippy::disallowed_methods,
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "shares the modules of the simulation and of the integration tests, which may panic and use the real clock"
)]

mod machine;
#[path = "../sim/measure.rs"]
mod measure;
#[path = "../sim/oracle.rs"]
mod oracle;
mod real;
#[path = "../sim/scenario.rs"]
mod scenario;
mod simulated;
#[path = "../it/support/mod.rs"]
mod support;
#[path = "../sim/upstream.rs"]
mod upstream;
#[path = "../sim/world.rs"]
mod world;

use std::{fmt, path::Path, thread};

use scenario::Scenario;
use simulated::Simulated;

/// How far the real figures may lie outside the range of those simulated.
const TOLERANCE: f64 = 0.03;
/// The same for the time at the upstream, as a share of what it is without a delay guard.
const DELAY_TOLERANCE: f64 = 0.1;

/// Runs of what misses.
const RUNS: u32 = 3;
/// With more threads than this waiting for a processor, on average, a run is not judged: it gets slots filled too late.
const WAITING_MAX: f64 = 0.5;

/// What a run came to. The same figures, whether simulated or real.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Work done over what the oracle gets done.
    utilisation: f64,
    /// Refused attempts over all.
    refused: f64,
    /// Mean time at the upstream over that of a static limit at the tier; 0 where there is no knee.
    delay: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:6.1} % {:5.2} % {:5.2}", self.utilisation * 100.0, self.refused * 100.0, self.delay)
    }
}

/// Runs scenarios side by side, each with a mock, a proxy and callers of its own, and tells all that missed. Those are
/// run again first: a machine that does something else for a second is reason enough to miss.
fn hold(names: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sockets/scenarios");
    let load = |name: &&str| measure::load(&folder.join(format!("{name}.yaml")));
    let scenarios: Vec<_> = names.iter().map(load).collect();
    // One after the other: the real runs need the machine for themselves.
    let simulated = at_once(&scenarios, Simulated::run);
    let mut left: Vec<_> = scenarios.into_iter().zip(simulated).collect();
    let mut missed = Vec::new();
    for run in 1..=RUNS {
        let scenarios: Vec<_> = left.iter().map(|(scenario, _)| scenario.clone()).collect();
        let (measured, waiting) = machine::watched(|| at_once(&scenarios, real::run));
        let judged = waiting <= WAITING_MAX;
        let mut again = Vec::new();
        for ((scenario, simulated), measured) in left.into_iter().zip(measured) {
            let figures = measured.over(&simulated);
            let line = format!("{:<44} simulated {} | real {figures}", scenario.name, simulated.mean());
            println!("{line} | {measured}");
            let differences = simulated.differences(&figures);
            if !differences.is_empty() {
                if judged && run == RUNS {
                    missed.push(format!("{}: {line}", differences.join(", ")));
                }
                again.push((scenario, simulated));
            }
        }
        println!("run {run}: {waiting:.2} threads waited for a processor");
        left = again;
        if left.is_empty() {
            return;
        }
    }
    if missed.is_empty() {
        println!("not judged: the machine was too busy");
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

fn at_once<T: Send>(scenarios: &[Scenario], run: fn(&Scenario) -> T) -> Vec<T> {
    thread::scope(|scope| {
        let running: Vec<_> = scenarios.iter().map(|scenario| scope.spawn(move || run(scenario))).collect();
        running.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

macro_rules! groups {
    ($($test:ident: [$($name:literal),*],)*) => {
        $(
            #[test]
            fn $test() {
                hold(&[$($name),*]);
            }
        )*

        /// A file that no test runs expects nothing.
        #[test]
        fn every_scenario_is_run() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sockets/scenarios");
            for entry in std::fs::read_dir(folder).unwrap() {
                let name = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
                assert!([$($($name),*),*].contains(&name.as_str()), "{name}");
            }
        }
    };
}

// Grouped so that a debug build on two cores has some 200 answers a second to carry, and the whole takes little more
// than a minute.
groups! {
    ceilings_that_are_known_or_small_are_used:
        ["known-10", "known-50", "unknown-003", "unknown-010", "unknown-010-lognormal", "errors"],
    a_ceiling_is_found_and_rates_are_kept: ["unknown-050", "bucket-headers", "bucket-blind", "window-told"],
    a_high_ceiling_is_found_and_an_overload_met: ["unknown-200", "overload"],
    a_ceiling_that_moves_and_one_beside_a_rate_are_followed: ["step-50-10-80", "both", "both-ceiling"],
}
