//! What an upstream or a client may say at its most absurd, for property tests. Times are capped at a day before they
//! reach the core.

use std::time::Duration;

use proptest::{prelude::*, sample::select};

use crate::control::{
    cost::Demand,
    signals::{Budget, Budgets, Dimension, Refill, Signals},
};

pub(crate) fn times() -> impl Strategy<Value = Duration> {
    select(&[0u64, 1, 20, 1000, 5000, 60_000, 3_600_000, 86_400_000][..]).prop_map(Duration::from_millis)
}

pub(crate) fn amounts() -> impl Strategy<Value = u64> {
    select(&[0u64, 1, 2, 5, 60, 1000, 1_000_000, u64::MAX][..])
}

pub(crate) fn tokens() -> impl Strategy<Value = u32> {
    select(&[0u32, 1, 7, 1000, 1_000_000, u32::MAX][..])
}

pub(crate) fn budgets() -> impl Strategy<Value = Budget> {
    let refill = select(&[None, Some(Refill::Continuous), Some(Refill::Window)][..]);
    let dimension = select(&Dimension::ALL[..]);
    let (limit, reset, window) = (option(amounts()), option(times()), option(times()));
    (0..5u32, dimension, limit, amounts(), reset, window, refill).prop_map(
        |(id, dimension, limit, remaining, reset, window, refill)| Budget {
            id,
            dimension,
            limit,
            remaining,
            reset,
            window,
            refill,
        },
    )
}

pub(crate) fn option<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    proptest::option::of(of)
}

pub(crate) fn signals() -> impl Strategy<Value = Signals> {
    let list = prop_oneof![2 => Just(Vec::new()), 1 => proptest::collection::vec(budgets(), 1..8)];
    (option(times()), list, option(select(&Dimension::ALL[..]))).prop_map(|(retry_after, list, refused)| {
        let mut budgets = Budgets::default();
        list.into_iter().for_each(|budget| budgets.add(budget));
        Signals { retry_after, budgets, refused, ..Signals::default() }
    })
}

pub(crate) fn demands() -> impl Strategy<Value = Demand> {
    (0..3u64, tokens(), option(tokens())).prop_map(|(model, input_tokens, output_tokens_max)| Demand {
        model,
        input_tokens,
        output_tokens_max,
        ..Demand::default()
    })
}
