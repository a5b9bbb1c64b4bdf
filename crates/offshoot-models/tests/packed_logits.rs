//! The packed executor against transformers: every branch of the families, on float weights.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::sync::Arc;

use logits::{MODELS, checkpoint, max_error, reference};
use offshoot_kernels::{Cpu, Isa};
use offshoot_models::{
    LogitRows, NoHooks, PackedExecutor, PackedModel, RopeId, Segment, VariantId, chain,
};

/// Keys and values are halves, which err by up to 2^-11 of their size; these random models, whose
/// attention is sharp, make of it up to 1.6e-3 of the greatest logit. A wrong rotation, bias or norm
/// moves logits by tenths of it.
const CLOSE: f32 = 2.5e-3;

/// Logits of all tokens, read in chunks of `chunk`.
fn run(name: &str, isa: Isa, threads: usize, chunk: usize) -> Vec<f32> {
    let cpu = Cpu::new(isa, threads);
    let model = PackedModel::load(Arc::new(checkpoint(name)), &cpu, None).unwrap();
    let tokens = reference(name).tokens;
    let mut executor = PackedExecutor::new(cpu, model.config());
    let mut cache = model.new_cache(tokens.len());
    let mut out = Vec::new();
    for piece in tokens.chunks(chunk) {
        let base = cache.len() as u32;
        let segment = Segment {
            cache: &mut cache,
            tokens: piece,
            parents: &chain(piece.len()),
            positions: &(base..base + piece.len() as u32).collect::<Vec<_>>(),
            rope: RopeId::default(),
            variant: VariantId::default(),
            logits: LogitRows::All,
        };
        out.extend_from_slice(executor.step(&model, &mut [segment], &mut NoHooks).unwrap());
        cache.commit_chain(piece.len());
    }
    out
}

#[test]
fn logits_are_those_of_transformers() {
    for name in MODELS {
        let error = max_error(&run(name, Isa::best(), 2, 1000), &reference(name).logits);
        let greatest = reference(name).logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(error < CLOSE * greatest, "{name}: {error} of {greatest}");
    }
}

#[test]
fn bits_do_not_depend_on_instructions_threads_or_chunks() {
    for name in MODELS {
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let expected = bits(run(name, Isa::PORTABLE, 1, 1000));
        for isa in Isa::available() {
            for (threads, chunk) in [(1, 1), (2, 3), (3, 1000)] {
                assert!(bits(run(name, isa, threads, chunk)) == expected, "{name} {isa} {chunk}");
            }
        }
    }
}

#[test]
fn nothing_asked_is_nothing_given() {
    let cpu = Cpu::new(Isa::best(), 2);
    let model = PackedModel::load(Arc::new(checkpoint(MODELS[0])), &cpu, None).unwrap();
    let mut executor = PackedExecutor::new(cpu, model.config());
    assert!(executor.step(&model, &mut [], &mut NoHooks).unwrap().is_empty());
    assert!(executor.step_greatest(&model, &mut [], &mut NoHooks).unwrap().is_empty());
    let mut cache = model.new_cache(4);
    let segment = Segment {
        cache: &mut cache,
        tokens: &[1],
        parents: &chain(1),
        positions: &[0],
        rope: RopeId::default(),
        variant: VariantId::default(),
        logits: LogitRows::Last,
    };
    assert_eq!(executor.step_greatest(&model, &mut [segment], &mut NoHooks).unwrap().len(), 1);
    assert!(executor.logits_mut().is_empty(), "logits that no step gave");
}
