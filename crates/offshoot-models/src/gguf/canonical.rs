//! GGUF names, keys and row orders into Hugging Face's.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use super::reader::{Gguf, GgufTensor};
use super::{Shown, experts, malformed, rope, sampling, template, tokenizer};
use crate::{
    Contents, Error, Experts, Family, ModelConfig, RopeScaling, RowOrder, SlidingWindow, TensorInfo,
};

/// Keys of the architecture that, unless zero, mean a model that offshoot would run wrongly, and
/// what to say of them.
const REFUSED: [(&str, &str); 5] = [
    ("expert_count", "mixtures of experts are not supported"),
    ("expert_used_count", "mixtures of experts are not supported"),
    ("attention.clamp_kqv", "clamped attention is not supported"),
    ("attn_logit_softcapping", "softcapped attention is not supported"),
    ("attention.max_alibi_bias", "ALiBi attention is not supported"),
];

impl Gguf<'_> {
    /// The model under canonical names: configuration, tensors, tokenizer and chat template.
    ///
    /// # Errors
    /// [`Error::Gguf`] if the architecture or a setting of it is not supported, a key is missing or
    /// out of bounds, or a tensor that the architecture needs is missing or of another shape.
    pub fn contents(&self) -> Result<Contents, Error> {
        let family = family(self)?;
        let mut config = config(self, family)?;
        // What is as long as these numbers say comes after they were found sound.
        config.validate().map_err(malformed)?;
        let stretching = rope::scaling(self, arch(family), &config)?;
        config.rope_scaling = stretching.scaling;
        config.rope_magnitude = stretching.magnitude;
        config.sliding_window = sliding_window(self, &config)?;
        config.experts = experts::read(self, &config)?;
        config.max_position_embeddings = config.max_position_embeddings.max(stretching.reach);
        config.validate().map_err(malformed)?;
        let mut mapping = Mapping { gguf: self, config: &config, tensors: BTreeMap::new() };
        let taken = mapping.all()?;
        let tensors = mapping.tensors;
        let unused: Vec<String> = self
            .tensors()
            .filter(|(name, _)| !taken.contains(*name))
            .map(|(name, _)| name.to_owned())
            .collect();
        if let Some(name) = unused.iter().find(|name| takes_part(name, config.num_hidden_layers)) {
            return Err(malformed(format_args!(
                "tensor {}: not one of a {} model with these keys",
                Shown(name),
                family.name()
            )));
        }
        let told = tokenizer::read(self, config.vocab_size)?;
        let (chat_template, assumes_template) = template::read(self, &told.spec)?;
        Ok(Contents {
            name: self.text("general.name")?.map(str::to_owned),
            chat_template,
            assumes_template,
            config,
            tensors,
            unused,
            tokenizer: told.spec,
            stop_tokens: told.stop_tokens,
            generation: sampling::read(self)?,
            rope_rule: stretching.rule,
        })
    }
}

/// The architecture, if it is one that offshoot runs and the file is a whole model of it.
fn family(gguf: &Gguf<'_>) -> Result<Family, Error> {
    if let Some(kind) = gguf.text("general.type")?.filter(|kind| *kind != "model") {
        return Err(malformed(format_args!(
            "key \"general.type\": {}, expected \"model\"",
            Shown(kind)
        )));
    }
    gguf.refuse_part()?;
    let name = gguf.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    match name {
        "gemma3" => Ok(Family::Gemma3),
        "llama" if window(gguf, name)?.is_some() => Ok(Family::Mistral),
        "llama" => Ok(Family::Llama),
        "phi3" => Ok(Family::Phi3),
        "qwen2" => Ok(Family::Qwen2),
        "qwen3" => Ok(Family::Qwen3),
        "qwen3moe" => Ok(Family::Qwen3Moe),
        _ => Err(malformed(format_args!(
            "key \"general.architecture\": {} is not supported, only gemma3, llama, phi3, qwen2, qwen3 \
             and qwen3moe",
            Shown(name)
        ))),
    }
}

/// The name of a family in GGUF files. Mistral's are Llama's, with a window if they have one.
pub(super) fn arch(family: Family) -> &'static str {
    match family {
        Family::Gemma3 => "gemma3",
        Family::Llama | Family::Mistral => "llama",
        Family::Phi3 => "phi3",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Qwen3Moe => "qwen3moe",
    }
}

/// How many positions a row sees; none and 0 mean all.
fn window(gguf: &Gguf<'_>, arch: &str) -> Result<Option<NonZeroUsize>, Error> {
    let key = format!("{arch}.attention.sliding_window");
    let size = gguf.unsigned(&key)?.unwrap_or(0);
    let size =
        usize::try_from(size).map_err(|_| malformed(format_args!("key \"{key}\": too big")))?;
    Ok(NonZeroUsize::new(size))
}

