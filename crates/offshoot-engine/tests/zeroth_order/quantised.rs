//! Tuning over a quantised base.

use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    Activations, CrossEntropy, FullOptions, FullSpace, LoraOptions, LoraSpace, Space,
    ZerothOrderOptions, ZerothOrderTrainer,
};
use offshoot_engine::tune::{Example, Trainer};
use offshoot_kernels::Cpu;
use offshoot_methods::tune::Probe;
use offshoot_models::{Checkpoint, PackedModel, Recipe};
use serde_json::json;

use crate::setting::{checkpoint, cpu, texts};

fn quantised() -> Arc<Checkpoint> {
    Arc::new(checkpoint("llama_linear").quantized(Recipe::Q8_0))
}

fn trainer(cpu: &Cpu, space: impl Space + 'static, eps: f64) -> ZerothOrderTrainer {
    let options = ZerothOrderOptions {
        options: json!({"probe": {"eps": eps, "directions": 4}}),
        ..ZerothOrderOptions::default()
    };
    ZerothOrderTrainer::new(cpu, Box::new(space), Box::new(CrossEntropy), &options).unwrap()
}

fn lora(cpu: &Cpu, activations: Activations) -> LoraSpace {
    let model = Arc::new(PackedModel::load(quantised(), cpu, None).unwrap());
    let options = LoraOptions { rank: 4, seed: 2, activations, ..LoraOptions::default() };
    LoraSpace::new(cpu, model, &options).unwrap()
}

#[test]
fn points_beside_a_quantised_base_have_the_losses_of_its_weights_as_floats() {
    let cpu = cpu(2);
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    let mut floats = trainer(&cpu, lora(&cpu, Activations::Float), 1e-2);
    let full = FullSpace::new(&cpu, quantised(), &FullOptions::default()).unwrap();
    let mut full = trainer(&cpu, full, 1e-2);
    let at_base =
        |trainer: &mut ZerothOrderTrainer| trainer.losses(&[Probe::default()], &batch).unwrap()[0];
    // With B at zero both are the base.
    let (a, b) = (at_base(&mut floats), at_base(&mut full));
    assert!((a - b).abs() < 1e-6 * b, "{a} {b}");
    let mut rounded = trainer(&cpu, lora(&cpu, Activations::Stored), 1e-2);
    assert!((at_base(&mut rounded) - a).abs() > 1e-5 * a);
}

#[test]
fn losses_over_a_quantised_base_fall() {
    let cpu = cpu(2);
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    let mut trainer = trainer(&cpu, lora(&cpu, Activations::Float), 1e-2);
    let before = trainer.losses(&[Probe::default()], &batch).unwrap()[0];
    for step in 0..150 {
        let report = trainer.step(step, 5e-3, &batch).unwrap();
        assert!(report.numbers.iter().all(|(name, _)| *name != "noise_floor"));
    }
    let after = trainer.losses(&[Probe::default()], &batch).unwrap()[0];
    assert!(after < 0.95 * before, "{before} to {after}");
}

#[test]
fn rounded_points_that_drown_in_noise_are_refused() {
    let cpu = cpu(2);
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    let mut small = trainer(&cpu, lora(&cpu, Activations::Stored), 1e-5);
    let told = small.step(0, 1e-3, &batch).unwrap_err().to_string();
    assert!(told.contains("is noise, more than 5 %"), "{told}");
    // So small a step is sound where nothing is rounded to eight bits.
    let mut floats = trainer(&cpu, lora(&cpu, Activations::Float), 1e-5);
    floats.step(0, 1e-3, &batch).unwrap();
}
