//! What finding a rate takes of memory beside what a step takes, where points are adapters of some size.
//! Alone in its file, because the system counts memory by process.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![cfg(target_os = "linux")]

#[path = "support/memory.rs"]
mod memory;

use std::sync::Arc;

use memory::{smollm2, status};
use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, LoraOptions, LoraSpace, ZerothOrderOptions, ZerothOrderTrainer,
};
use offshoot_engine::tune::{Example, Sequence, Trainer};
use offshoot_kernels::{Cpu, Isa};
use offshoot_methods::tune::RateOptions;
use offshoot_models::PackedModel;

/// A point of these adapters takes 30 million bytes, and a search has 33.
const BESIDE: usize = 32 << 20;

#[test]
fn a_search_for_a_rate_takes_the_memory_of_a_step() {
    let cpu = Cpu::new(Isa::best(), 2);
    let model = Arc::new(PackedModel::load(smollm2(), &cpu, None).unwrap());
    let peak = |auto_rate: Option<RateOptions>| {
        let targets = ["q", "k", "v", "o", "gate", "up", "down"].map(|name| format!("{name}_proj"));
        let lora = LoraOptions { targets: targets.to_vec(), ..LoraOptions::default() };
        let space = LoraSpace::new(&cpu, Arc::clone(&model), &lora).unwrap();
        let options = ZerothOrderOptions { auto_rate, ..ZerothOrderOptions::default() };
        let objective = Box::new(CrossEntropy);
        let mut trainer =
            ZerothOrderTrainer::new(&cpu, Box::new(space), objective, &options).unwrap();
        let example = Example::Text(Sequence::of(&[1, 2, 3], &[4, 5, 6]));
        trainer.step(0, 1e-4, &[&example]).unwrap();
        status("VmHWM")
    };
    let (step, search) = (peak(None), peak(Some(RateOptions::default())));
    assert!(search < step + BESIDE, "{search} bytes at the peak of a search, {step} of a step");
}
