//! GGUF names, keys and row orders into Hugging Face's.

use std::collections::{BTreeMap, BTreeSet};

use offshoot_kernels::BlockType;

use super::reader::{Gguf, GgufTensor};
use super::{Shown, malformed, tokenizer};
use crate::{Contents, Error, Family, ModelConfig, RopeScaling, RowOrder, TensorInfo};

/// Keys of the architecture that, unless zero, mean a model that offshoot would run wrongly, and
/// what to say of them.
const REFUSED: [(&str, &str); 4] = [
    ("expert_count", "mixtures of experts are not supported"),
    ("expert_used_count", "mixtures of experts are not supported"),
    ("attention.clamp_kqv", "clamped attention is not supported"),
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
        let config = config(self, family)?;
        config.validate().map_err(malformed)?;
        let mut mapping = Mapping { gguf: self, config: &config, tensors: BTreeMap::new() };
        let taken = mapping.all()?;
        let tensors = mapping.tensors;
        let unused = self
            .tensors()
            .filter(|(name, _)| !taken.contains(*name))
            .map(|(name, _)| name.to_owned())
            .collect();
        let told = tokenizer::read(self, config.vocab_size)?;
        Ok(Contents {
            name: self.text("general.name")?.map(str::to_owned),
            chat_template: self
                .text("tokenizer.chat_template")?
                .filter(|template| !template.is_empty())
                .map(str::to_owned),
            config,
            tensors,
            unused,
            tokenizer: told.spec,
            stop_tokens: told.stop_tokens,
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
    if let Some(parts) = gguf.unsigned("split.count")?.filter(|parts| *parts > 1) {
        return Err(malformed(format_args!(
            "key \"split.count\": the model is split over {parts} files; merge them with \
             llama-gguf-split --merge"
        )));
    }
    let name = gguf.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    [Family::Llama, Family::Qwen2].into_iter().find(|family| family.name() == name).ok_or_else(
        || {
            malformed(format_args!(
                "key \"general.architecture\": {} is not supported, only \"llama\" and \"qwen2\"",
                Shown(name)
            ))
        },
    )
}

fn missing(key: &str) -> Error {
    malformed(format_args!("key \"{key}\": missing"))
}

/// A number of the architecture, as `usize`.
fn size(gguf: &Gguf<'_>, family: Family, key: &str) -> Result<Option<usize>, Error> {
    let key = format!("{}.{key}", family.name());
    let Some(value) = gguf.unsigned(&key)? else { return Ok(None) };
    usize::try_from(value)
        .map(Some)
        .map_err(|_| malformed(format_args!("key \"{key}\": {value} is too big")))
}

fn required_size(gguf: &Gguf<'_>, family: Family, key: &str) -> Result<usize, Error> {
    size(gguf, family, key)?.ok_or_else(|| missing(&format!("{}.{key}", family.name())))
}

fn config(gguf: &Gguf<'_>, family: Family) -> Result<ModelConfig, Error> {
    let arch = family.name();
    for (key, why) in REFUSED {
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
    let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
    let block_has = |suffixes: &[&str]| {
        suffixes.iter().any(|suffix| {
            gguf.tensors().any(|(name, _)| {
                name.strip_prefix("blk.").is_some_and(|rest| rest.ends_with(suffix))
            })
        })
    };
    Ok(ModelConfig {
        family,
        hidden_size,
        intermediate_size: required_size(gguf, family, "feed_forward_length")?,
        num_hidden_layers: required_size(gguf, family, "block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: size(gguf, family, "attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        // Not `{arch}.vocab_size`: the embedding is what ids index, and files differ from it.
        vocab_size: embedding_rows(gguf)?,
        max_position_embeddings: required_size(gguf, family, "context_length")?,
        rms_norm_eps: gguf.float(&eps)?.ok_or_else(|| missing(&eps))? as f32,
        rope_theta: gguf.float(&format!("{arch}.rope.freq_base"))?.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(gguf, arch, head_dim)?,
        tie_word_embeddings: gguf.tensor("output.weight").is_none(),
        attention_bias: family == Family::Qwen2
            || block_has(&[".attn_q.bias", ".attn_k.bias", ".attn_v.bias", ".attn_output.bias"]),
        mlp_bias: family == Family::Llama
            && block_has(&[".ffn_gate.bias", ".ffn_up.bias", ".ffn_down.bias"]),
    })
}

/// The width of a head, equal for queries, keys and values and rotated whole.
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
                family.name()
            )));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = size(gguf, family, key)?.filter(|other| *other != head_dim) {
            return Err(malformed(format_args!(
                "key \"{}.{key}\": {other}, expected the width of a head, {head_dim}",
                family.name()
            )));
        }
    }
    Ok(head_dim)
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

