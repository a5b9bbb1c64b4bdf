//! `config.json` into a [`ModelConfig`].

use serde_json::{Value, json};

use super::fields::Fields;
use super::{CONFIG, experts, not_json, rope, windows, wrong};
use crate::shown::Shown;
use crate::{Error, Family, ModelConfig, RopeRule, RopeScaling};

/// Longest file that is read; published ones have a few thousand bytes.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// What the file says.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) config: ModelConfig,
    /// The formula of its rotary frequencies' factors.
    pub(super) rope_rule: Option<RopeRule>,
    /// Ids at which an answer ends, as the file lists them.
    pub(super) eos: Option<Eos>,
    pub(super) bos: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) unk: Option<u32>,
}

/// The end-of-text token, or several.
#[derive(Debug)]
pub(super) enum Eos {
    One(u32),
    Several(Vec<u32>),
}

impl Eos {
    pub(super) fn ids(&self) -> &[u32] {
        match self {
            Eos::One(id) => std::slice::from_ref(id),
            Eos::Several(ids) => ids,
        }
    }

    /// The one, where the file does not give a list.
    pub(super) fn alone(&self) -> Option<u32> {
        match self {
            Eos::One(id) => Some(*id),
            Eos::Several(_) => None,
        }
    }
}

/// Fields that, unless absent, false, zero or empty, mean a model that offshoot would run wrongly,
/// and what to say of them.
const REFUSED: [(&str, &str); 12] = [
    ("quantization_config", "quantised weights are not read; take the model that it was made from"),
    ("quantization", "quantised weights are not read; take the model that it was made from"),
    ("rope_interleaved", "interleaved rotary pairs are not supported"),
    ("num_experts", "mixtures of experts are not supported of this model"),
    ("num_local_experts", "mixtures of experts are not supported of this model"),
    ("n_routed_experts", "mixtures of experts are not supported of this model"),
    ("clip_qkv", "clamped attention is not supported"),
    ("use_qk_norm", "norms of queries and keys are not supported"),
    ("qk_norm", "norms of queries and keys are not supported"),
    ("attn_logit_softcapping", "softcapped attention is not supported"),
    ("use_bidirectional_attention", "attention to what follows is not supported"),
    ("is_encoder_decoder", "models with an encoder are not supported"),
];

/// Reads the file.
///
/// # Errors
/// [`Error::File`] that names the field.
pub(super) fn read(bytes: &[u8]) -> Result<Told, Error> {
    if bytes.len() > BYTES_MAX {
        return Err(wrong(CONFIG, format_args!("more than {BYTES_MAX} bytes")));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|e| not_json(CONFIG, &e))?;
    let value = text_model(value);
    let fields = Fields::whole(CONFIG, &value)?;
    let family = family(fields)?;
    refuse(fields, family)?;
    let mut config = sizes(fields, family)?;
    let check = |config: &ModelConfig| config.validate().map_err(|e| named(&e));
    check(&config)?;
    let stretching = rope::scaling(fields, &config)?;
    config.rope_scaling = stretching.scaling;
    config.rope_magnitude = stretching.magnitude;
    config.sliding_window = windows::read(fields, family, config.num_hidden_layers)?;
    config.experts = experts::read(fields, family, config.num_hidden_layers)?;
    config.max_position_embeddings = config.max_position_embeddings.max(stretching.reach);
    check(&config)?;
    Ok(Told {
        eos: eos(fields, config.vocab_size)?,
        bos: id(fields, "bos_token_id", config.vocab_size)?,
        pad: id(fields, "pad_token_id", config.vocab_size)?,
        unk: id(fields, "unk_token_id", config.vocab_size)?,
        rope_rule: stretching.rule,
        config,
    })
}

/// The class of a Gemma 3 that has a vision tower beside the text model.
const WITH_VISION: &str = "Gemma3ForConditionalGeneration";

