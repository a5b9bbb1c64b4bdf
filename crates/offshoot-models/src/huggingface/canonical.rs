//! A folder's tensors as those that the architecture asks for. The names are canonical as they are.

use std::collections::BTreeMap;

use super::safetensors::Place;
use super::shards::Stored;
use super::{INDEX, Parts, WEIGHTS, experts, wrong};
use crate::medusa::HEADS_PREFIX;
use crate::shown::Shown;
use crate::{Architecture, Error, Family, ModelConfig, RowOrder, TensorInfo};

/// The tensors under canonical names, and those of the folder that the model does without.
///
/// # Errors
/// [`Error::File`] for a tensor that is missing, of another shape, or that the architecture does not
/// know, since a model with more than it knows is of a kind that it would run wrongly.
pub(super) fn map(
    config: &ModelConfig,
    mut stored: BTreeMap<String, Stored>,
    parts: &Parts<'_>,
) -> Result<(BTreeMap<String, TensorInfo>, Vec<String>), Error> {
    let file = |number: usize| parts.weights[number].0.as_str();
    if config.family == Family::Phi3 {
        part_fused(config, &mut stored);
    }
    if config.family == Family::Gemma3 {
        take_out_text_model(&mut stored);
    }
    experts::part_fused(config, &mut stored);
    check_experts(config, &stored, parts)?;
    let mut tensors = BTreeMap::new();
    for (name, shape) in wanted(config) {
        if tensors.contains_key(&name) {
            continue; // The embedding, as the output head.
        }
        let Some(Stored { file: number, place }) = stored.remove(&name) else {
            return Err(unfit(&name, &shape, None, parts));
        };
        if place.shape != shape {
            return Err(unfit(&name, &shape, Some(&Stored { file: number, place }), parts));
        }
        let (block, range) = (place.block, place.range);
        let rows = RowOrder::Plain;
        let shift = shift(config.family, &name);
        tensors.insert(name, TensorInfo { shape, block, range, file: number, rows, shift });
    }
    if let Some((name, found)) = stored.iter().find(|(name, _)| !is_idle(config, name)) {
        let what = format!(
            "tensor {}: not one of a {} model with this config.json",
            Shown(name),
            config.family.name()
        );
        return Err(wrong(file(found.file), what));
    }
    Ok((tensors, stored.into_keys().collect()))
}

/// Checks that there are as many experts as `config.json` says before names of all are kept, so that
/// how many are is bounded by what the files hold.
fn check_experts(
    config: &ModelConfig,
    stored: &BTreeMap<String, Stored>,
    parts: &Parts<'_>,
) -> Result<(), Error> {
    for layer in 0..config.num_hidden_layers {
        let Some(experts) = config.experts(layer) else { continue };
        let router = format!("model.layers.{layer}.mlp.gate.weight");
        let shape = [experts.num_experts, config.hidden_size];
        if stored.get(&router).is_none_or(|found| found.place.shape != shape) {
            return Err(unfit(&router, &shape, stored.get(&router), parts));
        }
        let numbers = 0..experts.num_experts;
        let name = |number| format!("model.layers.{layer}.mlp.experts.{number}.gate_proj.weight");
        if let Some(missing) = numbers.map(name).find(|name| !stored.contains_key(name)) {
            let shape = [experts.moe_intermediate_size, config.hidden_size];
            return Err(unfit(&missing, &shape, None, parts));
        }
    }
    Ok(())
}

/// The error of a tensor that is missing or of another shape than `shape`.
fn unfit(name: &str, shape: &[usize], found: Option<&Stored>, parts: &Parts<'_>) -> Error {
    let (file, what) = match found {
        Some(found) => {
            (parts.weights[found.file].0.as_str(), format!("shape {:?}", found.place.shape))
        }
        None if parts.index.is_some() => (INDEX, "missing".to_owned()),
        None => (WEIGHTS, "missing".to_owned()),
    };
    let missing = if found.is_none() { "expected shape" } else { "expected" };
    wrong(file, format_args!("tensor {}: {what}, {missing} {shape:?}", Shown(name)))
}

