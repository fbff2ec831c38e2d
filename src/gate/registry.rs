//! Account → gate: made on first use, bounded in number, idle ones evicted.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, OnceLock, Weak},
};

use parking_lot::{Mutex, RwLock};

use crate::{
    control::gate::GateSettings,
    metrics::{AccountMetrics, Metrics},
    tasks::Tasks,
};

use super::Gate;

/// Label values of accounts; the rest is called [`OTHER`], so that a page of metrics stays bounded.
const LABELS_MAX: usize = 64;
/// The label of accounts beyond [`LABELS_MAX`], and of the gate that is shared when no account may be added.
const OTHER: &str = "other";
/// To find one that has been idle for long, so many that are idle are looked at: to look at all of thousands would take
/// longer than the exchange.
const LOOKED_AT_MAX: usize = 16;

/// Finds an account: 128 bits under keys of this process alone, never the credential. Every request is looked up, and
/// a SHA-256 of its credential would cost more than all else its gate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key(u64, u64);

/// The gate that all share who find no room of their own.
const SHARED: Key = Key(0, 0);

/// What is found out about an account when it is seen for the first time.
#[derive(Debug)]
pub struct Newcomer {
    /// What it is called.
    pub label: String,
    /// SHA-256 of its credential.
    pub credential: [u8; 32],
    /// How its gate begins.
    pub settings: GateSettings,
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
    gates: RwLock<Gates>,
    labels: Arc<Mutex<HashSet<String>>>,
    metrics: Arc<Metrics>,
    /// The handles of [`OTHER`], which many may need.
    other: OnceLock<AccountMetrics>,
    tasks: Tasks,
    keys: [RandomState; 2],
}

impl Accounts {
    /// No accounts yet. `labels` is shared by all upstreams of the process.
    #[must_use]
    pub fn new(upstream: &str, labels: Arc<Mutex<HashSet<String>>>, metrics: Arc<Metrics>, tasks: Tasks) -> Self {
        Self {
            upstream: upstream.into(),
            gates: RwLock::default(),
            labels,
            metrics,
            other: OnceLock::new(),
            tasks,
            keys: [RandomState::new(), RandomState::new()],
        }
    }

    /// The gate of an account, made now if need be. `identity` tells it apart. With `accounts_max` of them in use,
    /// newcomers share one, and the flag is not set.
    pub fn get(
        &self,
        identity: impl Hash,
        newcomer: impl FnOnce() -> Newcomer,
        accounts_max: usize,
    ) -> (Arc<Gate>, bool) {
        let [one, two] = &self.keys;
        let key = Key(one.hash_one(&identity), two.hash_one(&identity));
        if let Some(known) = self.gates.read().known.get(&key) {
            return (Arc::clone(&known.gate), true);
        }
        let mut gates = self.gates.write();
        if let Some(known) = gates.known.get(&key) {
            return (Arc::clone(&known.gate), true);
        }
        let Newcomer { label, credential, settings } = newcomer();
        let is_own = gates.known.len() < accounts_max || gates.make_room();
        let (key, label) = if is_own { (key, self.claim(label)) } else { (SHARED, OTHER.to_owned()) };
        if is_own {
            gates.ring.push(key);
        }
        let known = gates.known.entry(key).or_insert_with(|| {
            let named = |label: &str| self.metrics.account(&self.upstream, label);
            let metrics = if label == OTHER { self.other.get_or_init(|| named(OTHER)).clone() } else { named(&label) };
            let gate =
                Gate::new(Arc::clone(&self.upstream), label.into(), settings, key.0, metrics, self.tasks.clone());
            tracing::debug!(upstream = gate.upstream(), account = gate.account(), "account seen for the first time");
            Known { gate: Arc::new(gate), credential }
        });
        (Arc::clone(&known.gate), is_own)
    }

