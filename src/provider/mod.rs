//! What upstreams say: pure parsing, no I/O.

mod durations;
pub mod presets;
pub mod signals;
