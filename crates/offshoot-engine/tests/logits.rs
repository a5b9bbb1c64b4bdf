//! Both executors on real models, each against transformers in single precision.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod support;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::{LoadOptions, Model, Session, perplexity};
use offshoot_models::{Checkpoint, LogitRows, Special, Tokenizer};
use support::{Reference, dense, text, weights_sha256};

/// Lets one test run at a time: each keeps all processors busy, and they would only wait for each
/// other.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn path(model: &str) -> PathBuf {
    let store = Store::from_env().unwrap();
    store.resolve(&model.parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path
}

/// Both sum some thousand terms in f32, each in its own order; logits reach 35, and 4e-5 was seen.
const DENSE_LOGIT: f32 = 2e-4;
/// Windows of the text that the dense executor reads; all of it would take minutes.
const WINDOWS: usize = 6;
/// What 8-bit activations may cost of a model's prediction.
const PACKED_PERPLEXITY: f64 = 0.005;

/// The dense executor has transformers' weights, bit for bit, and its logits.
fn check_dense(model: &str, reference: &Reference) -> Checkpoint {
    let checkpoint = Checkpoint::open(&path(model)).unwrap();
    assert_eq!(weights_sha256(&checkpoint), reference.weights_sha256, "the dequantised weights");
    let distance = reference.distance(&mut dense(&checkpoint));
    assert!(distance.positions > 30 && distance.other_choice == 0, "{distance:?}");
    assert!(distance.logit < DENSE_LOGIT, "{distance:?}");
    assert!(distance.log_sum_exp < f64::from(DENSE_LOGIT), "{distance:?}");
    checkpoint
}

/// The packed executor, on activations of 8 bits: its logits' root mean square distance is at most
/// `rms`, twice what was seen, where a wrong rotation or scale makes several; and it predicts the
/// text as well.
fn check_packed(model: &str, reference: &Reference, rms: f64) {
    let (model, cpu) = Model::load(&path(model), &LoadOptions::default()).unwrap();
    let mut session = Session::new(&model, cpu, 512).unwrap();
    let distance = reference.distance(&mut |tokens, rows| {
        session.truncate(0);
        let (before, last) = tokens.split_at(tokens.len() - rows);
        session.read(&model, before).unwrap();
        session.feed(&model, last, LogitRows::All).unwrap().to_vec()
    });
    assert!(distance.root_mean_square < rms, "{distance:?}");
    assert!(distance.other_choice <= 1, "{distance:?}");
    let tokens = model.tokenizer().encode(&text(), Special::Text).unwrap();
    let got = perplexity(&model, &mut session, &tokens, |_| {}).unwrap();
    assert_eq!(got.tokens, reference.scored());
    assert!(got.tokens >= 8_000, "{got:?}");
    let ratio = got.perplexity() / reference.perplexity();
    assert!((ratio - 1.0).abs() < PACKED_PERPLEXITY, "{got:?}, {ratio} times the reference's");
}

#[test]
fn smollm2_is_transformers_model_in_single_precision() {
    let _turn = turn();
    let reference = Reference::read("smollm2");
    let checkpoint = check_dense("smollm2", &reference);
    let tokenizer = Tokenizer::new(checkpoint.tokenizer().unwrap()).unwrap();
    let tokens = tokenizer.encode(&text(), Special::Text).unwrap();
    let nats = reference.surprise(&tokens, WINDOWS, &mut dense(&checkpoint));
    assert!(nats < 1e-5, "{nats} nats a token");
}

#[test]
fn qwen_is_transformers_model_in_single_precision() {
    let _turn = turn();
    check_dense("qwen2.5-coder", &Reference::read("qwen2_5_coder"));
}

#[test]
fn smollm2_predicts_as_well_on_8_bit_activations() {
    let _turn = turn();
    check_packed("smollm2", &Reference::read("smollm2"), 0.5);
}

#[test]
fn qwen_predicts_as_well_on_8_bit_activations() {
    let _turn = turn();
    check_packed("qwen2.5-coder", &Reference::read("qwen2_5_coder"), 0.1);
}
