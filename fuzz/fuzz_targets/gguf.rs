//! Parses bytes as a GGUF file and uses all that the parser lets through.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/offshoot-models/tests/support/mod.rs"]
mod support;

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = support::walk(bytes) {
        support::assert_one_line(&error, "fuzzed");
    }
});
