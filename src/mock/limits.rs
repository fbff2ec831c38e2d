//! What a key may do: so many in flight, so many requests a second or minute, so many tokens a minute. And how that is said in headers.

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    ledger::Cause,
    settings::{HeaderFamily, RetryAfterForm, Settings},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Rounding of times must not leave a request a billionth short.
const CLOSE_ENOUGH: f64 = 1e-6;

/// A quantity per period.
#[derive(Debug)]
struct Bucket {
    quota: u32,
    period: Duration,
    capacity: f64,
    level: f64,
    at: Instant,
    fixed_window: bool,
}

impl Bucket {
    /// A full one. `burst`: what it holds; a window always has its whole quota.
    fn new(quota: u32, period: Duration, burst: Option<u32>, fixed_window: bool, now: Instant) -> Self {
        let capacity = f64::from(burst.filter(|_| !fixed_window).unwrap_or(quota));
        Self { quota, period, capacity, level: capacity, at: now, fixed_window }
    }

    /// Time in which so much comes back.
    fn time_for(&self, amount: f64) -> Duration {
        self.period.mul_f64(amount.max(0.0) / f64::from(self.quota))
    }

    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at);
        if !self.fixed_window {
            let gained = f64::from(self.quota) * since.as_secs_f64() / self.period.as_secs_f64();
            self.level = (self.level + gained).min(self.capacity);
            self.at = now;
        } else if since >= self.period {
            self.level = self.capacity;
            let windows = since.as_nanos() / self.period.as_nanos().max(1);
            self.at += self.period * u32::try_from(windows).unwrap_or(u32::MAX);
        }
    }

    fn give_back(&mut self, amount: f64) {
        self.level = (self.level + amount).min(self.capacity);
    }

    /// Time until `amount` is there.
    fn wait(&self, amount: f64, now: Instant) -> Duration {
        if self.level + CLOSE_ENOUGH >= amount {
            Duration::ZERO
        } else if self.fixed_window {
            self.period.saturating_sub(now.saturating_duration_since(self.at))
        } else {
            self.time_for(amount - self.level)
        }
    }

    /// Time until it is full: for a window, until its turn.
    fn reset(&self, now: Instant) -> Duration {
        self.wait(self.capacity, now)
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Refusal {
    Ceiling { limit: u32 },
    Requests { limit: u32, period: Duration, wait: Duration },
    Tokens { limit: u32, wait: Duration },
    TooLarge { limit: u32, tokens: u64 },
}

impl Refusal {
    pub(super) fn cause(self) -> Cause {
        match self {
            Self::Ceiling { .. } => Cause::Ceiling,
            Self::Requests { .. } => Cause::Requests,
            Self::Tokens { .. } => Cause::Tokens,
            Self::TooLarge { .. } => Cause::TooLarge,
        }
    }
}

/// The limits of one key.
#[derive(Debug)]
pub(super) struct KeyLimits {
    in_flight: u32,
    per_second: Option<Bucket>,
    per_minute: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl KeyLimits {
    pub(super) fn new(settings: &Settings, now: Instant) -> Self {
        let mut limits = Self { in_flight: 0, per_second: None, per_minute: None, tokens: None };
        limits.adopt(settings, now);
        limits
    }

    /// From `now` on these limits are there. What was used up stays so.
    pub(super) fn adopt(&mut self, settings: &Settings, now: Instant) {
        let Settings { rps, rpm, tpm, burst, fixed_window, .. } = settings;
        for (bucket, quota, period, burst) in [
            (&mut self.per_second, rps, SECOND, *burst),
            (&mut self.per_minute, rpm, MINUTE, *burst),
            (&mut self.tokens, tpm, MINUTE, None),
        ] {
            let mut fresh = quota.map(|quota| Bucket::new(quota, period, burst, *fixed_window, now));
            if let (Some(fresh), Some(old)) = (&mut fresh, bucket.as_mut()) {
                old.refill(now);
                (fresh.level, fresh.at) = (old.level.min(fresh.capacity), old.at);
            }
            *bucket = fresh;
        }
    }

    /// Lets a request in at its head, or says why not. A refused request costs nothing.
    pub(super) fn enter(&mut self, settings: &Settings, now: Instant) -> Result<(), Refusal> {
        if let Some(limit) = settings.ceiling.filter(|limit| self.in_flight >= *limit) {
            return Err(Refusal::Ceiling { limit });
        }
        let mut longest = None;
        for bucket in [&mut self.per_second, &mut self.per_minute].into_iter().flatten() {
            bucket.refill(now);
            let wait = bucket.wait(1.0, now);
            if !wait.is_zero() && longest.is_none_or(|(_, _, longest)| wait > longest) {
                longest = Some((bucket.quota, bucket.period, wait));
            }
        }
        if let Some((limit, period, wait)) = longest {
            return Err(Refusal::Requests { limit, period, wait });
        }
        for bucket in [&mut self.per_second, &mut self.per_minute].into_iter().flatten() {
            bucket.level -= 1.0;
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Charges the tokens of a request that was let in, or takes its entry back and says why. The slot is still held.
    pub(super) fn charge(&mut self, tokens: u64, now: Instant) -> Result<(), Refusal> {
        let Some(bucket) = &mut self.tokens else { return Ok(()) };
        bucket.refill(now);
        let amount = tokens as f64;
        let wait = bucket.wait(amount, now);
        if wait.is_zero() {
            bucket.level -= amount;
            return Ok(());
        }
        let limit = bucket.quota;
        let refusal = if amount > bucket.capacity {
            Refusal::TooLarge { limit, tokens }
        } else {
            Refusal::Tokens { limit, wait }
        };
        for bucket in [&mut self.per_second, &mut self.per_minute].into_iter().flatten() {
            bucket.give_back(1.0);
        }
        Err(refusal)
    }

    pub(super) fn leave(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The headers of the family, as the limits stand now.
    pub(super) fn write(&mut self, family: HeaderFamily, headers: &mut HeaderMap, now: Instant) {
        for bucket in [&mut self.per_second, &mut self.per_minute, &mut self.tokens].into_iter().flatten() {
            bucket.refill(now);
        }
        // The families name requests once: of two quotas they tell the one of which less is left.
        let requests = match (&self.per_second, &self.per_minute) {
            (Some(second), Some(minute)) if second.level < minute.level => Some(second),
            (second, minute) => minute.as_ref().or(second.as_ref()),
        };
        for (dimension, bucket) in [("requests", requests), ("tokens", self.tokens.as_ref())] {
            let Some(bucket) = bucket else { continue };
            let (limit, remaining) = (bucket.quota, (bucket.level + CLOSE_ENOUGH).max(0.0) as u64);
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
                    let window = bucket.time_for(bucket.capacity).as_secs_f64().ceil().max(1.0);
                    let policy = format!("\"{dimension}\";q={};w={window}", bucket.capacity);
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
                assert_eq!(limits.enter(&settings, start), Ok(()));
            }
            let Err(Refusal::Requests { limit: 60, wait, .. }) = limits.enter(&settings, start) else {
                panic!("the bucket is empty")
            };
            assert_eq!(wait, if fixed_window { MINUTE } else { SECOND });
            assert_eq!(limits.enter(&settings, start + wait), Ok(()));
            let second = limits.enter(&settings, start + wait);
            assert_eq!(second.is_ok(), fixed_window);
        }
    }

    #[test]
    fn a_burst_is_what_the_bucket_holds() {
        let start = crate::clock::now();
        let burst = Some(3);
        for (settings, step) in [
            (Settings { rpm: Some(60), burst, ..Settings::default() }, SECOND),
            (Settings { rps: Some(10), burst, ..Settings::default() }, SECOND / 10),
            (Settings { rps: Some(10), rpm: Some(60), burst, ..Settings::default() }, SECOND),
        ] {
            let mut limits = KeyLimits::new(&settings, start);
            let later = start + 600 * SECOND;
            let passed = (0..100).take_while(|_| limits.enter(&settings, later).is_ok()).count();
            assert_eq!(passed, 3);
            assert!(matches!(limits.enter(&settings, later), Err(Refusal::Requests { wait, .. }) if wait == step));
            assert_eq!(limits.enter(&settings, later + step), Ok(()));
        }
    }

    #[test]
    fn a_refused_request_costs_nothing() {
        let now = crate::clock::now();
        let settings = Settings { ceiling: Some(1), rpm: Some(2), tpm: Some(100), ..Settings::default() };
        let mut limits = KeyLimits::new(&settings, now);
        assert_eq!((limits.enter(&settings, now), limits.charge(40, now)), (Ok(()), Ok(())));
        assert_eq!(limits.enter(&settings, now), Err(Refusal::Ceiling { limit: 1 }));
        for (tokens, want) in [
            (70, Err(Refusal::Tokens { limit: 100, wait: Duration::from_secs(6) })),
            (101, Err(Refusal::TooLarge { limit: 100, tokens: 101 })),
            (60, Ok(())),
        ] {
            limits.leave();
            assert_eq!((limits.enter(&settings, now), limits.charge(tokens, now)), (Ok(()), want));
        }
        limits.leave();
        assert!(matches!(limits.enter(&settings, now), Err(Refusal::Requests { limit: 2, .. })));
    }

    #[test]
    fn a_single_token_too_many_is_a_matter_of_tokens() {
        let now = crate::clock::now();
        let settings = Settings { tpm: Some(1), ..Settings::default() };
        let mut limits = KeyLimits::new(&settings, now);
        assert_eq!((limits.enter(&settings, now), limits.charge(1, now)), (Ok(()), Ok(())));
        assert_eq!(limits.enter(&settings, now), Ok(()));
        assert_eq!(limits.charge(1, now), Err(Refusal::Tokens { limit: 1, wait: MINUTE }));
    }

    #[test]
    fn new_limits_forgive_nothing() {
        let start = crate::clock::now();
        let settings = |rpm| Settings { rpm, ..Settings::default() };
        let mut limits = KeyLimits::new(&settings(Some(60)), start);
        assert!((0..60).all(|_| limits.enter(&settings(Some(60)), start).is_ok()));
        limits.adopt(&settings(Some(600)), start);
        let Err(Refusal::Requests { limit: 600, wait, .. }) = limits.enter(&settings(Some(600)), start) else {
            panic!("the bucket is still empty")
        };
        assert_eq!(wait, SECOND / 10);
        limits.adopt(&settings(None), start);
        assert_eq!(limits.enter(&settings(None), start), Ok(()));
    }

    #[test]
    fn the_reset_of_a_window_counts_down_to_its_turn() {
        let start = crate::clock::now();
        for (fixed_window, after, want) in [(true, 15, "45s"), (true, 60, "0ms"), (true, 75, "0ms"), (false, 15, "45s")]
        {
            let settings = Settings { rpm: Some(2), fixed_window, ..Settings::default() };
            let mut limits = KeyLimits::new(&settings, start);
            assert!((0..2).all(|_| limits.enter(&settings, start).is_ok()));
            let mut headers = HeaderMap::new();
            limits.write(HeaderFamily::Openai, &mut headers, start + after * SECOND);
            assert_eq!(headers.get("x-ratelimit-reset-requests").unwrap(), want);
        }
    }
}
