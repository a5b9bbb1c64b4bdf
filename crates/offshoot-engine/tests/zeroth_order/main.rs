//! Zeroth-order tuning on small random models: what a point's loss is, and what steps make of it.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod gradient;
mod laws;
mod learning;
mod metrics;
mod on_dense;
mod on_disk;
mod pytorch;
mod quantised;
mod rejoin;
mod replays;
#[path = "../support/runs.rs"]
mod runs;
mod served;
mod setting;
mod shifted_rule;
mod smollm2;
#[path = "../../../offshoot-models/tests/support/steps.rs"]
mod steps;
mod stored;
#[path = "../../../offshoot-models/tests/support/tiny.rs"]
#[allow(dead_code)] // that crate's own tests use the rest
mod tiny;
mod together;
mod untouched;
