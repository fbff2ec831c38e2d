//! One attempt as the gate remembers it, and the order of those in flight.

use std::{collections::VecDeque, time::Instant};

use super::cost::{Cost, Demand};

/// One attempt in flight. Given out when it is admitted, and handed back with everything that is heard of it.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Order of departure; only grows.
    pub id: u64,
    /// When it left.
    pub sent: Instant,
    /// Attempts in flight when it left, itself included.
    pub in_flight: u32,
    /// No more were in flight than had passed before.
    pub within: bool,
    /// What it asks for.
    pub demand: Demand,
    /// What it is taken to cost.
    pub cost: Cost,
    /// What all attempts up to this one were taken to cost.
    pub total: Cost,
}

/// Which attempts are in flight, in the order of their departure: one bit each.
///
/// The ceiling is read off from it: when an attempt is refused, those that left before it and are still in flight are
/// what the upstream held.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Id of the first bit.
    base: u64,
    words: VecDeque<u64>,
    /// In flight, but longer ago than [`WORDS_MAX`] reaches back.
    ancient: u32,
}

const WORD: u64 = 64;
/// 64 KiB, half a million attempts: an older one (an hour's stream at 145 requests per second) is only counted.
const WORDS_MAX: usize = 8192;

impl Ledger {
    /// `id` left. Ids come in order.
    pub fn add(&mut self, id: u64) {
        if self.words.is_empty() {
            self.base = id - id % WORD;
        }
        while id >= self.base + self.words.len() as u64 * WORD {
            self.words.push_back(0);
        }
        if self.words.len() > WORDS_MAX
            && let Some(word) = self.words.pop_front()
        {
            self.ancient += word.count_ones();
            self.base += WORD;
        }
        if let Some((word, bit)) = self.at(id) {
            *word |= bit;
        }
    }

    /// `id` ended.
    pub fn remove(&mut self, id: u64) {
        match self.at(id) {
            Some((word, bit)) => *word &= !bit,
            None => self.ancient = self.ancient.saturating_sub(1),
        }
        while self.words.front() == Some(&0) {
            self.words.pop_front();
            self.base += WORD;
        }
    }

    /// How many that left before `id` are in flight.
    #[must_use]
    pub fn before(&self, id: u64) -> u32 {
        let whole = id.saturating_sub(self.base) / WORD;
        let rest = id.saturating_sub(self.base) % WORD;
        let mut count = self.ancient;
        for (index, word) in (0..=whole).zip(&self.words) {
            let word = if index == whole { word & ((1 << rest) - 1) } else { *word };
            count += word.count_ones();
        }
        count
    }

    fn at(&mut self, id: u64) -> Option<(&mut u64, u64)> {
        let offset = id.checked_sub(self.base)?;
        let word = self.words.get_mut(usize::try_from(offset / WORD).ok()?)?;
        Some((word, 1 << (offset % WORD)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_counts_as_a_set_does(ops in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..400)) {
            let mut ledger = Ledger::default();
            let mut set = BTreeSet::new();
            let mut next = 1;
            for (adds, index) in ops {
                if adds || set.is_empty() {
                    ledger.add(next);
                    set.insert(next);
                    next += 1 + index.index(90) as u64;
                } else {
                    let list: Vec<u64> = set.iter().copied().collect();
                    let id = *index.get(&list);
                    prop_assert_eq!(ledger.before(id), set.range(..id).count() as u32);
                    ledger.remove(id);
                    set.remove(&id);
                }
                prop_assert_eq!(ledger.before(next + 7), set.len() as u32);
            }
        }
    }

    #[test]
    fn a_stream_that_outlasts_half_a_million_others_still_counts() {
        let mut ledger = Ledger::default();
        ledger.add(1);
        for id in 2..=(WORDS_MAX as u64 + 3) * WORD {
            ledger.add(id);
            if id % 1000 == 0 {
                assert_eq!(ledger.before(id), 1);
            }
            ledger.remove(id);
        }
        ledger.remove(1);
        assert_eq!(ledger.before(u64::MAX), 0);
    }
}