/// The layers that see no further back than a window.
fn sliding_window(gguf: &Gguf<'_>, config: &ModelConfig) -> Result<Option<SlidingWindow>, Error> {
    let (family, layers) = (config.family, config.num_hidden_layers);
    let Some(size) = window(gguf, arch(family))? else { return Ok(None) };
    match family {
        Family::Gemma3 => {
            let each = pattern(gguf)?;
            let layers = (1..=layers).map(|i| !i.is_multiple_of(each)).collect();
            Ok(Some(SlidingWindow { size, layers }))
        }
        Family::Mistral if config.attention_bias || config.mlp_bias => {
            Err(malformed("key \"llama.attention.sliding_window\": not supported beside biases"))
        }
        Family::Llama | Family::Mistral | Family::Phi3 => {
            Ok(Some(SlidingWindow { size, layers: vec![true; layers] }))
        }
        // Files that name a window which nothing reaches are of models that have none.
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe
            if size.get() >= config.max_position_embeddings =>
        {
            Ok(None)
        }
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => Err(malformed(format_args!(
            "key \"{}.attention.sliding_window\": {size}, but the file does not say of which layers",
            arch(family)
        ))),
    }
}

pub(super) fn missing(key: &str) -> Error {
    malformed(format_args!("key \"{key}\": missing"))
}

/// A number of the architecture, as `usize`.
fn size(gguf: &Gguf<'_>, family: Family, key: &str) -> Result<Option<usize>, Error> {
    let key = format!("{}.{key}", arch(family));
    let Some(value) = gguf.unsigned(&key)? else { return Ok(None) };
    usize::try_from(value)
        .map(Some)
        .map_err(|_| malformed(format_args!("key \"{key}\": {value} is too big")))
}

pub(super) fn required_size(gguf: &Gguf<'_>, family: Family, key: &str) -> Result<usize, Error> {
    size(gguf, family, key)?.ok_or_else(|| missing(&format!("{}.{key}", arch(family))))
}

