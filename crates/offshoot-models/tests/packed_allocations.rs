//! A step of the packed executor allocates nothing, once the first ones have made room: every family.
//!
//! A test program of its own: what is counted is what the whole process allocates, on any thread.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/logits.rs"]
mod logits;

use std::alloc::System;
use std::sync::Arc;

use logits::{MODELS, checkpoint, reference};
use offshoot_kernels::{Cpu, Isa};
use offshoot_models::{
    LogitRows, NoHooks, PackedExecutor, PackedModel, RopeId, Segment, VariantId,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn a_token_allocates_nothing() {
    for name in MODELS {
        let cpu = Cpu::new(Isa::best(), 2);
        let model = PackedModel::load(Arc::new(checkpoint(name)), &cpu, None).unwrap();
        let tokens = reference(name).tokens;
        let mut executor = PackedExecutor::new(cpu, model.config());
        let mut cache = model.new_cache(tokens.len());
        // Twice the same text: the first time makes room for its positions.
        for watched in [false, true] {
            cache.truncate(0);
            let region = Region::new(ALLOCATOR);
            for (position, token) in tokens.iter().enumerate() {
                let segment = Segment {
                    cache: &mut cache,
                    tokens: &[*token],
                    parents: &[None],
                    positions: &[position as u32],
                    rope: RopeId::default(),
                    variant: VariantId::default(),
                    logits: LogitRows::Last,
                };
                let logits = executor.step(&model, &mut [segment], &mut NoHooks).unwrap();
                assert!(logits[0].is_finite());
                cache.commit_chain(1);
            }
            let change = region.change();
            assert_eq!(change == Stats::default(), watched, "{name}: {change:?}");
        }
    }
}
