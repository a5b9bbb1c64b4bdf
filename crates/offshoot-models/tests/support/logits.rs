//! Small random checkpoints and their logits, made by `scripts/oracles/logits.py`.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(dead_code)] // each test takes what it needs

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Tensor};
use offshoot_kernels::{Cpu, KvCache};
use offshoot_models::{
    Checkpoint, DenseCache, DenseHooks, DenseModel, Hooks, LinearSpec, LogitRows, LowRank, NoHooks,
    PackedExecutor, PackedModel, Segment, VariantId, chain,
};

#[path = "steps.rs"]
mod steps;

pub(crate) use steps::packed_step;

/// The models, which between them have every branch that an architecture has.
pub(crate) const MODELS: [&str; 15] = [
    "llama_biases",
    "llama_linear",
    "llama_factors",
    "qwen2_tied",
    "qwen2_untied",
    "qwen3_tied",
    "qwen3_yarn",
    "mistral_window",
    "gemma3_linear",
    "phi3_short",
    "qwen3_moe",
    "qwen3_moe_mixed",
    "gemma3_biases",
    "phi3_partial",
    "phi3_plain",
];

/// A text of one model and what transformers makes of it.
pub(crate) struct Reference {
    /// The text.
    pub(crate) tokens: Vec<u32>,
    /// Logits, `[tokens, vocab_size]`.
    pub(crate) logits: Vec<f32>,
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/logits").join(file)
}

/// The model of this name.
pub(crate) fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(&path(&format!("{name}.gguf"))).unwrap()
}

/// Its text and logits.
pub(crate) fn reference(name: &str) -> Reference {
    reference_at(&path(&format!("{name}.logits")))
}

/// The text and logits of a file.
pub(crate) fn reference_at(path: &Path) -> Reference {
    let bytes = std::fs::read(path).unwrap();
    let words: Vec<_> = bytes.chunks_exact(4).map(|b| b.try_into().unwrap()).collect();
    let number = |i: usize| u32::from_le_bytes(words[i]) as usize;
    let (rows, vocab) = (number(0), number(1));
    let (tokens, logits) = words[2..].split_at(rows);
    assert_eq!(logits.len(), rows * vocab);
    Reference {
        tokens: tokens.iter().map(|b| u32::from_le_bytes(*b)).collect(),
        logits: logits.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

/// Logits of all of `tokens` by the packed executor, read in chunks of `chunk`.
pub(crate) fn packed(checkpoint: Checkpoint, cpu: Cpu, tokens: &[u32], chunk: usize) -> Vec<f32> {
    packed_with(checkpoint, cpu, tokens, chunk, &mut NoHooks)
}

/// As [`packed`], where `hooks` reach into the steps.
pub(crate) fn packed_with(
    checkpoint: Checkpoint,
    cpu: Cpu,
    tokens: &[u32],
    chunk: usize,
    hooks: &mut dyn Hooks,
) -> Vec<f32> {
    let model = PackedModel::load(Arc::new(checkpoint), &cpu, None).unwrap();
    let mut executor = PackedExecutor::new(cpu, model.config());
    let mut cache = model.new_cache(tokens.len());
    packed_on(&mut executor, &model, &mut cache, hooks, (tokens, chunk, VariantId::default()))
}

/// Logits of all of a text behind what `cache` holds, read in chunks of so many rows as one variant.
pub(crate) fn packed_on(
    executor: &mut PackedExecutor,
    model: &PackedModel,
    cache: &mut KvCache,
    hooks: &mut dyn Hooks,
    (tokens, chunk, variant): (&[u32], usize, VariantId),
) -> Vec<f32> {
    let rope = model.config().rope_for(cache.len() + tokens.len());
    let mut out = Vec::new();
    for piece in tokens.chunks(chunk) {
        out.extend(packed_step(executor, model, cache, hooks, (piece, rope, variant)));
        cache.commit_chain(piece.len());
    }
    out
}

/// The same of the dense executor, in one step.
pub(crate) fn dense_on(
    model: &DenseModel,
    cache: &mut DenseCache,
    hooks: &mut dyn DenseHooks,
    (tokens, variant): (&[u32], VariantId),
) -> Vec<f32> {
    let first = cache.len() as u32;
    let segment = Segment {
        tokens,
        parents: &chain(tokens.len()),
        positions: &(first..first + tokens.len() as u32).collect::<Vec<_>>(),
        rope: model.config().rope_for(cache.len() + tokens.len()),
        variant,
        logits: LogitRows::All,
        cache,
    };
    let logits = model.step(&mut [segment], hooks).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

/// Configuration and weights of an adapter's folder.
pub(crate) fn adapter_files(folder: &Path) -> (serde_json::Value, Vec<u8>) {
    let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    (serde_json::from_slice(&config).unwrap(), weights)
}

/// A difference of `linear` of rank `rank`, of fixed numbers that `seed` names.
pub(crate) fn difference(linear: &LinearSpec, rank: usize, seed: u64) -> LowRank {
    LowRank {
        rank,
        scale: 0.7,
        a: numbers(rank * linear.cols, seed + 1, 0.2),
        b: numbers(linear.rows * rank, seed + 2, 0.2),
    }
}

/// Fixed numbers, uniform in `-size` to `size`, from xorshift64*.
pub(crate) fn numbers(n: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| size * next()).collect()
}

/// The sum of the products of two tensors' numbers.
pub(crate) fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let product = (a * b).unwrap().sum_all().unwrap();
    product.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// The bits of numbers.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The greatest distance between two numbers at the same place.
pub(crate) fn max_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let errors = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    errors.fold(0.0, |max, e| if e <= max { max } else { e })
}
