//! What loading a model to tune all of its weights and writing them takes of memory beside the weights.
//! Alone in its file, because the system counts memory by process.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![cfg(target_os = "linux")]

#[path = "support/memory.rs"]
mod memory;

use std::sync::Arc;

use memory::{smollm2, status};
use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, FullOptions, FullSpace, ZerothOrderOptions, ZerothOrderTrainer, weights_hash,
};
use offshoot_engine::tune::{Example, Sequence, Trainer};
use offshoot_kernels::{Cpu, FloatStore, Isa};
use offshoot_models::Checkpoint;

/// Bytes that may come beside the weights: buffers, what the allocator keeps, and the program's pages.
/// The largest tensor, which stands for a second copy of anything, has 113 million.
const BESIDE: usize = 64 << 20;

#[test]
fn all_weights_are_loaded_written_and_read_back_without_a_second_copy_of_any_tensor() {
    let checkpoint = smollm2();
    let weights = usize::try_from(FullSpace::weight_bytes(&checkpoint, FloatStore::F32)).unwrap();
    let cpu = Cpu::new(Isa::best(), 2);
    let before = status("VmRSS");
    let most = before + weights + BESIDE;
    let space = FullSpace::new(&cpu, Arc::clone(&checkpoint), &FullOptions::default()).unwrap();
    let loaded = status("VmHWM");
    assert!(loaded < most, "{loaded} bytes at the peak of loading {weights}, {before} before");
    let options = ZerothOrderOptions::default();
    let mut trainer =
        ZerothOrderTrainer::new(&cpu, Box::new(space), Box::new(CrossEntropy), &options).unwrap();
    let example = Example::Text(Sequence::of(&[1, 2, 3], &[4, 5, 6]));
    trainer.step(0, 1e-6, &[&example]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let (state, variant) = (folder("state"), folder("variant"));
    trainer.save(&state).unwrap();
    let saved = status("VmHWM");
    assert!(saved < most, "{saved} bytes at the peak of saving {weights}, {before} before");
    trainer.write_variant(&variant).unwrap();
    let written = status("VmHWM");
    assert!(written < most, "{written} bytes at the peak of writing {weights}, {before} before");
    // What was written is what is tuned.
    let hash = weights_hash(trainer.space()).unwrap();
    drop(trainer);
    let whole = Arc::new(Checkpoint::open(&variant).unwrap());
    let again = FullSpace::new(&cpu, whole, &FullOptions::default()).unwrap();
    assert_eq!(weights_hash(&again).unwrap(), hash);
    let read = status("VmHWM");
    assert!(read < most, "{read} bytes at the peak of reading {weights} again, {before} before");
}
