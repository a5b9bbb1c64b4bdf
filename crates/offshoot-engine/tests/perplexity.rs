//! How much of a model's prediction the packed executor loses to 8-bit activations.

#![allow(clippy::unwrap_used)] // test code

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{LoadOptions, Model, Session, perplexity};
use offshoot_models::Special;

/// Perplexity of the text within 0.5 % of what transformers gives in single precision.
#[test]
fn smollm2_predicts_as_in_single_precision() {
    let reference: serde_json::Value =
        serde_json::from_str(include_str!("data/logits_smollm2.json")).unwrap();
    let store = Store::from_env().unwrap();
    let path = store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    let (model, cpu) = Model::load(&path, &LoadOptions::default()).unwrap();
    let mut session = Session::new(&model, cpu, 512).unwrap();
    let tokens = model.tokenizer().encode(include_str!("data/text.txt"), Special::Text).unwrap();
    let got = perplexity(&model, &mut session, &tokens, |_| {}).unwrap();
    assert_eq!(got.tokens as u64, reference["text"]["scored"].as_u64().unwrap());
    let dense = reference["text"]["perplexity"].as_f64().unwrap();
    let ratio = got.perplexity() / dense;
    assert!((ratio - 1.0).abs() < 0.005, "{} for {dense}", got.perplexity());
}
