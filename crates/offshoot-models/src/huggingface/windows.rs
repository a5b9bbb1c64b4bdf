//! Which layers of a `config.json` see no further back than a window, and how far.
//!
//! ```text
//! Mistral         `sliding_window`, in every layer; absent 4096, null none
//! Phi-3           `sliding_window`, in every layer; absent or null none
//! Qwen2, Qwen3    `sliding_window` if `use_sliding_window`, in the layers from `max_window_layers` on or
//!                 in those that `layer_types` names
//! Qwen3 MoE       `sliding_window` if `use_sliding_window`, in every layer
//! Gemma 3         `sliding_window`, in all layers but every sixth, or as `sliding_window_pattern` or
//!                 `layer_types` say
//! Llama           none
//! ```

use std::num::NonZeroUsize;

use serde_json::Value;

use super::fields::Fields;
use crate::shown::Shown;
use crate::{Error, Family, SlidingWindow};

/// The default of every family in transformers.
const SIZE: usize = 4096;
/// Qwen's default of `max_window_layers`.
const FIRST_LAYER: usize = 28;

/// Gemma's default: every sixth layer sees everything.
const PATTERN: usize = 6;

/// The windows of a model of `layers` layers.
pub(super) fn read(
    fields: Fields<'_>,
    family: Family,
    layers: usize,
) -> Result<Option<SlidingWindow>, Error> {
    let named = layer_types(fields, layers)?;
    let size = size(fields)?;
    let flag = "use_sliding_window";
    let used = fields.flag(flag)?;
    let window = match family {
        Family::Llama => {
            if used == Some(true) {
                return Err(fields.error(flag, "attention within a window is not supported here"));
            }
            None
        }
        Family::Gemma3 => {
            let pattern = "sliding_window_pattern";
            let each = fields.size(pattern)?.unwrap_or(PATTERN);
            if each == 0 {
                return Err(fields.error(pattern, "0, expected 1 or more"));
            }
            let of_pattern = || (1..=layers).map(|i| !i.is_multiple_of(each)).collect();
            let local = named.clone().unwrap_or_else(of_pattern);
            if size.is_none() && local.contains(&true) {
                return Err(fields.error("sliding_window", "null, but there are layers with one"));
            }
            size.map(|size| (size, local))
        }
        Family::Mistral => size.map(|size| (size, vec![true; layers])),
        Family::Phi3 => {
            let size = size.filter(|_| fields.get("sliding_window").is_some());
            size.map(|size| (size, vec![true; layers]))
        }
        Family::Qwen3Moe => {
            size.filter(|_| used == Some(true)).map(|size| (size, vec![true; layers]))
        }
        Family::Qwen2 | Family::Qwen3 => {
            let first = fields.size("max_window_layers")?.unwrap_or(FIRST_LAYER);
            let of_layers =
                || named.clone().unwrap_or_else(|| (0..layers).map(|i| i >= first).collect());
            size.filter(|_| used == Some(true)).map(|size| (size, of_layers()))
        }
    };
    // What a layer is called must be what it does.
    if let Some(named) = named {
        let does = |i: usize| window.as_ref().is_some_and(|(_, layers)| layers[i]);
        if let Some(i) = (0..layers).find(|&i| named[i] != does(i)) {
            let (found, expected) = (name(named[i]), name(does(i)));
            let what = format!("layer {i} is {found:?}, expected {expected:?} of this model");
            return Err(fields.error("layer_types", what));
        }
    }
    let window = window.filter(|(_, layers)| layers.contains(&true));
    Ok(window.map(|(size, layers)| SlidingWindow { size, layers }))
}

/// The window's size, unless the file says that there is none.
fn size(fields: Fields<'_>) -> Result<Option<NonZeroUsize>, Error> {
    let name = "sliding_window";
    if fields.is_null(name) {
        return Ok(None);
    }
    let size = fields.size(name)?.unwrap_or(SIZE);
    NonZeroUsize::new(size).map(Some).ok_or_else(|| fields.error(name, "0, expected 1 or more"))
}

/// For each layer whether it is said to have a window.
fn layer_types(fields: Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>, Error> {
    let field = "layer_types";
    let Some(kinds) = fields.list(field)? else { return Ok(None) };
    if kinds.len() != layers {
        let what = format!("{} of them, expected num_hidden_layers, {layers}", kinds.len());
        return Err(fields.error(field, what));
    }
    let read = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => {
            let found = kind.to_string();
            let what = format!(
                "{} is not supported, only {} and {}",
                Shown(&found),
                name(false),
                name(true)
            );
            Err(fields.error(field, what))
        }
    };
    kinds.iter().map(read).collect::<Result<_, _>>().map(Some)
}

fn name(window: bool) -> &'static str {
    if window { "sliding_attention" } else { "full_attention" }
}
