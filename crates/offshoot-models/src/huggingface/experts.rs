//! The experts of a `config.json`, and those that a folder keeps all in one tensor.
//!
//! ```text
//! num_experts, or num_local_experts   experts of a layer, absent 128
//! num_experts_per_tok                 experts that a row goes through, absent 8
//! moe_intermediate_size               width of one, absent 768
//! norm_topk_prob                      whether the shares of a row sum to 1, absent false
//! decoder_sparse_step                 every how many layers one has experts, absent 1
//! mlp_only_layers                     layers that have none all the same
//! ```
//! The numbers that are taken where a file has none are those of transformers.

use std::collections::BTreeMap;

use super::fields::Fields;
use super::safetensors::Place;
use super::shards::Stored;
use crate::shown::Shown;
use crate::{Error, Experts, Family, ModelConfig};

/// The layers of experts, if the architecture has them, of a model of `layers` layers.
pub(super) fn read(
    fields: Fields<'_>,
    family: Family,
    layers: usize,
) -> Result<Option<Experts>, Error> {
    if family != Family::Qwen3Moe {
        return Ok(None);
    }
    let names = ["num_experts", "num_local_experts"];
    let [num_experts, other] = [fields.size(names[0])?, fields.size(names[1])?];
    if let (Some(one), Some(other)) = (num_experts, other)
        && one != other
    {
        let what = format!("{other}, but num_experts is {one}");
        return Err(fields.error(names[1], what));
    }
    let step = fields.size("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(fields.error("decoder_sparse_step", "0, expected 1 or more"));
    }
    let mut has_experts: Vec<bool> = (1..=layers).map(|i| i.is_multiple_of(step)).collect();
    for layer in fields.list("mlp_only_layers")?.unwrap_or_default() {
        let place = layer.as_u64().and_then(|layer| usize::try_from(layer).ok());
        match place.and_then(|layer| has_experts.get_mut(layer)) {
            Some(has) => *has = false,
            None => {
                let found = layer.to_string();
                let what = format!("{}, expected layers below {layers}", Shown(&found));
                return Err(fields.error("mlp_only_layers", what));
            }
        }
    }
    Ok(Some(Experts {
        num_experts: num_experts.or(other).unwrap_or(128),
        num_experts_per_tok: fields.size("num_experts_per_tok")?.unwrap_or(8),
        moe_intermediate_size: fields.size("moe_intermediate_size")?.unwrap_or(768),
        norm_topk_prob: fields.flag("norm_topk_prob")?.unwrap_or(false),
        layers: has_experts,
    }))
}

/// Makes matrices of their own of those that a folder of transformers 5 may keep in one tensor: gates
/// and ups of all experts, `[experts, 2 inner, hidden]`, and downs, `[experts, hidden, inner]`. What
/// has another shape stays, and is then one that the model does not know.
pub(super) fn part_fused(config: &ModelConfig, stored: &mut BTreeMap<String, Stored>) {
    let hidden = config.hidden_size;
    for layer in 0..config.num_hidden_layers {
        let Some(experts) = config.experts(layer) else { continue };
        let Experts { num_experts, moe_intermediate_size: inner, .. } = *experts;
        let fused: [(&str, &[&str], [usize; 2]); 2] = [
            ("gate_up_proj", &["gate_proj", "up_proj"], [inner, hidden]),
            ("down_proj", &["down_proj"], [hidden, inner]),
        ];
        for (whole, parts, [rows, cols]) in fused {
            let name = format!("model.layers.{layer}.mlp.experts.{whole}");
            let part_name = |expert: usize, part: &str| {
                format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight")
            };
            let shape = [num_experts, parts.len() * rows, cols];
            // A part that is there on its own, too, is then one that the model does not know.
            let mut all =
                (0..num_experts).flat_map(|expert| parts.iter().map(move |p| (expert, p)));
            let alone = stored.contains_key(&name)
                && all.any(|(expert, part)| stored.contains_key(&part_name(expert, part)));
            let Some(Stored { file, place }) =
                stored.get(&name).filter(|it| it.place.shape == shape && !alone).cloned()
            else {
                continue;
            };
            stored.remove(&name);
            let part_bytes = place.range.len() / (num_experts * parts.len());
            let mut start = place.range.start;
            for expert in 0..num_experts {
                for part in parts {
                    let range = start..start + part_bytes;
                    start = range.end;
                    let place = Place { shape: vec![rows, cols], range, block: place.block };
                    stored.insert(part_name(expert, part), Stored { file, place });
                }
            }
        }
    }
}
