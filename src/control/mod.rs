//! The pure core: no async, no I/O, no clock, no logging, no metrics. Depends on `std` alone.

pub mod signals;
