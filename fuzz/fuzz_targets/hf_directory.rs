//! Reads bytes as the files of a Hugging Face folder and uses all that is let through.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/offshoot-models/tests/support/mod.rs"]
mod support;

fuzz_target!(|bytes: &[u8]| {
    let sections = support::folder::Sections::split(bytes);
    if let Err(error) = sections.and_then(|sections| sections.walk()) {
        support::assert_one_line(&error, "fuzzed");
    }
});
