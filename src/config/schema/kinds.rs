//! What each value of a configuration may be, for the schema. The bounds are those of the checks.

use serde_json::{Value, json};

use crate::{
    config::{
        Algorithm,
        check::{CEILING_MAX, COUNT_MAX, THREADS_MAX},
        limit::{FACTOR_MAX, RATIO_MAX, SAMPLES_MAX},
        prices::DOLLARS_MAX,
        upstream::{ATTEMPTS_MAX, RATE_MAX, RETRY_BUDGET_MAX},
    },
    control::tide::DelayGuard,
    provider::presets::Preset,
};

/// What a value may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Address and port.
    Address,
    /// A whole number.
    Count(u32, u32),
    /// `true` or `false`.
    Flag,
    /// A number; the second pair: whether the bounds are excluded.
    Number(f64, f64, (bool, bool)),
    /// One or the other.
    Or(&'static Self, &'static str),
    /// A size with its unit.
    Size,
    /// Any text.
    Text,
    /// A text that looks like this regular expression.
    Like(&'static str),
    /// A time with its unit.
    Time,
    /// One of these.
    Word(&'static [&'static str]),
    /// An algorithm, a preset, a mode of the delay guard: what the rooms that own them call theirs.
    Named(fn() -> Vec<&'static str>),
}

const CEILING: Kind = Kind::Count(1, CEILING_MAX);
const DOLLARS: Kind = Kind::Number(0.0, DOLLARS_MAX, (false, false));
const HEADER: Kind = Kind::Like("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$");
const ROOM: Kind = Kind::Count(1, COUNT_MAX);
const RATE: Kind = Kind::Count(1, RATE_MAX);
const URL: Kind = Kind::Like("^[Hh][Tt][Tt][Pp][Ss]?://[^/@?#][^@?#]*$");
const TIME_OR_OFF: Kind = Kind::Or(&Kind::Time, "off");

