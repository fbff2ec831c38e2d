//! When an attempt that failed is made again: a pure table over facts, the backoff, and the budget.

use std::time::{Duration, Instant};

use super::{
    rng::Rng,
    signals::{Attribution, Signals},
};

/// What may be sent again, and when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetrySettings {
    /// Attempts per exchange, the first one included; refusals (429) are not counted.
    pub attempts_max: u32,
    /// When a request that may have been processed is sent again although its method is not idempotent.
    pub post: RetryPost,
    /// Time between attempts after failures.
    pub backoff: Backoff,
    /// No pause is longer, whatever `Retry-After` says.
    pub retry_after_max: Duration,
    /// Retries of failures earned by each request.
    pub budget: f64,
}

/// When a POST (or another method that is not idempotent) is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPost {
    /// After every failure.
    Always,
    /// Also after a failure that may have been processed, if the request carries `Idempotency-Key`.
    Keyed,
    /// Only when the attempt surely was not processed.
    Refused,
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// 429.
    Bounced(Attribution),
    /// The connection broke after the request was (or may have been) written.
    Broken,
    /// 503, 529: refused for lack of capacity, before any work.
    Overload,
    /// 500, 502, 504, or another status the upstream itself asked to retry: may have been processed.
    Server,
    /// No answer in time after the request was written.
    TimedOut,
    /// Nothing was written: connect failed, or the connection closed before use.
    Unreached,
}

impl Failure {
    /// The metric label of a retry for this reason.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Bounced(_) => "refused",
            Self::Broken => "broken",
            Self::Overload => "overload",
            Self::Server => "server_error",
            Self::TimedOut => "timeout",
            Self::Unreached => "unreached",
        }
    }

    /// All labels.
    pub const LABELS: [&'static str; 6] = ["broken", "overload", "refused", "server_error", "timeout", "unreached"];
}

/// What is known when an attempt failed.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// How it failed.
    pub failure: Failure,
    /// The request can be sent again: its body is held in full.
    pub replayable: bool,
    /// The method is idempotent (RFC 9110 9.2.2).
    pub idempotent: bool,
    /// The request carries `Idempotency-Key`.
    pub keyed: bool,
    /// The failed connection had served other requests before, and may simply have been closed meanwhile.
    pub reused: bool,
    /// Failed attempts of this exchange, this one included and refusals (429) not counted.
    pub failures: u32,
    /// What the answer said.
    pub signals: Signals,
    /// Time until the exchange must have its answer.
    pub remaining: Duration,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Sleep, then ask the gate again, with the old place.
    Retry {
        /// How long to sleep.
        after: Duration,
    },
    /// The client gets this answer.
    Return,
}

/// Decides about a failed attempt. Withdraws from `budget` only when the verdict is a retry of a failure.
pub fn decide(
    facts: &Facts,
    settings: &RetrySettings,
    budget: &mut RetryBudget,
    rng: &mut Rng,
    now: Instant,
) -> Verdict {
    if !facts.replayable || facts.signals.should_retry == Some(false) {
        return Verdict::Return;
    }
    let asked = facts.signals.should_retry == Some(true);
    let wanted = match settings.post {
        RetryPost::Always => true,
        RetryPost::Keyed => facts.keyed,
        RetryPost::Refused => false,
    };
    let safe = facts.idempotent || wanted;
    let told = facts.signals.retry_after;
    if told.is_some_and(|told| told > facts.remaining) {
        // The caller cannot wait that long: told now, it can turn elsewhere.
        return Verdict::Return;
    }
    match facts.failure {
        Failure::Bounced(Attribution::Quota) => return Verdict::Return,
        // The gate is where it waits: for a slot, or for the end of the pause.
        Failure::Bounced(Attribution::Ceiling) => {
            let after = told.map_or(Duration::ZERO, |told| spread(told.min(settings.retry_after_max), rng));
            return Verdict::Retry { after };
        }
        Failure::Bounced(Attribution::Overload | Attribution::Rate | Attribution::Unknown) => {
            return Verdict::Retry { after: Duration::ZERO };
        }
        Failure::Overload | Failure::Unreached => {}
        Failure::Broken | Failure::Server => {
            if !(safe || asked) {
                return Verdict::Return;
            }
        }
        // It has waited for as long as an answer may take, whatever its method: only the configuration's word makes it
        // wait as long again.
        Failure::TimedOut => {
            if !wanted {
                return Verdict::Return;
            }
        }
    }
    if facts.failures >= settings.attempts_max {
        return Verdict::Return;
    }
    let after = match told {
        Some(told) => spread(told.min(settings.retry_after_max), rng),
        // A kept connection that the upstream had closed says nothing about its health.
        None if facts.reused && facts.failures == 1 && facts.failure == Failure::Broken => Duration::ZERO,
        None => settings.backoff.delay(facts.failures.saturating_sub(1), rng),
    };
    if after > facts.remaining || !budget.withdraw(now) {
        return Verdict::Return;
    }
    Verdict::Retry { after }
}