/// Sizes and constants, with the rotary frequencies as trained.
fn config(gguf: &Gguf<'_>, family: Family) -> Result<ModelConfig, Error> {
    let arch = arch(family);
    for (key, why) in REFUSED {
        if family == Family::Qwen3Moe && key.starts_with("expert_") {
            continue;
        }
        let key = format!("{arch}.{key}");
        let zero = gguf.get(&key).is_none_or(|value| {
            value.as_integer() == Some(0) || *value == 0f32.into() || *value == 0f64.into()
        });
        if !zero {
            return Err(malformed(format_args!("key \"{key}\": {why}")));
        }
    }
    let hidden_size = required_size(gguf, family, "embedding_length")?;
    let heads = required_size(gguf, family, "attention.head_count")?;
    let head_dim = head_dim(gguf, family, hidden_size, heads)?;
    let rotary_dim = rotary_dim(gguf, family, head_dim)?;
    let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
    let block_has = |suffixes: &[&str]| {
        suffixes.iter().any(|suffix| {
            gguf.tensors().any(|(name, _)| {
                name.strip_prefix("blk.").is_some_and(|rest| rest.ends_with(suffix))
            })
        })
    };
    let layers = required_size(gguf, family, "block_count")?;
    let cap = format!("{arch}.final_logit_softcapping");
    let final_logit_softcapping = gguf.float(&cap)?.filter(|cap| *cap != 0.0).map(|cap| cap as f32);
    if family != Family::Gemma3 && final_logit_softcapping.is_some() {
        return Err(malformed(format_args!("key \"{cap}\": softcapped logits are not supported")));
    }
    let local_theta = gguf.float(&format!("{arch}.rope.freq_base_swa"))?.unwrap_or(10_000.0);
    Ok(ModelConfig {
        family,
        hidden_size,
        intermediate_size: required_size(gguf, family, "feed_forward_length")?,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: size(gguf, family, "attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        rotary_dim,
        // Not `{arch}.vocab_size`: the embedding is what ids index, and files differ from it.
        vocab_size: embedding_rows(gguf)?,
        max_position_embeddings: required_size(gguf, family, "context_length")?,
        rms_norm_eps: gguf.float(&eps)?.ok_or_else(|| missing(&eps))? as f32,
        rope_theta: gguf.float(&format!("{arch}.rope.freq_base"))?.unwrap_or(10_000.0),
        rope_scaling: RopeScaling::None,
        rope_magnitude: 1.0,
        sliding_window: None,
        rope_local_base_freq: (family == Family::Gemma3).then_some(local_theta),
        query_pre_attn_scalar: score_scalar(family, hidden_size, heads, head_dim, layers),
        final_logit_softcapping,
        tie_word_embeddings: gguf.tensor("output.weight").is_none(),
        attention_bias: family == Family::Qwen2
            || block_has(&[".attn_q.bias", ".attn_k.bias", ".attn_v.bias", ".attn_output.bias"]),
        mlp_bias: matches!(family, Family::Llama | Family::Mistral)
            && block_has(&[".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"]),
        experts: None,
    })
}

/// Whether a tensor that the architecture lacks would change what a layer or the output head gives.
fn takes_part(name: &str, layers: usize) -> bool {
    let number = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    number.and_then(|n| n.parse::<usize>().ok()).is_some_and(|layer| layer < layers)
        || name == "output.bias"
}

/// How often a layer of Gemma sees everything: llama.cpp's own number unless the file has one.
fn pattern(gguf: &Gguf<'_>) -> Result<usize, Error> {
    let key = "gemma3.attention.sliding_window_pattern";
    let each = gguf.unsigned(key)?.unwrap_or(6);
    usize::try_from(each)
        .ok()
        .filter(|each| *each > 0)
        .ok_or_else(|| malformed(format_args!("key \"{key}\": {each}, expected 1 or more")))
}

/// Layers of the Gemma 3 of 27 billion weights, whose scores have a scale of their own that files do
/// not give; llama.cpp knows it by this number, too.
const GEMMA_27B_LAYERS: usize = 62;

/// What Gemma's scores are divided by the root of.
pub(super) fn score_scalar(
    family: Family,
    hidden: usize,
    heads: usize,
    head_dim: usize,
    layers: usize,
) -> f64 {
    match family {
        Family::Gemma3 if layers == GEMMA_27B_LAYERS => hidden as f64 / heads as f64,
        _ => head_dim as f64,
    }
}

/// The width of a head, equal for queries, keys and values.
fn head_dim(
    gguf: &Gguf<'_>,
    family: Family,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, Error> {
    let head_dim = match size(gguf, family, "attention.key_length")? {
        Some(head_dim) => head_dim,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(malformed(format_args!(
                "key \"{}.embedding_length\": {hidden_size} is no multiple of the {heads} heads",
                arch(family)
            )));
        }
    };
    match size(gguf, family, "attention.value_length")? {
        Some(other) if other != head_dim => {
            Err(not_of_a_head(family, "attention.value_length", other, head_dim))
        }
        _ => Ok(head_dim),
    }
}

/// How many elements of a head are rotated: all, unless a file of Phi-3 says otherwise.
fn rotary_dim(gguf: &Gguf<'_>, family: Family, head_dim: usize) -> Result<usize, Error> {
    let key = "rope.dimension_count";
    match size(gguf, family, key)? {
        Some(part) if family == Family::Phi3 => Ok(part),
        Some(other) if other != head_dim => Err(not_of_a_head(family, key, other, head_dim)),
        _ => Ok(head_dim),
    }
}

fn not_of_a_head(family: Family, key: &str, found: usize, head_dim: usize) -> Error {
    malformed(format_args!(
        "key \"{}.{key}\": {found}, expected the width of a head, {head_dim}",
        arch(family)
    ))
}

fn embedding_rows(gguf: &Gguf<'_>) -> Result<usize, Error> {
    match gguf.tensor("token_embd.weight").map(|tensor| tensor.shape.as_slice()) {
        Some([rows, _]) => Ok(*rows),
        Some(shape) => Err(malformed(format_args!(
            "tensor \"token_embd.weight\": shape {shape:?}, expected two axes"
        ))),
        None => Err(malformed("tensor \"token_embd.weight\": missing")),
    }
}

/// Collects tensors under their canonical names.
struct Mapping<'g, 'a> {
    gguf: &'g Gguf<'a>,
    config: &'g ModelConfig,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Mapping<'_, '_> {
    /// Takes every tensor that the architecture has, and gives the names they have in the file.
    fn all(&mut self) -> Result<BTreeSet<String>, Error> {
        let config = self.config;
        let mut taken = BTreeSet::from(rope::TENSORS.map(str::to_owned));
        for place in places(config) {
            self.take(&place.gguf, place.canonical, place.shape, place.rows, place.within)?;
            taken.insert(place.gguf);
        }
        Ok(taken)
    }

    fn take(
        &mut self,
        gguf_name: &str,
        name: String,
        shape: Vec<usize>,
        rows: RowOrder,
        within: Option<Within>,
    ) -> Result<(), Error> {
        let stored = within.as_ref().map_or(&shape, |within| &within.shape);
        let tensor = self.gguf.tensor(gguf_name).ok_or_else(|| {
            malformed(format_args!("tensor \"{gguf_name}\": missing, expected shape {stored:?}"))
        })?;
        if !same_shape(tensor, stored) {
            return Err(malformed(format_args!(
                "tensor \"{gguf_name}\": shape {:?}, expected {stored:?}",
                tensor.shape
            )));
        }
        let (block, file, mut range) = (tensor.block, tensor.file, tensor.range.clone());
        if let Some(Within { shape: whole, first }) = within {
            // Not 0, since shapes are those of tensors that have weights.
            let rows: usize = whole.iter().rev().skip(1).product();
            let row_bytes = range.len() / rows;
            let start = range.start + first * row_bytes;
            range = start..start + shape[0] * row_bytes;
        }
        self.tensors.insert(name, TensorInfo { shape, block, range, file, rows, shift: 0.0 });
        Ok(())
    }
}

/// Whether the shapes are equal but for leading axes of length one, which files may leave out or add.
fn same_shape(tensor: &GgufTensor, shape: &[usize]) -> bool {
    let without_ones = |shape: &[usize]| {
        let leading = shape.iter().take_while(|n| **n == 1).count();
        shape[leading..].to_vec()
    };
    without_ones(&tensor.shape) == without_ones(shape)
}

/// Where a matrix stands that a file keeps in another tensor: the shape of that, and its first row
/// there.
#[derive(Clone)]
pub(super) struct Within {
    shape: Vec<usize>,
    first: usize,
}

/// A tensor under both of its names; those of [`layer_parts`] lack the layer.
pub(super) struct Part {
    pub(super) gguf: String,
    pub(super) canonical: String,
    shape: Vec<usize>,
    /// How the file's rows map to canonical ones.
    pub(super) rows: RowOrder,
    /// Where it stands in the file's tensor, if that holds others too.
    within: Option<Within>,
}

impl Part {
    /// The shape of the file's tensor.
    pub(super) fn stored_shape(&self) -> &[usize] {
        self.within.as_ref().map_or(&self.shape, |within| &within.shape)
    }
}

/// All tensors of a model, in the order of a file.
pub(super) fn places(config: &ModelConfig) -> Vec<Part> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let plain = |gguf: &str, canonical: &str, shape: &[usize]| Part {
        gguf: gguf.to_owned(),
        canonical: canonical.to_owned(),
        shape: shape.to_vec(),
        rows: RowOrder::Plain,
        within: None,
    };
    let mut places =
        vec![plain("token_embd.weight", "model.embed_tokens.weight", &[vocab, hidden])];
    let parts = [None, config.experts.as_ref()].map(|experts| layer_parts(config, experts));
    for layer in 0..config.num_hidden_layers {
        let parts = &parts[usize::from(config.experts(layer).is_some())];
        places.extend(parts.iter().map(|part| Part {
            gguf: format!("blk.{layer}.{}", part.gguf),
            canonical: format!("model.layers.{layer}.{}", part.canonical),
            shape: part.shape.clone(),
            rows: part.rows,
            within: part.within.clone(),
        }));
    }
    places.push(plain("output_norm.weight", "model.norm.weight", &[hidden]));
    if !config.tie_word_embeddings {
        places.push(plain("output.weight", "lm_head.weight", &[vocab, hidden]));
    }
    places
}

