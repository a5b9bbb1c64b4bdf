//! What a run takes of memory, told before anything is loaded.
//!
//! ```text
//! first order    weights 4 P    what is trained 4 n s    activations of b l tokens
//! zeroth order   packed weights, registers, keys and values of a step, what is trained 4 n
//!   all weights  4 P, or 2 P in bfloat16
//!   dense        the same, and the model and a step of it on the dense executor: of a device with
//!                memory of its own they are told apart, and no part of the machine's
//!   on disk      of the weights, two layers and what belongs to none; all of them on the disk; what steps
//!                that go side by side keep between two layers
//! ```
//! P: weights of the model, n: numbers that are trained, s: how often each is there, with its
//! gradient and the optimiser's state, b: examples at once, l: tokens of one. An activation is
//! counted at four bytes. Of a block those are kept that its backward pass does not make again: what
//! both norms read, queries and keys as they are rotated, values, what attention gives, both factors of
//! the feed-forward gate. Where the tensor library keeps its graph, of full tuning and of dropout, each
//! product's operand and result come to that. One block's gradients stand beside.

use std::collections::BTreeMap;

use offshoot_kernels::FloatStore;
use offshoot_models::{Architecture, Checkpoint, ModelConfig};
use serde::Serialize;

use super::{Method, Offload, Optimizer, RunConfig, RunError, Space};
use crate::tune::DraftHeads;
use crate::tune::zeroth_order::{FullSpace, StepLimits};
use crate::{ExecutorKind, MemoryNeed};

const FLOAT: u64 = 4;
/// Logits that are held at once, where a loss is computed.
const LOGITS: u64 = 1 << 23;
/// Copies of what a method without gradients trains: as it is, as it was at first, at both points of a
/// step, and as products take these.
const POINT_COPIES: u64 = 6;

/// Bytes that a run takes, by what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TuneNeed {
    /// The base's weights.
    pub weights: u64,
    /// What is trained, with gradients and the optimiser's state.
    pub trained: u64,
    /// What a batch leaves for the backward pass, or in caches.
    pub batch: u64,
    /// What the device takes that runs the model, if it has memory of its own; no part of the
    /// total.
    pub device: u64,
    /// What the run keeps on the disk of its folder while it works, beside what it leaves there.
    pub disk: u64,
    /// All of it, with the program itself.
    pub total: u64,
}

impl TuneNeed {
    /// What the run of `config` on the model of `checkpoint` takes.
    pub fn of(checkpoint: &Checkpoint, config: &RunConfig) -> Self {
        let kind = config.runs_on().unwrap_or_default();
        let apart = matches!(kind, ExecutorKind::Dense { device, .. } if !device.shares_memory());
        match config.method {
            Method::ZerothOrder(_) => Self::without_gradients(checkpoint, config, kind, apart),
            _ => Self::with_gradients(checkpoint, config, apart),
        }
    }

    /// By gradients, made on a device whose memory is its own if `apart`.
    fn with_gradients(checkpoint: &Checkpoint, config: &RunConfig, apart: bool) -> Self {
        let need = MemoryNeed::on(checkpoint, ExecutorKind::DENSE);
        let numbers = trained(checkpoint, config);
        let states = match (config.method, config.optimizer) {
            (Method::ForwardGradient, _) => 2,
            (_, Optimizer::Adamw) => 4,
            (_, Optimizer::Sgd | Optimizer::Muon) => 3,
        };
        // Full tuning trains the weights themselves, which are counted already.
        let copies = if config.tunes_all_by_gradients() { states - 1 } else { states };
        let trained = FLOAT * numbers * copies;
        let batch = activations(checkpoint.config(), config);
        if apart {
            // The processor has the gradients and what the optimiser keeps, the device all else: of
            // what is trained the numbers and their gradients, and of a batch what the library's
            // operations keep.
            let trained = FLOAT * numbers * (states - 1);
            let on_device = if config.tunes_all_by_gradients() { 1 } else { 2 };
            let batch = batch.saturating_mul(2).saturating_add(attention(checkpoint, config));
            let device = need.weights + FLOAT * numbers * on_device;
            let total = MemoryNeed { weights: 0, ..need }.total(0).saturating_add(trained);
            let device = device.saturating_add(batch);
            return Self { weights: 0, trained, batch: 0, device, disk: 0, total };
        }
        let total = need.total(0).saturating_add(trained).saturating_add(batch);
        Self { weights: need.weights, trained, batch, device: 0, disk: 0, total }
    }

