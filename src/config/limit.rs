//! Shape → configuration: the adaptive limit, and the keys that each algorithm has for itself.

use super::{
    Algorithm, LimitSettings,
    check::{self, CEILING_MAX, TIME_MAX, TIME_MIN},
    de::Value,
    defaults, file,
    problem::Problem,
};
use crate::control::{
    aimd::AimdSettings,
    gradient::GradientSettings,
    tide::{DelayGuard, TideSettings},
    vegas::VegasSettings,
};

/// `ceiling`: the highest of the account's ceilings, if any is known.
pub(super) fn limit(shape: &file::Limit, ceiling: Option<u32>) -> Result<LimitSettings, Problem> {
    let algorithm = algorithm(shape.algorithm.as_ref())?;
    own_keys_only(shape, algorithm)?;
    let min = count(&shape.min, defaults::LIMIT_MIN, 1, CEILING_MAX)?;
    // What is not given follows what is: a known ceiling is never cut off by a default.
    let max = count(&shape.max, defaults::LIMIT_MAX.max(min).max(ceiling.unwrap_or_default()), 1, CEILING_MAX)?;
    if let Some(value) = shape.max.as_ref().or(shape.min.as_ref()).filter(|_| min > max) {
        return Err(value.problem(format_args!("`limit.min` ({min}) is above `limit.max` ({max})")));
    }
    let initial = count(&shape.initial, defaults::LIMIT_INITIAL.clamp(min, max), 1, CEILING_MAX)?;
    if let Some(value) = shape.initial.as_ref().filter(|_| !(min..=max).contains(&initial)) {
        return Err(value.expected(format_args!("a number from `limit.min` ({min}) to `limit.max` ({max})")));
    }
    Ok(LimitSettings {
        algorithm,
        min,
        max,
        initial,
        aimd: aimd(shape)?,
        gradient: gradient(shape)?,
        tide: tide(shape)?,
        vegas: vegas(shape)?,
    })
}

fn algorithm(value: Option<&Value>) -> Result<Algorithm, Problem> {
    let Some(value) = value else { return Ok(defaults::ALGORITHM) };
    let named = |word: &str| Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == word);
    value.word(&Algorithm::ALL.map(Algorithm::name), named)
}

/// A key of another algorithm would do nothing, unnoticed.
fn own_keys_only(shape: &file::Limit, algorithm: Algorithm) -> Result<(), Problem> {
    // Taken apart in full, so that a new key cannot be forgotten here.
    let file::Limit {
        algorithm: _,
        min: _,
        max: _,
        initial: _,
        decrease,
        timeout,
        alpha,
        beta,
        threshold,
        probe,
        tolerance,
        smoothing,
        queue,
        long_window,
        window,
        window_samples_min,
        cut,
        growth,
        probe_answers,
        probe_min,
        pace,
        delay_tolerance,
        delay_guard,
        min_share,
    } = shape;
    let owners: [(Algorithm, &[&Option<Value>]); 4] = [
        (Algorithm::Aimd, &[decrease, timeout]),
        (Algorithm::Vegas, &[alpha, beta, threshold, probe]),
        (Algorithm::Gradient, &[tolerance, smoothing, queue, long_window, window, window_samples_min]),
        (Algorithm::Tide, &[cut, growth, probe_answers, probe_min, pace, delay_tolerance, delay_guard, min_share]),
    ];
    for (owner, keys) in owners.into_iter().filter(|(owner, _)| *owner != algorithm) {
        if let Some(value) = keys.iter().find_map(|key| key.as_ref()) {
            let owner = owner.name();
            return Err(value.problem(format_args!(
                "`{}` belongs to the algorithm {owner}; leave it out, or set `algorithm: {owner}`",
                value.key
            )));
        }
    }
    Ok(())
}

fn aimd(shape: &file::Limit) -> Result<AimdSettings, Problem> {
    let or = AimdSettings::default();
    Ok(AimdSettings {
        decrease: inside(&shape.decrease, or.decrease)?,
        timeout: match &shape.timeout {
            Some(value) => value.time_or_off(TIME_MIN..=TIME_MAX)?,
            None => or.timeout,
        },
    })
}

