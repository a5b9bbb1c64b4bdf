//! Adapters as Python's PEFT saves them: the inverse of `peft.rs`.
//!
//! The format is <https://huggingface.co/docs/peft/developer_guides/checkpoint>.
//! ```text
//! adapter_config.json          rank, alpha, which matrices
//! adapter_model.safetensors    base_model.model.{matrix}.lora_A.weight, ..lora_B.weight in single precision
//! README.md                    a card
//! ```
//! What Phi-3's folders keep in one matrix is one matrix for PEFT, too. The parts' differences are its
//! difference of the sum of their ranks: with `A` the parts' `A` below each other, `B` has each part's `B`
//! in its own rows and columns, and zeros elsewhere.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::canonical;
use crate::adapter::{LoraAdapter, LowRank};
use crate::{Architecture, Blueprint, Error, Family, ModelConfig};

/// What an adapter's folder says beside its numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PeftOptions {
    /// Whether alpha is told for the scale `alpha / sqrt(r)` instead of `alpha / r`.
    pub rslora: bool,
    /// What was dropped in training.
    pub dropout: f64,
    /// The name of the base, by which PEFT finds it; it asks the user if there is none.
    pub base_model: Option<String>,
}

/// The files of an adapter's folder for a base of `model`: names and bytes.
///
/// # Errors
/// [`Error::Adapter`] if it has no matrices or they do not fit the base.
pub fn adapter_files(
    adapter: &LoraAdapter,
    model: &ModelConfig,
    options: &PeftOptions,
) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let blueprint = Architecture::new(model).1;
    if adapter.matrices.is_empty() {
        return Err(Error::Adapter("no matrices to write".to_owned()));
    }
    adapter.by_matrix(&blueprint)?;
    let matrices = stored(adapter, model, &blueprint);
    let config = config(&matrices, &all_stored(model, &blueprint), options);
    Ok(vec![
        ("adapter_config.json".to_owned(), format!("{config:#}\n").into_bytes()),
        ("adapter_model.safetensors".to_owned(), weights(&matrices)),
        ("README.md".to_owned(), card(&config, options).into_bytes()),
    ])
}

/// The name under which folders keep the canonical matrix `name`.
fn stored_name(name: &str, model: &ModelConfig) -> String {
    if name == "model.embed_tokens" {
        return "lm_head".to_owned(); // the head, where it is the embedding's matrix
    }
    match canonical::fused(&format!("{name}.weight")).filter(|_| model.family == Family::Phi3) {
        Some((fused, _)) => {
            let room = name.rsplit_once('.').map_or("", |(room, _)| room);
            format!("{room}.{fused}")
        }
        None => name.to_owned(),
    }
}

/// All matrices of folders of the base.
fn all_stored(model: &ModelConfig, blueprint: &Blueprint) -> Vec<String> {
    let mut names: Vec<String> =
        blueprint.linears.iter().map(|linear| stored_name(&linear.name, model)).collect();
    names.sort();
    names.dedup();
    names
}

/// The differences of the matrices as folders keep them.
fn stored(
    adapter: &LoraAdapter,
    model: &ModelConfig,
    blueprint: &Blueprint,
) -> BTreeMap<String, LowRank> {
    let mut parts: BTreeMap<String, Vec<(Option<&LowRank>, usize)>> = BTreeMap::new();
    for linear in &blueprint.linears {
        let part = (adapter.matrices.get(&linear.name), linear.rows);
        parts.entry(stored_name(&linear.name, model)).or_default().push(part);
    }
    let whole = parts.into_iter().filter_map(|(name, parts)| Some((name, whole(&parts)?)));
    whole.collect()
}

/// The difference of a matrix of which these are the parts' differences and rows; none if it has none.
fn whole(parts: &[(Option<&LowRank>, usize)]) -> Option<LowRank> {
    if let [(low, _)] = parts {
        return low.cloned();
    }
    let scale = parts.iter().find_map(|(low, _)| *low)?.scale;
    let rank: usize = parts.iter().filter_map(|(low, _)| Some(low.as_ref()?.rank)).sum();
    let (mut a, mut b, mut before) = (Vec::new(), Vec::new(), 0);
    for (low, rows) in parts {
        let Some(low) = low else {
            b.resize(b.len() + rows * rank, 0.0);
            continue;
        };
        a.extend_from_slice(&low.a);
        for row in low.b.chunks_exact(low.rank) {
            let start = b.len();
            b.resize(start + rank, 0.0);
            let of_part = &mut b[start + before..start + before + low.rank];
            of_part.iter_mut().zip(row).for_each(|(b, x)| *b = x * (low.scale / scale));
        }
        before += low.rank;
    }
    Some(LowRank { rank, scale, a, b })
}