    /// By losses, computed by `kind`, on a device whose memory is its own if `apart`.
    fn without_gradients(
        checkpoint: &Checkpoint,
        config: &RunConfig,
        kind: ExecutorKind,
        apart: bool,
    ) -> Self {
        let mut need = MemoryNeed::of(checkpoint);
        let mut trained = FLOAT * trained(checkpoint, config);
        if config.space == Space::Full {
            // They are the weights, which are held in floats.
            (need.weights, trained) = (FullSpace::weight_bytes(checkpoint, config.store), 0);
        }
        let disk = match config.offload {
            Offload::Disk if config.tunes_all_without_gradients() => {
                std::mem::replace(&mut need.weights, resident(checkpoint, config.store))
            }
            _ => 0,
        };
        let limits = StepLimits::default();
        // A step runs so many rows at most, however large the batch; one example is never cut.
        let rows = (limits.rows as u64).max(config.length() as u64);
        let row = kept(&need, checkpoint.config(), config);
        let row = row.saturating_add(registers(checkpoint.config()));
        let mut batch = row.saturating_mul(rows);
        if disk > 0 {
            let waiting = (limits.side_by_side as u64).saturating_sub(rows);
            batch = batch.saturating_add(waiting.saturating_mul(between(checkpoint.config())));
        }
        trained *= POINT_COPIES;
        let mut device = 0;
        if kind != ExecutorKind::Packed {
            let model = MemoryNeed::on(checkpoint, kind).weights;
            let step = dense_step(checkpoint.config(), rows, config.length() as u64);
            match apart {
                true => (device, batch) = (model.saturating_add(step), 0),
                false => (need.weights, batch) = (need.weights.saturating_add(model), step),
            }
            if config.space == Space::Full {
                // A tensor is made at a point before it is brought there.
                let largest = checkpoint.tensors().map(|tensor| tensor.len() as u64).max();
                trained = FLOAT * largest.unwrap_or(0);
            }
        }
        let total = need.total(0).saturating_add(trained).saturating_add(batch);
        Self { weights: need.weights, trained, batch, device, disk, total }
    }

    /// Refuses a run of `config` that does not fit into `available` bytes.
    ///
    /// # Errors
    /// [`RunError::Memory`], with the flags that make it fit.
    pub fn check(
        checkpoint: &Checkpoint,
        config: &RunConfig,
        available: u64,
    ) -> Result<(), RunError> {
        let need = Self::of(checkpoint, config);
        if need.total <= available {
            return Ok(());
        }
        let hint = hint(config, &|other| Self::of(checkpoint, other).total <= available);
        Err(RunError::Memory { need: need.total, weights: need.weights, available, hint })
    }
}

/// What makes a run fit, if anything does: the same step in smaller batches, before anything that
/// changes what is learned. A step without gradients is cut to size however large the batch is.
fn hint(config: &RunConfig, fits: &dyn Fn(&RunConfig) -> bool) -> String {
    if config.tunes_all_without_gradients()
        && config.offload == Offload::None
        && fits(&RunConfig { offload: Offload::Disk, ..config.clone() })
    {
        let halved = RunConfig { store: FloatStore::Bf16, ..config.clone() };
        let or_halved = match config.store == FloatStore::F32 && fits(&halved) {
            true => ", or --store bf16, which rounds them",
            false => "",
        };
        let on_disk = "give --offload disk, which reads the weights from a file in every step";
        return format!("{on_disk}{or_halved}");
    }
    let all = config.batch.saturating_mul(config.accumulation).max(1);
    let smaller = |batch: u32| RunConfig { batch, accumulation: all / batch, ..config.clone() };
    // Divisors of a step's examples, so that it stays the same step.
    let low = (1..=all.isqrt()).filter(|n| all.is_multiple_of(*n));
    let mut divisors: Vec<u32> = low.flat_map(|n| [n, all / n]).collect();
    divisors.retain(|&batch| batch < config.batch);
    divisors.sort_unstable_by(|a, b| b.cmp(a));
    let told = |config: &RunConfig, more: &str| {
        format!("give {more}--batch {} --accumulation {}", config.batch, config.accumulation)
    };
    if let Some(found) = divisors.into_iter().map(smaller).find(|other| fits(other)) {
        return told(&found, "");
    }
    let again = RunConfig { gradient_checkpointing: true, ..smaller(1) };
    if !config.gradient_checkpointing && fits(&again) {
        return told(&again, "--gradient-checkpointing true ");
    }
    let halves = (1..16).map(|n| config.length() >> n).take_while(|&length| length >= 64);
    let shorter =
        halves.map(|max_length| RunConfig { max_length: Some(max_length), ..again.clone() });
    if let Some(found) = shorter.into_iter().find(|other| fits(other)) {
        return told(&found, &format!("--max-length {} ", found.length()));
    }
    let lora = RunConfig { method: Method::Lora, ..again };
    match config.method != Method::Lora && fits(&lora) {
        true => format!("give --method lora, and {}", &told(&lora, "")[5..]),
        false => "end other programs, or take a smaller model".to_owned(),
    }
}

