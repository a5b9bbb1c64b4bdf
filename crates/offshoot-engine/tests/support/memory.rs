//! The memory that this process has, as the system counts it, and a model that takes much of it.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::sync::Arc;

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_models::Checkpoint;

/// A line of `/proc/self/status`, in bytes: pages of files that are mapped count in these.
pub(crate) fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: usize = line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse().unwrap();
    1024 * kib
}

/// A real model of 135 million weights.
pub(crate) fn smollm2() -> Arc<Checkpoint> {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    Arc::new(Checkpoint::open(&path).unwrap())
}
