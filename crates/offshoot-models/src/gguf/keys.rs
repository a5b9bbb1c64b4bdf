//! A configuration as the keys and tensors that llama.cpp's converter writes of it: the inverse of the
//! reading in `canonical.rs` and `rope.rs`.
//!
//! What the format, or llama.cpp in running it, has no place for is refused:
//!
//! ```text
//! Qwen2, Qwen3   a window of attention
//! Qwen3, Gemma 3 biases of attention
//! Qwen3's experts   layers without them, shares that do not sum to 1
//! Gemma 3        layers with a window but in a pattern, scores of another scale than the sizes give,
//!                rotary frequencies stretched otherwise than linearly
//! Phi-3          heads that together are not as wide as the model
//! all but Llama and Mistral   Llama 3's rotary frequencies
//! ```
//! llama.cpp itself passes over the windows of Mistral and Phi-3.

use super::canonical::{arch, score_scalar};
use super::rope::TENSORS;
use super::{Writer, sampling};
use crate::{Checkpoint, Error, Family, ModelConfig, RopeRule, RopeScaling, SlidingWindow, Yarn};

/// Every how many layers one of Gemma's sees everything, where a file does not say.
const PATTERN: usize = 6;

/// A tensor that comes of the configuration.
pub(super) type Made = (&'static str, Vec<f32>);

/// Writes the keys of a folder's configuration and gives the tensors that say the rest of it.
///
/// # Errors
/// [`Error::Export`] if a file could not say all of it.
pub(super) fn write(
    checkpoint: &Checkpoint,
    name: Option<&str>,
    writer: &mut Writer,
) -> Result<Vec<Made>, Error> {
    let c = checkpoint.config();
    refuse(c)?;
    let arch = arch(c.family);
    writer.key("general.architecture", arch)?.key("general.type", "model")?;
    if let Some(name) = checkpoint.name().or(name) {
        writer.key("general.name", name)?;
    }
    let experts = c.experts.iter().flat_map(|experts| {
        [
            ("expert_count", experts.num_experts),
            ("expert_used_count", experts.num_experts_per_tok),
            ("expert_feed_forward_length", experts.moe_intermediate_size),
        ]
    });
    let sizes = [
        ("block_count", c.num_hidden_layers),
        ("context_length", c.max_position_embeddings),
        ("embedding_length", c.hidden_size),
        ("feed_forward_length", c.intermediate_size),
        ("attention.head_count", c.num_attention_heads),
        ("attention.head_count_kv", c.num_key_value_heads),
        ("attention.key_length", c.head_dim),
        ("attention.value_length", c.head_dim),
        ("rope.dimension_count", c.rotary_dim),
        ("vocab_size", c.vocab_size),
    ];
    for (key, value) in sizes.into_iter().chain(experts) {
        writer.key(&format!("{arch}.{key}"), whole(key, value)?)?;
    }
    writer.key(&format!("{arch}.attention.layer_norm_rms_epsilon"), c.rms_norm_eps)?;
    // llama.cpp reads these in single precision and no other.
    writer.key(&format!("{arch}.rope.freq_base"), c.rope_theta as f32)?;
    if let Some(base) = c.rope_local_base_freq {
        writer.key(&format!("{arch}.rope.freq_base_swa"), base as f32)?;
    }
    if let Some(cap) = c.final_logit_softcapping {
        writer.key(&format!("{arch}.final_logit_softcapping"), cap)?;
    }
    windows(c, writer)?;
    sampling::write(&checkpoint.generation(), writer)?;
    scaling(checkpoint, writer)
}

fn refused(what: impl std::fmt::Display) -> Error {
    Error::Export(format!("{what}; a GGUF file has no place for that"))
}

fn whole(key: &str, value: usize) -> Result<u32, Error> {
    u32::try_from(value).map_err(|_| refused(format_args!("{key} is {value}")))
}

/// Refuses what llama.cpp would run otherwise or not at all.
fn refuse(c: &ModelConfig) -> Result<(), Error> {
    let family = c.family.name();
    if let Some(experts) = &c.experts
        && !(experts.norm_topk_prob && experts.layers.iter().all(|has| *has))
    {
        return Err(refused(format_args!(
            "{family} with experts in some layers, or whose shares do not sum to 1"
        )));
    }
    match c.family {
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe if c.sliding_window.is_some() => {
            return Err(refused(format_args!("{family} with a window of attention")));
        }
        Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3 if c.attention_bias => {
            return Err(refused(format_args!("{family} with biases of attention")));
        }
        Family::Gemma3 => {
            let (heads, layers) = (c.num_attention_heads, c.num_hidden_layers);
            let known = score_scalar(c.family, c.hidden_size, heads, c.head_dim, layers);
            if c.query_pre_attn_scalar != known {
                let found = c.query_pre_attn_scalar;
                return Err(refused(format_args!(
                    "{family} with query_pre_attn_scalar {found}, expected {known} of these sizes"
                )));
            }
        }
        Family::Phi3 if c.num_attention_heads * c.head_dim != c.hidden_size => {
            return Err(refused(format_args!(
                "{family} with {} heads of {} in a width of {}",
                c.num_attention_heads, c.head_dim, c.hidden_size
            )));
        }
        _ => {}
    }
    Ok(())
}

fn windows(c: &ModelConfig, writer: &mut Writer) -> Result<(), Error> {
    let key = format!("{}.attention.sliding_window", arch(c.family));
    match &c.sliding_window {
        // As the converter writes it of Phi-3, and of no other.
        None if c.family == Family::Phi3 => writer.key(&key, 0u32)?,
        None => return Ok(()),
        Some(window) => {
            let each = pattern(c.family, window)?;
            if each.is_some_and(|each| each != PATTERN) {
                let each = each.unwrap_or(PATTERN);
                writer.key(&format!("{key}_pattern"), whole("the pattern of layers", each)?)?;
            }
            writer.key(&key, whole("the window", window.size.get())?)?
        }
    };
    Ok(())
}

/// Every how many layers one sees everything, for the family that has such: the number of `PATTERN` if
/// it fits. The other families have their window in every layer.
fn pattern(family: Family, window: &SlidingWindow) -> Result<Option<usize>, Error> {
    let layers = &window.layers;
    if family != Family::Gemma3 {
        return match layers.iter().all(|local| *local) {
            true => Ok(None),
            false => Err(refused(format_args!("{} with windows in some layers", family.name()))),
        };
    }
    let fits = |each: &usize| (1..).zip(layers).all(|(i, local)| *local != (i % each == 0));
    let all = std::iter::once(PATTERN).chain(1..=layers.len() + 1);
    let each = all.into_iter().find(fits);
    each.map(Some).ok_or_else(|| refused("gemma3 with windows in no regular pattern of layers"))
}

/// The stretching of the rotary frequencies.
fn scaling(checkpoint: &Checkpoint, writer: &mut Writer) -> Result<Vec<Made>, Error> {
    let c = checkpoint.config();
    let arch = arch(c.family);
    let key = |name: &str| format!("{arch}.rope.scaling.{name}");
    let llama = matches!(c.family, Family::Llama | Family::Mistral);
    let [factors_name, short_name, long_name] = TENSORS;
    match (&c.rope_scaling, checkpoint.rope_rule()) {
        (RopeScaling::None, _) => Ok(Vec::new()),
        (RopeScaling::Linear { factor }, _) => {
            writer.key(&key("type"), "linear")?.key(&key("factor"), *factor as f32)?;
            Ok(Vec::new())
        }
        (RopeScaling::Factors(_), Some(RopeRule::Yarn(rule))) if c.family != Family::Gemma3 => {
            yarn(&rule, c.rope_magnitude, &key, writer)?;
            Ok(Vec::new())
        }
        // llama.cpp reads factors of Llama and of no other.
        (RopeScaling::Factors(factors), Some(RopeRule::Llama3(_)) | None) if llama => {
            Ok(vec![(factors_name, factors.clone())])
        }
        (RopeScaling::Long { short, long, trained }, _) if c.family == Family::Phi3 => {
            writer.key(&key("type"), "longrope")?;
            let trained = whole("the trained context", *trained)?;
            writer.key(&key("original_context_length"), trained)?;
            writer.key(&key("attn_factor"), c.rope_magnitude)?;
            Ok(vec![(short_name, short.clone()), (long_name, long.clone())])
        }
        _ => Err(refused(format_args!(
            "{} with rotary frequencies stretched as this config.json says",
            c.family.name()
        ))),
    }
}

/// YaRN's keys. The magnitude that comes of the rule is not written; another is, as the quotient of
/// both, which is what llama.cpp multiplies the rule's by.
fn yarn(
    rule: &Yarn,
    magnitude: f32,
    key: &dyn Fn(&str) -> String,
    writer: &mut Writer,
) -> Result<(), Error> {
    let context = rule.context as u32;
    if context as f32 != rule.context {
        return Err(refused(format_args!("YaRN of a trained context of {}", rule.context)));
    }
    writer.key(&key("type"), "yarn")?.key(&key("factor"), rule.factor)?;
    writer.key(&key("original_context_length"), context)?;
    writer.key(&key("yarn_beta_fast"), rule.beta_fast)?;
    writer.key(&key("yarn_beta_slow"), rule.beta_slow)?;
    let own = rule.magnitude();
    if magnitude != own {
        let quotient = magnitude / own;
        let near = [quotient, quotient.next_up(), quotient.next_down()];
        let Some(factor) = near.into_iter().find(|factor| factor * own == magnitude) else {
            return Err(refused(format_args!("YaRN with an attention factor of {magnitude}")));
        };
        writer.key(&key("attn_factor"), factor)?;
    }
    Ok(())
}
