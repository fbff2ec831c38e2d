//! The embedded rate-limited API (`tidegate mock`).
