//! Compiles text as a chat template and renders a conversation with it.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/offshoot-models/tests/support/mod.rs"]
mod support;

fuzz_target!(|source: &str| {
    match support::templates::run(source) {
        // Four megabytes, and sixteen times the few hundred bytes of the conversation.
        Ok(text) => assert!(text.len() < 5 << 20, "{} bytes", text.len()),
        Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
    }
});
