//! What upstreams say: pure parsing, no I/O.

pub mod presets;
