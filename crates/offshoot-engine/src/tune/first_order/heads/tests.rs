//! Draft heads and LoRA's matrices of small random models, trained together.

use std::collections::BTreeMap;

use super::super::tests::{checkpoint, digest, refs, texts, train};
use super::*;
use crate::tune::{FirstOrderOptions, Trainer};

fn options(heads: DraftHeads) -> FirstOrderOptions {
    FirstOrderOptions { heads: Some(heads), ..FirstOrderOptions::default() }
}

fn tuner(name: &str, heads: DraftHeads) -> FirstOrder {
    FirstOrder::new(checkpoint(name), options(heads)).unwrap()
}

fn two(alone: u64, rise: u64) -> DraftHeads {
    DraftHeads { heads: 2, alone, rise, ..DraftHeads::default() }
}

fn measured(tuner: &mut FirstOrder, examples: &[Example]) -> BTreeMap<String, f64> {
    tuner.measure(&mut examples.iter().cloned().map(Ok)).unwrap().into_iter().collect()
}

/// What a step says, by name.
fn step(tuner: &mut FirstOrder, step: u64, examples: &[Example]) -> BTreeMap<&'static str, f64> {
    let report = tuner.step(step, 1e-2, &refs(examples)).unwrap();
    report.numbers.into_iter().chain([("loss", report.loss)]).collect()
}

/// The numbers that are the model's, and those that are the heads'.
fn numbers(tuner: &FirstOrder) -> [Vec<f32>; 2] {
    let mut all = [Vec::new(), Vec::new()];
    for (name, variable) in tuner.tuning.variables() {
        all[usize::from(is_of_heads(name))].extend(super::super::read(variable).unwrap());
    }
    all
}

#[test]
fn the_joint_loss_falls_and_heads_learn_to_guess() {
    let texts = texts(4, 12);
    let mut tuner = tuner("llama_linear", two(40, 40));
    let drawn = numbers(&tuner);
    let (before, first) = (measured(&mut tuner, &texts), step(&mut tuner, 0, &texts));
    train(&mut tuner, &texts, 1..40, 1e-2);
    let alone = numbers(&tuner);
    assert_eq!(alone[0], drawn[0], "the model waits for the heads");
    assert_ne!(alone[1], drawn[1]);
    let both = step(&mut tuner, 40, &texts);
    assert!(both["draft_loss_1"] < 0.8 * first["draft_loss_1"], "{first:?}, {both:?}");
    // Until then nothing of the heads was in the loss, and the model was the base.
    assert_eq!((first["draft_weight"], both["draft_weight"] > 0.0), (0.0, true));
    let heard = (1..=2).zip([0.8, 0.64]).map(|(k, l)| l * both[format!("draft_loss_{k}").as_str()]);
    let of_text = both["loss"] - both["draft_weight"] * heard.sum::<f64>();
    assert!((of_text - first["loss"]).abs() < 1e-5, "{of_text} {first:?}");
    train(&mut tuner, &texts, 41..200, 1e-2);
    let last = step(&mut tuner, 200, &texts);
    assert!(last["loss"] < 0.3 * both["loss"], "{both:?} to {last:?}");
    let after = measured(&mut tuner, &texts);
    for head in ["draft_1_top_1", "draft_2_top_1"] {
        assert!(before[head] < 0.3 && after[head] > 0.9, "{before:?} to {after:?}");
    }
}

#[test]
fn a_joint_run_that_is_taken_up_again_in_either_stage_ends_in_the_same_bits() {
    let texts = texts(4, 10);
    let heads = DraftHeads { self_distillation: true, weight: 0.5, ..two(3, 4) };
    let mut whole = tuner("qwen3_tied", heads.clone());
    train(&mut whole, &texts, 0..6, 3e-3);
    for stop in [2, 3, 5] {
        let folder = tempfile::tempdir().unwrap();
        let mut before = tuner("qwen3_tied", heads.clone());
        train(&mut before, &texts, 0..stop, 3e-3);
        before.save(folder.path()).unwrap();
        let mut after = tuner("qwen3_tied", heads.clone());
        after.restore(folder.path()).unwrap();
        train(&mut after, &texts, stop..6, 3e-3);
        assert_eq!(digest(&after), digest(&whole), "from step {stop} on");
        assert_ne!(digest(&before), digest(&whole));
        let mut other = tuner("qwen3_tied", DraftHeads { weight: 0.6, ..heads.clone() });
        let told = other.restore(folder.path()).unwrap_err().to_string();
        assert!(told.contains("other options"), "{told}");
    }
}

