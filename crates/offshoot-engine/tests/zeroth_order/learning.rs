//! What steps make of a model.

use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    Classification, CrossEntropy, FullOptions, LoraOptions, LoraSpace, PrefixOptions,
    ScalesOptions, ScalesSpace, Space, StepLimits, VirtualSpace, ZerothOrderOptions,
    ZerothOrderTrainer,
};
use offshoot_engine::tune::{
    Example, FirstOrder, FirstOrderOptions, FirstOrderSpace, LoraMatrices,
    LoraOptions as GradientLora, Scorer, Sequence, Trainer,
};
use offshoot_kernels::{Cpu, Philox, Purpose, tensor_id};
use offshoot_methods::optim::{Muon, OptimizerOptions, Sgd};
use offshoot_methods::tune::{
    FwdgradOptions, HybridOptions, METHODS, MethodCard, Probe, RateOptions, SpaceKind, Update,
    common_rate,
};
use offshoot_models::{PackedModel, Recipe};
use serde_json::{Value, json};

use crate::setting::{checkpoint, choices, cpu, full, model, texts, values};

/// A trainer of all matrices by cross-entropy, rank 4.
fn lora_trainer(
    cpu: &Cpu,
    method: &str,
    options: &Value,
    seed: u64,
    name: &str,
) -> ZerothOrderTrainer {
    let lora = LoraOptions {
        rank: 4,
        alpha: 8.0,
        targets: ["q_proj", "v_proj", "o_proj", "down_proj"].map(str::to_owned).to_vec(),
        seed,
        ..LoraOptions::default()
    };
    let space = LoraSpace::new(cpu, model(name, cpu), &lora).unwrap();
    started(cpu, space, method, options)
}

fn started(
    cpu: &Cpu,
    space: impl Space + 'static,
    method: &str,
    options: &Value,
) -> ZerothOrderTrainer {
    let options = ZerothOrderOptions {
        method: method.to_owned(),
        options: options.clone(),
        ..ZerothOrderOptions::default()
    };
    ZerothOrderTrainer::new(cpu, Box::new(space), Box::new(CrossEntropy), &options).unwrap()
}

fn loss(trainer: &mut ZerothOrderTrainer, batch: &[&Example]) -> f64 {
    trainer.losses(&[Probe::default()], batch).unwrap()[0]
}

/// Runs `steps` steps on one batch; the losses before and after.
fn run(trainer: &mut ZerothOrderTrainer, steps: u64, rate: f64, batch: &[Example]) -> (f64, f64) {
    let batch: Vec<&Example> = batch.iter().collect();
    let before = loss(trainer, &batch);
    for step in 0..steps {
        trainer.step(step, rate, &batch).unwrap();
    }
    (before, loss(trainer, &batch))
}

#[test]
fn the_loss_of_a_batch_falls() {
    let cpu = cpu(2);
    for seed in 0..2 {
        let options = json!({"probe": {"eps": 1e-2, "directions": 4}});
        let mut trainer = lora_trainer(&cpu, "mezo", &options, seed, "qwen2_tied");
        let (before, after) = run(&mut trainer, 100, 5e-3, &texts(4));
        assert!(after < 0.95 * before, "seed {seed}: {before} to {after}");
    }
}

/// Matrices that LoRA of rank 4 is added to, in what methods say of themselves on their pages.
const TARGETS: [&str; 3] = ["q_proj", "v_proj", "down_proj"];

/// The space that a method is shown in: LoRA, or the one that it is for.
fn space_for(card: &MethodCard, cpu: &Cpu) -> Box<dyn Space> {
    let (targets, distribution) = (TARGETS.map(str::to_owned).to_vec(), card.distribution);
    if card.space == Some(SpaceKind::Scales) {
        let base = Arc::new(checkpoint("qwen2_tied").quantized(Recipe::Q8_0));
        let base = Arc::new(PackedModel::load(base, cpu, None).unwrap());
        let options = ScalesOptions { targets, seed: 1, distribution };
        return Box::new(ScalesSpace::new(cpu, base, &options).unwrap());
    }
    let lora = LoraOptions { rank: 4, targets, seed: 1, distribution, ..LoraOptions::default() };
    Box::new(LoraSpace::new(cpu, model("qwen2_tied", cpu), &lora).unwrap())
}

