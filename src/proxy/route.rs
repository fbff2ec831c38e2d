//! Request head → upstream, account, flow.

use std::{
    borrow::Cow,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, Method, Uri, header, request};
use sha2::{Digest, Sha256};

use crate::{
    config::{AccountBy, Config, Upstream},
    control::{
        cost::{Demand, Tariff},
        gate::GateSettings,
        queue::{Depths, FlowId},
        rates::RateSettings,
        retry::{Backoff, RetrySettings},
    },
    fault::Fault,
    gate::{Accounts, Gate, Newcomer},
    provider::{
        demand::{self, Told},
        money,
        presets::{ErrorShape, Preset},
    },
    upstream::Connector,
};

use super::{Client, head};

/// One upstream of a snapshot.
#[derive(Debug)]
pub struct Route {
    /// Its settings.
    pub settings: Upstream,
    /// How to reach it.
    pub connector: Arc<Connector>,
    /// Its accounts; they outlive the snapshot.
    pub accounts: Arc<Accounts>,
    /// A later one, and a higher number, whenever `balance` changes: an answer tells only the configuration that asked
    /// for it.
    pub balance_epoch: u64,
}

/// An immutable, compiled configuration. A running exchange keeps the one it began with.
#[derive(Debug)]
pub struct Snapshot {
    /// What it was compiled from.
    pub config: Arc<Config>,
    /// Longest prefix first.
    pub routes: Vec<Arc<Route>>,
    flows: RandomState,
}

impl Snapshot {
    /// Orders the routes.
    #[must_use]
    pub fn new(config: Arc<Config>, mut routes: Vec<Arc<Route>>) -> Self {
        routes.sort_by_key(|route| std::cmp::Reverse(route.settings.path_prefix.len()));
        Self { config, routes, flows: RandomState::new() }
    }

    /// What answers last said that an account has left, in dollars, where that is asked for.
    #[must_use]
    pub fn balance_usd(&self, gate: &Gate) -> Option<f64> {
        let route = self.routes.iter().find(|route| *route.settings.name == *gate.upstream())?;
        gate.balance_usd(route.balance_epoch)
    }

    /// The upstream for a path.
    pub fn route(&self, uri: &Uri) -> Result<&Arc<Route>, Fault> {
        self.routes.iter().find(|route| has_prefix(uri.path(), &route.settings.path_prefix)).ok_or(Fault::NoRoute)
    }

    /// The flow a request belongs to. A value nobody chose is one flow too. `own`: some header is for Tidegate.
    #[must_use]
    pub fn flow(&self, route: &Route, headers: &HeaderMap, own: bool) -> FlowId {
        if !own && head::is_own(route.settings.queue.flow.as_str()) {
            return FlowId(0);
        }
        headers.get(&route.settings.queue.flow).map_or(FlowId(0), |value| FlowId(self.flows.hash_one(value.as_bytes())))
    }
}

impl Route {
    /// The gate of the account a request counts against. One that is made now has the settings in force, and not those
    /// the request began with: a reload tells the gates it finds, and no others.
    #[must_use]
    pub fn gate(
        &self,
        head: &request::Parts,
        body: &[u8],
        in_force: &ArcSwap<Snapshot>,
        accounts_max: usize,
        client: &Client,
    ) -> Arc<Gate> {
        let account = &self.settings.account;
        let credential = match &account.by {
            AccountBy::Credential => credential(head),
            AccountBy::Header(name) => {
                head.headers.get(name).map(|value| Cow::Owned(String::from_utf8_lossy(value.as_bytes()).into_owned()))
            }
            AccountBy::Upstream => None,
        };
        let secret = credential.as_deref().unwrap_or_default();
        if !account.split_by_model
            && let Some(gate) = client.account.lock().get(&self.accounts, secret)
        {
            return gate;
        }
        let model = if account.split_by_model { demand::model(head.uri.path(), body) } else { None };
        let newcomer = || {
            let secret: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
            let label = match (&credential, &model) {
                (None, None) => "default".to_owned(),
                (Some(_), None) => label(&secret),
                (_, Some(model)) => {
                    label(&Sha256::new().chain_update(secret).chain_update(model.as_bytes()).finalize())
                }
            };
            let snapshot = in_force.load();
            let in_force = snapshot.routes.iter().find(|route| Arc::ptr_eq(&route.accounts, &self.accounts));
            let settings = in_force.map_or_else(|| self.gate_settings(&secret), |route| route.gate_settings(&secret));
            Newcomer { label, credential: secret, settings }
        };
        let (gate, is_own) = self.accounts.get((secret, &model), newcomer, accounts_max);
        if is_own && !account.split_by_model {
            client.account.lock().set(&self.accounts, secret, &gate);
        }
        gate
    }

