//! Reads text as a list of models and checks all that is let through.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/offshoot-engine/tests/support/catalogues.rs"]
mod catalogues;

fuzz_target!(|json: &str| {
    // What is refused need only be refused in bounded time and memory: the fuzzer itself watches.
    let _refused = catalogues::run(json).is_err();
});