/// Every method as it comes, at the rate that it finds for a run of this length.
#[test]
fn every_method_learns_with_its_own_options_and_the_rate_that_it_finds() {
    let cpu = cpu(2);
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    for card in METHODS {
        let space = space_for(card, &cpu);
        let auto = RateOptions { steps: 100, ..RateOptions::default() };
        let options = ZerothOrderOptions {
            method: card.name.to_owned(),
            options: json!({"eps": common_rate(space.kind(), 1).1}),
            auto_rate: Some(auto),
            ..ZerothOrderOptions::default()
        };
        let mut trainer =
            ZerothOrderTrainer::new(&cpu, space, Box::new(CrossEntropy), &options).unwrap();
        let before = loss(&mut trainer, &batch);
        let mut rate = 0.0;
        for step in 0..100 {
            let report = trainer.step(step, f64::NAN, &batch).unwrap();
            rate = report.numbers.iter().find(|(name, _)| *name == "rate").unwrap().1;
        }
        let after = loss(&mut trainer, &batch);
        println!("{}: {before} to {after} at {rate:e}", card.name);
        assert!(after < before, "{}: {before} to {after} at {rate:e}", card.name);
    }
}

/// The same texts by methods that have gradients, at one rate for all but those whose steps are as long as
/// the gradient.
#[test]
fn every_method_that_has_gradients_learns_with_its_own_options() {
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    let plain = FirstOrderOptions {
        space: FirstOrderSpace::Lora(GradientLora {
            matrices: LoraMatrices::Named(TARGETS.map(str::to_owned).to_vec()),
            rank: 4,
            ..GradientLora::default()
        }),
        seed: 1,
        ..FirstOrderOptions::default()
    };
    let by = |optimizer| FirstOrderOptions { optimizer, ..plain.clone() };
    let descent = Sgd { momentum: 0.0, ..Sgd::default() };
    let fwdgrad = FirstOrderOptions {
        clip_norm: None,
        forward: Some(FwdgradOptions::default()),
        ..by(OptimizerOptions::Sgd(descent))
    };
    // The model has but two blocks.
    let hybrid = Some(HybridOptions { blocks: 1, ..HybridOptions::default() });
    for (name, options, rate) in [
        ("adamw", plain.clone(), 1e-2),
        ("muon", by(OptimizerOptions::Muon(Muon::default())), 1e-2),
        ("hybrid", FirstOrderOptions { hybrid, ..plain.clone() }, 1e-2),
        ("sgd", by(OptimizerOptions::Sgd(Sgd::default())), 1e-1),
        ("fwdgrad", fwdgrad, 1e-3),
    ] {
        let base = Arc::new(checkpoint("qwen2_tied"));
        let mut trainer = FirstOrder::new(base, options).unwrap();
        let mut losses = Vec::new();
        for step in 0..=100 {
            losses.push(trainer.step(step, rate, &batch).unwrap().loss);
        }
        let (before, after) = (losses[0], losses[100]);
        println!("{name}: {before} to {after} at {rate:e}");
        assert!(after < before, "{name}: {before} to {after} at {rate:e}");
    }
}

/// The tokens that a prefix of `tokens` begins as, from the definition of the draw.
fn first_tokens(seed: u64, tokens: u32, vocabulary: u64) -> Vec<u32> {
    let draw = |at: u32| {
        let counter = [at / 4, tensor_id("prefix"), 0, (Purpose::Initial as u32) << 24];
        let word = Philox::block(Philox::key(seed), counter)[at as usize % 4];
        ((u64::from(word) * vocabulary) >> 32) as u32
    };
    (0..tokens).map(draw).collect()
}