    /// What a request asks for, and by which price it is paid for.
    pub(super) fn demand(&self, method: &Method, told: &Told, path: &str, body: &[u8]) -> (Demand, Tariff) {
        let (demand, model) = demand::of_model(told, path, body);
        // What is kept at the upstream says each time it is fetched what it once used.
        if matches!(*method, Method::GET | Method::HEAD) {
            return (demand.fetching(), Tariff::Paid);
        }
        (demand, self.settings.tariff(model.as_deref()))
    }

    /// An answer may say what the account has left, if it is known where.
    pub(super) fn note_balance(&self, gate: &Gate, headers: &HeaderMap) {
        let Some(name) = &self.settings.balance else { return };
        if let Some(usd) = headers.get(name).and_then(money::dollars) {
            gate.note_balance_usd(self.balance_epoch, usd);
        }
    }

    /// The settings of an account's gate; `credential` is the SHA-256 of what tells it apart.
    #[must_use]
    pub fn gate_settings(&self, credential: &[u8; 32]) -> GateSettings {
        let own = self.settings.account.tiers.iter().find(|tier| tier.sha256 == *credential);
        let (queue, retry) = (&self.settings.queue, &self.settings.retry);
        GateSettings {
            limit: self.settings.limit,
            ceiling: own.map(|tier| tier.ceiling).or(self.settings.ceiling),
            rates: RateSettings { rpm: self.settings.rpm, tpm: self.settings.tpm },
            depths: Depths { total_max: queue.depth_max, per_flow_max: queue.depth_per_flow_max },
            retry: RetrySettings {
                attempts_max: retry.attempts_max,
                post: retry.post,
                backoff: Backoff { base: retry.backoff_base, max: retry.backoff_max, jitter: retry.backoff_jitter },
                retry_after_max: retry.retry_after_max,
                budget: retry.budget,
            },
        }
    }
}

/// The first 8 hex digits.
fn label(sha256: &[u8]) -> String {
    sha256.iter().take(4).fold(String::new(), |digits, byte| format!("{digits}{byte:02x}"))
}

/// The error shape a client of this path expects.
#[must_use]
pub(super) fn error_shape(path: &str, preset: Preset) -> ErrorShape {
    if path.contains("/v1/messages") {
        ErrorShape::Anthropic
    } else if path.contains(":generateContent") || path.contains(":streamGenerateContent") {
        ErrorShape::Gemini
    } else if path.contains("/chat/completions") || path.contains("/responses") || path.contains("/embeddings") {
        ErrorShape::Openai
    } else {
        preset.error_shape()
    }
}

/// Whether `prefix` ends where a segment of `path` does.
pub(super) fn has_prefix(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What the upstream counts against, as far as a head shows it: the token without its scheme.
fn credential(head: &request::Parts) -> Option<Cow<'_, str>> {
    let text = |value| HeaderValue::to_str(value).ok();
    if let Some(authorization) = head.headers.get(header::AUTHORIZATION).and_then(text) {
        // Not by `split_once`, which takes a hundred instructions more; a head is short.
        let scheme = authorization.bytes().position(|byte| byte == b' ').map_or(0, |space| space + 1);
        return Some(Cow::Borrowed(authorization.get(scheme..).unwrap_or_default().trim_ascii()));
    }
    let named =
        ["x-api-key", "api-key", "x-goog-api-key"].iter().find_map(|name| head.headers.get(*name).and_then(text));
    named.map(Cow::Borrowed).or_else(|| {
        let query = head.uri.query()?;
        query.split('&').find_map(|pair| pair.strip_prefix("key=")).map(Cow::Borrowed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_with_a_segment() {
        for (path, prefix, want) in [
            ("/v1/chat", "/", true),
            ("/", "/", true),
            ("/openai", "/openai", true),
            ("/openai/v1", "/openai", true),
            ("/openai/v1", "/openai/", true),
            ("/openai-eu/v1", "/openai", false),
            ("/v1", "/openai", false),
        ] {
            assert_eq!(has_prefix(path, prefix), want, "{path} {prefix}");
        }
    }

    #[test]
    fn the_credential_is_found_wherever_providers_put_it() {
        for (name, value, uri, want) in [
            ("authorization", "Bearer sk-1", "/", Some("sk-1")),
            ("authorization", "sk-1", "/", Some("sk-1")),
            ("x-api-key", "sk-2", "/", Some("sk-2")),
            ("api-key", "sk-3", "/", Some("sk-3")),
            ("x-goog-api-key", "sk-4", "/", Some("sk-4")),
            ("accept", "*/*", "/x?alt=sse&key=sk-5", Some("sk-5")),
            ("accept", "*/*", "/x?monkey=sk-5", None),
        ] {
            let (head, ()) = http::Request::builder().uri(uri).header(name, value).body(()).unwrap().into_parts();
            assert_eq!(credential(&head).as_deref(), want, "{name} {uri}");
        }
    }
}