/// The file of a Gemma 3 with a vision tower as one of its text model alone; any other as it is.
pub(super) fn text_model(mut file: Value) -> Value {
    let is_it = file["architectures"] == json!([WITH_VISION]) && file["text_config"].is_object();
    let (true, Some(map)) = (is_it, file.as_object_mut()) else { return file };
    map.remove("vision_config");
    map.remove("model_type");
    // What transformers' Gemma3TextConfig has where a file says nothing, as those of 4 billion
    // weights.
    let mut fields = json!({
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
    });
    let text = map.remove("text_config").unwrap_or_default();
    for (name, value) in
        [std::mem::take(map).into(), text].iter().flat_map(Value::as_object).flatten()
    {
        // The ends of answers are those of the whole.
        if !(name.ends_with("_token_id") && fields.get(name).is_some_and(|id| !id.is_null())) {
            fields[name] = value.clone();
        }
    }
    fields["architectures"] = json!([class(Family::Gemma3)]);
    fields
}

/// A check's error, which begins with the field, as one about this file.
fn named(error: &Error) -> Error {
    match error {
        Error::Config(what) => wrong(CONFIG, what),
        other => wrong(CONFIG, other),
    }
}

/// The architecture's class in transformers.
pub(super) fn class(family: Family) -> &'static str {
    match family {
        Family::Gemma3 => "Gemma3ForCausalLM",
        Family::Llama => "LlamaForCausalLM",
        Family::Mistral => "MistralForCausalLM",
        Family::Phi3 => "Phi3ForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        Family::Qwen3Moe => "Qwen3MoeForCausalLM",
    }
}

/// Names of all families.
fn any_of(name: impl Fn(Family) -> &'static str) -> String {
    let names = Family::ALL.map(name);
    names.join(", ")
}

/// The architecture, if it is one that offshoot runs. Both fields that name it must agree.
fn family(fields: Fields<'_>) -> Result<Family, Error> {
    let families = Family::ALL;
    let unsupported = |field: &str, found: &str, name: fn(Family) -> &'static str| {
        let what = format!("{} is not supported, only {}", Shown(found), any_of(name));
        fields.error(field, what)
    };
    let kind = fields.text("model_type")?;
    let architecture = match fields.list("architectures")? {
        None | Some([]) => None,
        Some([Value::String(name)]) => Some(name.as_str()),
        Some(_) => {
            return Err(fields.error("architectures", "expected a list of one name"));
        }
    };
    let of_class = architecture.map(|name| {
        let found = families.into_iter().find(|family| class(*family) == name);
        found.ok_or_else(|| unsupported("architectures", name, class))
    });
    let of_type = kind.map(|name| {
        let found = families.into_iter().find(|family| family.name() == name);
        found.ok_or_else(|| unsupported("model_type", name, Family::name))
    });
    match (of_class.transpose()?, of_type.transpose()?) {
        (Some(family), None) | (None, Some(family)) => Ok(family),
        (Some(one), Some(two)) if one == two => Ok(one),
        (Some(one), Some(two)) => Err(fields.error(
            "model_type",
            format_args!("{:?}, expected that of {}, {:?}", two.name(), class(one), one.name()),
        )),
        (None, None) => Err(fields.missing("architectures")),
    }
}

/// Refuses settings that change the computation in ways that offshoot does not have.
fn refuse(fields: Fields<'_>, family: Family) -> Result<(), Error> {
    let idle = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let experts = ["num_experts", "num_local_experts"];
    for (name, why) in REFUSED {
        if family == Family::Qwen3Moe && experts.contains(&name) {
            continue;
        }
        if fields.get(name).is_some_and(|value| !idle(value)) {
            return Err(fields.error(name, why));
        }
    }
    let (names, activations): (&[&str], &[&str]) = match family {
        Family::Gemma3 => (&["hidden_activation", "hidden_act"], &["gelu_pytorch_tanh"]),
        _ => (&["hidden_act"], &["silu", "swish"]),
    };
    for name in names {
        if let Some(other) = fields.text(name)?.filter(|name| !activations.contains(name)) {
            let what = format!("{} is not supported, only {:?}", Shown(other), activations[0]);
            return Err(fields.error(name, what));
        }
    }
    if family != Family::Gemma3 && fields.number("final_logit_softcapping")?.is_some() {
        let what = "softcapped logits are not supported of this model";
        return Err(fields.error("final_logit_softcapping", what));
    }
    let own_code = fields.inner("auto_map", "auto_map.")?;
    // Models that came before transformers knew them name the class that it has now.
    let own = own_code.and_then(|map| map.get("AutoModelForCausalLM")).filter(|code| {
        let name = code.as_str().and_then(|code| code.rsplit('.').next());
        name != Some(class(family))
    });
    if let Some(code) = own {
        let what = format!("{}: the model runs code of its own", Shown(&code.to_string()));
        return Err(fields.error("auto_map", what));
    }
    Ok(())
}