fn layer_parts(config: &ModelConfig, experts: Option<&Experts>) -> Vec<Part> {
    let hidden = config.hidden_size;
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let ffn = config.intermediate_size;
    // llama.cpp's converter stores q and k of Llama and Mistral with the two halves of a head interleaved,
    // weights and biases alike; the others rotate halves there as here, and are
    // stored plain.
    let rotary = match config.family {
        Family::Llama | Family::Mistral => RowOrder::RotaryPairs { head_dim: config.head_dim },
        Family::Gemma3 | Family::Phi3 | Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => {
            RowOrder::Plain
        }
    };
    let plain = RowOrder::Plain;
    let qkv_bias = config.attention_bias;
    let o_bias = qkv_bias && config.family != Family::Qwen2;
    let mut linears = vec![
        ("attn_q", "self_attn.q_proj", [q, hidden], rotary, qkv_bias),
        ("attn_k", "self_attn.k_proj", [kv, hidden], rotary, qkv_bias),
        ("attn_v", "self_attn.v_proj", [kv, hidden], plain, qkv_bias),
        ("attn_output", "self_attn.o_proj", [hidden, q], plain, o_bias),
        ("ffn_gate", "mlp.gate_proj", [ffn, hidden], plain, config.mlp_bias),
        ("ffn_up", "mlp.up_proj", [ffn, hidden], plain, config.mlp_bias),
        ("ffn_down", "mlp.down_proj", [hidden, ffn], plain, config.mlp_bias),
    ];
    let part = |gguf: &str, canonical: &str, kind: &str, shape: &[usize], rows| Part {
        gguf: format!("{gguf}.{kind}"),
        canonical: format!("{canonical}.{kind}"),
        shape: shape.to_vec(),
        rows,
        within: None,
    };
    let norms: &[(&str, &str)] = match config.family {
        Family::Gemma3 => &[
            ("attn_norm", "input_layernorm"),
            ("post_attention_norm", "post_attention_layernorm"),
            ("ffn_norm", "pre_feedforward_layernorm"),
            ("post_ffw_norm", "post_feedforward_layernorm"),
        ],
        _ => &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")],
    };
    let norm = |(gguf, canonical): &(&str, &str)| part(gguf, canonical, "weight", &[hidden], plain);
    let mut parts: Vec<Part> = norms.iter().map(norm).collect();
    if experts.is_some() {
        linears.truncate(4);
    }
    if matches!(config.family, Family::Gemma3 | Family::Qwen3 | Family::Qwen3Moe) {
        let head = &[config.head_dim];
        parts.push(part("attn_q_norm", "self_attn.q_norm", "weight", head, plain));
        parts.push(part("attn_k_norm", "self_attn.k_norm", "weight", head, plain));
    }
    let within = |rows: usize, first| Within { shape: vec![rows, hidden], first };
    let fused = |gguf: &str| match (config.family, gguf) {
        (Family::Phi3, "attn_q") => Some(("attn_qkv", within(q + 2 * kv, 0))),
        (Family::Phi3, "attn_k") => Some(("attn_qkv", within(q + 2 * kv, q))),
        (Family::Phi3, "attn_v") => Some(("attn_qkv", within(q + 2 * kv, q + kv))),
        (Family::Phi3, "ffn_gate") => Some(("ffn_up", within(2 * ffn, 0))),
        (Family::Phi3, "ffn_up") => Some(("ffn_up", within(2 * ffn, ffn))),
        _ => None,
    };
    for (gguf, canonical, shape, rows, bias) in linears {
        let (gguf, within) = match fused(gguf) {
            Some((gguf, within)) => (gguf, Some(within)),
            None => (gguf, None),
        };
        parts.push(Part { within, ..part(gguf, canonical, "weight", &shape, rows) });
        if bias {
            parts.push(part(gguf, canonical, "bias", &shape[..1], rows));
        }
    }
    parts.extend(experts.into_iter().flat_map(|experts| expert_parts(hidden, experts)));
    parts
}

