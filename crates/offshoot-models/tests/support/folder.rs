//! Hugging Face folders of the numbers of another checkpoint, open to every change.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use offshoot_kernels::BlockType;
use offshoot_models::{Checkpoint, Contents, Family, ModelConfig, RopeScaling, huggingface};
use serde_json::{Value, json};

/// A tensor of a safetensors file.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// A model as the files that its folder will hold.
#[derive(Clone)]
pub(crate) struct Folder {
    pub(crate) config: Value,
    pub(crate) tensors: BTreeMap<String, Stored>,
    /// All files but `config.json` and the weights.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

impl Folder {
    /// The same model: tensors in F16 or BF16 where they are so there, else in F32.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        let gemma = checkpoint.config().family == Family::Gemma3;
        let tensors = checkpoint.tensors().map(|tensor| {
            // Gemma's folders store the weights of norms less 1.
            let less = if gemma && tensor.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let block = match tensor.info.block {
                half @ (BlockType::F16 | BlockType::Bf16) => half,
                _ => BlockType::F32,
            };
            let mut row = vec![0.0; tensor.cols()];
            let mut bytes = Vec::new();
            for r in 0..tensor.row_count() {
                tensor.read_row(r, &mut row).unwrap();
                row.iter_mut().for_each(|x| *x -= less);
                block.quantize(&row, &mut bytes).unwrap();
            }
            let shape = tensor.info.shape.clone();
            (tensor.name.to_owned(), Stored { dtype: dtype(block), shape, bytes })
        });
        let mut tensors = tensors.collect();
        if checkpoint.config().family == Family::Phi3 {
            fuse(&mut tensors);
        }
        Self { config: config(checkpoint.config()), tensors, files: BTreeMap::new() }
    }

    /// Gemma's text model as published files have it beside a vision tower: `text` for the `model.`
    /// of its names, `vision` before those of the tower.
    pub(crate) fn beside_vision(&self, text: &str, vision: &str) -> Self {
        let renamed = |name: &String| name.replacen("model.", text, 1);
        let mut tensors: BTreeMap<String, Stored> =
            self.tensors.iter().map(|(name, tensor)| (renamed(name), tensor.clone())).collect();
        for name in ["multi_modal_projector.mm_soft_emb_norm.weight", "vision_tower.post.bias"] {
            tensors.insert(format!("{vision}{name}"), self.tensors["model.norm.weight"].clone());
        }
        let mut config = json!({
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": self.config,
            "vision_config": { "hidden_size": 8, "num_hidden_layers": 1 },
            "mm_tokens_per_image": 4,
        });
        let of_text = config["text_config"].as_object_mut().unwrap();
        of_text.remove("architectures");
        let version = of_text.remove("transformers_version");
        config["transformers_version"] = version.into();
        Self { config, tensors, files: self.files.clone() }
    }

