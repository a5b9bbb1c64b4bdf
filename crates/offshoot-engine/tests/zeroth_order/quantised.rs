//! Tuning over a quantised base.

use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    Activations, CrossEntropy, FullOptions, FullSpace, LoraOptions, LoraSpace, ScalesOptions,
    ScalesSpace, Space, ZerothOrderOptions, ZerothOrderTrainer, carry_out, space_of,
};
use offshoot_engine::tune::{Example, Trainer};
use offshoot_kernels::Cpu;
use offshoot_methods::tune::{Probe, Trajectory};
use offshoot_models::{Adapter, Checkpoint, PackedModel, Recipe};
use serde_json::json;

use crate::setting::{checkpoint, cpu, texts, values};

fn quantised(recipe: Recipe) -> Arc<Checkpoint> {
    Arc::new(checkpoint("llama_linear").quantized(recipe))
}

fn trainer(cpu: &Cpu, space: impl Space + 'static, eps: f64) -> ZerothOrderTrainer {
    let options = ZerothOrderOptions {
        options: json!({"probe": {"eps": eps, "directions": 4}}),
        ..ZerothOrderOptions::default()
    };
    ZerothOrderTrainer::new(cpu, Box::new(space), Box::new(CrossEntropy), &options).unwrap()
}

fn lora(cpu: &Cpu, recipe: Recipe, activations: Activations) -> LoraSpace {
    let model = Arc::new(PackedModel::load(quantised(recipe), cpu, None).unwrap());
    let options = LoraOptions { rank: 4, seed: 2, activations, ..LoraOptions::default() };
    LoraSpace::new(cpu, model, &options).unwrap()
}

#[test]
fn points_beside_a_quantised_base_have_the_losses_of_its_weights_as_floats() {
    let cpu = cpu(2);
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    let mut floats = trainer(&cpu, lora(&cpu, Recipe::Q8_0, Activations::Float), 1e-2);
    let full = FullSpace::new(&cpu, quantised(Recipe::Q8_0), &FullOptions::default()).unwrap();
    let mut full = trainer(&cpu, full, 1e-2);
    let at_base =
        |trainer: &mut ZerothOrderTrainer| trainer.losses(&[Probe::default()], &batch).unwrap()[0];
    // With B at zero both are the base.
    let (a, b) = (at_base(&mut floats), at_base(&mut full));
    assert!((a - b).abs() < 1e-6 * b, "{a} {b}");
    let mut rounded = trainer(&cpu, lora(&cpu, Recipe::Q8_0, Activations::Stored), 1e-2);
    assert_ne!(at_base(&mut rounded), a);
}

#[test]
fn losses_over_a_quantised_base_fall() {
    let cpu = cpu(2);
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    for recipe in [Recipe::Q8_0, Recipe::Q4_0] {
        let mut trainer = trainer(&cpu, lora(&cpu, recipe, Activations::Float), 1e-2);
        let before = trainer.losses(&[Probe::default()], &batch).unwrap()[0];
        for step in 0..150 {
            let report = trainer.step(step, 5e-3, &batch).unwrap();
            assert!(report.numbers.iter().all(|(name, _)| *name != "noise_floor"));
        }
        let after = trainer.losses(&[Probe::default()], &batch).unwrap()[0];
        assert!(after < 0.95 * before, "{recipe:?}: {before} to {after}");
    }
}

#[test]
fn rounded_points_that_drown_in_noise_are_refused() {
    let cpu = cpu(2);
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    let mut small = trainer(&cpu, lora(&cpu, Recipe::Q8_0, Activations::Stored), 1e-5);
    let told = small.step(0, 1e-3, &batch).unwrap_err().to_string();
    assert!(told.contains("is noise, more than 5 %"), "{told}");
    // So small a step is sound where nothing is rounded to eight bits.
    let mut floats = trainer(&cpu, lora(&cpu, Recipe::Q8_0, Activations::Float), 1e-5);
    floats.step(0, 1e-3, &batch).unwrap();
}

/// The scales of queries and of the way down.
fn scales(cpu: &Cpu, recipe: Recipe) -> ScalesSpace {
    let model = Arc::new(PackedModel::load(quantised(recipe), cpu, None).unwrap());
    let targets = ["q_proj", "down_proj"].map(str::to_owned).to_vec();
    ScalesSpace::new(cpu, model, &ScalesOptions { targets, seed: 2, ..ScalesOptions::default() })
        .unwrap()
}

