//! What upstreams say: pure parsing, no I/O.

mod durations;
pub mod presets;
pub mod refusal;
pub mod signals;
