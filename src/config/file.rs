//! The shape of the YAML: which keys exist and how they nest. What their values mean is said by `check`.

use std::{fs::File, io::Read, path::Path};

use serde::Deserialize;

use super::{
    Config, ConfigError, check,
    de::{At, Named, Value, ValueOr},
    env::Env,
    flags::Overrides,
    problem::{Origin, Problem},
    tree,
};

/// Reads a configuration file. `env` answers for `${NAME}`.
///
/// # Errors
///
/// When the file cannot be read, or at the first place in it that is wrong.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    Config::build(Some(path), &Overrides::default(), env)
}

/// Reads a configuration from `text`; errors call it `path`.
///
/// # Errors
///
/// At the first place that is wrong.
pub fn parse(text: &str, path: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    shape(text, env).and_then(check::config).map_err(|problem| problem.in_file(path))
}

/// The file's text, of which at most one byte more is read than a configuration may have.
pub(super) fn text(path: &Path) -> Result<String, ConfigError> {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    let bytes_max = tree::FILE_BYTES_MAX as u64 + 1;
    File::open(path)
        .and_then(|file| file.take(bytes_max).read_to_end(&mut bytes))
        .map_err(|error| ConfigError::Read { path: name.clone(), error })?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(error.as_bytes().get(..valid).unwrap_or_default()).into_owned();
        let line = 1 + before.matches('\n').count();
        let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
        Origin::Place { line, column }.problem("not valid UTF-8").in_file(&name)
    })
}

pub(super) fn shape(text: &str, env: Env<'_>) -> Result<Root, Problem> {
    Root::deserialize(&tree::read(text, env)?)
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Root {
    pub(super) listen: Option<Value>,
    pub(super) tls: Option<At<ListenTls>>,
    pub(super) admin: Option<Value>,
    pub(super) admin_hosts: Vec<Value>,
    pub(super) threads: Option<Value>,
    pub(super) trace: Option<Value>,
    pub(super) tiers: Option<Named>,
    pub(super) upstreams: Option<At<Vec<At<Upstream>>>>,
    pub(super) buffers: Buffers,
    pub(super) limits: Limits,
    pub(super) drain: Drain,
    pub(super) otlp: Option<At<Otlp>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ListenTls {
    pub(super) cert: Option<Value>,
    pub(super) key: Option<Value>,
    pub(super) client_ca: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Upstream {
    pub(super) name: Option<Value>,
    pub(super) url: Option<Value>,
    #[serde(rename = "match")]
    pub(super) matching: Match,
    pub(super) preset: Option<Value>,
    pub(super) tier: Option<Value>,
    pub(super) ceiling: Option<Value>,
    pub(super) rpm: Option<Value>,
    pub(super) tpm: Option<Value>,
    pub(super) account: Account,
    pub(super) limit: Limit,
    pub(super) queue: Queue,
    pub(super) retry: Retry,
    pub(super) deadlines: Deadlines,
    pub(super) tls: UpstreamTls,
    pub(super) http2: Option<Value>,
    pub(super) prices: Vec<At<ModelPrice>>,
    pub(super) balance: Option<Header>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ModelPrice {
    pub(super) model: Option<Value>,
    pub(super) input: Option<Value>,
    pub(super) cached: Option<Value>,
    pub(super) cache_write: Option<Value>,
    pub(super) cache_write_1h: Option<Value>,
    pub(super) output: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Match {
    pub(super) path_prefix: Option<Value>,
    pub(super) strip_prefix: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Account {
    pub(super) by: Option<ValueOr<Header>>,
    pub(super) split_by_model: Option<Value>,
    pub(super) tiers: Vec<At<AccountTier>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AccountTier {
    pub(super) credential: Option<Value>,
    pub(super) sha256: Option<Value>,
    pub(super) tier: Option<Value>,
    pub(super) ceiling: Option<Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) header: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limit {
    pub(super) algorithm: Option<Value>,
    pub(super) min: Option<Value>,
    pub(super) max: Option<Value>,
    pub(super) initial: Option<Value>,
    pub(super) decrease: Option<Value>,
    pub(super) timeout: Option<Value>,
    pub(super) alpha: Option<Value>,
    pub(super) beta: Option<Value>,
    pub(super) threshold: Option<Value>,
    pub(super) probe: Option<Value>,
    pub(super) tolerance: Option<Value>,
    pub(super) smoothing: Option<Value>,
    pub(super) queue: Option<Value>,
    pub(super) long_window: Option<Value>,
    pub(super) window: Option<Value>,
    pub(super) window_samples_min: Option<Value>,
    pub(super) cut: Option<Value>,
    pub(super) growth: Option<Value>,
    pub(super) probe_answers: Option<Value>,
    pub(super) probe_min: Option<Value>,
    pub(super) pace: Option<Value>,
    pub(super) delay_tolerance: Option<Value>,
    pub(super) delay_guard: Option<Value>,
    pub(super) min_share: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Queue {
    pub(super) depth_max: Option<Value>,
    pub(super) depth_per_flow_max: Option<Value>,
    pub(super) wait_max: Option<Value>,
    pub(super) flow: Option<Header>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Retry {
    pub(super) attempts_max: Option<Value>,
    pub(super) post: Option<Value>,
    pub(super) backoff: Backoff,
    pub(super) retry_after_max: Option<Value>,
    pub(super) budget: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Backoff {
    pub(super) base: Option<Value>,
    pub(super) max: Option<Value>,
    pub(super) jitter: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Deadlines {
    pub(super) connect: Option<Value>,
    pub(super) first_byte: Option<Value>,
    pub(super) idle: Option<Value>,
    pub(super) total: Option<Value>,
    pub(super) linger: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct UpstreamTls {
    pub(super) roots: Option<Value>,
    pub(super) ca: Option<Value>,
    pub(super) client_cert: Option<Value>,
    pub(super) client_key: Option<Value>,
    pub(super) server_name: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Buffers {
    pub(super) request_max: Option<Value>,
    pub(super) total_max: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) connections_max: Option<Value>,
    pub(super) header_bytes_max: Option<Value>,
    pub(super) body_bytes_max: Option<Value>,
    pub(super) header_timeout: Option<Value>,
    pub(super) send_timeout: Option<Value>,
    pub(super) accounts_max: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Otlp {
    pub(super) endpoint: Option<Value>,
    pub(super) sample: Option<Value>,
    pub(super) headers: Option<Named>,
    pub(super) service_name: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Drain {
    pub(super) delay: Option<Value>,
    pub(super) max: Option<Value>,
}
