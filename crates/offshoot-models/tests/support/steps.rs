//! A step of the packed executor.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use offshoot_kernels::KvCache;
use offshoot_models::{
    Hooks, LogitRows, PackedExecutor, PackedModel, RopeId, Segment, VariantId, chain,
};

/// Logits of all of `tokens`, `[tokens, vocab_size]`, run in one step as a text of `variant` behind
/// what `cache` holds. They are not kept there yet.
pub(crate) fn packed_step(
    executor: &mut PackedExecutor,
    model: &PackedModel,
    cache: &mut KvCache,
    hooks: &mut dyn Hooks,
    (tokens, rope, variant): (&[u32], RopeId, VariantId),
) -> Vec<f32> {
    let first = cache.len() as u32;
    let segment = Segment {
        cache,
        tokens,
        parents: &chain(tokens.len()),
        positions: &(first..first + tokens.len() as u32).collect::<Vec<_>>(),
        rope,
        variant,
        logits: LogitRows::All,
    };
    executor.step(model, &mut [segment], hooks).unwrap().to_vec()
}