    /// Sets a field of `config.json`.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.config[name] = value.into();
    }

    /// Adds a file of JSON.
    pub(crate) fn put(&mut self, name: &str, json: &Value) {
        self.files.insert(name.to_owned(), json.to_string().into_bytes());
    }

    /// All tensors, none of which is in BF16, in another float format.
    pub(crate) fn rounded(&self, block: BlockType) -> Self {
        let mut folder = self.clone();
        for tensor in folder.tensors.values_mut() {
            let stored = if tensor.dtype == "F16" { BlockType::F16 } else { BlockType::F32 };
            let mut weights = vec![0.0; tensor.shape.iter().product()];
            stored.dequantize(&tensor.bytes, &mut weights).unwrap();
            let mut bytes = Vec::new();
            block.quantize(&weights, &mut bytes).unwrap();
            *tensor = Stored { dtype: dtype(block), shape: tensor.shape.clone(), bytes };
        }
        folder
    }

    /// The weights as one safetensors file.
    pub(crate) fn weights(&self) -> Vec<u8> {
        safetensors(self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
    }

    /// The weights dealt out to `count` files, and the index of them.
    pub(crate) fn shards(&self, count: usize) -> (BTreeMap<String, Vec<u8>>, Value) {
        let name = |i: usize| format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        let dealt = self.tensors.iter().enumerate();
        let map: serde_json::Map<String, Value> = dealt
            .clone()
            .map(|(i, (tensor, _))| (tensor.clone(), name(i % count).into()))
            .collect();
        let part = |shard: usize| {
            let of_it = dealt.clone().filter(move |(i, _)| i % count == shard);
            safetensors(of_it.map(|(_, (name, tensor))| (name.as_str(), tensor)))
        };
        let shards = (0..count).map(|i| (name(i), part(i))).collect();
        (shards, json!({ "metadata": { "total_size": 1 }, "weight_map": map }))
    }

    /// Writes the folder with the weights in one file.
    pub(crate) fn save(&self, dir: &Path) {
        self.save_rest(dir);
        std::fs::write(dir.join("model.safetensors"), self.weights()).unwrap();
    }

    /// Writes the folder with the weights in `count` files.
    pub(crate) fn save_shards(&self, dir: &Path, count: usize) {
        self.save_rest(dir);
        let (shards, index) = self.shards(count);
        for (name, bytes) in shards {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        let index = index.to_string();
        std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
    }

    fn save_rest(&self, dir: &Path) {
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        for (name, bytes) in &self.files {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }

    /// Opens the folder as it would be saved in one file; the maps outlive its name.
    pub(crate) fn open(&self) -> Result<Checkpoint, offshoot_models::Error> {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("offshoot-folder-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        self.save(&dir);
        let opened = Checkpoint::open(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
        opened
    }

    /// The files' bytes with the weights in one file.
    pub(crate) fn sections(&self) -> Sections {
        let weights = vec![("model.safetensors".to_owned(), self.weights())];
        self.sections_with(None, weights)
    }

    /// The files' bytes with the weights in `count` files.
    pub(crate) fn sections_of_shards(&self, count: usize) -> Sections {
        let (shards, index) = self.shards(count);
        self.sections_with(Some(index.to_string().into_bytes()), shards.into_iter().collect())
    }

    fn sections_with(&self, index: Option<Vec<u8>>, weights: Vec<(String, Vec<u8>)>) -> Sections {
        let file = |name: &str| self.files.get(name).cloned();
        Sections {
            config: self.config.to_string().into_bytes(),
            index,
            tokenizer: file("tokenizer.json"),
            tokenizer_config: file("tokenizer_config.json"),
            chat_template: file("chat_template.jinja"),
            generation_config: file("generation_config.json"),
            weights,
        }
    }
}

/// The bytes of a folder's files, each of which may be anything.
#[derive(Clone)]
pub(crate) struct Sections {
    pub(crate) config: Vec<u8>,
    pub(crate) index: Option<Vec<u8>>,
    pub(crate) tokenizer: Option<Vec<u8>>,
    pub(crate) tokenizer_config: Option<Vec<u8>>,
    pub(crate) chat_template: Option<Vec<u8>>,
    pub(crate) generation_config: Option<Vec<u8>>,
    pub(crate) weights: Vec<(String, Vec<u8>)>,
}

/// What stands between the sections of a folder's files in one input of the fuzzer.
const SEPARATOR: &[u8] = b"\n==\n";

impl Sections {
    /// All sections in one, an absent one empty.
    pub(crate) fn join(&self) -> Vec<u8> {
        let small = [
            Some(&self.config),
            self.index.as_ref(),
            self.tokenizer.as_ref(),
            self.tokenizer_config.as_ref(),
            self.chat_template.as_ref(),
            self.generation_config.as_ref(),
        ];
        let small = small.map(|bytes| bytes.map_or(&[][..], Vec::as_slice));
        let weights = self.weights.iter().map(|(_, bytes)| bytes.as_slice());
        small.into_iter().chain(weights).collect::<Vec<_>>().join(SEPARATOR)
    }

    /// The sections of `bytes`; what the index names and is not there is empty.
    pub(crate) fn split(bytes: &[u8]) -> Result<Self, offshoot_models::Error> {
        let mut rest = Some(bytes);
        let mut next = || {
            let from = rest?;
            let end = from.windows(SEPARATOR.len()).position(|window| window == SEPARATOR);
            rest = end.map(|end| &from[end + SEPARATOR.len()..]);
            Some(from[..end.unwrap_or(from.len())].to_vec())
        };
        let config = next().unwrap_or_default();
        let mut small = || next().filter(|bytes| !bytes.is_empty());
        let (index, tokenizer, tokenizer_config) = (small(), small(), small());
        let (chat_template, generation_config) = (small(), small());
        let names = huggingface::weight_files(index.as_deref())?;
        let weights = names.into_iter().map(|name| (name, next().unwrap_or_default())).collect();
        Ok(Self {
            config,
            index,
            tokenizer,
            tokenizer_config,
            chat_template,
            generation_config,
            weights,
        })
    }

    /// Writes the files into a folder; weights whose names lead elsewhere are left out.
    pub(crate) fn save(&self, dir: &Path) {
        let small = [
            ("config.json", Some(&self.config)),
            ("model.safetensors.index.json", self.index.as_ref()),
            ("tokenizer.json", self.tokenizer.as_ref()),
            ("tokenizer_config.json", self.tokenizer_config.as_ref()),
            ("chat_template.jinja", self.chat_template.as_ref()),
            ("generation_config.json", self.generation_config.as_ref()),
        ];
        for (name, bytes) in small {
            if let Some(bytes) = bytes {
                std::fs::write(dir.join(name), bytes).unwrap();
            }
        }
        for (name, bytes) in &self.weights {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if name.chars().all(plain) && name != ".." {
                std::fs::write(dir.join(name), bytes).unwrap();
            }
        }
    }

    /// Reads the model and uses all of it, as a program that trusts the reader would.
    pub(crate) fn walk(&self) -> Result<Contents, offshoot_models::Error> {
        huggingface::weight_files(self.index.as_deref())?;
        let weights: Vec<(String, &[u8])> =
            self.weights.iter().map(|(name, bytes)| (name.clone(), bytes.as_slice())).collect();
        let contents = huggingface::contents(&huggingface::Parts {
            config: &self.config,
            index: self.index.as_deref(),
            weights: &weights,
            tokenizer: self.tokenizer.as_deref(),
            tokenizer_config: self.tokenizer_config.as_deref(),
            chat_template: self.chat_template.as_deref(),
            generation_config: self.generation_config.as_deref(),
        })?;
        for (name, info) in &contents.tensors {
            let mut out = vec![0.0; info.shape.iter().product()];
            let bytes = &weights[info.file].1[info.range.clone()];
            info.block.dequantize(bytes, &mut out).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert!(contents.stop_tokens.iter().all(|id| (*id as usize) < contents.config.vocab_size));
        if let Ok(spec) = &contents.tokenizer {
            assert_eq!(spec.tokens.len(), contents.config.vocab_size);
            super::use_tokenizer(spec);
        }
        Ok(contents)
    }
}

fn dtype(block: BlockType) -> &'static str {
    match block {
        BlockType::F16 => "F16",
        BlockType::Bf16 => "BF16",
        _ => "F32",
    }
}

/// Puts q, k and v into one matrix, and gate and up, as Phi-3's folders have them.
pub(crate) fn fuse(tensors: &mut BTreeMap<String, Stored>) {
    let blocks = tensors.keys().filter(|name| name.ends_with("q_proj.weight")).count();
    for layer in 0..blocks {
        for (whole, parts) in [
            (
                "self_attn.qkv_proj",
                &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..],
            ),
            ("mlp.gate_up_proj", &["mlp.gate_proj", "mlp.up_proj"]),
        ] {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let mut parts = parts.iter().map(|part| tensors.remove(&name(part)).unwrap());
            let mut fused = parts.next().unwrap();
            for part in parts {
                assert_eq!((part.dtype, part.shape[1]), (fused.dtype, fused.shape[1]));
                fused.shape[0] += part.shape[0];
                fused.bytes.extend(part.bytes);
            }
            tensors.insert(name(whole), fused);
        }
    }
}

/// A safetensors file of these tensors.
pub(crate) fn safetensors<'a>(tensors: impl Iterator<Item = (&'a str, &'a Stored)>) -> Vec<u8> {
    let mut header =
        serde_json::Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut data = Vec::new();
    for (name, Stored { dtype, shape, bytes }) in tensors {
        let offsets = [data.len(), data.len() + bytes.len()];
        let place = json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert(name.to_owned(), place);
        data.extend_from_slice(bytes);
    }
    with_header(&Value::from(header).to_string(), &data)
}

/// A file of this header and these bytes.
pub(crate) fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}

/// `config.json` in the older spelling; of scaled frequencies only linear ones.
fn config(c: &ModelConfig) -> Value {
    let class = match c.family {
        Family::Gemma3 => "Gemma3ForCausalLM",
        Family::Llama => "LlamaForCausalLM",
        Family::Mistral => "MistralForCausalLM",
        Family::Phi3 => "Phi3ForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        Family::Qwen3Moe => "Qwen3MoeForCausalLM",
        other => unreachable!("{other:?}"),
    };
    let scaling = match c.rope_scaling {
        RopeScaling::Linear { factor } => json!({ "type": "linear", "factor": factor }),
        RopeScaling::Long { ref short, ref long, trained } => json!({
            "type": "longrope", "short_factor": short, "long_factor": long,
            "original_max_position_embeddings": trained,
        }),
        _ => Value::Null,
    };
    let window = c.sliding_window.as_ref();
    let gemma = c.family == Family::Gemma3;
    let activation = if gemma { "hidden_activation" } else { "hidden_act" };
    let mut config = json!({
        "architectures": [class],
        // Written out: left out, Mistral has one.
        "sliding_window": window.map(|window| window.size),
        "model_type": c.family.name(),
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_position_embeddings,
        // As a file has it: the shortest text of the single-precision number.
        "rms_norm_eps": c.rms_norm_eps.to_string().parse::<f64>().unwrap(),
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": c.tie_word_embeddings,
        "attention_bias": c.attention_bias,
        "mlp_bias": c.mlp_bias,
        "torch_dtype": "float16",
        "transformers_version": "4.57.1",
    });
    if c.rotary_dim != c.head_dim {
        config["partial_rotary_factor"] = (c.rotary_dim as f64 / c.head_dim as f64).into();
    }
    if let Some(experts) = &c.experts {
        let dense = experts.layers.iter().enumerate().filter(|(_, has)| !**has);
        config["num_experts"] = experts.num_experts.into();
        config["num_experts_per_tok"] = experts.num_experts_per_tok.into();
        config["moe_intermediate_size"] = experts.moe_intermediate_size.into();
        config["norm_topk_prob"] = experts.norm_topk_prob.into();
        config["mlp_only_layers"] = dense.map(|(layer, _)| layer).collect();
    }
    config[activation] = if gemma { "gelu_pytorch_tanh" } else { "silu" }.into();
    if gemma {
        config["rope_local_base_freq"] = c.rope_local_base_freq.into();
        config["query_pre_attn_scalar"] = c.query_pre_attn_scalar.into();
        config["final_logit_softcapping"] = c.final_logit_softcapping.into();
        let local = window.map(|window| window.layers.clone()).unwrap_or_default();
        let kind = |local| if local { "sliding_attention" } else { "full_attention" };
        config["layer_types"] = local.into_iter().map(kind).collect();
    }
    config
}
