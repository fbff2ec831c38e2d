//! The limiter in virtual time, against what somebody could do who knows everything.
//!
//! One YAML file per scenario in `scenarios/`, with the ranges that are expected. Five seeds each; the worst counts. All
//! invariants of `world.rs` are asserted after every event on the way.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    unreachable_pub,
    reason = "a simulation may panic: that is how it fails"
)]

mod measure;
mod oracle;
#[allow(dead_code, reason = "tests/sockets asks more of a scenario")]
mod scenario;
mod upstream;
mod world;

use std::path::{Path, PathBuf};

use tidegate::control::limit::Algorithm;

const SEEDS: std::ops::RangeInclusive<u64> = 1..=5;

fn scenarios(prefix: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sim/scenarios");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no scenario begins with {prefix}");
    paths
}

/// Runs every scenario whose name begins so, and tells all that missed.
fn hold(prefix: &str) {
    let mut missed = Vec::new();
    for path in scenarios(prefix) {
        let scenario = measure::load(&path);
        let rows: Vec<_> = SEEDS.map(|seed| measure::measure(&scenario, Algorithm::Tide, seed)).collect();
        println!("{}: {}", scenario.name, measure::worst(&rows));
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        missed.extend(measure::check(&scenario, &rows).into_iter().map(|line| format!("{name}: {line}")));
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

macro_rules! groups {
    ($($test:ident: $prefix:literal,)*) => {
        $(
            #[test]
            fn $test() {
                hold($prefix);
            }
        )*

        /// A file that no test runs expects nothing.
        #[test]
        fn every_scenario_is_run() {
            for path in scenarios("") {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                assert!([$($prefix),*].iter().any(|prefix| name.starts_with(prefix)), "{name}");
            }
        }
    };
}

groups! {
    a_known_ceiling_is_used_without_a_refusal: "known-",
    an_unknown_ceiling_of_3_is_found: "unknown-003",
    an_unknown_ceiling_of_10_is_found: "unknown-010",
    an_unknown_ceiling_of_50_is_found: "unknown-050",
    an_unknown_ceiling_of_200_is_found: "unknown-200",
    a_ceiling_that_moves_is_followed: "step-",
    reported_budgets_are_paced: "bucket-",
    rates_are_measured_where_nothing_is_reported: "blind-",
    tokens_are_paced: "tokens-",
    windows_are_used_up: "window-",
    an_overload_without_refusals_is_met_at_its_knee: "overload",
    a_ceiling_and_a_rate_are_told_apart: "both",
    several_share_a_ceiling: "share-",
    next_to_a_greedy_neighbour_a_share_is_held: "greedy",
    refusals_that_come_late_are_understood: "late-",
    round_trips_that_scatter_do_not_matter: "jitter",
    refusals_that_do_not_say_why_are_understood: "mute",
    few_requests_are_let_through: "quiet",
    those_who_cannot_wait_are_told: "patience",
}

/// Five in a hundred requests fail on top: at most two points less.
#[test]
fn random_failures_cost_next_to_nothing() {
    let mut missed = Vec::new();
    for path in scenarios("").into_iter().filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        ["known-50", "unknown-050", "unknown-010-2s", "step-50-10-80-2s", "bucket-600-openai", "blind-600.", "both."]
            .iter()
            .any(|prefix| name.starts_with(prefix))
    }) {
        let mut scenario = measure::load(&path);
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let without = measure::worst(&SEEDS.map(|seed| run(&scenario, seed)).collect::<Vec<_>>());
        scenario.set_errors(0.05);
        let with = measure::worst(&SEEDS.map(|seed| run(&scenario, seed)).collect::<Vec<_>>());
        println!("{name}: {:.4} without, {:.4} with failures", without.utilisation, with.utilisation);
        if with.utilisation < without.utilisation - 0.02 || with.refused > without.refused + 0.02 {
            missed.push(format!("{name}: {without} against {with}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

fn run(scenario: &scenario::Scenario, seed: u64) -> measure::Figures {
    measure::measure(scenario, Algorithm::Tide, seed)
}

/// The same seed, the same story, to the last figure.
#[test]
fn a_run_can_be_repeated() {
    let scenario = measure::load(&scenarios("step-50-10-80-lognormal")[0]);
    let tell = || format!("{:?}", measure::measure(&scenario, Algorithm::Tide, 7));
    assert_eq!(tell(), tell());
}

/// The others are no stubs: each does what it is known for.
#[test]
fn every_algorithm_behaves_as_it_is_known_to() {
    let ceiling = measure::load(&scenarios("unknown-050-lognormal")[0]);
    let small = measure::load(&scenarios("unknown-003-2s")[0]);
    let knee = measure::load(&scenarios("overload")[0]);
    let of = |scenario, algorithm| measure::measure(scenario, algorithm, 1);
    assert!(of(&ceiling, Algorithm::Aimd).refused > 0.05, "a saw is refused all the time");
    assert!(of(&ceiling, Algorithm::Vegas).utilisation < 0.5, "Vegas takes long answers for a queue");
    assert!(of(&small, Algorithm::Gradient).refused > 0.05, "Gradient does not look at refusals");
    assert!(of(&knee, Algorithm::Aimd).delay > 0.9, "without refusals AIMD sees nothing");
}