/// Where Phi-3 stores matrices in one, what that is called, and which it is made of.
const FUSED: [(&str, &str, &[&str]); 2] = [
    ("self_attn", "qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("mlp", "gate_up_proj", &["gate_proj", "up_proj"]),
];

/// The matrix of Phi-3's folders that holds the one of this name, and all that it is made of.
pub(super) fn fused(name: &str) -> Option<(&'static str, &'static [&'static str])> {
    let is_of = |part: &&str| name.ends_with(&format!(".{part}.weight"));
    let fused = FUSED.into_iter().find(|(_, _, parts)| parts.iter().any(is_of));
    fused.map(|(_, fused, parts)| (fused, parts))
}

/// The tensor of a folder that holds the canonical one of this name, and the canonical ones whose rows
/// stand before it there; `None` if it is one of its own.
pub fn joined_tensor(name: &str, family: Family) -> Option<(String, Vec<String>)> {
    let (whole, parts) = fused(name).filter(|_| family == Family::Phi3)?;
    let own = parts.iter().position(|part| name.ends_with(&format!(".{part}.weight")))?;
    let room = name.strip_suffix(&format!("{}.weight", parts[own]))?;
    let before = parts[..own].iter().map(|part| format!("{room}{part}.weight"));
    Some((format!("{room}{whole}.weight"), before.collect()))
}

/// Where the matrices stand that a folder keeps as `matrix` in one, and their names there in the order
/// of their rows; `None` if it is one of its own.
pub(super) fn fused_parts<'a>(
    matrix: &'a str,
    config: &ModelConfig,
) -> Option<(&'a str, &'static [&'static str])> {
    let (room, fused) = matrix.rsplit_once('.')?;
    let is_it = |(of, name, _): &&(&str, &str, _)| *name == fused && room.ends_with(of);
    let (_, _, names) = FUSED.iter().find(is_it).filter(|_| config.family == Family::Phi3)?;
    Some((room, names))
}

/// What is added to the numbers of a vector as folders store it.
pub(super) fn shift(family: Family, name: &str) -> f32 {
    if family == Family::Gemma3 && name.ends_with("norm.weight") { 1.0 } else { 0.0 }
}

/// Makes matrices of their own of those that Phi-3 stores in one: q, k and v, and gate and up. What has
/// another shape than that stays, and is then one that the model does not know.
fn part_fused(config: &ModelConfig, stored: &mut BTreeMap<String, Stored>) {
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let inner = config.intermediate_size;
    for layer in 0..config.num_hidden_layers {
        for ((room, fused, parts), counts) in
            FUSED.into_iter().zip([&[q, kv, kv][..], &[inner, inner]])
        {
            let name = format!("model.layers.{layer}.{room}.{fused}.weight");
            let rows: usize = counts.iter().sum();
            let name_of = |part: &str| format!("model.layers.{layer}.{room}.{part}.weight");
            // A part that is there on its own, too, is then one that the model does not know.
            let whole = |of: &Stored| {
                of.place.shape.len() == 2
                    && of.place.shape[0] == rows
                    && !parts.iter().any(|part| stored.contains_key(&name_of(part)))
            };
            let Some(Stored { file, place }) = stored.get(&name).filter(|s| whole(s)).cloned()
            else {
                continue;
            };
            stored.remove(&name);
            let row_bytes = place.range.len() / rows;
            let mut start = place.range.start;
            for (part, rows) in parts.iter().zip(counts) {
                let range = start..start + rows * row_bytes;
                start = range.end;
                let shape = vec![*rows, place.shape[1]];
                let place = Place { shape, range, ..place.clone() };
                stored.insert(name_of(part), Stored { file, place });
            }
        }
    }
}

/// Gives the tensors of the text model that stands beside a vision tower the names that they have
/// without one; published files call it `language_model`, newer ones `model.language_model`.
fn take_out_text_model(stored: &mut BTreeMap<String, Stored>) {
    let alone = |name: &str| {
        let inner = name.strip_prefix("model.language_model.").map(|name| format!("model.{name}"));
        inner.or_else(|| name.strip_prefix("language_model.").map(str::to_owned))
    };
    let names: Vec<_> =
        stored.keys().filter_map(|name| Some((name.clone(), alone(name)?))).collect();
    for (name, alone) in names {
        // One that is there twice is then one that the model does not know.
        if !stored.contains_key(&alone)
            && let Some(tensor) = stored.remove(&name)
        {
            stored.insert(alone, tensor);
        }
    }
}

/// All names that the architecture asks for, with shapes.
fn wanted(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (_, blueprint) = Architecture::new(config);
    let mut wanted = vec![(blueprint.embedding, vec![config.vocab_size, config.hidden_size])];
    for linear in blueprint.linears {
        wanted.push((format!("{}.weight", linear.name), vec![linear.rows, linear.cols]));
        if linear.bias {
            wanted.push((format!("{}.bias", linear.name), vec![linear.rows]));
        }
    }
    wanted.extend(blueprint.vectors.into_iter().map(|vector| (vector.name, vec![vector.len])));
    wanted
}

/// Whether a tensor says nothing of texts, or transformers passes over it, too: the copy of a tied
/// output head, rotary frequencies, which older versions wrote and which `config.json` gives, and draft
/// heads, which are read by `medusa/heads.rs`.
fn is_idle(config: &ModelConfig, name: &str) -> bool {
    let vision = ["vision_tower.", "multi_modal_projector."];
    let of_whole = name.strip_prefix("model.").unwrap_or(name);
    if config.family == Family::Gemma3 && vision.iter().any(|part| of_whole.starts_with(part)) {
        return true;
    }
    name.ends_with(".self_attn.rotary_emb.inv_freq")
        || name.starts_with(HEADS_PREFIX)
        || (config.tie_word_embeddings && name == "lm_head.weight")
}