/// All numbers, with the rotary frequencies as trained.
fn sizes(fields: Fields<'_>, family: Family) -> Result<ModelConfig, Error> {
    let hidden_size = fields.required_size("hidden_size")?;
    let heads = fields.required_size("num_attention_heads")?;
    let gemma = family == Family::Gemma3;
    let head_dim = match fields.size("head_dim")? {
        Some(head_dim) => head_dim,
        None if family == Family::Qwen3 => 128,
        None if gemma => 256,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let what = format!("{hidden_size} is no multiple of num_attention_heads, {heads}");
            return Err(fields.error("hidden_size", what));
        }
    };
    let flag = |name: &str| Ok::<_, Error>(fields.flag(name)?.unwrap_or(false));
    Ok(ModelConfig {
        family,
        hidden_size,
        intermediate_size: fields.required_size("intermediate_size")?,
        num_hidden_layers: fields.required_size("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: fields.size("num_key_value_heads")?.unwrap_or(match family {
            Family::Gemma3 | Family::Qwen3Moe => 4,
            _ => heads,
        }),
        head_dim,
        rotary_dim: rope::rotary_dim(fields, family, head_dim)?,
        vocab_size: fields.required_size("vocab_size")?,
        max_position_embeddings: fields.required_size("max_position_embeddings")?,
        rms_norm_eps: fields.required_number("rms_norm_eps")? as f32,
        rope_theta: rope::theta(fields, family)?,
        rope_local_base_freq: if gemma { Some(rope::local_theta(fields)?) } else { None },
        query_pre_attn_scalar: match fields.number("query_pre_attn_scalar")?.filter(|_| gemma) {
            Some(scalar) => scalar,
            None if gemma => 256.0,
            None => head_dim as f64,
        },
        final_logit_softcapping: fields.number("final_logit_softcapping")?.map(|cap| cap as f32),
        rope_scaling: RopeScaling::None,
        rope_magnitude: 1.0,
        sliding_window: None,
        tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(gemma),
        attention_bias: match family {
            Family::Gemma3 | Family::Llama | Family::Qwen3 | Family::Qwen3Moe => {
                flag("attention_bias")?
            }
            Family::Mistral | Family::Phi3 if flag("attention_bias")? => {
                let what = "biases of attention are not supported of this model";
                return Err(fields.error("attention_bias", what));
            }
            Family::Mistral | Family::Phi3 => false,
            Family::Qwen2 => true,
        },
        mlp_bias: family == Family::Llama && flag("mlp_bias")?,
        experts: None,
    })
}

/// One id or a list of them.
fn eos(fields: Fields<'_>, vocab_size: usize) -> Result<Option<Eos>, Error> {
    let name = "eos_token_id";
    let read = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|id| (*id as usize) < vocab_size).ok_or_else(|| {
            let found = value.to_string();
            fields.error(name, format_args!("{}, expected ids below {vocab_size}", Shown(&found)))
        })
    };
    Ok(match fields.get(name) {
        None => None,
        Some(Value::Array(ids)) => {
            Some(Eos::Several(ids.iter().map(read).collect::<Result<_, _>>()?))
        }
        Some(one) => Some(Eos::One(read(one)?)),
    })
}

/// An id; some files write -1 for none.
fn id(fields: Fields<'_>, name: &str, vocab_size: usize) -> Result<Option<u32>, Error> {
    if fields.get(name).and_then(Value::as_i64).is_some_and(|id| id < 0) {
        return Ok(None);
    }
    let Some(id) = fields.size(name)? else { return Ok(None) };
    let inside = u32::try_from(id).ok().filter(|id| (*id as usize) < vocab_size);
    inside.map(Some).ok_or_else(|| {
        fields.error(name, format_args!("{id}, but the vocabulary has {vocab_size} tokens"))
    })
}
