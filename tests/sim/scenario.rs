//! What a scenario file says: an upstream, its clients, and what is expected of them.

use std::time::Duration;

use serde::Deserialize;
use tidegate::control::{
    aimd::AimdSettings,
    gate::GateSettings,
    gradient::GradientSettings,
    limit::{Algorithm, LimitSettings},
    queue::Depths,
    rates::RateSettings,
    retry::{Backoff, RetryPost, RetrySettings},
    rng::Rng,
    signals::Dimension,
    tide::TideSettings,
    vegas::VegasSettings,
};

use super::upstream::log_normal;

/// One scenario. Times are in seconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about, for the table.
    pub name: String,
    /// How long it runs.
    seconds: f64,
    /// What is not counted as work at the beginning.
    #[serde(default)]
    warmup: f64,
    upstream: UpstreamSpec,
    #[serde(default)]
    clients: Vec<ClientSpec>,
    /// When something steps: recovery is measured from there.
    #[serde(default)]
    pub steps: Vec<f64>,
    pub expect: Expect,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpstreamSpec {
    /// Steps `[at, ceiling]`.
    #[serde(default)]
    ceiling: Vec<(f64, u32)>,
    #[serde(default)]
    buckets: Vec<Bucket>,
    /// Above this many in flight everything slows down.
    knee: Option<u32>,
    #[serde(default = "rtt")]
    rtt: f64,
    /// How long the first connect takes, from which the gate has its first idea of a round trip. Without it, it has none.
    connect: Option<f64>,
    /// Sigma of the logarithm of each leg of the round trip.
    #[serde(default)]
    jitter: f64,
    service: Service,
    /// Share of the service after which the head comes; or a log-normal time.
    #[serde(default = "tenth")]
    first_byte: f64,
    first_byte_lognormal: Option<(f64, f64)>,
    #[serde(default)]
    headers: Headers,
    #[serde(default)]
    retry_after: RetryAfter,
    #[serde(default)]
    says: Says,
    /// Share of requests that fail before any work.
    #[serde(default)]
    errors: f64,
    /// Refusals come this much later, evenly spread from 0.
    #[serde(default)]
    late: f64,
    tokens: Option<Tokens>,
}

fn rtt() -> f64 {
    0.06
}

fn tenth() -> f64 {
    0.1
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    /// Mean and sigma.
    input: (f64, f64),
    output: (f64, f64),
    /// What requests name as `max_tokens`.
    max: Option<u32>,
    /// Real input tokens per guessed one.
    #[serde(default = "one")]
    factor: f64,
    #[serde(default)]
    usage: bool,
}

fn one() -> f64 {
    1.0
}

/// One of the three.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub fixed: Option<f64>,
    /// Mean and sigma.
    pub lognormal: Option<(f64, f64)>,
    /// Share of short ones, their time, and that of the long ones.
    pub bimodal: Option<(f64, f64, f64)>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    dimension: String,
    pub limit: f64,
    #[serde(default = "minute")]
    per: f64,
    pub burst: Option<f64>,
    #[serde(default)]
    pub window: Window,
}

fn minute() -> f64 {
    60.0
}

impl Bucket {
    pub fn period(&self) -> Duration {
        Duration::from_secs_f64(self.per)
    }

    pub fn dimension(&self) -> Dimension {
        Dimension::ALL.into_iter().find(|dimension| dimension.label() == self.dimension).expect("a dimension")
    }
}