#[test]
fn multiples_of_scales_are_multiples_of_weights() {
    let cpu = cpu(2);
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    let loss =
        |trainer: &mut ZerothOrderTrainer| trainer.losses(&[Probe::default()], &batch).unwrap()[0];
    let mut full = FullSpace::new(&cpu, quantised(Recipe::Q8_0), &FullOptions::default()).unwrap();
    let mut ours = scales(&cpu, Recipe::Q8_0);
    let names: Vec<_> = ours.layout().tensors.iter().map(|spec| spec.name.clone()).collect();
    for (tensor, name) in names.iter().enumerate() {
        let spec = ours.layout().tensors[tensor].clone();
        let factors: Vec<f32> =
            (0..spec.rows * spec.cols).map(|i| 1.0 + 0.2 * (i as f32).sin()).collect();
        ours.write(tensor, &factors).unwrap();
        let weight = name.replace(".scales", ".weight");
        let at = full.layout().tensors.iter().position(|spec| spec.name == weight).unwrap();
        let whole = full.layout().tensors[at].clone();
        let mut weights = vec![0.0; whole.rows * whole.cols];
        full.read(at, &mut weights).unwrap();
        let group = whole.cols / spec.cols;
        for (i, w) in weights.iter_mut().enumerate() {
            *w *= factors[i / whole.cols * spec.cols + i % whole.cols / group];
        }
        full.write(at, &weights).unwrap();
    }
    let base = loss(&mut trainer(&cpu, scales(&cpu, Recipe::Q8_0), 1e-2));
    let (a, b) = (loss(&mut trainer(&cpu, ours, 1e-2)), loss(&mut trainer(&cpu, full, 1e-2)));
    assert!((a - b).abs() < 1e-6 * b && (a - base).abs() > 1e-3 * base, "{a} {b} {base}");
}

#[test]
fn tuned_scales_fall_in_loss_stay_above_zero_and_are_made_again_and_written() {
    let cpu = cpu(2);
    let batch = texts(4);
    let batch: Vec<&Example> = batch.iter().collect();
    let options = ZerothOrderOptions {
        method: "qzo".to_owned(),
        options: json!({"probe": {"eps": 1e-2, "directions": 4}}),
        ..ZerothOrderOptions::default()
    };
    for recipe in [Recipe::Q8_0, Recipe::Q4_0] {
        let space = Box::new(scales(&cpu, recipe));
        let mut trainer =
            ZerothOrderTrainer::new(&cpu, space, Box::new(CrossEntropy), &options).unwrap();
        let before = trainer.losses(&[Probe::default()], &batch).unwrap()[0];
        for step in 0..120 {
            trainer.step(step, 2e-2, &batch).unwrap();
        }
        let after = trainer.losses(&[Probe::default()], &batch).unwrap()[0];
        assert!(after < 0.97 * before, "{recipe:?}: {before} to {after}");
        let tuned = values(trainer.space());
        assert!(tuned.iter().flatten().all(|bits| f32::from_bits(*bits) >= 0.0));
        let trajectory = Trajectory::from_bytes(&trainer.trajectory()).unwrap();
        let mut again = space_of(&cpu, quantised(recipe), &trajectory.parts[0].header).unwrap();
        carry_out(&trajectory, &mut *again).unwrap();
        assert!(values(&*again) == tuned);
        let folder = tempfile::tempdir().unwrap();
        trainer.write_variant(folder.path()).unwrap();
        let read = Adapter::open(folder.path(), quantised(recipe).config()).unwrap();
        for (spec, tuned) in trainer.space().layout().tensors.iter().zip(&tuned) {
            let factors = &read.scales().unwrap().matrices[spec.name.trim_end_matches(".scales")];
            let written: Vec<u32> = factors.values.iter().map(|x| x.to_bits()).collect();
            assert_eq!((&written, factors.group), (tuned, 32), "{}", spec.name);
        }
    }
}

#[test]
fn a_step_that_would_turn_a_scale_round_ends_at_zero_and_floats_have_no_scales() {
    let cpu = cpu(1);
    let batch = texts(2);
    let batch: Vec<&Example> = batch.iter().collect();
    let mut trainer = trainer(&cpu, scales(&cpu, Recipe::Q8_0), 1e-2);
    trainer.step(0, 1e3, &batch).unwrap();
    let tuned: Vec<f32> =
        values(trainer.space()).iter().flatten().map(|bits| f32::from_bits(*bits)).collect();
    assert!(tuned.iter().all(|x| *x >= 0.0) && tuned.contains(&0.0));
    let floats = Arc::new(checkpoint("llama_linear"));
    let floats = Arc::new(PackedModel::load(floats, &cpu, None).unwrap());
    let targets = vec!["q_proj".to_owned()];
    let options = ScalesOptions { targets, ..ScalesOptions::default() };
    let told = ScalesSpace::new(&cpu, floats, &options).unwrap_err().to_string();
    assert!(told.contains("none of the matrices is quantised"), "{told}");
}
