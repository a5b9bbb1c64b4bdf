//! `config.json`: a folder's own with another type of weights, or one made of a [`ModelConfig`], in the
//! spelling that transformers of the fourth and of the fifth version read.

use offshoot_kernels::BlockType;
use serde_json::{Map, Value, json};

use super::super::config::{class, text_model};
use super::super::rope::long_magnitude;
use super::super::{CONFIG, not_json, wrong};
use crate::{Checkpoint, Error, Family, ModelConfig, RopeRule, RopeScaling};

/// A float as config files call it.
fn type_name(floats: BlockType) -> &'static str {
    match floats {
        BlockType::F16 => "float16",
        BlockType::Bf16 => "bfloat16",
        _ => "float32",
    }
}

/// The file `own` with another type of weights.
pub(super) fn with_type(own: &[u8], floats: BlockType) -> Result<Value, Error> {
    let value = serde_json::from_slice(own).map_err(|e| not_json(CONFIG, &e))?;
    // Of a model with a vision tower, that is left out.
    let mut value = text_model(value);
    let map = value.as_object_mut().ok_or_else(|| wrong(CONFIG, "expected a JSON object"))?;
    // The name since transformers 5, and the one before.
    let name = if map.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    map.insert(name.to_owned(), type_name(floats).into());
    Ok(value)
}

