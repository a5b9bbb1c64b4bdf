//! Models of a few kilobytes, whole enough to open.

use std::collections::BTreeMap;
use std::io::Write;

use offshoot_kernels::BlockType;
use offshoot_models::gguf::{Array, Value, Writer};

pub(crate) const HIDDEN: usize = 32;
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_DIM: usize = 8;
pub(crate) const FFN: usize = 64;
pub(crate) const LAYERS: usize = 2;

/// Token texts; id 1 and 2 are control tokens, 0 is one by kind but ends nothing.
pub(crate) const TOKENS: [&str; 12] =
    ["<|pad|>", "<|im_start|>", "<|im_end|>", "a", "b", "c", "d", "ab", "cd", "abcd", "Ġ", "é"];

/// The names of [`Tiny::families`].
pub(crate) const FAMILIES: [&str; 7] =
    ["gemma3", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3moe"];

#[derive(Clone)]
pub(crate) struct TinyTensor {
    pub(crate) shape: Vec<usize>,
    pub(crate) block: BlockType,
    pub(crate) bytes: Vec<u8>,
}

/// A model as the keys and tensors that its file will hold, open to every change.
#[derive(Clone)]
pub(crate) struct Tiny {
    pub(crate) alignment: u32,
    pub(crate) keys: BTreeMap<String, Value<'static>>,
    pub(crate) tensors: BTreeMap<String, TinyTensor>,
}

impl Tiny {
    /// Llama's form: no biases, the output head tied to the embedding.
    pub(crate) fn llama() -> Self {
        let mut tiny = Self::without_biases("llama");
        tiny.set("tokenizer.ggml.pre", "smollm");
        tiny
    }

    /// Gemma 3's form: norms of each head of q and k and after each half of a block, the layers but each
    /// second within a window of 3 positions, capped logits.
    pub(crate) fn gemma3() -> Self {
        let mut tiny = Self::without_biases("gemma3");
        tiny.set("tokenizer.ggml.pre", "smollm");
        tiny.set("gemma3.attention.sliding_window", 3u32);
        tiny.set("gemma3.attention.sliding_window_pattern", 2u32);
        tiny.set("gemma3.final_logit_softcapping", 30f32);
        for layer in 0..LAYERS {
            for part in ["post_attention_norm", "post_ffw_norm"] {
                tiny.vector(&format!("blk.{layer}.{part}.weight"), HIDDEN);
            }
            for part in ["q", "k"] {
                tiny.vector(&format!("blk.{layer}.attn_{part}_norm.weight"), HEAD_DIM);
            }
        }
        tiny
    }

    /// Mistral's form: Llama's with a window of 3 positions.
    pub(crate) fn mistral() -> Self {
        let mut tiny = Self::llama();
        tiny.set("llama.attention.sliding_window", 3u32);
        tiny
    }

    /// Phi-3's form: q, k and v in one matrix, gate and up in another, a window of 5 positions, and two
    /// sets of factors of the frequencies.
    pub(crate) fn phi3() -> Self {
        let mut tiny = Self::without_biases("phi3");
        tiny.set("tokenizer.ggml.pre", "smollm");
        tiny.set("phi3.attention.sliding_window", 5u32);
        tiny.set("phi3.rope.scaling.original_context_length", 32u32);
        // As folders have it by formula: sqrt(1 + ln(64 / 32) / ln(32)).
        tiny.set("phi3.rope.scaling.attn_factor", 1.2f64.sqrt() as f32);
        tiny.vector("rope_factors_short.weight", HEAD_DIM / 2);
        tiny.floats("rope_factors_long.weight", &[HEAD_DIM / 2], &[1.0, 2.0, 4.0, 8.0]);
        let block = BlockType::F16;
        for layer in 0..LAYERS {
            for part in ["attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"] {
                tiny.tensors.remove(&format!("blk.{layer}.{part}.weight"));
            }
            let rows = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
            tiny.matrix(&format!("blk.{layer}.attn_qkv.weight"), rows, HIDDEN, block);
            tiny.matrix(&format!("blk.{layer}.ffn_up.weight"), 2 * FFN, HIDDEN, BlockType::Q4_0);
        }
        tiny
    }

    /// Qwen2's form: biases on q, k and v, and an output head of its own.
    pub(crate) fn qwen2() -> Self {
        let mut tiny = Self::without_biases("qwen2");
        tiny.set("tokenizer.ggml.pre", "qwen2");
        tiny.matrix("output.weight", TOKENS.len(), HIDDEN, BlockType::F16);
        for layer in 0..LAYERS {
            for (part, rows) in
                [("q", HEADS * HEAD_DIM), ("k", KV_HEADS * HEAD_DIM), ("v", KV_HEADS * HEAD_DIM)]
            {
                tiny.vector(&format!("blk.{layer}.attn_{part}.bias"), rows);
            }
        }
        tiny
    }

    /// Qwen3's form: norms of each head of q and k.
    pub(crate) fn qwen3() -> Self {
        let mut tiny = Self::without_biases("qwen3");
        tiny.set("tokenizer.ggml.pre", "qwen2");
        for layer in 0..LAYERS {
            for part in ["q", "k"] {
                tiny.vector(&format!("blk.{layer}.attn_{part}_norm.weight"), HEAD_DIM);
            }
        }
        tiny
    }

    /// Qwen3's form with experts in the second layer: 4, of which a row goes through 2.
    pub(crate) fn qwen3moe() -> Self {
        let mut tiny = Self::without_biases("qwen3moe");
        tiny.set("tokenizer.ggml.pre", "qwen2");
        for (key, value) in [("count", 4u32), ("used_count", 2), ("feed_forward_length", 32)] {
            tiny.set(&format!("qwen3moe.expert_{key}"), value);
        }
        for layer in 0..LAYERS {
            for part in ["q", "k"] {
                tiny.vector(&format!("blk.{layer}.attn_{part}_norm.weight"), HEAD_DIM);
            }
        }
        for part in ["ffn_gate", "ffn_up", "ffn_down"] {
            tiny.tensors.remove(&format!("blk.1.{part}.weight"));
        }
        // In quarters, each row another way.
        let scores: Vec<f32> =
            (0..4 * HIDDEN).map(|i| ((7 * i + i / 9) % 11) as f32 / 4.0 - 1.25).collect();
        tiny.floats("blk.1.ffn_gate_inp.weight", &[4, HIDDEN], &scores);
        for (part, rows, block) in [
            ("gate", 4 * 32, BlockType::Q4_0),
            ("up", 4 * 32, BlockType::Q5_0),
            ("down", 4 * HIDDEN, BlockType::Q8_0),
        ] {
            let name = format!("blk.1.ffn_{part}_exps.weight");
            tiny.matrix(&name, rows, 32, block);
            if let Some(tensor) = tiny.tensors.get_mut(&name) {
                tensor.shape = vec![4, rows / 4, 32];
            }
        }
        tiny
    }

    /// A model of every family.
    pub(crate) fn families() -> Vec<Self> {
        vec![
            Self::gemma3(),
            Self::llama(),
            Self::mistral(),
            Self::phi3(),
            Self::qwen2(),
            Self::qwen3(),
            Self::qwen3moe(),
        ]
    }

    /// A model of one layer and few weights, of one of [`FAMILIES`], for a corpus where bytes count.
    pub(crate) fn smallest(arch: &str) -> Self {
        let mut tiny = match arch {
            "gemma3" => Self::gemma3(),
            "llama" => Self::llama(),
            "mistral" => Self::mistral(),
            "phi3" => Self::phi3(),
            "qwen2" => Self::qwen2(),
            "qwen3" => Self::qwen3(),
            "qwen3moe" => Self::qwen3moe(),
            other => unreachable!("a model of {other}"),
        };
        // Mistral's files call themselves Llama's.
        let arch = if arch == "mistral" { "llama" } else { arch };
        tiny.set(&format!("{arch}.block_count"), 1u32);
        // Of experts the layer that has them.
        let left_out = if arch == "qwen3moe" { "blk.0." } else { "blk.1." };
        tiny.tensors.retain(|name, _| !name.starts_with(left_out));
        let first = |name: String| name.replace("blk.1.", "blk.0.");
        tiny.tensors = tiny.tensors.into_iter().map(|(name, it)| (first(name), it)).collect();
        tiny
    }

    fn without_biases(arch: &str) -> Self {
        let mut tiny = Self { alignment: 32, keys: BTreeMap::new(), tensors: BTreeMap::new() };
        tiny.set("general.architecture", Value::String(arch.to_owned().into()));
        tiny.set("general.name", "Tiny");
        for (key, value) in [
            ("block_count", LAYERS),
            ("context_length", 64),
            ("embedding_length", HIDDEN),
            ("feed_forward_length", FFN),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", KV_HEADS),
        ] {
            tiny.set(&format!("{arch}.{key}"), value as u32);
        }
        tiny.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5f32);
        tiny.set(&format!("{arch}.rope.freq_base"), 10_000f32);
        tiny.tokenizer();
        tiny.matrix("token_embd.weight", TOKENS.len(), HIDDEN, BlockType::Q8_0);
        tiny.vector("output_norm.weight", HIDDEN);
        for layer in 0..LAYERS {
            tiny.layer(layer);
        }
        tiny
    }

    fn tokenizer(&mut self) {
        self.set("tokenizer.ggml.model", "gpt2");
        self.set("tokenizer.ggml.tokens", TOKENS.into_iter().collect::<Array<'_>>());
        let kinds = [3i32, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1];
        self.set("tokenizer.ggml.token_type", kinds.into_iter().collect::<Array<'_>>());
        let merges = ["a b", "c d", "ab cd"];
        self.set("tokenizer.ggml.merges", merges.into_iter().collect::<Array<'_>>());
        self.set("tokenizer.ggml.bos_token_id", 1u32);
        self.set("tokenizer.ggml.eos_token_id", 2u32);
        self.set("tokenizer.ggml.padding_token_id", 0u32);
        self.set("tokenizer.chat_template", "{{ messages[0].content }}");
    }

    fn layer(&mut self, layer: usize) {
        let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        for (part, rows, cols, block) in [
            ("attn_q", q, HIDDEN, BlockType::F16),
            ("attn_k", kv, HIDDEN, BlockType::F16),
            ("attn_v", kv, HIDDEN, BlockType::Q4_1),
            ("attn_output", HIDDEN, q, BlockType::Q5_0),
            ("ffn_gate", FFN, HIDDEN, BlockType::Q4_0),
            ("ffn_up", FFN, HIDDEN, BlockType::Q4_0),
            ("ffn_down", HIDDEN, FFN, BlockType::Iq4Nl),
        ] {
            self.matrix(&format!("blk.{layer}.{part}.weight"), rows, cols, block);
        }
        self.vector(&format!("blk.{layer}.attn_norm.weight"), HIDDEN);
        self.vector(&format!("blk.{layer}.ffn_norm.weight"), HIDDEN);
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value<'static>>) {
        self.keys.insert(key.to_owned(), value.into());
    }

    /// A tensor of bytes that differ from name to name. Each half-precision word is finite.
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, cols: usize, block: BlockType) {
        let len = rows * block.row_bytes(cols).unwrap();
        let mut state = name.bytes().fold(17u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        let byte = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 24) as u8) & 0x3b
        };
        let bytes = (0..len).map(byte).collect();
        self.tensors.insert(name.to_owned(), TinyTensor { shape: vec![rows, cols], block, bytes });
    }

    /// A vector of `f32`s that count up in sixteenths, exact in half precision too.
    pub(crate) fn vector(&mut self, name: &str, len: usize) {
        let values: Vec<f32> = (0..len).map(|i| 0.5 + i as f32 / 16.0).collect();
        self.floats(name, &[len], &values);
    }

    pub(crate) fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = TinyTensor { shape: shape.to_vec(), block: BlockType::F32, bytes };
        self.tensors.insert(name.to_owned(), tensor);
    }

    /// The model as a file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        if self.alignment != 32 {
            writer.alignment(self.alignment).unwrap();
        }
        for (key, value) in &self.keys {
            writer.key(key, value.clone()).unwrap();
        }
        for (name, tensor) in &self.tensors {
            writer.tensor(name, &tensor.shape, tensor.block).unwrap();
        }
        let mut file = Vec::new();
        let data = |name: &str, out: &mut dyn Write| out.write_all(&self.tensors[name].bytes);
        writer.write(&mut file, data).unwrap();
        file
    }
}
