//! Opens bytes as a datastore, drafts from it and verifies it.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/offshoot-engine/tests/support/stores.rs"]
mod stores;

fuzz_target!(|short: &[u8]| {
    if let Err(error) = stores::walk(short) {
        stores::assert_one_line(&error, "fuzzed");
    }
});
