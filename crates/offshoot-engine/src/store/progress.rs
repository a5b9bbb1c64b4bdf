//! How a long pull tells its caller what it is doing.

use super::StoreError;
use std::path::Path;
use std::time::Duration;

/// Receives the events of a pull, and may stop it. Nothing in the store prints.
///
/// Called on the thread that pulls, about once per 256 KiB while bytes arrive.
pub trait Progress: Sync {
    /// Something happened.
    fn event(&self, event: &Event<'_>) {
        let _ = event;
    }

    /// True to stop at the next safe point; the pull then fails with [`StoreError::Cancelled`].
    fn cancelled(&self) -> bool {
        false
    }
}

/// A step of a pull.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Another pull of the same model is running; this one waits for it.
    Waiting {
        /// The model.
        name: &'a str,
    },
    /// A source is being asked.
    Source {
        /// The source in words.
        source: &'a str,
    },
    /// A source failed; the next one is tried.
    SourceFailed {
        /// The source in words.
        source: &'a str,
        /// Why.
        error: &'a StoreError,
    },
    /// What an earlier pull left is not known to be of the promised file, and was forgotten.
    StartingOver {
        /// Bytes that it had.
        bytes: u64,
    },
    /// Bytes of the model on disk so far.
    Bytes {
        /// Bytes there now, counting those kept from an earlier pull.
        done: u64,
        /// Bytes of the whole file, if known.
        total: Option<u64>,
    },
    /// Bytes of a compressed package that its client has fetched so far.
    PackageBytes {
        /// The package.
        package: &'a str,
        /// Bytes fetched.
        done: u64,
    },
    /// A request failed and will be made again after a pause.
    Retry {
        /// Why.
        error: &'a StoreError,
        /// The pause.
        pause: Duration,
    },
    /// Everything has arrived and is being hashed.
    Verifying {
        /// Bytes to hash.
        size: u64,
    },
    /// The file is in place.
    Ready {
        /// Where.
        path: &'a Path,
    },
}

/// A [`Progress`] that listens to nothing and never stops.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {}
