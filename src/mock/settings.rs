//! How the mock behaves: limits, latency, faults, header family, forms of `Retry-After`.

use std::{fmt, str::FromStr, time::Duration};

use crate::control::rng::Rng;

/// How the mock behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Most requests in flight per key.
    pub ceiling: Option<u32>,
    /// Requests per second and key.
    pub rps: Option<u32>,
    /// Requests per minute and key.
    pub rpm: Option<u32>,
    /// Requests that may come at once under `rps` and `rpm`; `None`: those of the whole second or minute.
    pub burst: Option<u32>,
    /// Tokens per minute and key, charged up front.
    pub tpm: Option<u32>,
    /// Windows that start with a key's first request instead of a bucket that refills all the time.
    pub fixed_window: bool,
    /// Requests, over all keys, that are worked on at full speed; beyond, all share that speed and get slower.
    pub knee: Option<u32>,
    /// Time an answer takes.
    pub latency: Latency,
    /// How `Retry-After` is spelled; `None`: seconds for rate refusals, nothing for ceiling refusals.
    pub retry_after: Option<RetryAfterForm>,
    /// Whether refusals tell which limit was met.
    pub says: Says,
    /// Which family of rate-limit headers answers carry.
    pub headers: HeaderFamily,
    /// Share of requests that fail before any work is done.
    pub error_rate: f64,
    /// Status of those failures.
    pub error_status: u16,
    /// Share of requests whose connection is reset before the answer.
    pub reset_rate: f64,
    /// Share of answers that break off in the middle.
    pub truncate_rate: f64,
    /// Share of requests that are never answered.
    pub stall_rate: f64,
    /// Seed of everything random.
    pub seed: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ceiling: None,
            rps: None,
            rpm: None,
            burst: None,
            tpm: None,
            fixed_window: false,
            knee: None,
            latency: Latency::Fixed(Duration::from_millis(200)),
            retry_after: None,
            says: Says::Kind,
            headers: HeaderFamily::Openai,
            error_rate: 0.0,
            error_status: 500,
            reset_rate: 0.0,
            truncate_rate: 0.0,
            stall_rate: 0.0,
            seed: 1,
        }
    }
}

/// Longest time an answer may take: far beyond any test, and no sum with it overflows a clock.
const LATENCY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Time an answer takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Latency {
    /// Always the same.
    Fixed(Duration),
    /// Log-normal: many short ones, a few long ones, as language models answer.
    LogNormal {
        /// The mean.
        mean: Duration,
        /// The standard deviation of the logarithm.
        sigma: f64,
    },
    /// This much for each output token.
    PerToken(Duration),
}

impl Latency {
    /// The time one answer takes.
    pub fn draw(self, output_tokens: u64, rng: &mut Rng) -> Duration {
        let time = match self {
            Self::Fixed(time) => time,
            Self::LogNormal { mean, sigma } => {
                // Box and Muller, 1958; the location is chosen so that the mean comes out as asked for.
                let normal = (-2.0 * (1.0 - rng.unit()).ln()).sqrt() * (std::f64::consts::TAU * rng.unit()).cos();
                mean.min(LATENCY_MAX).mul_f64((sigma * normal - sigma * sigma / 2.0).exp())
            }
            Self::PerToken(time) => time.saturating_mul(u32::try_from(output_tokens).unwrap_or(u32::MAX)),
        };
        time.min(LATENCY_MAX)
    }
}

impl FromStr for Latency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = "expected a time such as 200ms, lognormal:4s:0.8 (mean, sigma), or tokens:20ms";
        let time = |text: &str| match humantime::parse_duration(text) {
            Ok(time) if time > LATENCY_MAX => Err("an answer takes 7 days at most".to_owned()),
            Ok(time) => Ok(time),
            Err(error) => Err(format!("{error}; {help}")),
        };
        match text.split(':').collect::<Vec<_>>().as_slice() {
            [fixed] => Ok(Self::Fixed(time(fixed)?)),
            ["tokens", each] => Ok(Self::PerToken(time(each)?)),
            ["lognormal", mean, sigma] => {
                let sigma: f64 = sigma.parse().map_err(|_| help.to_owned())?;
                if !(0.0..=3.0).contains(&sigma) {
                    return Err("sigma is a number from 0 to 3".to_owned());
                }
                Ok(Self::LogNormal { mean: time(mean)?, sigma })
            }
            _ => Err(help.to_owned()),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(time) => write!(f, "{}", humantime::format_duration(*time)),
            Self::LogNormal { mean, sigma } => write!(f, "lognormal:{}:{sigma}", humantime::format_duration(*mean)),
            Self::PerToken(time) => write!(f, "tokens:{}", humantime::format_duration(*time)),
        }
    }
}

/// Whether refusals tell which limit was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Says {
    /// In words, type and code
    Kind,
    /// "Too Many Requests", and no delay unless --retry-after asks for one
    Nothing,
}

/// How a delay is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RetryAfterForm {
    /// `Retry-After: <HTTP-date>`
    Date,
    /// `Retry-After: 1.5`
    Fraction,
    /// `retry-after-ms: 1500`
    Ms,
    /// Not at all
    None,
    /// `Retry-After: 2`
    Seconds,
    /// `x-ms-retry-after-ms: 1500`
    XMs,
}

/// A family of rate-limit headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HeaderFamily {
    /// anthropic-ratelimit-requests-remaining and its kin, with RFC 3339 times
    Anthropic,
    /// The IETF draft's RateLimit and RateLimit-Policy
    Ietf,
    /// None at all
    None,
    /// x-ratelimit-remaining-requests and its kin, with Go durations
    Openai,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_read_and_drawn() {
        let mut rng = Rng::new(1);
        assert_eq!("200ms".parse::<Latency>().unwrap().draw(9, &mut rng), Duration::from_millis(200));
        assert_eq!("tokens:20ms".parse::<Latency>().unwrap().draw(9, &mut rng), Duration::from_millis(180));
        let lognormal = "lognormal:4s:0.8".parse::<Latency>().unwrap();
        let mean = (0..20_000).map(|_| lognormal.draw(1, &mut rng).as_secs_f64()).sum::<f64>() / 20_000.0;
        assert!((3.8..4.2).contains(&mean), "{mean}");
        for wrong in [
            "",
            "4",
            "lognormal:4s",
            "lognormal:4s:x",
            "tokens:",
            "lognormal:4s:9",
            "8days",
            "tokens:1000y",
            "200000000000y",
        ] {
            assert!(wrong.parse::<Latency>().is_err(), "{wrong}");
        }
        for right in ["200ms", "lognormal:4s:0.8", "tokens:20ms", "0s"] {
            assert_eq!(right.parse::<Latency>().unwrap().to_string(), right);
        }
        for huge in [Latency::Fixed(Duration::MAX), Latency::LogNormal { mean: Duration::MAX, sigma: 3.0 }] {
            assert!(huge.draw(9, &mut rng) <= LATENCY_MAX, "{huge:?}");
        }
        assert_eq!(Latency::PerToken(Duration::MAX).draw(u64::MAX, &mut rng), LATENCY_MAX);
    }
}