#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    #[default]
    Continuous,
    Fixed,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Headers {
    /// Limit and remaining, no reset.
    Bare,
    /// Whole seconds, the window named.
    Ietf,
    #[default]
    None,
    /// The form settles how it refills.
    Openai,
    /// Limit, remaining and reset, without a word on what the reset means.
    Plain,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum RetryAfter {
    /// One second on every refusal, whatever its kind.
    AlwaysOne,
    Exact,
    #[default]
    None,
    Seconds,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Says {
    #[default]
    Kind,
    Nothing,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientSpec {
    /// Whether the table's algorithm takes this place; else the one named.
    algorithm: Option<String>,
    ceiling: Option<u32>,
    min_share: Option<f64>,
    rpm: Option<u32>,
    tpm: Option<u64>,
    /// When it begins.
    #[serde(default)]
    starts: f64,
    /// Arrivals per second; without it somebody always waits.
    per_second: Option<f64>,
    /// Nobody asks for anything from the first to the second of these times.
    rests: Option<(f64, f64)>,
    #[serde(default = "patience")]
    wait_max: f64,
}

fn patience() -> f64 {
    3600.0
}

/// Ranges; what is left out is not expected.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Work done over what the oracle got done.
    pub utilisation: Option<(f64, f64)>,
    /// Refused attempts over all, from the first on.
    pub refused: Option<(f64, f64)>,
    /// Jain's index over the clients' shares.
    pub fairness: Option<(f64, f64)>,
    /// The first client's share.
    pub share: Option<(f64, f64)>,
    /// 99th percentile of queue waits, in seconds.
    pub wait_p99: Option<(f64, f64)>,
    /// Mean time at the upstream over that of a static limit at the tier.
    pub delay: Option<(f64, f64)>,
    /// Seconds from the slowest step until nine tenths of the oracle's work are done again.
    pub recovery: Option<(f64, f64)>,
    /// Changes of mind.
    pub minds: Option<(f64, f64)>,
    /// Requests told at once that they cannot wait.
    pub hopeless: Option<(f64, f64)>,
}

#[derive(Debug, Clone, Copy)]
pub enum Demand {
    /// So many wait at any time.
    Endless { waiting: usize },
    /// Poisson arrivals.
    PerSecond(f64),
}

impl Scenario {
    pub fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    pub fn warmup(&self) -> f64 {
        self.warmup
    }

    pub fn clients(&self) -> usize {
        self.clients.len().max(1)
    }

    fn client(&self, index: usize) -> ClientSpec {
        self.clients.get(index).cloned().unwrap_or(ClientSpec { wait_max: patience(), ..ClientSpec::default() })
    }

    /// The ceiling a client was told.
    pub fn known_ceiling(&self) -> Option<u32> {
        self.client(0).ceiling
    }

    /// The algorithm a client insists on.
    pub fn algorithm_of(&self, index: usize) -> Option<Algorithm> {
        self.client(index).algorithm.as_deref().map(|name| algorithm(name).expect("an algorithm"))
    }

    pub fn starts(&self, index: usize) -> Duration {
        Duration::from_secs_f64(self.client(index).starts)
    }

    /// When demand comes back, if there is none now.
    pub fn rests(&self, index: usize, seconds: f64) -> Option<f64> {
        self.client(index).rests.filter(|(from, to)| (*from..*to).contains(&seconds)).map(|(_, to)| to)
    }

    pub fn demand(&self, index: usize) -> Demand {
        self.client(index).per_second.map_or(Demand::Endless { waiting: 500 }, Demand::PerSecond)
    }

    pub fn wait_max(&self) -> Duration {
        Duration::from_secs_f64(self.client(0).wait_max)
    }

    pub fn counts_slots(&self) -> bool {
        self.upstream.buckets.is_empty() && self.upstream.knee.is_none()
    }

    pub fn measure(&self) -> Dimension {
        self.upstream.buckets.first().map_or(Dimension::Requests, Bucket::dimension)
    }

    pub fn buckets(&self) -> &[Bucket] {
        &self.upstream.buckets
    }

    pub fn knee(&self) -> Option<u32> {
        self.upstream.knee
    }

    pub fn rtt(&self) -> Duration {
        Duration::from_secs_f64(self.upstream.rtt)
    }

    pub fn connect(&self) -> Option<Duration> {
        self.upstream.connect.map(Duration::from_secs_f64)
    }

    pub fn jitter(&self) -> f64 {
        self.upstream.jitter
    }

    pub fn headers(&self) -> Headers {
        self.upstream.headers
    }

    pub fn retry_after(&self) -> RetryAfter {
        self.upstream.retry_after
    }

    pub fn says(&self) -> Says {
        self.upstream.says
    }

    pub fn errors(&self) -> f64 {
        self.upstream.errors
    }

    pub fn set_errors(&mut self, share: f64) {
        self.upstream.errors = share;
    }

    pub fn late(&self, rng: &mut Rng) -> Duration {
        Duration::from_secs_f64(self.upstream.late * rng.unit())
    }

    /// Steps `(at, ceiling)`.
    pub fn ceilings(&self) -> &[(f64, u32)] {
        &self.upstream.ceiling
    }

    pub fn ceiling_at(&self, seconds: f64) -> u32 {
        let steps = self.upstream.ceiling.iter();
        steps.rev().find(|(at, _)| *at <= seconds).map_or(u32::MAX, |(_, ceiling)| *ceiling)
    }

    /// How service times are spread.
    pub fn spread(&self) -> Service {
        self.upstream.service
    }

    pub fn service(&self, rng: &mut Rng) -> f64 {
        match self.upstream.service {
            Service { lognormal: Some((mean, sigma)), .. } => log_normal(mean, sigma, rng),
            Service { bimodal: Some((share, short, long)), .. } => {
                if rng.unit() < share {
                    short
                } else {
                    long
                }
            }
            Service { fixed, .. } => fixed.expect("a service time"),
        }
    }

    pub fn first_byte(&self, service: f64, rng: &mut Rng) -> f64 {
        match self.upstream.first_byte_lognormal {
            Some((mean, sigma)) => log_normal(mean, sigma, rng),
            None => service * self.upstream.first_byte,
        }
    }

    /// Guessed input tokens, and the maximum named.
    pub fn asks(&self, rng: &mut Rng) -> (u32, Option<u32>) {
        let Some(tokens) = &self.upstream.tokens else { return (0, None) };
        (log_normal(tokens.input.0, tokens.input.1, rng) as u32, tokens.max)
    }

    pub fn output_tokens(&self, rng: &mut Rng) -> u32 {
        let Some(tokens) = &self.upstream.tokens else { return 0 };
        (log_normal(tokens.output.0, tokens.output.1, rng) as u32).min(tokens.max.unwrap_or(u32::MAX))
    }

    pub fn input_factor(&self) -> f64 {
        self.upstream.tokens.as_ref().map_or(1.0, |tokens| tokens.factor)
    }

    pub fn tells_usage(&self) -> bool {
        self.upstream.tokens.as_ref().is_some_and(|tokens| tokens.usage)
    }

    pub fn gate_settings(&self, client: usize, algorithm: Algorithm) -> GateSettings {
        let spec = self.client(client);
        let tide = TideSettings { min_share: spec.min_share.unwrap_or(0.0), ..TideSettings::default() };
        GateSettings {
            limit: LimitSettings {
                algorithm,
                min: 1,
                max: 1000,
                initial: 10,
                aimd: AimdSettings::default(),
                gradient: GradientSettings::default(),
                tide,
                vegas: VegasSettings::default(),
            },
            ceiling: spec.ceiling,
            rates: RateSettings { rpm: spec.rpm, tpm: spec.tpm },
            depths: Depths { total_max: 10_000, per_flow_max: 10_000 },
            retry: RetrySettings {
                attempts_max: 4,
                post: RetryPost::Refused,
                backoff: Backoff {
                    base: Duration::from_secs(1),
                    max: Duration::from_secs(60),
                    jitter: Duration::from_secs(1),
                },
                retry_after_max: Duration::from_secs(60),
                budget: 0.2,
            },
        }
    }
}

pub fn algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "aimd" => Algorithm::Aimd,
        "fixed" => Algorithm::Fixed,
        "gradient" => Algorithm::Gradient,
        "tide" => Algorithm::Tide,
        "vegas" => Algorithm::Vegas,
        _ => return None,
    })
}