/// Bytes of weights stored as `store` that are in memory at most where steps read them from a file:
/// of matrices those of two layers, and of none.
fn resident(checkpoint: &Checkpoint, store: FloatStore) -> u64 {
    let mut layers: BTreeMap<String, u64> = BTreeMap::new();
    let mut others = 0;
    for tensor in checkpoint.tensors() {
        let bytes = FullSpace::tensor_bytes(&tensor, store);
        let mut parts = tensor.name.split('.').skip_while(|part| *part != "layers").skip(1);
        match parts.next() {
            Some(layer) if tensor.info.shape.len() > 1 => {
                *layers.entry(layer.to_owned()).or_default() += bytes;
            }
            _ => others += bytes,
        }
    }
    let mut layers: Vec<u64> = layers.into_values().collect();
    layers.sort_unstable();
    others + layers.iter().rev().take(2).sum::<u64>()
}

/// Numbers that are trained.
fn trained(checkpoint: &Checkpoint, config: &RunConfig) -> u64 {
    if let (Method::ZerothOrder(_), Space::Scales) = (config.method, config.space) {
        let blocks = |t: offshoot_models::Tensor<'_>| match t.block.block_len() {
            1 => 0,
            weights => (t.len() / weights) as u64,
        };
        return checkpoint.tensors().map(blocks).sum();
    }
    if let Some((kind, tokens)) = config.before() {
        return (kind.width(checkpoint.config()) * tokens) as u64;
    }
    if config.tunes_all_by_gradients() {
        return checkpoint.tensors().map(|t| t.len() as u64).sum();
    }
    let blueprint = Architecture::new(checkpoint.config()).1;
    let all = config.target_modules.iter().any(|name| name == "all-linear");
    let head = blueprint.linears.len().saturating_sub(1);
    let linears = blueprint.linears.iter().enumerate().filter(|(at, linear)| {
        let named = config.target_modules.iter().any(|end| linear.name.ends_with(end.as_str()));
        named || (all && *at != head)
    });
    let lora: u64 =
        linears.map(|(_, linear)| (config.rank * (linear.rows + linear.cols)) as u64).sum();
    lora + draft_heads(checkpoint.config(), config)
}

/// Numbers of draft heads, those of a file taken as as many as are usual: a block of twice the width,
/// then square ones.
fn draft_heads(model: &ModelConfig, config: &RunConfig) -> u64 {
    let heads = match config.medusa_from {
        Some(_) => config.medusa_heads.max(DraftHeads::default().heads),
        None => config.medusa_heads,
    };
    let d = model.hidden_size as u64;
    heads as u64 * (d * d + config.medusa_layers as u64 * (d * d + d))
}

/// Widths of a row: of the residual stream, of queries, of keys or values, of the gate of a feed-forward
/// layer or of those of the experts that a row goes through.
fn widths(model: &ModelConfig) -> [u64; 4] {
    let inner = match &model.experts {
        Some(experts) => experts.moe_intermediate_size * experts.num_experts_per_tok,
        None => model.intermediate_size,
    };
    let (queries, keys) = (model.num_attention_heads, model.num_key_value_heads);
    [model.hidden_size, queries * model.head_dim, keys * model.head_dim, inner].map(|n| n as u64)
}

/// Bytes of keys and values that a row of a step without gradients keeps: in half precision where texts
/// are written, else unrounded, of all layers where something stands before texts, and of one where not.
fn kept(need: &MemoryNeed, model: &ModelConfig, config: &RunConfig) -> u64 {
    let scores = 2 * match config.before() {
        Some(_) => need.per_token,
        None => FLOAT * widths(model)[2],
    };
    let writes = config.metric.is_of_answers() || config.objective.is_of_answers();
    if writes { scores.max(need.per_token) } else { scores }
}

/// Bytes of the registers of the packed executor that a row of a step takes.
fn registers(model: &ModelConfig) -> u64 {
    let [hidden, queries, keys, inner] = widths(model);
    FLOAT * (4 * hidden + 2 * (queries + keys) + 3 * inner + model.head_dim as u64)
}

