//! What upstreams say, and what requests ask of them: pure parsing, no I/O.

mod count;
pub mod demand;
#[cfg(fuzzing)]
pub mod door;
mod durations;
mod members;
pub mod money;
mod names;
pub mod presets;
mod quotes;
pub mod refusal;
pub mod signals;
pub mod usage;