/// A time the upstream named, plus up to a tenth and at most `SPREAD_MAX`, so that those who were told the same do not
/// come back at once.
#[must_use]
pub fn spread(told: Duration, rng: &mut Rng) -> Duration {
    told + rng.up_to((told / 10).min(SPREAD_MAX))
}

/// What is waited longer is lost where a window has turned.
const SPREAD_MAX: Duration = Duration::from_secs(1);

/// Exponential backoff: `min(base·2^n + random(0, jitter), max)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first step.
    pub base: Duration,
    /// The largest step.
    pub max: Duration,
    /// Upper end of the uniform random time added.
    pub jitter: Duration,
}

impl Backoff {
    /// The wait before retry `n`, counted from 0.
    #[must_use]
    pub fn delay(&self, n: u32, rng: &mut Rng) -> Duration {
        let step = self.base.saturating_mul(2u32.saturating_pow(n));
        step.saturating_add(rng.up_to(self.jitter)).min(self.max)
    }
}

/// Retries that need not be earned, so that a quiet account may retry too; they come back with time, one per
/// [`RESERVE_REFILL`]. Source: linkerd's `min_retries_per_second` = 10, in spirit.
const RESERVE: f64 = 10.0;
/// Time in which one reserved retry comes back.
const RESERVE_REFILL: Duration = Duration::from_secs(1);
/// Earned retries do not pile up beyond this: an hour of good traffic is no licence for a storm.
const EARNED_MAX: f64 = 100.0;

/// Retries of failures that one account may still make. Every request earns a fraction of one.
#[derive(Debug)]
pub struct RetryBudget {
    ratio: f64,
    earned: f64,
    reserve: f64,
    refilled: Option<Instant>,
}

impl RetryBudget {
    /// `ratio`: retries earned by each request.
    #[must_use]
    pub fn new(ratio: f64) -> Self {
        Self { ratio, earned: 0.0, reserve: RESERVE, refilled: None }
    }

    /// Changes what a request earns.
    pub fn set_ratio(&mut self, ratio: f64) {
        self.ratio = ratio;
    }

    /// A request came.
    pub fn deposit(&mut self) {
        self.earned = (self.earned + self.ratio).min(EARNED_MAX);
    }

