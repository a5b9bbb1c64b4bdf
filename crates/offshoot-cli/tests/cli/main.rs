//! The program as its users meet it: the real binary, its exit codes, what it prints where.

#![expect(clippy::unwrap_used, reason = "what the tests stand on may fail like a test does")]

mod adapter;
mod answers;
mod calibration;
mod data;
mod datastores;
mod dense;
mod eval;
mod exit_codes;
mod folders;
mod home;
#[cfg(unix)]
mod interrupts;
mod medusa;
#[cfg(unix)]
mod outputs;
mod pulls;
mod quantize;
mod trajectory;
mod tune;
#[cfg(unix)]
mod tune_interrupts;
mod tune_spaces;
mod tune_style;

#[path = "../../../offshoot-models/tests/support/mod.rs"]
mod models;
#[path = "../../../offshoot-engine/tests/store/server.rs"]
#[allow(dead_code)] // that crate's own tests use the rest
mod server;
