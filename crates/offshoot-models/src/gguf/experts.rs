//! The experts of a GGUF file.
//!
//! ```text
//! {arch}.expert_count, .expert_used_count, .expert_feed_forward_length
//! {arch}.expert_weights_norm     whether shares sum to 1; absent, they do
//! blk.N.ffn_gate_inp.weight      router, [experts, hidden]
//! blk.N.ffn_gate_exps.weight     all gates, [experts, inner, hidden]; ffn_up_exps and ffn_down_exps alike
//! ```

use super::reader::Gguf;
use super::{Shown, canonical, malformed};
use crate::{Error, Experts, Family, ModelConfig};

/// Keys that, unless they have one of these values, mean a router of another kind.
const IDLE: [(&str, [f64; 2]); 5] = [
    ("expert_shared_count", [0.0, 0.0]),
    ("expert_group_count", [0.0, 1.0]),
    ("expert_group_used_count", [0.0, 1.0]),
    ("expert_weights_scale", [0.0, 1.0]),
    // 1 is the softmax.
    ("expert_gating_func", [0.0, 1.0]),
];

/// The layers of experts, if the architecture has them.
pub(super) fn read(gguf: &Gguf<'_>, config: &ModelConfig) -> Result<Option<Experts>, Error> {
    let family = config.family;
    if family != Family::Qwen3Moe {
        return Ok(None);
    }
    let arch = canonical::arch(family);
    for (key, idle) in IDLE {
        let key = format!("{arch}.{key}");
        let whole = gguf.get(&key).and_then(|value| value.as_integer()).map(|n| n as f64);
        let found = match whole {
            Some(found) => Some(found),
            None => gguf.float(&key)?,
        };
        if let Some(found) = found.filter(|found| !idle.contains(found)) {
            let what = format_args!("key {}: {found} is not supported", Shown(&key));
            return Err(malformed(what));
        }
    }
    let size = |key: &str| canonical::required_size(gguf, family, key);
    let num_experts = size("expert_count")?;
    let inner = size("expert_feed_forward_length")?;
    let has_experts =
        |layer: usize| has_experts(gguf, layer, [num_experts, config.hidden_size, inner]);
    let layers = (0..config.num_hidden_layers).map(has_experts).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Experts {
        num_experts,
        num_experts_per_tok: size("expert_used_count")?,
        moe_intermediate_size: inner,
        norm_topk_prob: gguf.flag(&format!("{arch}.expert_weights_norm"))?.unwrap_or(true),
        layers,
    }))
}

/// Whether `layer` has a router and then experts of these sizes: as many as are counted later on are
/// there, byte for byte.
fn has_experts(
    gguf: &Gguf<'_>,
    layer: usize,
    [experts, hidden, inner]: [usize; 3],
) -> Result<bool, Error> {
    let expected: [(&str, &[usize]); 4] = [
        ("ffn_gate_inp", &[experts, hidden]),
        ("ffn_gate_exps", &[experts, inner, hidden]),
        ("ffn_up_exps", &[experts, inner, hidden]),
        ("ffn_down_exps", &[experts, hidden, inner]),
    ];
    for (part, shape) in expected {
        let name = format!("blk.{layer}.{part}.weight");
        let found = gguf.tensor(&name);
        if part == "ffn_gate_inp" && found.is_none() {
            return Ok(false);
        }
        let found = found.map(|found| &found.shape[..]);
        if found != Some(shape) {
            let found =
                found.map_or_else(|| "missing".to_owned(), |found| format!("shape {found:?}"));
            let what = format_args!("tensor {name:?}: {found}, expected {shape:?}");
            return Err(malformed(what));
        }
    }
    Ok(true)
}
