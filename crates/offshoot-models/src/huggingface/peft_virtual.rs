//! Prefixes and prompts as PEFT saves them: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The format is <https://huggingface.co/docs/peft/package_reference/prefix_tuning> and
//! `.../prompt_tuning`. The one tensor is `prompt_embeddings`:
//! ```text
//! PREFIX_TUNING   [p, layers * 2 * kv heads * head_dim]    of each layer its keys, then its values
//! PROMPT_TUNING   [p, hidden_size]
//! ```
//! PEFT hands a prefix to the model as a cache, so keys are rotated already, and texts begin at position
//! p. A prefix that a network makes of embeddings (`prefix_projection`) is saved as what it made.

use serde_json::{Value, json};

use super::fields::Fields;
use super::peft::{CONFIG, WEIGHTS};
use super::peft_writer::safetensors;
use super::{safetensors as reader, wrong};
use crate::shown::Shown;
use crate::{Error, ModelConfig, VirtualKind, VirtualTokens};

const TENSOR: &str = "prompt_embeddings";

/// Fields that are read, and those that say what was trained, and how, but not what is computed with.
const HARMLESS: [&str; 19] = [
    "auto_mapping",
    "base_model_name_or_path",
    "encoder_hidden_size",
    "inference_mode",
    "init_weights",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "peft_type",
    "peft_version",
    "prefix_projection",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "revision",
    "task_type",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
];

/// Adapters that are read.
pub(super) enum PeftKind {
    Lora,
    Virtual(VirtualKind),
    /// Ours, of a kind that PEFT has not.
    Scales,
}

impl PeftKind {
    pub(super) fn of(fields: Fields<'_>) -> Result<Self, Error> {
        match fields.text("peft_type")? {
            Some("LORA") => Ok(Self::Lora),
            Some("PREFIX_TUNING") => Ok(Self::Virtual(VirtualKind::Prefix)),
            Some("PROMPT_TUNING") => Ok(Self::Virtual(VirtualKind::Prompt)),
            Some(super::peft_scales::KIND) => Ok(Self::Scales),
            Some(other) => {
                let expected = "LORA, PREFIX_TUNING or PROMPT_TUNING";
                let what = format!("{}, expected {expected}", Shown(other));
                Err(fields.error("peft_type", what))
            }
            None => Err(fields.missing("peft_type")),
        }
    }
}

/// Refuses fields that are not `harmless` and as good as absent.
pub(super) fn refuse_others(fields: Fields<'_>, harmless: &[&str]) -> Result<(), Error> {
    for name in fields.names().filter(|name| !harmless.contains(name)) {
        let nothing = match fields.get(name) {
            None | Some(Value::Bool(false)) => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(_) => false,
        };
        if !nothing {
            let what = "changes the model in a way that offshoot does not";
            return Err(fields.error(&Shown(name).to_string(), what));
        }
    }
    Ok(())
}

/// The positions that the tensor of `weights` has.
pub(super) fn parse(
    kind: VirtualKind,
    fields: Fields<'_>,
    weights: &[u8],
    model: &ModelConfig,
) -> Result<VirtualTokens, Error> {
    refuse_others(fields, &HARMLESS)?;
    if let Some(n) = fields.size("num_transformer_submodules")?
        && n != 1
    {
        let what = format!("{n}, expected 1: the model has no encoder");
        return Err(fields.error("num_transformer_submodules", what));
    }
    let tokens = fields.required_size("num_virtual_tokens")?;
    let tensors = reader::read(WEIGHTS, weights)?;
    if let Some(other) = tensors.keys().find(|name| *name != TENSOR) {
        return Err(wrong(WEIGHTS, format_args!("tensor {}: expected {TENSOR}", Shown(other))));
    }
    let place = tensors.get(TENSOR).ok_or_else(|| wrong(WEIGHTS, format!("no {TENSOR}")))?;
    let expected = [tokens, kind.width(model)];
    if place.shape != expected {
        let what = format!("{TENSOR}: shape {:?}, expected {expected:?}", place.shape);
        return Err(wrong(WEIGHTS, what));
    }
    let mut numbers = vec![0.0; place.shape.iter().product()];
    let read = place.block.dequantize(&weights[place.range.clone()], &mut numbers);
    read.map_err(|e| wrong(WEIGHTS, format_args!("{TENSOR}: {e}")))?;
    if !numbers.iter().all(|x| x.is_finite()) {
        return Err(wrong(WEIGHTS, format_args!("{TENSOR}: not all finite")));
    }
    VirtualTokens::new(kind, model, numbers).map_err(|e| wrong(WEIGHTS, e))
}

/// The files of a folder with `tokens` for a base of `model`, whose name is `base` if it has one.
pub fn virtual_files(
    tokens: &VirtualTokens,
    model: &ModelConfig,
    base: Option<&str>,
) -> Vec<(String, Vec<u8>)> {
    let (p, layers) = (tokens.tokens(), model.num_hidden_layers);
    let width = tokens.numbers().len() / p;
    let tensor = (TENSOR.to_owned(), vec![p, width], tokens.numbers());
    let heads = model.num_key_value_heads;
    let config = match tokens.kind() {
        VirtualKind::Prefix => json!({
            "peft_type": "PREFIX_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "num_virtual_tokens": p,
            "num_layers": layers,
            "num_attention_heads": heads,
            "token_dim": heads * model.head_dim,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": heads * model.head_dim,
            "prefix_projection": false,
            "inference_mode": true,
        }),
        VirtualKind::Prompt => json!({
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "num_virtual_tokens": p,
            "num_layers": layers,
            "num_attention_heads": model.num_attention_heads,
            "token_dim": model.hidden_size,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
            "inference_mode": true,
        }),
    };
    vec![
        (CONFIG.to_owned(), format!("{config:#}\n").into_bytes()),
        (WEIGHTS.to_owned(), safetensors([tensor])),
    ]
}