/// A number in single precision as the shortest text that means it.
fn short(number: f32) -> Value {
    number.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// The part of a head that is rotated, such that transformers, which cuts the product with the
/// width off, comes to `rotary_dim`.
fn rotary_factor(rotary_dim: usize, head_dim: usize) -> f64 {
    let part = rotary_dim as f64 / head_dim as f64;
    if (head_dim as f64 * part) as usize == rotary_dim { part } else { part.next_up() }
}

/// The file of a model that has none.
///
/// # Errors
/// [`Error::Export`] if transformers has no setting for what the model does.
pub(super) fn made(checkpoint: &Checkpoint, floats: BlockType) -> Result<Value, Error> {
    let c = checkpoint.config();
    let gemma = c.family == Family::Gemma3;
    let mut config = json!({
        "architectures": [class(c.family)],
        "model_type": c.family.name(),
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_position_embeddings,
        "rms_norm_eps": short(c.rms_norm_eps),
        "rope_theta": short(c.rope_theta as f32),
        "tie_word_embeddings": c.tie_word_embeddings,
        "torch_dtype": type_name(floats),
    });
    let set = &mut |name: &str, value: Value| config[name] = value;
    match gemma {
        true => set("hidden_activation", "gelu_pytorch_tanh".into()),
        false => set("hidden_act", "silu".into()),
    }
    if !matches!(c.family, Family::Mistral | Family::Phi3 | Family::Qwen2) {
        set("attention_bias", c.attention_bias.into());
    }
    if c.family == Family::Llama {
        set("mlp_bias", c.mlp_bias.into());
    }
    if c.rotary_dim != c.head_dim {
        set("partial_rotary_factor", rotary_factor(c.rotary_dim, c.head_dim).into());
    }
    if gemma {
        set(
            "rope_local_base_freq",
            c.rope_local_base_freq.map_or(Value::Null, |b| short(b as f32)),
        );
        let scalar = c.query_pre_attn_scalar;
        // transformers takes no other number than a whole one.
        let whole = (scalar.fract() == 0.0 && scalar < 1e9).then_some(scalar as u64);
        set("query_pre_attn_scalar", whole.map_or(scalar.into(), Value::from));
        set("final_logit_softcapping", c.final_logit_softcapping.map_or(Value::Null, short));
    }
    if let Some(experts) = &c.experts {
        set("num_experts", experts.num_experts.into());
        set("num_experts_per_tok", experts.num_experts_per_tok.into());
        set("moe_intermediate_size", experts.moe_intermediate_size.into());
        set("norm_topk_prob", experts.norm_topk_prob.into());
        set("decoder_sparse_step", 1.into());
        let without = (0..).zip(&experts.layers).filter(|(_, has)| !**has);
        set("mlp_only_layers", without.map(|(layer, _)| Value::from(layer)).collect());
    }
    windows(c, set);
    scaling(checkpoint, set)?;
    ids(checkpoint, set);
    Ok(config)
}

fn windows(c: &ModelConfig, set: &mut dyn FnMut(&str, Value)) {
    let window = c.sliding_window.as_ref();
    // Written out: left out, Mistral has one.
    if c.family != Family::Llama {
        set("sliding_window", window.map_or(Value::Null, |window| window.size.get().into()));
    }
    if matches!(c.family, Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe) {
        set("use_sliding_window", window.is_some().into());
    }
    if c.family == Family::Gemma3 || (window.is_some() && c.family != Family::Mistral) {
        let local = |layer| c.window(layer).is_some();
        let kind = |layer| if local(layer) { "sliding_attention" } else { "full_attention" };
        if c.family != Family::Phi3 {
            set("layer_types", (0..c.num_hidden_layers).map(kind).collect());
        }
    }
}

/// The stretching of the rotary frequencies.
fn scaling(checkpoint: &Checkpoint, set: &mut dyn FnMut(&str, Value)) -> Result<(), Error> {
    let c = checkpoint.config();
    let refused = |what: &str| {
        let what = format!("{what}; config.json has no setting for that");
        Err(Error::Export(what))
    };
    let mut scaling = Map::new();
    let mut put = |name: &str, value: Value| drop(scaling.insert(name.to_owned(), value));
    match &c.rope_scaling {
        RopeScaling::None => return Ok(()),
        RopeScaling::Linear { factor } => {
            put("rope_type", "linear".into());
            put("factor", short(*factor as f32));
        }
        RopeScaling::Factors(_) => match checkpoint.rope_rule() {
            Some(RopeRule::Llama3(rule)) if c.rope_magnitude == 1.0 => {
                put("rope_type", "llama3".into());
                put("factor", short(rule.factor));
                put("low_freq_factor", short(rule.low_freq_factor));
                put("high_freq_factor", short(rule.high_freq_factor));
                put("original_max_position_embeddings", (rule.context as u64).into());
            }
            Some(RopeRule::Yarn(rule)) => {
                put("rope_type", "yarn".into());
                put("factor", short(rule.factor));
                put("beta_fast", short(rule.beta_fast));
                put("beta_slow", short(rule.beta_slow));
                put("original_max_position_embeddings", (rule.context as u64).into());
                if c.rope_magnitude != rule.magnitude() {
                    put("attention_factor", short(c.rope_magnitude));
                }
            }
            _ => {
                return refused(
                    "the file's rotary frequencies (rope_freqs.weight) are stretched by no \
                         published rule",
                );
            }
        },
        RopeScaling::Long { short: near, long, trained } => {
            if c.family != Family::Phi3 {
                return refused("LongRoPE of another family than phi3");
            }
            let list = |factors: &[f32]| factors.iter().map(|f| short(*f)).collect();
            put("type", "longrope".into());
            put("short_factor", list(near));
            put("long_factor", list(long));
            let stretch = c.max_position_embeddings as f64 / *trained as f64;
            if c.rope_magnitude != long_magnitude(stretch, *trained as f64) {
                put("attention_factor", short(c.rope_magnitude));
            }
            set("original_max_position_embeddings", (*trained).into());
        }
    }
    set("rope_scaling", scaling.into());
    Ok(())
}

/// The special tokens.
fn ids(checkpoint: &Checkpoint, set: &mut dyn FnMut(&str, Value)) {
    let Ok(spec) = checkpoint.tokenizer() else {
        let ends = checkpoint.stop_tokens();
        return set("eos_token_id", if ends.is_empty() { Value::Null } else { ends.into() });
    };
    let all = [("bos_token_id", spec.bos), ("eos_token_id", spec.eos), ("pad_token_id", spec.pad)];
    for (name, id) in all {
        // Left out, some families have one.
        set(name, id.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_head_comes_to_the_same_number_of_elements_again() {
        let mut rounded_down = 0;
        for head_dim in (2..600).step_by(2) {
            for rotary_dim in (2..=head_dim).step_by(2) {
                let part = rotary_factor(rotary_dim, head_dim);
                assert_eq!((head_dim as f64 * part) as usize, rotary_dim, "{part} of {head_dim}");
                let quotient = rotary_dim as f64 / head_dim as f64;
                rounded_down += usize::from(part != quotient);
            }
        }
        assert!(rounded_down > 0);
    }
}
