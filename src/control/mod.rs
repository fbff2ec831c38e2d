//! The pure core: no async, no I/O, no clock, no logging, no metrics. Depends on `std` alone.
//!
//! Everything here takes `now` as an argument and returns what happened; `gate/` acts on it.

pub mod aimd;
pub mod gate;
pub mod limit;
pub mod queue;
pub mod retry;
pub mod rng;
pub mod signals;
pub mod tide;
