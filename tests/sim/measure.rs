//! Runs a scenario and holds it against the oracle.

use std::{fmt, path::Path, time::Instant};

use tidegate::control::{gate::GateCore, limit::Algorithm};

use super::{
    oracle::Oracle,
    scenario::Scenario,
    world::{Driver, Report, SLICE, World},
};

/// What one run came to, against the oracle on the same seed.
#[derive(Debug, Clone)]
pub struct Figures {
    pub utilisation: f64,
    pub refused: f64,
    pub wait_p99: f64,
    pub fairness: f64,
    pub share: f64,
    /// Mean time at the upstream, over that of a static limit at the tier; 0 where there is no knee.
    pub delay: f64,
    pub recovery: f64,
    pub minds: f64,
    pub hopeless: f64,
    pub failed: f64,
    pub limit_at_end: u32,
}

pub fn load(path: &Path) -> Scenario {
    let text = std::fs::read_to_string(path).expect("a readable file");
    yaml_serde::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn run(scenario: &Scenario, algorithm: Algorithm, seed: u64, start: Instant) -> Report {
    let drivers = (0..scenario.clients())
        .map(|index| {
            let algorithm = scenario.algorithm_of(index).unwrap_or(algorithm);
            let settings = scenario.gate_settings(index, algorithm);
            let mut core = GateCore::new(settings, seed * 100 + index as u64, start);
            if let Some(took) = scenario.connect() {
                core.note_connect(took);
            }
            Driver::Gate(Box::new(core))
        })
        .collect();
    World::new(scenario, drivers, seed, start).run()
}

pub fn oracle(scenario: &Scenario, seed: u64, start: Instant) -> Report {
    World::new(scenario, vec![Driver::Oracle(Oracle::new(scenario.rtt()))], seed, start).run()
}

pub fn measure(scenario: &Scenario, algorithm: Algorithm, seed: u64) -> Figures {
    let start = tidegate::clock::now();
    let best = oracle(scenario, seed, start);
    let report = run(scenario, algorithm, seed, start);
    let delay = if scenario.knee().is_some() {
        let fixed = run(scenario, Algorithm::Fixed, seed, start);
        mean(&report.latencies) / mean(&fixed.latencies).max(1e-9)
    } else {
        0.0
    };
    let total: f64 = report.shares.iter().sum();
    let squares: f64 = report.shares.iter().map(|share| share * share).sum();
    let mut waits = report.waits.clone();
    waits.sort_by(f64::total_cmp);
    let p99 = waits.get(waits.len().saturating_sub(1) * 99 / 100).copied().unwrap_or(0.0);
    Figures {
        utilisation: report.work / best.work.max(1e-9),
        refused: report.refused as f64 / report.attempts.max(1) as f64,
        wait_p99: p99,
        fairness: total * total / (report.shares.len() as f64 * squares.max(1e-9)),
        share: report.shares[0] / total.max(1e-9),
        delay,
        recovery: scenario.steps.iter().map(|at| recovery(&report, &best, *at)).fold(0.0, f64::max),
        minds: f64::from(report.minds),
        hopeless: report.hopeless as f64,
        failed: report.failed as f64,
        limit_at_end: report.limit_at_end,
    }
}

/// Seconds after `at` until, over one second, nine tenths of what the oracle does are done.
fn recovery(report: &Report, best: &Report, at: f64) -> f64 {
    let window = (1.0 / SLICE) as usize;
    let sum = |slices: &[f64], from: usize| slices.iter().skip(from).take(window).sum::<f64>();
    let first = (at / SLICE).ceil() as usize;
    for from in first..report.slices.len().saturating_sub(window) {
        if sum(&report.slices, from) >= 0.9 * sum(&best.slices, from) {
            return (from - first) as f64 * SLICE;
        }
    }
    f64::INFINITY
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The worst of each figure.
pub fn worst(rows: &[Figures]) -> Figures {
    let low = |figure: fn(&Figures) -> f64| rows.iter().map(figure).fold(f64::INFINITY, f64::min);
    let high = |figure: fn(&Figures) -> f64| rows.iter().map(figure).fold(0.0, f64::max);
    Figures {
        utilisation: low(|row| row.utilisation),
        refused: high(|row| row.refused),
        wait_p99: high(|row| row.wait_p99),
        fairness: low(|row| row.fairness),
        share: low(|row| row.share),
        delay: high(|row| row.delay),
        recovery: high(|row| row.recovery),
        minds: high(|row| row.minds),
        hopeless: high(|row| row.hopeless),
        failed: high(|row| row.failed),
        limit_at_end: rows.iter().map(|row| row.limit_at_end).max().unwrap_or(0),
    }
}

/// Where a run left the expected ranges.
pub fn check(scenario: &Scenario, rows: &[Figures]) -> Vec<String> {
    let expect = &scenario.expect;
    let ranges = [
        ("utilisation", expect.utilisation, (|row| row.utilisation) as fn(&Figures) -> f64),
        ("refused", expect.refused, |row| row.refused),
        ("fairness", expect.fairness, |row| row.fairness),
        ("share", expect.share, |row| row.share),
        ("wait_p99", expect.wait_p99, |row| row.wait_p99),
        ("delay", expect.delay, |row| row.delay),
        ("recovery", expect.recovery, |row| row.recovery),
        ("minds", expect.minds, |row| row.minds),
        ("hopeless", expect.hopeless, |row| row.hopeless),
    ];
    let mut missed = Vec::new();
    for (name, range, figure) in ranges {
        let Some((low, high)) = range else { continue };
        for (seed, row) in rows.iter().enumerate() {
            let value = figure(row);
            if !(low..=high).contains(&value) {
                missed.push(format!("seed {}: {name} {value:.4} is not in {low}..={high}", seed + 1));
            }
        }
    }
    missed
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "util {:6.2} %  refused {:5.2} %  wait p99 {:7.2} s  recovery {:5.1} s  fair {:4.2} share {:4.2} delay {:4.2} minds {} failed {} limit {}",
            self.utilisation * 100.0,
            self.refused * 100.0,
            self.wait_p99,
            self.recovery,
            self.fairness,
            self.share,
            self.delay,
            self.minds,
            self.failed,
            self.limit_at_end
        )
    }
}