fn rope_scaling(gguf: &Gguf<'_>, arch: &str, head_dim: usize) -> Result<RopeScaling, Error> {
    let type_key = format!("{arch}.rope.scaling.type");
    let factors = rope_factors(gguf, head_dim)?;
    match (gguf.text(&type_key)?, factors) {
        (None | Some("none"), None) => Ok(RopeScaling::None),
        (None | Some("none"), Some(factors)) => Ok(RopeScaling::Factors(factors)),
        (Some("linear"), None) => {
            let key = format!("{arch}.rope.scaling.factor");
            let factor = gguf.float(&key)?.ok_or_else(|| missing(&key))?;
            Ok(RopeScaling::Linear { factor })
        }
        (Some("linear"), Some(_)) => Err(malformed(format_args!(
            "key \"{type_key}\": linear scaling beside tensor \"rope_freqs.weight\", expected one"
        ))),
        (Some(other), _) => Err(malformed(format_args!(
            "key \"{type_key}\": {} scaling is not supported, only none and linear",
            Shown(other)
        ))),
    }
}

/// The divisors of `rope_freqs.weight`, if the file has them.
fn rope_factors(gguf: &Gguf<'_>, head_dim: usize) -> Result<Option<Vec<f32>>, Error> {
    let Some(tensor) = gguf.tensor("rope_freqs.weight") else { return Ok(None) };
    if tensor.block != BlockType::F32 || tensor.shape != [head_dim / 2] {
        return Err(malformed(format_args!(
            "tensor \"rope_freqs.weight\": {} of shape {:?}, expected F32 of [{}]",
            tensor.block,
            tensor.shape,
            head_dim / 2
        )));
    }
    let values = gguf.data(tensor).chunks_exact(4);
    Ok(Some(values.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
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
        let mut taken = BTreeSet::from(["rope_freqs.weight".to_owned()]);
        for place in places(config) {
            self.take(&place.gguf, place.canonical, place.shape, place.rows)?;
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
    ) -> Result<(), Error> {
        let tensor = self.gguf.tensor(gguf_name).ok_or_else(|| {
            malformed(format_args!("tensor \"{gguf_name}\": missing, expected shape {shape:?}"))
        })?;
        if !same_shape(tensor, &shape) {
            return Err(malformed(format_args!(
                "tensor \"{gguf_name}\": shape {:?}, expected {shape:?}",
                tensor.shape
            )));
        }
        let (block, range) = (tensor.block, tensor.range.clone());
        self.tensors.insert(name, TensorInfo { shape, block, range, file: 0, rows });
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

/// A tensor under both of its names; those of [`layer_parts`] lack the layer.
pub(super) struct Part {
    pub(super) gguf: String,
    pub(super) canonical: String,
    shape: Vec<usize>,
    /// How the file's rows map to canonical ones.
    pub(super) rows: RowOrder,
}

/// All tensors of a model, in the order of a file.
pub(super) fn places(config: &ModelConfig) -> Vec<Part> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let plain = |gguf: &str, canonical: &str, shape: &[usize]| Part {
        gguf: gguf.to_owned(),
        canonical: canonical.to_owned(),
        shape: shape.to_vec(),
        rows: RowOrder::Plain,
    };
    let mut places =
        vec![plain("token_embd.weight", "model.embed_tokens.weight", &[vocab, hidden])];
    let parts = layer_parts(config);
    for layer in 0..config.num_hidden_layers {
        places.extend(parts.iter().map(|part| Part {
            gguf: format!("blk.{layer}.{}", part.gguf),
            canonical: format!("model.layers.{layer}.{}", part.canonical),
            shape: part.shape.clone(),
            rows: part.rows,
        }));
    }
    places.push(plain("output_norm.weight", "model.norm.weight", &[hidden]));
    if !config.tie_word_embeddings {
        places.push(plain("output.weight", "lm_head.weight", &[vocab, hidden]));
    }
    places
}

fn layer_parts(config: &ModelConfig) -> Vec<Part> {
    let hidden = config.hidden_size;
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    let ffn = config.intermediate_size;
    // llama.cpp's converter stores q and k of Llama with the two halves of a head interleaved,
    // weights and biases alike; Qwen2 rotates halves there as here, and is stored plain.
    let rotary = match config.family {
        Family::Llama => RowOrder::RotaryPairs { head_dim: config.head_dim },
        Family::Qwen2 => RowOrder::Plain,
    };
    let plain = RowOrder::Plain;
    let qkv_bias = config.attention_bias;
    let o_bias = qkv_bias && config.family == Family::Llama;
    let linears = [
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
    };
    let mut parts = vec![
        part("attn_norm", "input_layernorm", "weight", &[hidden], plain),
        part("ffn_norm", "post_attention_layernorm", "weight", &[hidden], plain),
    ];
    for (gguf, canonical, shape, rows, bias) in linears {
        parts.push(part(gguf, canonical, "weight", &shape, rows));
        if bias {
            parts.push(part(gguf, canonical, "bias", &shape[..1], rows));
        }
    }
    parts
}
