//! A run of MeZO that PyTorch made, step by step: `scripts/oracles/mezo.py` recorded it, on a small
//! Llama and along our directions. Those it draws by a copy of our generator in Python: no file of
//! numbers that PyTorch drew has to be brought in for both to go the same way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_engine::tune::zeroth_order::{
    CrossEntropy, FullOptions, FullSpace, Space, StepLimits,
};
use offshoot_engine::tune::{Example, Sequence};
use offshoot_methods::tune::{Direction, Term, Update};
use offshoot_models::Checkpoint;
use serde::Deserialize;

use crate::setting::{cpu, probe, trainer};

#[derive(Deserialize)]
struct Step {
    above: f64,
    below: f64,
    g: f64,
}

#[derive(Deserialize)]
struct Recorded {
    seed: u64,
    eps: f32,
    rate: f64,
    texts: Vec<Vec<u32>>,
    steps: Vec<Step>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mezo")
}

fn space(seed: u64) -> FullSpace {
    let options = FullOptions { seed, ..FullOptions::default() };
    FullSpace::new(&cpu(2), Arc::new(Checkpoint::open(&folder()).unwrap()), &options).unwrap()
}

fn numbers(space: &dyn Space) -> Vec<Vec<f32>> {
    let tensors = space.layout().tensors.iter().enumerate();
    let read = tensors.map(|(tensor, spec)| {
        let mut out = vec![0.0; spec.rows * spec.cols];
        space.read(tensor, &mut out).unwrap();
        out
    });
    read.collect()
}

/// Of the losses, over their size: sums in another order.
const LOSS: f64 = 1e-6;
/// Of a slope, over its size and beside it: what losses are off by, divided by twice eps.
const SLOPE: (f64, f64) = (1e-3, 2e-4);
/// Of a weight after all steps: PyTorch moves them to the points and back, and rounds on the way.
const WEIGHT: f32 = 1e-6;

#[test]
fn losses_slopes_and_weights_are_those_of_a_run_of_pytorch() {
    let run: Recorded =
        serde_json::from_slice(&std::fs::read(folder().join("run.json")).unwrap()).unwrap();
    let text = |tokens: &Vec<u32>| Example::Text(Sequence::of(&tokens[..1], &tokens[1..]));
    let texts: Vec<Example> = run.texts.iter().map(text).collect();
    let batch: Vec<&Example> = texts.iter().collect();
    let mut tuned = space(run.seed);
    let first = numbers(&tuned).concat();
    let mut worst = [0.0_f64; 2];
    for (step, expected) in run.steps.iter().enumerate() {
        let mut here = space(run.seed);
        for (tensor, values) in numbers(&tuned).iter().enumerate() {
            here.write(tensor, values).unwrap();
        }
        let mut trainer = trainer(&cpu(2), here, CrossEntropy, StepLimits::default());
        let both = [probe(step as u32, run.eps), probe(step as u32, -run.eps)];
        let losses = trainer.losses(&both, &batch).unwrap();
        for (loss, expected) in losses.iter().zip([expected.above, expected.below]) {
            worst[0] = worst[0].max((loss / expected - 1.0).abs());
        }
        let g = (losses[0] - losses[1]) / (2.0 * f64::from(run.eps));
        let allowed = SLOPE.0 * expected.g.abs() + SLOPE.1;
        worst[1] = worst[1].max((g - expected.g).abs() / allowed);
        let scale = (run.rate * expected.g) as f32;
        let terms = vec![Term { scale, direction: Direction::dense(step as u32, 0) }];
        tuned.apply(0, &Update::Linear { decay: 0.0, terms }).unwrap();
    }
    assert!(worst[0] < LOSS && worst[1] < 1.0, "losses, slopes over what is allowed: {worst:?}");
    let end = std::fs::read(folder().join("end.f32")).unwrap();
    let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    let end: Vec<f32> = end.chunks_exact(4).map(number).collect();
    let now = numbers(&tuned).concat();
    assert_eq!(now.len(), end.len());
    let most =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most(&now, &end) < WEIGHT, "off by {}", most(&now, &end));
    assert!(most(&first, &end) > 100.0 * WEIGHT, "moved by {}", most(&first, &end));
}