/// Bytes that a row takes of a step that waits between two layers: its place in the residual stream, its
/// turns, and where its keys and values were.
fn between(model: &ModelConfig) -> u64 {
    let [hidden, _, keys, _] = widths(model);
    FLOAT * (hidden + model.head_dim as u64 + 2 * keys)
}

/// Bytes of the scores of attention of a block, where they are whole: as they are, masked, as
/// shares, and the gradients of these.
fn attention(checkpoint: &Checkpoint, config: &RunConfig) -> u64 {
    let (heads, length) = (checkpoint.config().num_attention_heads as u64, config.length() as u64);
    let blocks = match config.gradient_checkpointing {
        true => 1,
        false => checkpoint.config().num_hidden_layers as u64,
    };
    let scores = heads.saturating_mul(length).saturating_mul(length);
    (6 * FLOAT * blocks * u64::from(config.batch)).saturating_mul(scores)
}

/// Bytes of a step of so many rows of the dense executor, of texts of a length: registers, keys and
/// values of all layers, scores of attention, and logits of some rows, each several times.
fn dense_step(model: &ModelConfig, rows: u64, length: u64) -> u64 {
    let [_, _, keys, _] = widths(model);
    let kept = 2 * FLOAT * keys * model.num_hidden_layers as u64;
    let scores = (4 * FLOAT * model.num_attention_heads as u64).saturating_mul(length);
    let row = registers(model).saturating_add(kept).saturating_add(scores);
    let logits = LOGITS.min(rows.saturating_mul(model.vocab_size as u64));
    rows.saturating_mul(row).saturating_add(6 * FLOAT * logits)
}

