//! The pure core: no async, no I/O, no clock, no logging, no metrics. Depends on `std` alone.
//!
//! Everything here takes `now` as an argument and returns what happened; `gate/` acts on it.

pub mod aimd;
pub mod attempt;
pub mod breaker;
pub mod cost;
pub mod delay;
pub mod drain;
pub mod gate;
pub mod gradient;
pub mod limit;
pub mod mind;
pub mod queue;
pub mod rates;
pub mod retry;
pub mod rng;
pub mod signals;
pub mod tide;
pub mod trip;
pub mod vegas;