fn gradient(shape: &file::Limit) -> Result<GradientSettings, Problem> {
    let or = GradientSettings::default();
    Ok(GradientSettings {
        tolerance: number(&shape.tolerance, or.tolerance, 1.0, RATIO_MAX)?,
        smoothing: above(&shape.smoothing, or.smoothing, 0.0, 1.0)?,
        queue: count(&shape.queue, or.queue, 1, CEILING_MAX)?,
        long_window: count(&shape.long_window, or.long_window, 1, SAMPLES_MAX)?,
        window: match &shape.window {
            Some(value) => value.time(TIME_MIN..=TIME_MAX)?,
            None => or.window,
        },
        window_samples_min: count(&shape.window_samples_min, or.window_samples_min, 1, SAMPLES_MAX)?,
    })
}

fn tide(shape: &file::Limit) -> Result<TideSettings, Problem> {
    let or = TideSettings::default();
    Ok(TideSettings {
        cut: inside(&shape.cut, or.cut)?,
        growth: above(&shape.growth, or.growth, 0.0, 1.0)?,
        probe_answers: count(&shape.probe_answers, or.probe_answers, 1, SAMPLES_MAX)?,
        probe_min: check::time(shape.probe_min.as_ref(), or.probe_min)?,
        pace: above(&shape.pace, or.pace, 0.0, 1.0)?,
        delay_tolerance: above(&shape.delay_tolerance, or.delay_tolerance, 1.0, RATIO_MAX)?,
        delay_guard: match &shape.delay_guard {
            Some(value) => {
                let named = |word: &str| DelayGuard::ALL.into_iter().find(|guard| guard.name() == word);
                value.word(&DelayGuard::ALL.map(DelayGuard::name), named)?
            }
            None => or.delay_guard,
        },
        min_share: number(&shape.min_share, or.min_share, 0.0, 1.0)?,
    })
}

fn vegas(shape: &file::Limit) -> Result<VegasSettings, Problem> {
    let or = VegasSettings::default();
    let settings = VegasSettings {
        alpha: count(&shape.alpha, or.alpha, 1, FACTOR_MAX)?,
        beta: count(&shape.beta, or.beta, 1, FACTOR_MAX)?,
        threshold: count(&shape.threshold, or.threshold, 0, FACTOR_MAX)?,
        probe: count(&shape.probe, or.probe, 1, SAMPLES_MAX)?,
    };
    let VegasSettings { alpha, beta, threshold, .. } = settings;
    if let Some(value) = shape.threshold.as_ref().or(shape.alpha.as_ref()).filter(|_| threshold > alpha) {
        return Err(value.problem(format_args!("`limit.threshold` ({threshold}) is above `limit.alpha` ({alpha})")));
    }
    if let Some(value) = shape.alpha.as_ref().or(shape.beta.as_ref()).filter(|_| alpha > beta) {
        return Err(value.problem(format_args!("`limit.alpha` ({alpha}) is above `limit.beta` ({beta})")));
    }
    Ok(settings)
}

fn count(value: &Option<Value>, or: u32, min: u32, max: u32) -> Result<u32, Problem> {
    value.as_ref().map_or(Ok(or), |value| value.count(min..=max))
}

fn number(value: &Option<Value>, or: f64, min: f64, max: f64) -> Result<f64, Problem> {
    value.as_ref().map_or(Ok(or), |value| value.number(min..=max))
}

/// A number above `min`, up to `max`.
fn above(value: &Option<Value>, or: f64, min: f64, max: f64) -> Result<f64, Problem> {
    let Some(value) = value else { return Ok(or) };
    match value.number(min..=max) {
        Ok(number) if number > min => Ok(number),
        Ok(_) | Err(_) => Err(value.expected(format_args!("a number above {min}, up to {max}"))),
    }
}

/// A factor that shrinks and leaves something.
fn inside(value: &Option<Value>, or: f64) -> Result<f64, Problem> {
    let Some(value) = value else { return Ok(or) };
    match value.number(0.0..=1.0) {
        Ok(number) if number > 0.0 && number < 1.0 => Ok(number),
        Ok(_) | Err(_) => Err(value.expected(format_args!("a number between 0 and 1, both excluded, such as {or}"))),
    }
}

/// A guess: a delay of a hundred times the usual is an outage to everybody.
pub(super) const RATIO_MAX: f64 = 100.0;

/// More steps of log₁₀ L than any limit has room for.
pub(super) const FACTOR_MAX: u32 = 1000;

/// A guess: at ten answers per second, a day.
pub(super) const SAMPLES_MAX: u32 = 1_000_000;