/// By path; `[]` is every item of a list, `{}` every value under a name of the user's own.
const KINDS: [(&str, Kind); 92] = [
    ("listen", Kind::Address),
    ("tls.cert", Kind::Text),
    ("tls.key", Kind::Text),
    ("tls.client_ca", Kind::Text),
    ("admin", Kind::Or(&Kind::Address, "off")),
    ("admin_hosts[]", Kind::Like("^[A-Za-z0-9._-]+$")),
    ("threads", Kind::Or(&Kind::Count(1, THREADS_MAX), "auto")),
    ("trace", Kind::Word(&["headers", "off"])),
    ("tiers{}", CEILING),
    ("upstreams[].name", Kind::Like("^[A-Za-z0-9._:-]{1,64}$")),
    ("upstreams[].url", URL),
    ("upstreams[].match.path_prefix", Kind::Like("^/[^?#]*$")),
    ("upstreams[].match.strip_prefix", Kind::Flag),
    ("upstreams[].preset", Kind::Named(presets)),
    ("upstreams[].tier", Kind::Text),
    ("upstreams[].ceiling", CEILING),
    ("upstreams[].rpm", RATE),
    ("upstreams[].tpm", RATE),
    ("upstreams[].account.by", Kind::Word(&["credential", "upstream"])),
    ("upstreams[].account.by.header", HEADER),
    ("upstreams[].account.split_by_model", Kind::Flag),
    ("upstreams[].account.tiers[].credential", Kind::Text),
    ("upstreams[].account.tiers[].sha256", Kind::Like("^[0-9A-Fa-f]{64}$")),
    ("upstreams[].account.tiers[].tier", Kind::Text),
    ("upstreams[].account.tiers[].ceiling", CEILING),
    ("upstreams[].limit.algorithm", Kind::Named(algorithms)),
    ("upstreams[].limit.min", CEILING),
    ("upstreams[].limit.max", CEILING),
    ("upstreams[].limit.initial", CEILING),
    ("upstreams[].limit.decrease", Kind::Number(0.0, 1.0, (true, true))),
    ("upstreams[].limit.timeout", TIME_OR_OFF),
    ("upstreams[].limit.alpha", Kind::Count(1, FACTOR_MAX)),
    ("upstreams[].limit.beta", Kind::Count(1, FACTOR_MAX)),
    ("upstreams[].limit.threshold", Kind::Count(0, FACTOR_MAX)),
    ("upstreams[].limit.probe", Kind::Count(1, SAMPLES_MAX)),
    ("upstreams[].limit.tolerance", Kind::Number(1.0, RATIO_MAX, (false, false))),
    ("upstreams[].limit.smoothing", Kind::Number(0.0, 1.0, (true, false))),
    ("upstreams[].limit.queue", CEILING),
    ("upstreams[].limit.long_window", Kind::Count(1, SAMPLES_MAX)),
    ("upstreams[].limit.window", Kind::Time),
    ("upstreams[].limit.window_samples_min", Kind::Count(1, SAMPLES_MAX)),
    ("upstreams[].limit.cut", Kind::Number(0.0, 1.0, (true, true))),
    ("upstreams[].limit.growth", Kind::Number(0.0, 1.0, (true, false))),
    ("upstreams[].limit.probe_answers", Kind::Count(1, SAMPLES_MAX)),
    ("upstreams[].limit.probe_min", Kind::Time),
    ("upstreams[].limit.pace", Kind::Number(0.0, 1.0, (true, false))),
    ("upstreams[].limit.delay_tolerance", Kind::Number(1.0, RATIO_MAX, (true, false))),
    ("upstreams[].limit.delay_guard", Kind::Named(delay_guards)),
    ("upstreams[].limit.min_share", Kind::Number(0.0, 1.0, (false, false))),
    ("upstreams[].queue.depth_max", ROOM),
    ("upstreams[].queue.depth_per_flow_max", ROOM),
    ("upstreams[].queue.wait_max", Kind::Time),
    ("upstreams[].queue.flow.header", HEADER),
    ("upstreams[].retry.attempts_max", Kind::Count(1, ATTEMPTS_MAX)),
    ("upstreams[].retry.post", Kind::Word(&["refused", "keyed", "always"])),
    ("upstreams[].retry.backoff.base", Kind::Time),
    ("upstreams[].retry.backoff.max", Kind::Time),
    ("upstreams[].retry.backoff.jitter", Kind::Time),
    ("upstreams[].retry.retry_after_max", Kind::Time),
    ("upstreams[].retry.budget", Kind::Number(0.0, RETRY_BUDGET_MAX, (false, false))),
    ("upstreams[].deadlines.connect", Kind::Time),
    ("upstreams[].deadlines.first_byte", TIME_OR_OFF),
    ("upstreams[].deadlines.idle", TIME_OR_OFF),
    ("upstreams[].deadlines.total", TIME_OR_OFF),
    ("upstreams[].deadlines.linger", Kind::Time),
    ("upstreams[].tls.roots", Kind::Word(&["system", "bundled", "none"])),
    ("upstreams[].tls.ca", Kind::Text),
    ("upstreams[].tls.client_cert", Kind::Text),
    ("upstreams[].tls.client_key", Kind::Text),
    ("upstreams[].tls.server_name", Kind::Text),
    ("upstreams[].http2", Kind::Word(&["auto", "off", "only"])),
    ("upstreams[].prices[].model", Kind::Like(r"^([^*]+\*?|\*)$")),
    ("upstreams[].prices[].input", DOLLARS),
    ("upstreams[].prices[].cached", DOLLARS),
    ("upstreams[].prices[].cache_write", DOLLARS),
    ("upstreams[].prices[].cache_write_1h", DOLLARS),
    ("upstreams[].prices[].output", DOLLARS),
    ("upstreams[].balance.header", HEADER),
    ("buffers.request_max", Kind::Size),
    ("buffers.total_max", Kind::Size),
    ("limits.connections_max", ROOM),
    ("limits.header_bytes_max", Kind::Size),
    ("limits.body_bytes_max", Kind::Or(&Kind::Size, "off")),
    ("limits.header_timeout", Kind::Time),
    ("limits.send_timeout", Kind::Time),
    ("limits.accounts_max", ROOM),
    ("drain.delay", Kind::Time),
    ("drain.max", Kind::Time),
    ("otlp.endpoint", URL),
    ("otlp.sample", Kind::Number(0.0, 1.0, (false, false))),
    ("otlp.headers{}", Kind::Text),
    ("otlp.service_name", Kind::Text),
];