    /// Every gate there is.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Gate>> {
        self.gates.read().known.values().map(|known| Arc::clone(&known.gate)).collect()
    }

    /// Every gate with the SHA-256 of its credential.
    #[must_use]
    pub fn entries(&self) -> Vec<([u8; 32], Arc<Gate>)> {
        self.gates.read().known.values().map(|known| (known.credential, Arc::clone(&known.gate))).collect()
    }

    /// Gates that somebody is in, on the way to or from.
    fn in_use(&self) -> Vec<Arc<Gate>> {
        let gates = self.gates.read();
        let held = gates.known.values().filter(|known| Arc::strong_count(&known.gate) > 1);
        held.map(|known| Arc::clone(&known.gate)).collect()
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

/// The accounts of upstreams that are no longer configured. Exchanges that began before go on, and are shown until they
/// end.
#[derive(Debug, Default)]
pub struct Retired(Mutex<Vec<Arc<Accounts>>>);

impl Retired {
    /// These are no longer configured.
    pub fn add(&self, accounts: Arc<Accounts>) {
        self.0.lock().push(accounts);
    }

    /// Those of an upstream that is configured again: what still runs there counts.
    #[must_use]
    pub fn find(&self, upstream: &str) -> Option<Arc<Accounts>> {
        self.0.lock().iter().find(|accounts| *accounts.upstream == *upstream).map(Arc::clone)
    }

    /// They are configured again.
    pub fn remove(&self, upstream: &str) {
        self.0.lock().retain(|accounts| *accounts.upstream != *upstream);
    }

    /// Gates that are still in use.
    #[must_use]
    pub fn in_use(&self) -> Vec<Arc<Gate>> {
        let mut found = Vec::new();
        self.0.lock().retain(|accounts| {
            let before = found.len();
            found.extend(accounts.in_use());
            // Somebody who holds them may be about to enter a gate.
            found.len() > before || Arc::strong_count(accounts) > 1
        });
        found
    }
}

/// The accounts that are known.
#[derive(Debug, Default)]
struct Gates {
    known: HashMap<Key, Known>,
    /// Their keys but for [`SHARED`], in the order in which they are looked at when one has to go.
    ring: Vec<Key>,
    hand: usize,
}

impl Gates {
    /// Makes room by forgetting, of some that are idle, the one that has been so for longest. `false`: all are in use.
    fn make_room(&mut self) -> bool {
        let (mut idlest, mut looked) = (None, 0);
        for _ in 0..self.ring.len() {
            let at = self.hand;
            self.hand = (at + 1) % self.ring.len();
            let known = self.ring.get(at).and_then(|key| self.known.get(key));
            // A gate somebody holds may be about to be entered.
            let free = known.filter(|known| Arc::strong_count(&known.gate) == 1);
            let Some(since) = free.and_then(|known| known.gate.idle_since()) else { continue };
            if idlest.is_none_or(|(least, _)| since < least) {
                idlest = Some((since, at));
            }
            looked += 1;
            if looked == LOOKED_AT_MAX {
                break;
            }
        }
        let Some((_, at)) = idlest else { return false };
        let key = self.ring.swap_remove(at);
        let Some(Known { gate, credential }) = self.known.remove(&key) else { return true };
        let Err(gate) = Arc::try_unwrap(gate) else { return true };
        // A client's connection that remembered it has taken it up in this instant.
        self.known.insert(key, Known { gate, credential });
        self.ring.push(key);
        false
    }
}

/// What a client's connection remembers of the account it last used: most use one, and to hash a credential takes longer
/// than to compare it.
#[derive(Debug, Default)]
pub struct LastAccount(Option<Box<Remembered>>);

struct Remembered {
    accounts: Arc<Accounts>,
    credential: Box<str>,
    /// Not held, so that it can be evicted.
    gate: Weak<Gate>,
}

/// Without the credential, which is not to be printed.
impl fmt::Debug for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remembered").field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl LastAccount {
    /// The gate, if the credential is the same as last time.
    #[must_use]
    pub fn get(&self, accounts: &Arc<Accounts>, credential: &str) -> Option<Arc<Gate>> {
        let known = self.0.as_ref()?;
        (*known.credential == *credential && Arc::ptr_eq(&known.accounts, accounts)).then(|| known.gate.upgrade())?
    }

    /// This one was used last.
    pub fn set(&mut self, accounts: &Arc<Accounts>, credential: &str, gate: &Arc<Gate>) {
        let (accounts, gate) = (Arc::clone(accounts), Arc::downgrade(gate));
        self.0 = Some(Box::new(Remembered { accounts, credential: credential.into(), gate }));
    }
}
