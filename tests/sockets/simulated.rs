//! The simulation's side: a few seeds, and the range they span.

use tidegate::control::limit::Algorithm;

use super::{DELAY_TOLERANCE, Figures, TOLERANCE, measure, scenario::Scenario};

/// Real answers and wake-ups never come in the same order twice; these many orders span what can happen.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=10;

/// What a scenario comes to in virtual time.
pub struct Simulated {
    runs: Vec<Figures>,
    /// What the oracle gets done: what the real work is divided by, too.
    pub best: f64,
    /// Time at the upstream with a static limit at the tier; where there is a knee.
    pub fixed: Option<f64>,
}

/// A figure by name, and how far outside the simulated range it may lie.
type Compared = (&'static str, fn(&Figures) -> f64, f64);

impl Simulated {
    pub fn run(scenario: &Scenario) -> Self {
        let start = tidegate::clock::now();
        let runs: Vec<_> = SEEDS.map(|seed| measure::measure(scenario, Algorithm::Tide, seed)).collect();
        let fixed = |seed| mean(measure::run(scenario, Algorithm::Fixed, seed, start).latencies.into_iter());
        Self {
            runs: runs
                .iter()
                .map(|run| Figures { utilisation: run.utilisation, refused: run.refused, delay: run.delay })
                .collect(),
            best: mean(SEEDS.map(|seed| measure::oracle(scenario, seed, start).work)),
            fixed: scenario.knee().map(|_| mean(SEEDS.map(fixed))),
        }
    }

    pub fn mean(&self) -> Figures {
        let of = |figure: fn(&Figures) -> f64| mean(self.runs.iter().map(figure));
        Figures { utilisation: of(|run| run.utilisation), refused: of(|run| run.refused), delay: of(|run| run.delay) }
    }

    /// Which of the real figures lie outside the simulated range, by more than the tolerance.
    pub fn differences(&self, real: &Figures) -> Vec<&'static str> {
        let figures: [Compared; 3] = [
            ("utilisation", |run| run.utilisation, TOLERANCE),
            ("refused", |run| run.refused, TOLERANCE),
            ("delay", |run| run.delay, DELAY_TOLERANCE),
        ];
        let differs = |(_, figure, tolerance): &Compared| {
            let low = self.runs.iter().map(figure).fold(f64::INFINITY, f64::min);
            let high = self.runs.iter().map(figure).fold(0.0, f64::max);
            !(low - tolerance..=high + tolerance).contains(&figure(real))
        };
        figures.into_iter().filter(differs).map(|(name, ..)| name).collect()
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}
