//! Who asks, and the place a request takes: from its head to the last byte of its answer.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, header};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::clock;

use super::{
    ledger::{Cause, Ledger},
    limits::{KeyLimits, Refusal},
};

/// Bytes of the hash that tell keys apart.
const HASH_BYTES: usize = 8;
/// Characters of a key that are shown, so that a person knows it again.
const TAIL: usize = 4;

/// What the limits count against: one key.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) label: String,
    pub(super) limits: Mutex<KeyLimits>,
}

/// The name of a request's key: its last characters, and a hash of the whole so that no two keys are one.
pub(super) fn label_of(headers: &HeaderMap) -> String {
    let bytes = |name: &str| headers.get(name).map(http::HeaderValue::as_bytes);
    let token = bytes(header::AUTHORIZATION.as_str()).map(|value| {
        let mut parts = value.splitn(2, |byte| *byte == b' ');
        let scheme = parts.next().unwrap_or_default();
        parts.next().unwrap_or(scheme)
    });
    let Some(key) = token.or_else(|| bytes("x-api-key")).or_else(|| bytes("api-key")) else {
        return "anonymous".to_owned();
    };
    let hash: String = Sha256::digest(key).iter().take(HASH_BYTES).map(|byte| format!("{byte:02x}")).collect();
    let text = String::from_utf8_lossy(key);
    let tail: Vec<char> = text.chars().rev().take(TAIL).collect();
    format!("…{}:{hash}", tail.into_iter().rev().collect::<String>())
}

/// What a request wants done.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) id: String,
    pub(super) service: Duration,
    pub(super) output_tokens: u64,
}

/// A request that was let in. Dropping it frees the slot; unless its work was done, its client left.
pub(super) struct Slot {
    account: Arc<Account>,
    ledger: Arc<Mutex<Ledger>>,
    done: bool,
}

impl Slot {
    /// For a request that [`KeyLimits::enter`] let in.
    pub(super) fn taken(account: &Arc<Account>, ledger: &Arc<Mutex<Ledger>>) -> Self {
        ledger.lock().let_in(&account.label, clock::now());
        Self { account: Arc::clone(account), ledger: Arc::clone(ledger), done: false }
    }

    /// Charges its tokens, or says why not.
    pub(super) fn charge(&self, tokens: u64) -> Result<(), Refusal> {
        self.account.limits.lock().charge(tokens, clock::now())?;
        self.ledger.lock().charged(&self.account.label, tokens);
        Ok(())
    }

    /// Refuses it after all: nobody left, nothing was done.
    pub(super) fn refused(mut self, cause: Cause) {
        self.done = true;
        self.ledger.lock().sent_away(&self.account.label, cause);
    }

    /// The work is done, whether or not the answer arrives.
    pub(super) fn processed(mut self, work: &Work) {
        self.done = true;
        self.ledger.lock().processed(&self.account.label, &work.id, work.service, work.output_tokens);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.account.limits.lock().leave();
        self.ledger.lock().gone(&self.account.label, self.done, clock::now());
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn label(name: &'static str, value: &'static str) -> String {
        label_of(&HeaderMap::from_iter([(header::HeaderName::from_static(name), HeaderValue::from_static(value))]))
    }

    #[test]
    fn keys_that_end_alike_are_told_apart() {
        let one = label("authorization", "Bearer sk-one-test");
        assert_ne!(one, label("authorization", "Bearer sk-two-test"));
        assert_eq!(one, label("x-api-key", "sk-one-test"));
        assert!(one.starts_with("…test:") && !one.contains("one"), "{one}");
        assert_eq!(label("accept", "*/*"), "anonymous");
        assert_ne!(label("x-api-key", "anonymous"), "anonymous");
    }
}
