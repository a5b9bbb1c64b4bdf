//! All weights of a model are tuned in less memory than they take. Alone in its file, because the system
//! counts memory by process.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![cfg(target_os = "linux")]

#[path = "support/memory.rs"]
mod memory;

use std::path::Path;
use std::sync::Arc;

use memory::{smollm2, status};
use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, FullOptions, FullSpace, ZerothOrderOptions, ZerothOrderTrainer, weights_hash,
};
use offshoot_engine::tune::{Example, Scorer, Sequence, Trainer};
use offshoot_kernels::{Cpu, FloatStore, Isa};
use offshoot_models::Checkpoint;

fn trainer(checkpoint: &Arc<Checkpoint>, cpu: &Cpu, folder: Option<&Path>) -> ZerothOrderTrainer {
    let options = FullOptions { folder: folder.map(Path::to_owned), ..FullOptions::default() };
    let space = Box::new(FullSpace::new(cpu, Arc::clone(checkpoint), &options).unwrap());
    let options = ZerothOrderOptions::default();
    ZerothOrderTrainer::new(cpu, space, Box::new(CrossEntropy), &options).unwrap()
}

/// Some steps on texts of 256 tokens in all.
fn run(trainer: &mut ZerothOrderTrainer, steps: std::ops::Range<u64>) {
    let tokens = |seed: u32| (0..32).map(|i| (seed * 7919 + i * 104_729) % 49_000).collect();
    let text = |seed: u32| {
        let (prompt, answer): (Vec<u32>, Vec<u32>) = (tokens(2 * seed), tokens(2 * seed + 1));
        Example::Text(Sequence::of(&prompt, &answer))
    };
    let all: Vec<Example> = (0..4).map(text).collect();
    let batch: Vec<&Example> = all.iter().collect();
    for step in steps {
        trainer.step(step, 1e-6, &batch).unwrap();
    }
}

#[test]
fn a_model_is_tuned_in_less_memory_than_its_weights_take_and_to_the_same_bits() {
    let checkpoint = smollm2();
    let weights = usize::try_from(FullSpace::weight_bytes(&checkpoint, FloatStore::F32)).unwrap();
    let cpu = Cpu::new(Isa::best(), 2);
    let dir = tempfile::tempdir().unwrap();
    let (state, variant) = (dir.path().join("state"), dir.path().join("variant"));
    [&state, &variant].iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    let mut there = trainer(&checkpoint, &cpu, Some(dir.path()));
    run(&mut there, 0..1);
    there.settle().unwrap();
    there.save(&state).unwrap();
    drop(there);
    let mut there = trainer(&checkpoint, &cpu, Some(dir.path()));
    there.restore(&state).unwrap();
    run(&mut there, 1..3);
    let text = Sequence::of(&[1, 2, 3], &[4, 5, 6]);
    let scored = there.score(&[&text]).unwrap();
    there.write_variant(&variant).unwrap();
    let (hash, trajectory) = (weights_hash(there.space()).unwrap(), there.trajectory());
    drop(there);
    let most = status("VmHWM");
    assert!(most < 3 * weights / 4, "{most} bytes at the peak, of {weights} of weights");
    let mut here = trainer(&checkpoint, &cpu, None);
    run(&mut here, 0..3);
    assert!(status("VmHWM") > weights, "what is in memory is seen there");
    assert_eq!(here.score(&[&text]).unwrap(), scored);
    assert_eq!(here.trajectory(), trajectory);
    assert_eq!(weights_hash(here.space()).unwrap(), hash);
}
