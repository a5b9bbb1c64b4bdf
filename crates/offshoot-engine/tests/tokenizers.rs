//! The real models' tokenizers, held against Hugging Face's ids and against folders that say the same.

#![allow(clippy::unwrap_used)] // test code

#[path = "../../offshoot-models/tests/support/mixed_text.rs"]
mod mixed_text;
#[path = "../../offshoot-models/tests/support/mod.rs"]
mod support;
#[path = "../../offshoot-models/tests/support/tokenizer_reference.rs"]
mod tokenizer_reference;

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_models::{Checkpoint, Tokenizer, TokenizerId, TokenizerSpec};
use support::tokenizer_files::{tokenizer_config, tokenizer_json};
use tokenizer_reference::Reference;

/// What a folder says that has this tokenizer in the files that its family publishes.
fn in_a_folder(spec: &TokenizerSpec) -> TokenizerSpec {
    let mut folder = support::hostile_folders::smallest(false);
    let embedding = folder.tensors.get_mut("model.embed_tokens.weight").unwrap();
    let row = embedding.bytes.len() / embedding.shape[0];
    embedding.shape[0] = spec.tokens.len();
    embedding.bytes.resize(spec.tokens.len() * row, 0);
    folder.set("vocab_size", spec.tokens.len());
    folder.put("tokenizer.json", &tokenizer_json(spec));
    folder.put("tokenizer_config.json", &tokenizer_config(spec));
    folder.open().unwrap().tokenizer().unwrap().clone()
}

fn check(model: &str, reference: &str) {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&model.parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let reference = Reference::load(reference);
    assert!(reference.is_of(&std::fs::read(&path).unwrap()), "the reference is of this file");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let spec = checkpoint.tokenizer().unwrap();
    reference.check(&Tokenizer::new(spec).unwrap());
    // No folder names further ends of turns.
    let spec = TokenizerSpec { end_of_turn: Vec::new(), ..spec.clone() };
    let folder = in_a_folder(&spec);
    assert!(folder.tokens == spec.tokens, "{model}: texts");
    assert!(folder.kinds == spec.kinds, "{model}: kinds");
    assert!(folder.model == spec.model, "{model}: merges or the rule of cutting");
    assert!(folder == spec, "{model}: special tokens");
    assert_eq!(TokenizerId::of(&folder), TokenizerId::of(&spec));
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