/// The router, and each expert out of the tensor that holds those of all.
fn expert_parts(hidden: usize, experts: &Experts) -> Vec<Part> {
    let Experts { num_experts, moe_intermediate_size: inner, .. } = *experts;
    let mut parts = vec![Part {
        gguf: "ffn_gate_inp.weight".to_owned(),
        canonical: "mlp.gate.weight".to_owned(),
        shape: vec![num_experts, hidden],
        rows: RowOrder::Plain,
        within: None,
    }];
    for (name, shape) in
        [("gate", [inner, hidden]), ("up", [inner, hidden]), ("down", [hidden, inner])]
    {
        parts.extend((0..num_experts).map(|expert| Part {
            gguf: format!("ffn_{name}_exps.weight"),
            canonical: format!("mlp.experts.{expert}.{name}_proj.weight"),
            shape: shape.to_vec(),
            rows: RowOrder::Plain,
            within: Some(Within {
                shape: vec![num_experts, shape[0], shape[1]],
                first: expert * shape[0],
            }),
        }));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_gemma_27b_have_the_scale_of_its_width_and_others_that_of_a_head() {
        // As `config.json` of the published models of 27, 12 and 4 billion weights has it.
        assert_eq!(score_scalar(Family::Gemma3, 5376, 32, 128, 62), 168.0);
        assert_eq!(score_scalar(Family::Gemma3, 3840, 16, 256, 48), 256.0);
        assert_eq!(score_scalar(Family::Gemma3, 2560, 8, 256, 34), 256.0);
        assert_eq!(score_scalar(Family::Llama, 5376, 32, 128, 62), 128.0);
    }
}
