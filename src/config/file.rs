//! The shape of the YAML; the only place that knows serde and the YAML crate.
