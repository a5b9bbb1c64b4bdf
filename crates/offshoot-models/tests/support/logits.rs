//! Small random checkpoints and their logits, made by `scripts/oracles/logits.py`.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(dead_code)] // each test takes what it needs

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_kernels::Cpu;
use offshoot_models::{
    Checkpoint, Hooks, LogitRows, NoHooks, PackedExecutor, PackedModel, Segment, VariantId, chain,
};

/// The models, which between them have every branch that an architecture has.
pub(crate) const MODELS: [&str; 12] = [
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
    let mut out = Vec::new();
    for piece in tokens.chunks(chunk) {
        let base = cache.len() as u32;
        let segment = Segment {
            cache: &mut cache,
            tokens: piece,
            parents: &chain(piece.len()),
            positions: &(base..base + piece.len() as u32).collect::<Vec<_>>(),
            rope: model.config().rope_for(tokens.len()),
            variant: VariantId::default(),
            logits: LogitRows::All,
        };
        out.extend_from_slice(executor.step(&model, &mut [segment], hooks).unwrap());
        cache.commit_chain(piece.len());
    }
    out
}

/// The greatest distance between two numbers at the same place.
pub(crate) fn max_error(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let errors = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    errors.fold(0.0, |max, e| if e <= max { max } else { e })
}
