//! Losses that the dense executor computes, on the processor: what is tuned, and how, stays the
//! same.

use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    Classification, CrossEntropy, FullOptions, FullSpace, LoraOptions, LoraSpace, Objective, Space,
    StepLimits, ZerothOrderOptions, ZerothOrderTrainer, carry_out, space_of,
};
use offshoot_engine::tune::{Example, Scorer, Sequence, Trainer};
use offshoot_engine::{DenseDevice, DenseType};
use offshoot_kernels::{Cpu, Distribution, FloatStore};
use offshoot_methods::tune::{
    Direction, Form, Mask, Probe, Term, Trajectory, Update, Weights, differences,
};
use serde_json::json;

use crate::setting::{checkpoint, choices, cpu, fill, full, model, probe, spaces, texts, values};

/// Tied and untied heads, biases, norms of heads, windows, capped logits, factors of long texts,
/// experts.
const MODELS: [&str; 9] = [
    "llama_linear",
    "llama_biases",
    "qwen2_tied",
    "qwen2_untied",
    "qwen3_yarn",
    "mistral_window",
    "gemma3_linear",
    "phi3_short",
    "qwen3_moe",
];

/// LoRA of queries and values with a `B` that is not zero.
fn lora(name: &str, cpu: &Cpu) -> LoraSpace {
    let options = LoraOptions { rank: 3, alpha: 6.0, seed: 7, ..LoraOptions::default() };
    let mut space = LoraSpace::new(cpu, model(name, cpu), &options).unwrap();
    fill(&mut space);
    space
}

fn space(kind: &str, name: &str, cpu: &Cpu) -> Box<dyn Space> {
    match kind {
        "full" => Box::new(full(name, cpu, &FullOptions::default())),
        _ => Box::new(lora(name, cpu)),
    }
}

fn trainer(
    cpu: &Cpu,
    space: Box<dyn Space>,
    objective: impl Objective + 'static,
    limits: StepLimits,
) -> ZerothOrderTrainer {
    let options = ZerothOrderOptions { limits, ..ZerothOrderOptions::default() };
    ZerothOrderTrainer::new(cpu, space, Box::new(objective), &options).unwrap()
}

fn on_dense(trainer: ZerothOrderTrainer) -> ZerothOrderTrainer {
    trainer.on(DenseDevice::Cpu, DenseType::F32).unwrap()
}

fn refs(examples: &[Example]) -> Vec<&Example> {
    examples.iter().collect()
}

/// Where the weights are and beside it, along one direction and along two.
fn probes() -> Vec<Probe> {
    let both = Probe { terms: [probe(2, 1e-2).terms, probe(3, -2e-2).terms].concat() };
    vec![Probe::default(), probe(0, 1e-2), probe(0, -1e-2), both]
}

#[test]
fn losses_at_points_are_those_of_the_packed_executor() {
    let cpu = cpu(2);
    for name in MODELS {
        for kind in ["full", "lora"] {
            // Whole, and in steps of a few rows.
            for rows in [1024, 7] {
                let limits = StepLimits { rows, ..StepLimits::default() };
                let both = |batch: &[Example], objective: &dyn Fn() -> ZerothOrderTrainer| {
                    let expected = objective().losses(&probes(), &refs(batch)).unwrap();
                    let found = on_dense(objective()).losses(&probes(), &refs(batch)).unwrap();
                    assert!(expected.iter().any(|loss| *loss != expected[0]), "{name}, {kind}");
                    for (found, expected) in found.iter().zip(&expected) {
                        let off = (found - expected).abs();
                        assert!(off < 1e-5 * expected, "{name}, {kind}: {found} {expected}");
                    }
                };
                both(&texts(5), &|| trainer(&cpu, space(kind, name, &cpu), CrossEntropy, limits));
                both(&choices(), &|| {
                    trainer(&cpu, space(kind, name, &cpu), Classification, limits)
                });
            }
        }
    }
}

/// Dense directions, one of low rank, and one that leaves elements out.
fn terms() -> Vec<Term> {
    let form = Form::LowRank { rank: 2, epoch: 0 };
    let mask = Mask::Random { density: 0.5, draw: 3 };
    let of = |scale, direction| Term { scale, direction };
    vec![
        of(1e-3, Direction::dense(5, 0)),
        of(-3e-3, Direction { form, ..Direction::dense(5, 1) }),
        of(2e-3, Direction { mask, ..Direction::dense(6, 2) }),
    ]
}