/// What may stand at `path`; `None`: nobody said.
pub(super) fn at(path: &str) -> Option<Kind> {
    KINDS.iter().find(|(known, _)| *known == path).map(|(_, kind)| *kind)
}

/// What the reference has no line of its own for.
pub(super) fn explanation(path: &str) -> Option<&'static str> {
    Some(match path {
        "upstreams[]" => "One API behind Tidegate.",
        "upstreams[].account.by.header" => "Requests with the same value of this header are one account.",
        "upstreams[].account.tiers[]" => "A credential with a ceiling of its own.",
        "upstreams[].account.tiers[].ceiling" => "Attempts in flight of this credential.",
        "upstreams[].account.tiers[].credential" => "The key itself, from the environment: ${NAME}.",
        "upstreams[].account.tiers[].sha256" => "Or the 64 hexadecimal digits of its SHA-256.",
        "upstreams[].account.tiers[].tier" => "Or the name of a tier.",
        "upstreams[].match" => "Which requests go to this upstream.",
        "upstreams[].prices[]" => "What some models cost.",
        "upstreams[].prices[].model" => "The model's name as requests have it, or how it begins and a *.",
        "upstreams[].prices[].input" => "Dollars for a million tokens that go up.",
        "upstreams[].prices[].cached" => {
            "Dollars for a million of those that came from a cache; as input unless given."
        }
        "upstreams[].prices[].cache_write" => {
            "Dollars for a million of those that are written to a cache; as input unless given."
        }
        "upstreams[].prices[].cache_write_1h" => {
            "Dollars for a million of those that it keeps for an hour; as cache_write unless given."
        }
        "upstreams[].prices[].output" => "Dollars for a million tokens that come down.",
        "upstreams[].queue.flow" => "What tells flows apart.",
        "upstreams[].queue.flow.header" => {
            "Requests with the same value of this header are one flow; flows take turns."
        }
        "upstreams[].retry" => "What is sent again, and when.",
        "upstreams[].deadlines" => "How long each step may take.",
        _ => return None,
    })
}

impl Kind {
    /// As JSON Schema.
    pub(super) fn schema(self) -> Value {
        match self {
            Self::Address => json!({ "type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+\]|[0-9.]+):[0-9]{1,5}$" }),
            Self::Count(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
            Self::Flag => json!({ "type": "boolean" }),
            Self::Like(pattern) => json!({ "type": "string", "pattern": pattern }),
            Self::Named(names) => json!({ "enum": names() }),
            Self::Number(min, max, (above, below)) => {
                let min = (if above { "exclusiveMinimum" } else { "minimum" }, min);
                let max = (if below { "exclusiveMaximum" } else { "maximum" }, max);
                json!({ "type": "number", min.0: min.1, max.0: max.1 })
            }
            Self::Or(kind, word) => json!({ "anyOf": [kind.schema(), { "const": word }] }),
            Self::Size => json!({ "type": "string", "pattern": "^[0-9]+ ?(GiB|GB|MiB|MB|KiB|KB|kB|B)$" }),
            Self::Text => json!({ "type": ["string", "number"] }),
            Self::Time => {
                let units = ["d", "h", "m", "s", "ms"].map(|unit| format!("([0-9]+ ?{unit} ?)?")).concat();
                json!({ "type": "string", "pattern": format!("^{units}$"), "minLength": 2 })
            }
            Self::Word(words) => json!({ "enum": words }),
        }
    }
}

fn algorithms() -> Vec<&'static str> {
    Algorithm::ALL.map(Algorithm::name).to_vec()
}

fn delay_guards() -> Vec<&'static str> {
    DelayGuard::ALL.map(DelayGuard::name).to_vec()
}

/// What `preset` may be.
#[must_use]
pub fn presets() -> Vec<&'static str> {
    ["auto"].into_iter().chain(Preset::ALL.map(Preset::name)).collect()
}
