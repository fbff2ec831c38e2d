//! What the budgets of answers look like, with the values of documentation or of captured answers.

use std::time::Duration;

use crate::{
    control::signals::{Budget, Dimension, Refill},
    provider::presets::Preset,
};

mod providers;
mod shared;

/// Header lines of one answer, and the budgets they tell.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) preset: Preset,
    pub(super) lines: &'static [(&'static str, &'static str)],
    pub(super) told: &'static [Budget],
}

pub(super) fn all() -> impl Iterator<Item = &'static Row> {
    providers::ROWS.iter().chain(shared::ROWS)
}

/// Builds expectations; ids are left at 0 and not compared.
const fn told(dimension: Dimension, remaining: u64) -> Budget {
    Budget { id: 0, dimension, limit: None, remaining, reset: None, window: None, refill: None }
}

const fn requests(remaining: u64) -> Budget {
    told(Dimension::Requests, remaining)
}

const fn tokens(remaining: u64) -> Budget {
    told(Dimension::Tokens, remaining)
}

const fn input(remaining: u64) -> Budget {
    told(Dimension::InputTokens, remaining)
}

const fn output(remaining: u64) -> Budget {
    told(Dimension::OutputTokens, remaining)
}

const fn of(limit: u64, budget: Budget) -> Budget {
    Budget { limit: Some(limit), ..budget }
}

const fn reset(millis: u64, budget: Budget) -> Budget {
    Budget { reset: Some(Duration::from_millis(millis)), ..budget }
}

const fn per(seconds: u64, budget: Budget) -> Budget {
    Budget { window: Some(Duration::from_secs(seconds)), ..budget }
}

/// Refills all the time.
const fn flows(budget: Budget) -> Budget {
    Budget { refill: Some(Refill::Continuous), ..budget }
}

/// Comes back at once.
const fn turns(budget: Budget) -> Budget {
    Budget { refill: Some(Refill::Window), ..budget }
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const MONTH: u64 = 30 * DAY;