/// Heads in groups of 2, 2 and 3; positions that count from 0 on, whatever stands in front.
#[test]
fn a_prefix_that_has_not_moved_is_its_tokens_in_front_of_a_text() {
    let cpu = cpu(2);
    for name in ["llama_linear", "qwen2_tied", "llama_factors"] {
        let vocabulary = model(name, &cpu).config().vocab_size as u64;
        let front = first_tokens(9, 5, vocabulary);
        let options = PrefixOptions { tokens: 5, seed: 9, ..PrefixOptions::default() };
        let space = VirtualSpace::prefix(&cpu, model(name, &cpu), &options).unwrap();
        let mut prefix = started(&cpu, space, "mezo", &json!({}));
        let mut plain = lora_trainer(&cpu, "mezo", &json!({}), 1, name);
        for text in texts(6) {
            let Example::Text(text) = text else { unreachable!() };
            let own = text.trained.iter().filter(|trained| !**trained).count();
            let (prompt, completion) = text.tokens.split_at(own);
            let whole = Sequence::of(&[&front, prompt].concat(), completion);
            let [behind, in_front, bare] = [
                prefix.score(&[&text]).unwrap()[0],
                plain.score(&[&whole]).unwrap()[0],
                plain.score(&[&text]).unwrap()[0],
            ];
            let off = (behind.logprob / in_front.logprob - 1.0).abs();
            assert!(off < 1e-6, "{name}: {behind:?}, {in_front:?}");
            assert!((bare.logprob / in_front.logprob - 1.0).abs() > 1e-3, "{name}: {bare:?}");
        }
    }
}

/// A matrix of one row is a matrix, which decays; a vector does not.
#[test]
fn factors_of_rank_1_decay() {
    let cpu = cpu(1);
    let lora = LoraOptions { rank: 1, seed: 1, ..LoraOptions::default() };
    let mut space = LoraSpace::new(&cpu, model("qwen2_tied", &cpu), &lora).unwrap();
    let a = space.layout().tensors.iter().position(|spec| spec.name.contains("lora_A")).unwrap();
    let read = |space: &LoraSpace| {
        let mut values = vec![0.0; space.layout().tensors[a].cols];
        space.read(a, &mut values).unwrap();
        values
    };
    let before = read(&space);
    assert_eq!(space.layout().tensors[a].rows, 1);
    space.apply(0, &Update::Linear { decay: 0.5, terms: Vec::new() }).unwrap();
    let halves: Vec<f32> = before.iter().map(|a| 0.5 * a).collect();
    assert_eq!(read(&space), halves);
    let mut space = full("qwen2_tied", &cpu, &FullOptions::default());
    let specs = space.layout().tensors.clone();
    let before = values(&space);
    space.apply(0, &Update::Linear { decay: 0.5, terms: Vec::new() }).unwrap();
    for ((spec, before), after) in specs.iter().zip(&before).zip(values(&space)) {
        let keep = if spec.rows == 1 { 1.0 } else { 0.5 };
        let kept = before.iter().map(|w| (f32::from_bits(*w) * keep).to_bits());
        assert!(kept.eq(after), "{}", spec.name);
    }
    assert!(specs.iter().any(|spec| spec.rows == 1));
}

#[test]
fn a_prefix_learns_too_and_is_what_stands_before_texts() {
    let cpu = cpu(2);
    for name in ["qwen2_tied", "llama_linear", "gemma3_linear"] {
        let options = PrefixOptions { tokens: 3, seed: 1, ..PrefixOptions::default() };
        let space = VirtualSpace::prefix(&cpu, model(name, &cpu), &options).unwrap();
        let probe = json!({"probe": {"eps": 1e-2, "directions": 4}});
        let mut trainer = started(&cpu, space, "mezo", &probe);
        let (before, after) = run(&mut trainer, 80, 1e-2, &texts(4));
        assert!(after < 0.998 * before, "{name}: {before} to {after}");
    }
}

#[test]
fn a_run_is_a_function_of_its_seed_on_any_number_of_threads_and_with_any_limits() {
    let after = |threads, limits, seed| {
        let cpu = cpu(threads);
        let options = ZerothOrderOptions { limits, ..ZerothOrderOptions::default() };
        let lora = LoraOptions { rank: 2, seed, ..LoraOptions::default() };
        let space = LoraSpace::new(&cpu, model("llama_linear", &cpu), &lora).unwrap();
        let space = Box::new(space);
        let mut trainer =
            ZerothOrderTrainer::new(&cpu, space, Box::new(Classification), &options).unwrap();
        run(&mut trainer, 10, 1e-3, &choices());
        values(trainer.space())
    };
    let whole = after(2, StepLimits::default(), 3);
    assert!(whole == after(1, StepLimits { rows: 7, ..StepLimits::default() }, 3));
    assert!(whole == after(3, StepLimits { rows: 30, ..StepLimits::default() }, 3));
    assert!(whole != after(2, StepLimits::default(), 4));
}