/// The number that readers divide by the rank, or its root, to have the scale.
fn alpha(low: &LowRank, rslora: bool) -> f64 {
    let rank = low.rank as f64;
    let root = if rslora { rank.sqrt() } else { rank };
    let exact = f64::from(low.scale) * root;
    // What was a short number before it was divided is one again.
    let short = (exact * 1024.0).round() / 1024.0;
    if (short / root) as f32 == low.scale { short } else { exact }
}

/// The value that most have, of equally many the least.
fn most_common(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let runs = values.chunk_by(|a, b| a == b);
    let best = runs.reduce(|best, run| if run.len() > best.len() { run } else { best });
    best.map_or(0.0, |run| run[0])
}

fn number(x: f64) -> Value {
    match x.fract() == 0.0 && x.abs() < 1e15 {
        true => json!(x as i64),
        false => json!(x),
    }
}

fn config(matrices: &BTreeMap<String, LowRank>, all: &[String], options: &PeftOptions) -> Value {
    let alpha = |low: &LowRank| alpha(low, options.rslora);
    let rank = most_common(matrices.values().map(|low| low.rank as f64));
    let usual = most_common(matrices.values().map(alpha));
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (name, low) in matrices {
        if low.rank as f64 != rank {
            ranks.insert(name.clone(), json!(low.rank));
        }
        if alpha(low) != usual {
            alphas.insert(name.clone(), number(alpha(low)));
        }
    }
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": options.base_model,
        "r": number(rank),
        "lora_alpha": number(usual),
        "lora_dropout": number(options.dropout),
        "target_modules": targets(matrices, all),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": options.rslora,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "inference_mode": true,
    })
}

/// The matrices' names: their last part, where all of that name are meant.
fn targets(matrices: &BTreeMap<String, LowRank>, all: &[String]) -> Vec<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let mut names = Vec::new();
    for name in matrices.keys() {
        let short = last(name);
        let complete = all.iter().filter(|name| last(name) == short);
        match complete.into_iter().all(|name| matrices.contains_key(name)) {
            true => names.push(short),
            false => names.push(name.clone()),
        }
    }
    names.sort();
    names.dedup();
    names
}

fn weights(matrices: &BTreeMap<String, LowRank>) -> Vec<u8> {
    let halves = matrices.iter().flat_map(|(name, low)| {
        [("A", &low.a), ("B", &low.b)].map(|(half, numbers)| {
            let other = numbers.len() / low.rank;
            let shape = if half == "A" { [low.rank, other] } else { [other, low.rank] };
            let name = format!("base_model.model.{name}.lora_{half}.weight");
            (name, shape.to_vec(), &numbers[..])
        })
    });
    safetensors(halves)
}

/// Tensors of single precision, with their names and shapes, as the bytes of a file.
pub(super) fn safetensors<'t>(
    tensors: impl IntoIterator<Item = (String, Vec<usize>, &'t [f32])>,
) -> Vec<u8> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut bytes = Vec::new();
    for (name, shape, numbers) in tensors {
        let first = bytes.len();
        bytes.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
        let place = json!({ "dtype": "F32", "shape": shape, "data_offsets": [first, bytes.len()] });
        header.insert(name, place);
    }
    let mut text = Value::from(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), &text[..], &bytes[..]].concat()
}

/// A card as the hub shows it.
fn card(config: &Value, options: &PeftOptions) -> String {
    let base = match &options.base_model {
        Some(base) => format!("base_model: {}\n", json!(base)),
        None => String::new(),
    };
    let targets: Vec<&str> = config["target_modules"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    format!(
        "---\nlibrary_name: peft\n{base}pipeline_tag: text-generation\ntags:\n- lora\n---\n\n\
         # A LoRA adapter\n\n\
         Made with offshoot; PEFT loads it, too.\n\n\
         | setting | value |\n| --- | --- |\n\
         | rank | {} |\n| alpha | {} |\n| rank-stabilised | {} |\n| matrices | {} |\n",
        config["r"],
        config["lora_alpha"],
        options.rslora,
        targets.join(", ")
    )
}
