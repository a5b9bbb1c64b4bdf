//! Tuning a real model.

use offshoot_engine::store::{PullPolicy, Quiet, Store};
use offshoot_engine::tune::zeroth_order::{
    Classification, CrossEntropy, LoraOptions, LoraSpace, Objective, ZerothOrderOptions,
    ZerothOrderTrainer, carry_out, weights_hash,
};
use offshoot_engine::tune::{Example, Scorer, Sequence, Trainer};
use offshoot_engine::{LoadOptions, Model};
use offshoot_kernels::{Cpu, Distribution};
use offshoot_methods::tune::{Probe, RateOptions, Trajectory};
use offshoot_models::Special;
use serde_json::json;

fn smollm2() -> (Model, Cpu) {
    let store = Store::from_env().unwrap();
    let path = store.resolve(&"smollm2".parse().unwrap(), PullPolicy::Allow, &Quiet).unwrap().path;
    Model::load(&path, &LoadOptions { threads: 2, ..LoadOptions::default() }).unwrap()
}

fn lora(model: &Model, cpu: &Cpu) -> LoraSpace {
    let options = LoraOptions {
        fixed_a: true,
        seed: 4,
        distribution: Distribution::Rademacher,
        ..LoraOptions::default()
    };
    LoraSpace::new(cpu, model.shared_packed().unwrap(), &options).unwrap()
}

fn trainer(
    model: &Model,
    cpu: &Cpu,
    objective: impl Objective + 'static,
    auto_rate: bool,
) -> ZerothOrderTrainer {
    let options = ZerothOrderOptions {
        options: json!({"probe": {"eps": 1e-2, "directions": 2}}),
        auto_rate: auto_rate.then_some(RateOptions { probes: 8, ..RateOptions::default() }),
        ..ZerothOrderOptions::default()
    };
    let space = Box::new(lora(model, cpu));
    ZerothOrderTrainer::new(cpu, space, Box::new(objective), &options).unwrap()
}

/// Films and what is thought of them.
fn reviews(model: &Model) -> Vec<Example> {
    let encode = |text: &str| model.encode_text(text).unwrap();
    let word = |text: &str| model.tokenizer().encode(text, Special::Text).unwrap();
    let candidates = vec![word(" terrible"), word(" great")];
    let row = |(text, answer): &(&str, usize)| Example::Choice {
        prompt: encode(&format!("{text} It was")),
        candidates: candidates.clone(),
        answers: vec![*answer],
    };
    let rows = [
        ("a dull, lifeless film.", 0),
        ("warm, funny and moving.", 1),
        ("i want my two hours back.", 0),
        ("the best picture of the year.", 1),
    ];
    rows.iter().map(row).collect()
}

#[test]
fn a_choice_is_learned_and_the_run_made_again() {
    let (model, cpu) = smollm2();
    let mut trainer = trainer(&model, &cpu, Classification, true);
    let rows = reviews(&model);
    let batch: Vec<&Example> = rows.iter().collect();
    let before = trainer.losses(&[Probe::default()], &batch).unwrap()[0];
    for step in 0..10 {
        trainer.step(step, 0.0, &batch).unwrap();
    }
    let after = trainer.losses(&[Probe::default()], &batch).unwrap()[0];
    assert!(after < 0.7 * before, "{before} to {after}");
    let trajectory = Trajectory::from_bytes(&trainer.trajectory()).unwrap();
    let mut again = lora(&model, &cpu);
    carry_out(&trajectory, &mut again).unwrap();
    assert_eq!(weights_hash(&again).unwrap(), weights_hash(trainer.space()).unwrap());
}

#[test]
fn what_is_added_from_zero_writes_as_the_model_does() {
    let (model, cpu) = smollm2();
    let mut trainer = trainer(&model, &cpu, CrossEntropy, false);
    let prompts = ["The capital of France is", "Once upon a time", "1, 2, 3,"];
    let prompts: Vec<Vec<u32>> = prompts.iter().map(|p| model.encode_text(p).unwrap()).collect();
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let together = trainer.generate(&all, 8).unwrap();
    for (prompt, made) in all.iter().zip(&together) {
        assert_eq!(trainer.generate(&[prompt], 8).unwrap()[0], *made);
        // What it wrote is what it finds likeliest, up to where it stopped.
        let text = Sequence::of(prompt, made);
        let scored = trainer.score(&[&text]).unwrap()[0];
        assert_eq!((scored.tokens, scored.greedy), (made.len(), made.len()));
        assert!(!made.is_empty());
    }
}
