//! What transformers computes from real models (`scripts/oracles/model_logits.py`), and how far an
//! executor of ours is from it.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::path::Path;

use candle_core::{DType, Device};
use offshoot_models::{
    Checkpoint, DenseCache, DenseModel, LogitRows, NoHooks, RopeId, Segment, VariantId, chain,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Gives the logits of the last rows of a text that is run alone, `[rows, vocab_size]`.
pub(crate) type Run<'a> = &'a mut dyn FnMut(&[u32], usize) -> Vec<f32>;

/// The numbers of one model.
#[derive(Deserialize)]
pub(crate) struct Reference {
    /// Of all weights, dequantised; see [`weights_sha256`].
    pub(crate) weights_sha256: String,
    prompts: Vec<Prompt>,
    text: Text,
}

#[derive(Deserialize)]
struct Prompt {
    tokens: Vec<u32>,
    random_ids: Vec<usize>,
    /// The last ones.
    positions: Vec<Position>,
}

#[derive(Deserialize)]
struct Position {
    top_ids: Vec<usize>,
    top_logits: Vec<f32>,
    random_logits: Vec<f32>,
    log_sum_exp: f64,
}

#[derive(Deserialize)]
struct Text {
    window: usize,
    tokens_sha256: String,
    scored: usize,
    nats_of_windows: Vec<f64>,
    perplexity: f64,
}

/// How far logits are from the reference, over all prompts.
#[derive(Debug, Default)]
pub(crate) struct Distance {
    /// Positions compared.
    pub(crate) positions: usize,
    /// The greatest absolute difference of a logit.
    pub(crate) logit: f32,
    /// The root of the mean square of the logits' differences.
    pub(crate) root_mean_square: f64,
    /// The greatest absolute difference of the logarithm of the sum of exp(logit).
    pub(crate) log_sum_exp: f64,
    /// Positions whose likeliest token is another.
    pub(crate) other_choice: usize,
}

impl Reference {
    /// The numbers of `logits_{name}.json`.
    pub(crate) fn read(name: &str) -> Self {
        serde_json::from_str(&data(&format!("logits_{name}.json"))).unwrap()
    }

    /// Tokens of the text that are predicted.
    pub(crate) fn scored(&self) -> usize {
        self.text.scored
    }

    /// exp of the mean surprise at the text.
    pub(crate) fn perplexity(&self) -> f64 {
        self.text.perplexity
    }

    /// Runs each prompt and compares the logits of its last positions.
    pub(crate) fn distance(&self, run: Run<'_>) -> Distance {
        let (mut distance, mut squares, mut count) = (Distance::default(), 0.0, 0);
        for prompt in &self.prompts {
            let rows = prompt.positions.len();
            let logits = run(&prompt.tokens, rows);
            for (position, row) in prompt.positions.iter().zip(logits.chunks(logits.len() / rows)) {
                for (id, expected) in position.logits(&prompt.random_ids) {
                    let error = (row[id] - expected).abs();
                    assert!(error.is_finite(), "token {id} has logit {}", row[id]);
                    distance.logit = distance.logit.max(error);
                    (squares, count) = (squares + f64::from(error).powi(2), count + 1);
                }
                let error = (log_sum_exp(row) - position.log_sum_exp).abs();
                distance.log_sum_exp = distance.log_sum_exp.max(error);
                let choice = row[position.top_ids[0]];
                distance.other_choice += usize::from(row.iter().any(|&logit| logit > choice));
                distance.positions += 1;
            }
        }
        distance.root_mean_square = (squares / f64::from(count)).sqrt();
        distance
    }

    /// Runs the first `windows` of the text, `tokens` of [`text`], and gives the greatest difference
    /// of a window's mean surprise, in nats a token.
    pub(crate) fn surprise(&self, tokens: &[u32], windows: usize, run: Run<'_>) -> f64 {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        assert_eq!(sha256(&bytes), self.text.tokens_sha256, "the reference's tokens");
        let mut greatest = 0.0f64;
        let all = tokens.chunks(self.text.window);
        assert_eq!(all.len(), self.text.nats_of_windows.len());
        for (window, reference) in all.zip(&self.text.nats_of_windows).take(windows) {
            let logits = run(window, window.len());
            let rows = logits.chunks(logits.len() / window.len());
            let surprises = rows
                .zip(&window[1..])
                .map(|(row, &next)| log_sum_exp(row) - f64::from(row[next as usize]));
            let nats: f64 = surprises.sum();
            greatest = greatest.max((nats - reference).abs() / window.len() as f64);
        }
        greatest
    }
}

impl Position {
    /// Tokens and their logits.
    fn logits<'a>(&'a self, random_ids: &'a [usize]) -> impl Iterator<Item = (usize, f32)> + 'a {
        let ids = self.top_ids.iter().chain(random_ids);
        ids.copied().zip(self.top_logits.iter().chain(&self.random_logits).copied())
    }
}

/// The text whose perplexity is measured.
pub(crate) fn text() -> String {
    data("text.txt")
}

fn data(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    std::fs::read_to_string(folder.join(file)).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = row.iter().map(|&logit| f64::from(logit - greatest).exp());
    f64::from(greatest) + powers.sum::<f64>().ln()
}

/// SHA-256 of all weights in canonical order, sorted by name: each its name, a zero byte, and its
/// little-endian f32 bits.
pub(crate) fn weights_sha256(checkpoint: &Checkpoint) -> String {
    let mut digest = Sha256::new();
    for tensor in checkpoint.tensors() {
        digest.update(tensor.name.as_bytes());
        digest.update([0]);
        let mut row = vec![0.0; tensor.cols()];
        for index in 0..tensor.row_count() {
            tensor.read_row(index, &mut row).unwrap();
            digest.update(row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
        }
        tensor.release();
    }
    hex(&digest.finalize())
}

/// The dense executor in f32 on the CPU, each text run in one step.
pub(crate) fn dense(checkpoint: &Checkpoint) -> impl FnMut(&[u32], usize) -> Vec<f32> {
    let model = DenseModel::load(checkpoint, &Device::Cpu, DType::F32).unwrap();
    move |tokens, rows| {
        let wanted: Vec<_> = ((tokens.len() - rows) as u32..tokens.len() as u32).collect();
        let segment = Segment {
            cache: &mut DenseCache::new(model.config()),
            tokens,
            parents: &chain(tokens.len()),
            positions: &(0..tokens.len() as u32).collect::<Vec<_>>(),
            rope: RopeId::default(),
            variant: VariantId::default(),
            logits: LogitRows::These(&wanted),
        };
        let logits = model.step(&mut [segment], &mut NoHooks).unwrap();
        logits.flatten_all().unwrap().to_vec1().unwrap()
    }
}
