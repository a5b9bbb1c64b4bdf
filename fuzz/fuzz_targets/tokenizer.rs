//! Reads bytes as the `tokenizer.json` of a sound folder and uses the tokenizer that is let through.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use support::folder::Sections;

#[path = "../../crates/offshoot-models/tests/support/mod.rs"]
mod support;

/// Tokens that the embedding has room for.
const TOKENS: usize = 64;

/// All other files of the folder.
fn others() -> &'static Sections {
    static OTHERS: OnceLock<Sections> = OnceLock::new();
    OTHERS.get_or_init(|| {
        let mut folder = support::hostile_folders::smallest(false);
        folder.set("vocab_size", TOKENS);
        let embedding = folder.tensors.get_mut("model.embed_tokens.weight").expect("the folder's");
        let row = embedding.bytes.len() / embedding.shape[0];
        embedding.shape[0] = TOKENS;
        embedding.bytes.resize(TOKENS * row, 0);
        folder.sections()
    })
}

fuzz_target!(|bytes: &[u8]| {
    let sections = Sections { tokenizer: Some(bytes.to_vec()), ..others().clone() };
    if let Err(error) = sections.walk() {
        support::assert_one_line(&error, "fuzzed");
    }
});