/// Bytes of what a batch of the longest examples leaves.
fn activations(model: &ModelConfig, config: &RunConfig) -> u64 {
    let tokens = u64::from(config.batch) * config.length() as u64;
    let [hidden, queries, keys, inner] = widths(model);
    let inputs = 5 * hidden + queries + inner;
    let results = 2 * hidden + queries + 2 * keys + 2 * inner;
    let mut block = 2 * (hidden + queries + keys + inner);
    if config.method == Method::Full {
        block += inputs + results;
    } else if config.dropout > 0.0 {
        block += 3 * inputs + results;
    }
    let layers = model.num_hidden_layers as u64;
    // On the way back stand a block's own results once more, and the gradients of some of them.
    let passing = 4 * hidden + 2 * (queries + keys) + 4 * inner;
    let kept = match config.gradient_checkpointing {
        true => layers * hidden + block + passing,
        false => layers * block + passing,
    };
    let logits = LOGITS.min(tokens.saturating_mul(model.vocab_size as u64));
    FLOAT * tokens.saturating_mul(kept).saturating_add(logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../offshoot-models/tests/data/logits");
        Checkpoint::open(format!("{models}/qwen3_tied.gguf").as_ref()).unwrap()
    }

    #[test]
    fn what_is_refused_fits_with_the_flags_that_are_named() {
        let checkpoint = checkpoint();
        let config = RunConfig { batch: 16, max_length: Some(4096), ..RunConfig::default() };
        let need = TuneNeed::of(&checkpoint, &config);
        TuneNeed::check(&checkpoint, &config, need.total).unwrap();
        let refused = |config: &RunConfig, available| {
            TuneNeed::check(&checkpoint, config, available).unwrap_err().to_string()
        };
        let told = refused(&config, need.total - 1);
        assert!(told.ends_with("give --batch 8 --accumulation 2"), "{told}");
        let smaller = RunConfig { batch: 8, accumulation: 2, ..config.clone() };
        TuneNeed::check(&checkpoint, &smaller, need.total - 1).unwrap();
        let one = RunConfig { batch: 1, ..config.clone() };
        let told = refused(&config, TuneNeed::of(&checkpoint, &one).total - 1);
        assert!(told.contains("--max-length 2048 --batch 1 --accumulation 16"), "{told}");
        assert!(refused(&config, 1).ends_with("a smaller model"));
    }

    #[test]
    fn weights_that_do_not_fit_are_asked_for_on_disk() {
        let checkpoint = checkpoint();
        let (method, space) = ("mezo".parse().unwrap(), Space::Full);
        let config = RunConfig { method, space, ..RunConfig::default() };
        let on_disk = RunConfig { offload: Offload::Disk, ..config.clone() };
        let [need, less] = [&config, &on_disk].map(|config| TuneNeed::of(&checkpoint, config));
        assert_eq!((less.disk, need.disk), (need.weights, 0));
        // Of two layers and what belongs to none, here, that is all but what deeper models have.
        assert_eq!(
            need.total - need.batch - (less.total - less.batch),
            need.weights - less.weights
        );
        // The rows of steps that wait while another is in a layer.
        let waiting = less.batch - need.batch;
        assert!(waiting > 0 && waiting.is_multiple_of(8192 - 1024), "{waiting}");
        let mut deep = 0;
        for tensor in checkpoint.tensors().filter(|t| t.info.shape.len() > 1) {
            deep +=
                if tensor.name.starts_with("model.layers.") { 4 * tensor.len() as u64 } else { 0 };
        }
        let layers = checkpoint.config().num_hidden_layers as u64;
        assert_eq!(need.weights - less.weights, deep / layers * layers.saturating_sub(2));
        let hint = hint(&config, &|other| other.offload == Offload::Disk);
        assert!(hint.starts_with("give --offload disk"), "{hint}");
        assert!(!hint.contains("--store"), "{hint}");
        // Matrices take half as much, vectors what they took.
        let halved = RunConfig { store: FloatStore::Bf16, ..config.clone() };
        let vectors = checkpoint.tensors().filter(|t| t.info.shape.len() == 1);
        let vectors: u64 = vectors.map(|t| 4 * t.len() as u64).sum();
        let of_halves = TuneNeed::of(&checkpoint, &halved).weights;
        assert_eq!(2 * (of_halves - vectors), need.weights - vectors);
        let hint = super::hint(&config, &|other| *other != config);
        assert!(hint.ends_with(", or --store bf16, which rounds them"), "{hint}");
        let none = super::hint(&on_disk, &|_| false);
        assert!(none.ends_with("a smaller model"), "{none}");
    }

    #[test]
    fn what_a_device_of_its_own_memory_holds_the_machine_does_not() {
        let checkpoint = checkpoint();
        let numbers: u64 = checkpoint.tensors().map(|t| t.len() as u64).sum();
        let full = RunConfig { method: Method::Full, ..RunConfig::default() };
        for config in [RunConfig::default(), full] {
            let [here, there] =
                [false, true].map(|apart| TuneNeed::with_gradients(&checkpoint, &config, apart));
            assert_eq!((here.device, there.weights, there.batch), (0, 0, 0));
            assert!(there.device > here.weights + here.batch && there.total < here.total);
        }
        let losses = |space, kind, apart| {
            let config =
                RunConfig { space, method: "mezo".parse().unwrap(), ..RunConfig::default() };
            TuneNeed::without_gradients(&checkpoint, &config, kind, apart)
        };
        for space in [Space::Lora, Space::Full] {
            let packed = losses(space, ExecutorKind::Packed, false);
            let here = losses(space, ExecutorKind::DENSE, false);
            let there = losses(space, ExecutorKind::DENSE, true);
            assert_eq!((packed.device, here.device), (0, 0));
            assert_eq!(here.weights, packed.weights + 4 * numbers);
            assert_eq!((there.weights, there.batch), (packed.weights, 0));
            assert_eq!(there.device, 4 * numbers + here.batch);
        }
    }

    #[test]
    fn what_is_kept_and_what_is_trained_count() {
        let checkpoint = checkpoint();
        let need = |config: RunConfig| TuneNeed::of(&checkpoint, &config);
        let lora = need(RunConfig::default());
        let kept = need(RunConfig { gradient_checkpointing: false, ..RunConfig::default() });
        assert_eq!(kept.trained, lora.trained);
        let deep = ModelConfig { num_hidden_layers: 12, ..checkpoint.config().clone() };
        let batch = |gradient_checkpointing| {
            activations(&deep, &RunConfig { gradient_checkpointing, ..RunConfig::default() })
        };
        assert!(batch(false) > batch(true));
        let numbers: usize = checkpoint.tensors().map(|t| t.len()).sum();
        let full = need(RunConfig { method: Method::Full, ..RunConfig::default() });
        assert_eq!(full.weights, 4 * numbers as u64);
        assert_eq!(full.trained, 3 * full.weights);
        let twice = need(RunConfig { rank: 16, ..RunConfig::default() });
        assert_eq!(twice.trained, 2 * lora.trained);
        let heads = need(RunConfig { medusa_heads: 2, ..RunConfig::default() });
        // Each with its gradient and two moments: 2 heads of a block [d, 2 d] and its bias.
        let d = checkpoint.config().hidden_size as u64;
        assert_eq!(heads.trained - lora.trained, 4 * 4 * 2 * (2 * d * d + d));
    }
}