    /// Takes one retry. `false`: none is left.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let since = self.refilled.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.reserve = (self.reserve + since.as_secs_f64() / RESERVE_REFILL.as_secs_f64()).min(RESERVE);
        self.refilled = Some(now);
        for pot in [&mut self.earned, &mut self.reserve] {
            // Fifty fifths are not quite ten in binary.
            if *pot > 1.0 - 1e-6 {
                *pot -= 1.0;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: RetrySettings = RetrySettings {
        attempts_max: 4,
        post: RetryPost::Refused,
        backoff: Backoff { base: Duration::from_secs(1), max: Duration::from_secs(60), jitter: Duration::from_secs(1) },
        retry_after_max: Duration::from_secs(60),
        budget: 0.2,
    };

    fn post(failure: Failure) -> Facts {
        Facts {
            failure,
            replayable: true,
            idempotent: false,
            keyed: false,
            reused: false,
            failures: u32::from(!matches!(failure, Failure::Bounced(_))),
            signals: Signals::default(),
            remaining: Duration::from_secs(300),
        }
    }

    fn verdict(facts: &Facts, settings: &RetrySettings) -> Verdict {
        decide(facts, settings, &mut RetryBudget::new(0.2), &mut Rng::new(1), crate::clock::now())
    }

    #[test]
    fn what_may_be_sent_again() {
        let keyed = RetrySettings { post: RetryPost::Keyed, ..SETTINGS };
        let always = RetrySettings { post: RetryPost::Always, ..SETTINGS };
        let told = |seconds| Signals { retry_after: Some(Duration::from_secs(seconds)), ..Signals::default() };
        let said = |yes| Signals { should_retry: Some(yes), ..Signals::default() };
        let rate = Failure::Bounced(Attribution::Rate);
        let quota = Failure::Bounced(Attribution::Quota);
        for (name, facts, settings, again) in [
            ("429 POST", post(rate), SETTINGS, true),
            ("429 of unknown kind, many failures before", Facts { failures: 9, ..post(rate) }, SETTINGS, true),
            ("429 quota", post(quota), SETTINGS, false),
            ("429 quota, told to retry", Facts { signals: said(true), ..post(quota) }, SETTINGS, false),
            ("429 told not to", Facts { signals: said(false), ..post(rate) }, SETTINGS, false),
            ("429 later than the caller waits", Facts { signals: told(3600), ..post(rate) }, SETTINGS, false),
            ("429 body gone", Facts { replayable: false, ..post(rate) }, SETTINGS, false),
            ("503 POST", post(Failure::Overload), SETTINGS, true),
            ("503 fourth attempt", Facts { failures: 4, ..post(Failure::Overload) }, SETTINGS, false),
            ("unreached POST", post(Failure::Unreached), SETTINGS, true),
            ("unreached, body gone", Facts { replayable: false, ..post(Failure::Unreached) }, SETTINGS, false),
            ("500 POST", post(Failure::Server), SETTINGS, false),
            ("500 POST, told to retry", Facts { signals: said(true), ..post(Failure::Server) }, SETTINGS, true),
            ("500 GET", Facts { idempotent: true, ..post(Failure::Server) }, SETTINGS, true),
            (
                "500 GET told not to",
                Facts { idempotent: true, signals: said(false), ..post(Failure::Server) },
                SETTINGS,
                false,
            ),
            ("reset after write, POST", post(Failure::Broken), SETTINGS, false),
            ("reset after write, PUT", Facts { idempotent: true, ..post(Failure::Broken) }, SETTINGS, true),
            ("reset, POST with key, keyed", Facts { keyed: true, ..post(Failure::Broken) }, keyed, true),
            ("reset, POST with key, not configured", Facts { keyed: true, ..post(Failure::Broken) }, SETTINGS, false),
            ("reset, POST without key, keyed", post(Failure::Broken), keyed, false),
            ("timeout, POST, always", post(Failure::TimedOut), always, true),
            ("timeout, POST", post(Failure::TimedOut), SETTINGS, false),
            ("timeout, GET", Facts { idempotent: true, ..post(Failure::TimedOut) }, SETTINGS, false),
            ("timeout, GET, always", Facts { idempotent: true, ..post(Failure::TimedOut) }, always, true),
            ("timeout, POST, keyed", Facts { keyed: true, ..post(Failure::TimedOut) }, keyed, true),
            (
                "backoff longer than the caller waits",
                Facts { remaining: Duration::from_millis(10), ..post(Failure::Overload) },
                SETTINGS,
                false,
            ),
        ] {
            assert_eq!(verdict(&facts, &settings) != Verdict::Return, again, "{name}");
        }
    }

    #[test]
    fn the_wait_is_what_was_told_plus_a_tenth_or_doubles() {
        let mut rng = Rng::new(3);
        for (n, low, high) in [(0, 1, 2), (1, 2, 3), (2, 4, 5), (5, 32, 33), (6, 60, 60), (4000, 60, 60)] {
            let delay = SETTINGS.backoff.delay(n, &mut rng);
            assert!((Duration::from_secs(low)..=Duration::from_secs(high)).contains(&delay), "{n}: {delay:?}");
        }
        let signals = Signals { retry_after: Some(Duration::from_secs(10)), ..Signals::default() };
        let Verdict::Retry { after } = verdict(&Facts { signals, ..post(Failure::Overload) }, &SETTINGS) else {
            panic!("a retry")
        };
        assert!((Duration::from_secs(10)..=Duration::from_secs(11)).contains(&after), "{after:?}");
    }

    #[test]
    fn a_request_on_a_kept_connection_that_was_closed_goes_again_at_once_and_once() {
        let stale = Facts { idempotent: true, reused: true, ..post(Failure::Broken) };
        assert_eq!(verdict(&stale, &SETTINGS), Verdict::Retry { after: Duration::ZERO });
        let again = Facts { failures: 2, ..stale };
        assert_ne!(verdict(&again, &SETTINGS), Verdict::Retry { after: Duration::ZERO });
    }

    #[test]
    fn an_outage_spends_the_budget_and_time_brings_the_reserve_back() {
        let now = crate::clock::now();
        let mut budget = RetryBudget::new(0.2);
        for _ in 0..50 {
            budget.deposit();
        }
        let spent = (0..1000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(spent, 20, "10 earned, 10 in reserve");
        let later = now + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| budget.withdraw(later)).count(), 10);
    }
}