#[test]
fn a_batch_of_drafts_is_the_sum_of_its_micro_batches() {
    let mut batch = texts(5, 9);
    batch.push(Example::Choice {
        prompt: vec![5, 6, 7],
        candidates: vec![vec![8], vec![9, 10, 11]],
        answers: vec![1],
    });
    let gradients = |micro_batch| {
        let options = FirstOrderOptions { micro_batch, ..options(two(0, 0)) };
        let tuner = FirstOrder::new(checkpoint("qwen2_untied"), options).unwrap();
        let (gradients, _) = tuner.gradients(0, &refs(&batch)).unwrap();
        let drafts = gradients.drafts.clone();
        (gradients.loss, drafts, tuner.numbers(gradients).unwrap().0)
    };
    let (loss, drafts, whole) = gradients(0);
    assert_eq!(drafts.len(), 2);
    let same = |a: f64, b: f64| (a - b).abs() < 1e-6 * a.abs();
    for size in [1, 4] {
        let (other, others, parts) = gradients(size);
        assert!(same(loss, other) && drafts.iter().zip(&others).all(|(a, b)| same(*a, *b)));
        for (a, b) in whole.iter().flatten().zip(parts.iter().flatten()) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }
}

#[test]
fn heads_that_are_begun_with_are_not_lost() {
    let texts = texts(4, 12);
    let mut first = tuner("llama_linear", two(u64::MAX, 0));
    train(&mut first, &texts, 0..30, 1e-2);
    let file = first.tuning.heads().unwrap().unwrap();
    let last = step(&mut first, 30, &texts);
    let begun = |heads: DraftHeads, file: &HeadsFile| {
        FirstOrder::with_heads(checkpoint("llama_linear"), options(heads), Some(file))
    };
    let form = two(0, 0).of_form(&file);
    let mut second = begun(form.clone(), &file).unwrap();
    let next = step(&mut second, 0, &texts);
    for head in ["draft_loss_1", "draft_loss_2"] {
        // The file is in half precision.
        assert!((next[head] - last[head]).abs() < 1e-2 * last[head], "{last:?}, then {next:?}");
    }
    assert!(begun(DraftHeads { heads: 3, ..form.clone() }, &file).is_err(), "of another form");
    let mut other = file;
    let base = offshoot_models::BaseId::from_bytes([7; 32]);
    other.card = Some(HeadsCard::new(base, TokenizerId::from_bytes([7; 32])));
    let told = begun(form, &other).unwrap_err().to_string();
    assert!(told.contains("they belong to the model 0707"), "{told}");
}

#[test]
fn the_weight_of_drafts_rises_along_a_sine_once_the_model_learns() {
    let heads = DraftHeads { weight: 0.2, ..two(10, 30) };
    assert!((0..10).all(|step| heads.weight_at(step) == 0.0));
    // A third of the way: the sine of 30 degrees.
    assert!((heads.weight_at(19) - 0.1).abs() < 1e-12);
    assert!((10..45).is_sorted_by(|a, b| heads.weight_at(*a) <= heads.weight_at(*b)));
    assert!((39..99).all(|step| (heads.weight_at(step) - 0.2).abs() < 1e-12));
    assert_eq!(two(0, 0).weight_at(0), 0.2);
}

#[test]
fn guesses_end_where_an_answer_does() {
    let sequence = Sequence {
        tokens: vec![9, 1, 2, 3, 8, 4],
        trained: vec![false, true, true, true, false, true],
    };
    let found: Vec<_> = places(&sequence, 2).collect();
    let expected: [(usize, u32, &[u32]); 4] =
        [(0, 1, &[2, 3]), (1, 2, &[3]), (2, 3, &[]), (4, 4, &[])];
    assert_eq!(found, expected);
}

#[test]
fn options_out_of_bounds_are_told_by_their_field() {
    let told = |heads: DraftHeads| options(heads).validate().unwrap_err().to_string();
    assert!(told(DraftHeads { heads: 9, ..two(0, 0) }).contains("heads is 9"));
    assert!(told(DraftHeads { weight: f64::NAN, ..two(0, 0) }).contains("weight is NaN"));
    assert!(told(DraftHeads { vocabulary: vec![2, 1], ..two(0, 0) }).contains("vocabulary"));
    let full = FirstOrderOptions {
        space: crate::tune::FirstOrderSpace::Full(crate::tune::TensorNames::All),
        ..options(two(0, 0))
    };
    assert!(full.validate().unwrap_err().to_string().contains("LoRA"));
}
