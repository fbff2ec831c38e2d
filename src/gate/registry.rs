//! Account → gate: made on first use, bounded in number, idle ones evicted.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};

use crate::{control::gate::GateSettings, metrics::Metrics, tasks::Tasks};

use super::Gate;

/// Label values of accounts; the rest is called [`OTHER`], so that a page of metrics stays bounded.
const LABELS_MAX: usize = 64;
/// The label of accounts beyond [`LABELS_MAX`], and of the gate that is shared when no account may be added.
const OTHER: &str = "other";

/// What tells accounts of one upstream apart: a hash, never the credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountKey([u8; 32]);

impl AccountKey {
    /// From a SHA-256 of whatever tells accounts apart.
    #[must_use]
    pub fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    /// The first 8 hex digits.
    #[must_use]
    pub fn label(&self) -> String {
        let [a, b, c, d, ..] = self.0;
        format!("{a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

/// A gate, and the SHA-256 of the credential it stands for: a ceiling may be configured for it.
#[derive(Debug)]
struct Known {
    gate: Arc<Gate>,
    credential: [u8; 32],
}

/// All gates of one upstream. Outlives configurations.
#[derive(Debug)]
pub struct Accounts {
    upstream: Arc<str>,
    gates: RwLock<HashMap<AccountKey, Known>>,
    labels: Arc<Mutex<HashSet<String>>>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    seeds: RandomState,
}

impl Accounts {
    /// No accounts yet. `labels` is shared by all upstreams of the process.
    #[must_use]
    pub fn new(upstream: &str, labels: Arc<Mutex<HashSet<String>>>, metrics: Arc<Metrics>, tasks: Tasks) -> Self {
        Self { upstream: upstream.into(), gates: RwLock::default(), labels, metrics, tasks, seeds: RandomState::new() }
    }

    /// The gate of an account, made now if need be. With `accounts_max` of them in use, newcomers share one.
    pub fn get(
        &self,
        key: AccountKey,
        credential: [u8; 32],
        label: impl FnOnce() -> String,
        settings: impl FnOnce() -> GateSettings,
        accounts_max: usize,
    ) -> Arc<Gate> {
        if let Some(known) = self.gates.read().get(&key) {
            return Arc::clone(&known.gate);
        }
        let mut gates = self.gates.write();
        if let Some(known) = gates.get(&key) {
            return Arc::clone(&known.gate);
        }
        let (key, label) = if gates.len() < accounts_max || evict_idle(&mut gates) {
            (key, self.claim(label()))
        } else {
            (AccountKey([0; 32]), OTHER.to_owned())
        };
        let known = gates.entry(key).or_insert_with(|| {
            let metrics = self.metrics.account(&self.upstream, &label);
            let seed = self.seeds.hash_one(key);
            let gate =
                Gate::new(Arc::clone(&self.upstream), label.into(), settings(), seed, metrics, self.tasks.clone());
            tracing::debug!(upstream = gate.upstream(), account = gate.account(), "account seen for the first time");
            Known { gate: Arc::new(gate), credential }
        });
        Arc::clone(&known.gate)
    }

    /// Every gate there is.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Gate>> {
        self.gates.read().values().map(|known| Arc::clone(&known.gate)).collect()
    }

    /// Every gate with the SHA-256 of its credential.
    #[must_use]
    pub fn entries(&self) -> Vec<([u8; 32], Arc<Gate>)> {
        self.gates.read().values().map(|known| (known.credential, Arc::clone(&known.gate))).collect()
    }

    fn claim(&self, label: String) -> String {
        let mut labels = self.labels.lock();
        if labels.contains(&label) {
            return label;
        }
        if labels.len() >= LABELS_MAX {
            return OTHER.to_owned();
        }
        labels.insert(label.clone());
        label
    }
}

/// Makes room by forgetting the account that has been idle for longest. `false`: all are in use.
fn evict_idle(gates: &mut HashMap<AccountKey, Known>) -> bool {
    let oldest = gates
        .iter()
        // A gate somebody holds may be about to be entered.
        .filter(|(_, known)| Arc::strong_count(&known.gate) == 1)
        .filter_map(|(key, known)| known.gate.idle_since().map(|since| (since, *key)))
        .min_by_key(|(since, _)| *since);
    oldest.is_some_and(|(_, key)| gates.remove(&key).is_some())
}
