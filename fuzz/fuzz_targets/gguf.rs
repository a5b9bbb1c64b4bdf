//! Parses bytes as a GGUF file and uses all that the parser lets through.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/offshoot-models/tests/support/mod.rs"]
#[allow(dead_code)] // the crate's own tests use the rest
mod support;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = support::walk(bytes) {
        support::assert_one_line(&error, "fuzzed");
    }
});
