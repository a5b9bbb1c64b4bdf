//! The store against servers and package clients that misbehave in every way we could think of,
//! and once against the real package index.

#![expect(clippy::unwrap_used, reason = "what the tests stand on may fail like a test does")]

mod bench;
mod concurrent;
mod hub;
mod local;
mod package_index;
mod parts;
#[cfg(unix)]
mod pypi;
mod refusals;
mod server;
