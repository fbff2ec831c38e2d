//! The one integration-test binary: modules by theme.
