//! Reads bytes as the weights of a sound folder and uses all tensors that are let through.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use support::folder::Sections;

#[path = "../../crates/offshoot-models/tests/support/mod.rs"]
mod support;

/// All other files of the folder.
fn others() -> &'static Sections {
    static OTHERS: OnceLock<Sections> = OnceLock::new();
    OTHERS.get_or_init(|| support::hostile_folders::smallest(false).sections())
}

fuzz_target!(|bytes: &[u8]| {
    let mut sections = others().clone();
    sections.weights[0].1 = bytes.to_vec();
    if let Err(error) = sections.walk() {
        support::assert_one_line(&error, "fuzzed");
    }
});
