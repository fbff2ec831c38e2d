//! What a key may do: so many in flight, so many requests and tokens a minute. And how that is said in headers.

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::settings::{HeaderFamily, RetryAfterForm, Settings};

const MINUTE: Duration = Duration::from_secs(60);

/// A quantity per minute.
#[derive(Debug)]
struct Bucket {
    capacity: f64,
    level: f64,
    at: Instant,
    fixed_window: bool,
}

impl Bucket {
    fn new(per_minute: u32, fixed_window: bool, now: Instant) -> Self {
        Self { capacity: f64::from(per_minute), level: f64::from(per_minute), at: now, fixed_window }
    }

    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at);
        if !self.fixed_window {
            self.level = (self.level + self.capacity * since.as_secs_f64() / MINUTE.as_secs_f64()).min(self.capacity);
            self.at = now;
        } else if since >= MINUTE {
            self.level = self.capacity;
            let windows = since.as_secs() / MINUTE.as_secs();
            self.at += MINUTE * u32::try_from(windows).unwrap_or(u32::MAX);
        }
    }

    /// Time until `amount` is there.
    fn wait(&self, amount: f64, now: Instant) -> Duration {
        if self.level >= amount {
            Duration::ZERO
        } else if self.fixed_window {
            MINUTE.saturating_sub(now.saturating_duration_since(self.at))
        } else {
            MINUTE.mul_f64((amount - self.level) / self.capacity)
        }
    }

    /// Time until it is full.
    fn reset(&self, now: Instant) -> Duration {
        self.wait(self.capacity, now)
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Refusal {
    Ceiling { limit: u32 },
    Requests { limit: u32, wait: Duration },
    Tokens { limit: u32, wait: Duration },
}

/// The limits of one key.
#[derive(Debug)]
pub(super) struct KeyLimits {
    in_flight: u32,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl KeyLimits {
    pub(super) fn new(settings: &Settings, now: Instant) -> Self {
        let bucket = |limit: Option<u32>| limit.map(|limit| Bucket::new(limit, settings.fixed_window, now));
        Self { in_flight: 0, requests: bucket(settings.rpm), tokens: bucket(settings.tpm) }
    }

    /// Lets a request in, or says why not. A refused request costs nothing.
    pub(super) fn enter(&mut self, settings: &Settings, tokens: u64, now: Instant) -> Result<(), Refusal> {
        if let Some(limit) = settings.ceiling.filter(|limit| self.in_flight >= *limit) {
            return Err(Refusal::Ceiling { limit });
        }
        let tokens = tokens as f64;
        for (bucket, amount) in [(&mut self.requests, 1.0), (&mut self.tokens, tokens)] {
            if let Some(bucket) = bucket {
                bucket.refill(now);
                let wait = bucket.wait(amount, now);
                if !wait.is_zero() {
                    let limit = bucket.capacity as u32;
                    return Err(if amount == 1.0 {
                        Refusal::Requests { limit, wait }
                    } else {
                        Refusal::Tokens { limit, wait }
                    });
                }
            }
        }
        for (bucket, amount) in [(&mut self.requests, 1.0), (&mut self.tokens, tokens)] {
            if let Some(bucket) = bucket {
                bucket.level -= amount;
            }
        }
        self.in_flight += 1;
        Ok(())
    }

    pub(super) fn leave(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The headers of the family, as the limits stand now.
    pub(super) fn write(&mut self, family: HeaderFamily, headers: &mut HeaderMap, now: Instant) {
        for (dimension, bucket) in [("requests", &mut self.requests), ("tokens", &mut self.tokens)] {
            let Some(bucket) = bucket else { continue };
            bucket.refill(now);
            let (limit, remaining) = (bucket.capacity as u64, bucket.level.max(0.0) as u64);
            let reset = bucket.reset(now);
            match family {
                HeaderFamily::None => {}
                HeaderFamily::Openai => {
                    insert(headers, &format!("x-ratelimit-limit-{dimension}"), &limit.to_string());
                    insert(headers, &format!("x-ratelimit-remaining-{dimension}"), &remaining.to_string());
                    insert(headers, &format!("x-ratelimit-reset-{dimension}"), &go_duration(reset));
                }
                HeaderFamily::Anthropic => {
                    let at = humantime::format_rfc3339_seconds(SystemTime::now() + reset).to_string();
                    insert(headers, &format!("anthropic-ratelimit-{dimension}-limit"), &limit.to_string());
                    insert(headers, &format!("anthropic-ratelimit-{dimension}-remaining"), &remaining.to_string());
                    insert(headers, &format!("anthropic-ratelimit-{dimension}-reset"), &at);
                }
                HeaderFamily::Ietf => {
                    let policy = format!("\"{dimension}\";q={limit};w=60");
                    let state = format!("\"{dimension}\";r={remaining};t={}", reset.as_secs_f64().ceil());
                    append(headers, "ratelimit-policy", &policy);
                    append(headers, "ratelimit", &state);
                }
            }
        }
    }
}

/// A delay in the asked-for spelling. Whole seconds are rounded up: earlier retries would fail.
pub(super) fn write_delay(form: RetryAfterForm, wait: Duration, headers: &mut HeaderMap) {
    let (name, value) = match form {
        RetryAfterForm::None => return,
        RetryAfterForm::Seconds => ("retry-after", wait.as_secs_f64().ceil().max(1.0).to_string()),
        RetryAfterForm::Fraction => ("retry-after", format!("{:.3}", wait.as_secs_f64().max(0.001))),
        RetryAfterForm::Ms => ("retry-after-ms", wait.as_millis().max(1).to_string()),
        RetryAfterForm::XMs => ("x-ms-retry-after-ms", wait.as_millis().max(1).to_string()),
        RetryAfterForm::Date => {
            let wait = Duration::from_secs(wait.as_secs_f64().ceil() as u64 + 1);
            ("retry-after", httpdate::fmt_http_date(SystemTime::now() + wait))
        }
    };
    insert(headers, name, &value);
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
        headers.insert(name, value);
    }
}

fn append(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.append(HeaderName::from_static(name), value);
    }
}

/// As Go prints durations: `12ms`, `1.5s`, `6m0s`.
pub(super) fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = format!("{:.3}", rest as f64 / 1000.0);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if minutes == 0 { format!("{seconds}s") } else { format!("{minutes}m{seconds}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_look_like_gos() {
        for (millis, want) in
            [(0, "0ms"), (12, "12ms"), (1_000, "1s"), (8_640, "8.64s"), (360_000, "6m0s"), (90_000, "1m30s")]
        {
            assert_eq!(go_duration(Duration::from_millis(millis)), want);
        }
    }

    #[test]
    fn a_bucket_refills_all_the_time_and_a_window_at_its_turn() {
        let start = crate::clock::now();
        for fixed_window in [false, true] {
            let settings = Settings { rpm: Some(60), fixed_window, ..Settings::default() };
            let mut limits = KeyLimits::new(&settings, start);
            for _ in 0..60 {
                assert_eq!(limits.enter(&settings, 1, start), Ok(()));
            }
            let Err(Refusal::Requests { limit: 60, wait }) = limits.enter(&settings, 1, start) else {
                panic!("the bucket is empty")
            };
            assert_eq!(wait, if fixed_window { MINUTE } else { Duration::from_secs(1) });
            assert_eq!(limits.enter(&settings, 1, start + wait), Ok(()));
            let second = limits.enter(&settings, 1, start + wait);
            assert_eq!(second.is_ok(), fixed_window);
        }
    }

    #[test]
    fn a_refused_request_costs_nothing() {
        let now = crate::clock::now();
        let settings = Settings { ceiling: Some(1), rpm: Some(2), tpm: Some(100), ..Settings::default() };
        let mut limits = KeyLimits::new(&settings, now);
        assert_eq!(limits.enter(&settings, 40, now), Ok(()));
        assert_eq!(limits.enter(&settings, 40, now), Err(Refusal::Ceiling { limit: 1 }));
        limits.leave();
        assert!(matches!(limits.enter(&settings, 70, now), Err(Refusal::Tokens { limit: 100, .. })));
        assert_eq!(limits.enter(&settings, 60, now), Ok(()));
    }
}