#[test]
fn weights_are_brought_as_they_are_defined_and_as_an_update_makes_them_to_the_bit() {
    let cpu = cpu(2);
    for name in ["llama_biases", "qwen2_tied", "gemma3_linear", "qwen3_moe"] {
        let mut updated = full(name, &cpu, &FullOptions::default());
        let layout = updated.layout().clone();
        let first: Vec<Vec<f32>> = values(&updated)
            .into_iter()
            .map(|bits| bits.into_iter().map(f32::from_bits).collect())
            .collect();
        let distribution = Distribution::default();
        let defined = Weights::new(7, distribution, layout.clone(), first);
        let back = |term: Term| Term { scale: -term.scale, ..term };
        let terms_back = terms().into_iter().map(back).collect();
        updated.apply(0, &Update::Linear { decay: 0.0, terms: terms_back }).unwrap();
        let updated = values(&updated);
        let space = Box::new(full(name, &cpu, &FullOptions::default()));
        let mut dense = on_dense(trainer(&cpu, space, CrossEntropy, StepLimits::default()));
        let probe = Probe { terms: terms() };
        dense.losses(std::slice::from_ref(&probe), &refs(&texts(1))).unwrap();
        let model = dense.dense().unwrap().model();
        for (tensor, spec) in layout.tensors.iter().enumerate() {
            let brought = model.tensor(&spec.name).unwrap().flatten_all().unwrap();
            let brought: Vec<u32> =
                brought.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect();
            let defined: Vec<u32> =
                defined.at(&probe, tensor).into_iter().map(f32::to_bits).collect();
            assert!(brought == defined, "{name}: {}", spec.name);
            assert!(brought == updated[tensor], "{name}: {}", spec.name);
        }
    }
}

#[test]
fn what_is_there_is_not_brought_again() {
    let cpu = cpu(1);
    let space = full("llama_biases", &cpu, &FullOptions::default());
    let names: Vec<String> = space.layout().tensors.iter().map(|spec| spec.name.clone()).collect();
    let mut dense = on_dense(trainer(&cpu, Box::new(space), CrossEntropy, StepLimits::default()));
    let moved: Arc<[bool]> = (0..names.len()).map(|tensor| tensor % 2 == 0).collect();
    let direction = Direction { tensors: Some(moved), ..Direction::dense(0, 0) };
    let batch = texts(1);
    let ids = |probes: &[Probe], dense: &mut ZerothOrderTrainer| {
        dense.losses(probes, &refs(&batch)).unwrap();
        let model = dense.dense().unwrap().model();
        names.iter().map(|name| model.tensor(name).unwrap().id()).collect::<Vec<_>>()
    };
    let before = ids(&[Probe::default()], &mut dense);
    let term = |scale| Probe { terms: vec![Term { scale, direction: direction.clone() }] };
    let ahead = ids(&[term(1e-3)], &mut dense);
    let back = ids(&[term(1e-3), term(-1e-3)], &mut dense);
    for (tensor, ((before, ahead), back)) in before.iter().zip(&ahead).zip(&back).enumerate() {
        assert_eq!(before == ahead, tensor % 2 == 1);
        assert_eq!(before == back, tensor % 2 == 1);
    }
    // An update may be of all.
    dense.step(0, 1e-3, &refs(&batch)).unwrap();
    let after = ids(&[Probe::default()], &mut dense);
    assert!(after.iter().zip(&back).all(|(after, back)| after != back));
}

/// Steps on batches that change, and their losses.
fn run(trainer: &mut ZerothOrderTrainer, steps: std::ops::Range<u64>) -> Vec<f64> {
    let all = texts(8);
    let step = |step: u64| {
        let first = step as usize * 3 % 6;
        trainer.step(step, 1e-4, &refs(&all[first..first + 2])).unwrap().loss
    };
    steps.map(step).collect()
}

fn mezo(cpu: &Cpu, space: Box<dyn Space>) -> ZerothOrderTrainer {
    let options = ZerothOrderOptions {
        options: json!({"probe": {"eps": 1e-2}}),
        ..ZerothOrderOptions::default()
    };
    ZerothOrderTrainer::new(cpu, space, Box::new(CrossEntropy), &options).unwrap()
}

#[test]
fn a_run_follows_that_of_the_packed_executor_and_is_made_again_to_the_bit() {
    let cpu = cpu(2);
    for (kind, name) in
        [("full", "qwen2_tied"), ("lora", "llama_biases"), ("full", "gemma3_linear")]
    {
        let mut packed = mezo(&cpu, space(kind, name, &cpu));
        let mut dense = on_dense(mezo(&cpu, space(kind, name, &cpu)));
        let first = values(dense.space());
        let (expected, found) = (run(&mut packed, 0..20), run(&mut dense, 0..20));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-3 * expected, "{name}: {found} {expected}");
        }
        let last = values(dense.space());
        assert!(first != last);
        let trajectories =
            [&packed, &dense].map(|t| Trajectory::from_bytes(&t.trajectory()).unwrap());
        let [theirs, ours] = &trajectories;
        let told = differences(&theirs.parts[0].header, &ours.parts[0].header).unwrap();
        assert!(told.is_empty(), "{told:?}");
        // LoRA's matrices began as they were filled here.
        let mut again = match kind {
            "full" => space_of(&cpu, Arc::new(checkpoint(name)), &ours.parts[0].header).unwrap(),
            _ => space(kind, name, &cpu),
        };
        carry_out(ours, &mut *again).unwrap();
        assert!(values(&*again) == last, "{name}, {kind}");
    }
}

