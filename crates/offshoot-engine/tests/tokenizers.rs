//! The real models' tokenizers, held against Hugging Face's ids.

#![allow(clippy::unwrap_used)] // test code

#[path = "../../offshoot-models/tests/support/mixed_text.rs"]
mod mixed_text;
#[path = "../../offshoot-models/tests/support/tokenizer_reference.rs"]
mod tokenizer_reference;

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_models::{Checkpoint, Tokenizer};
use tokenizer_reference::Reference;

fn check(model: &str, reference: &str) {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&model.parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let reference = Reference::load(reference);
    assert!(reference.is_of(&std::fs::read(&path).unwrap()), "the reference is of this file");
    let checkpoint = Checkpoint::open(&path).unwrap();
    reference.check(&Tokenizer::new(checkpoint.tokenizer().unwrap()).unwrap());
}

#[test]
fn smollm2_cuts_text_as_hugging_face_does() {
    check("smollm2", include_str!("../../offshoot-models/tests/data/tokenizer_smollm2.json"));
}

#[test]
fn qwen_cuts_text_as_hugging_face_does() {
    let reference = include_str!("../../offshoot-models/tests/data/tokenizer_qwen2_5_coder.json");
    check("qwen2.5-coder", reference);
}
