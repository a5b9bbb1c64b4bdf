//! Reads text as a list of models and checks all that is let through.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/offshoot-engine/tests/support/catalogues.rs"]
mod catalogues;

fuzz_target!(|json: &str| {
    // The fuzzer itself watches time and memory.
    if let Err(refused) = catalogues::run(json) {
        let refused = refused.to_string();
        assert!(!refused.contains(char::is_control), "one line: {refused:?}");
    }
});