#[test]
fn a_run_that_was_interrupted_ends_as_if_it_had_not_been_and_goes_on_elsewhere() {
    let cpu = cpu(2);
    for kind in ["full", "lora"] {
        let start = || on_dense(mezo(&cpu, space(kind, "qwen2_untied", &cpu)));
        let mut whole = start();
        run(&mut whole, 0..9);
        let mut first = start();
        run(&mut first, 0..5);
        let folder = tempfile::tempdir().unwrap();
        first.save(folder.path()).unwrap();
        let mut second = start();
        second.restore(folder.path()).unwrap();
        run(&mut second, 5..9);
        assert!(values(second.space()) == values(whole.space()), "{kind}");
        assert!(second.trajectory() == whole.trajectory(), "{kind}");
        let mut elsewhere = mezo(&cpu, space(kind, "qwen2_untied", &cpu));
        elsewhere.restore(folder.path()).unwrap();
        assert!(values(elsewhere.space()) == values(first.space()), "{kind}");
        run(&mut elsewhere, 5..9);
    }
}

#[test]
fn weights_on_a_disk_and_in_halves_are_brought_as_those_in_memory() {
    let cpu = cpu(2);
    let folder = tempfile::tempdir().unwrap();
    let weights = |store, folder| {
        let options = FullOptions { store, folder, seed: 7, ..FullOptions::default() };
        let space = FullSpace::new(&cpu, Arc::new(checkpoint("qwen2_tied")), &options).unwrap();
        Box::new(space) as Box<dyn Space>
    };
    for store in FloatStore::ALL {
        let mut here = on_dense(mezo(&cpu, weights(store, None)));
        let mut there = on_dense(mezo(&cpu, weights(store, Some(folder.path().to_owned()))));
        let losses = run(&mut here, 0..4);
        assert_eq!(run(&mut there, 0..4), losses);
        there.settle().unwrap();
        assert!(values(there.space()) == values(here.space()), "{store:?}");
        let mut packed = mezo(&cpu, weights(store, None));
        for (found, expected) in losses.iter().zip(run(&mut packed, 0..4)) {
            assert!((found - expected).abs() < 1e-3 * expected, "{store:?}: {found} {expected}");
        }
    }
}

#[test]
fn answers_are_written_and_texts_scored_as_on_the_packed_executor() {
    let cpu = cpu(2);
    let prompts: [&[u32]; 3] = [&[3, 4], &[5, 9, 4, 3], &[6]];
    let scored = [Sequence::of(&[3, 4], &[5, 9, 4]), Sequence::of(&[6], &[3, 3, 8, 10, 4])];
    let scored: Vec<&Sequence> = scored.iter().collect();
    for name in ["llama_linear", "qwen2_tied", "qwen3_moe"] {
        for kind in ["full", "lora"] {
            let mut packed = mezo(&cpu, space(kind, name, &cpu));
            let mut dense = on_dense(mezo(&cpu, space(kind, name, &cpu)));
            let made = dense.generate(&prompts, 6).unwrap();
            assert_eq!(made, packed.generate(&prompts, 6).unwrap(), "{name}, {kind}");
            assert!(made.iter().any(|made| !made.is_empty()));
            let (ours, theirs) = (dense.score(&scored).unwrap(), packed.score(&scored).unwrap());
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert_eq!((ours.tokens, ours.greedy), (theirs.tokens, theirs.greedy), "{name}");
                assert!((ours.logprob - theirs.logprob).abs() < 1e-5 * theirs.logprob.abs());
            }
        }
    }
}

#[test]
fn coarser_numbers_give_about_the_same_losses() {
    let cpu = cpu(2);
    let batch = texts(3);
    for kind in ["full", "lora"] {
        let mut packed = mezo(&cpu, space(kind, "llama_linear", &cpu));
        let expected = packed.losses(&[Probe::default()], &refs(&batch)).unwrap()[0];
        for dtype in [DenseType::F16, DenseType::Bf16] {
            let dense = mezo(&cpu, space(kind, "llama_linear", &cpu));
            let mut dense = dense.on(DenseDevice::Cpu, dtype).unwrap();
            let found = dense.losses(&[Probe::default()], &refs(&batch)).unwrap()[0];
            assert!((found - expected).abs() < 0.1 * expected, "{dtype}: {found} {expected}");
            assert!(found != expected);
            dense.step(0, 1e-4, &refs(&batch)).unwrap();
        }
    }
}

#[test]
fn what_is_of_the_packed_executor_alone_is_refused() {
    let cpu = cpu(1);
    for (name, space) in spaces("qwen2_tied", &cpu) {
        let told = mezo(&cpu, space).on(DenseDevice::Cpu, DenseType::F32).map(drop);
        match name {
            "prefix" | "prompt" | "scales" => {
                let told = told.unwrap_err().to_string();
                assert!(told.contains("leave out --executor dense"), "{name}: {told}");
            }
            "full in bfloat16" => {
                let told = told.unwrap_err().to_string();
                assert!(told.contains("give --dtype"), "{name}: {told}");
            }
            _ => told.unwrap(),
        }
    }
}
