//! What a step takes of time, told before anything is loaded.
//!
//! ```text
//! step = passes * (tokens * W + asked * H) / speed
//! ```
//! tokens: those of the step's examples, what candidates of a choice share counted once; asked:
//! those behind which a probability is asked for; W: weights of the blocks that a token is
//! multiplied with; H: those of the output head. Without gradients, passes are the points that the
//! method asks for in its first step. By gradients they are one forward and one back, one more of
//! the blocks where these run twice, and one more where the weights themselves have gradients.
//!
//! The speed is measured: products of one matrix of the first block in the form in which the method
//! multiplies it, for a twentieth of a second. What is no product with weights (attention, norms,
//! updates), evaluations and probes for a rate come on top, so that it is low rather than high. It is of one
//! process, and `block` and `lezo`, whose steps move a part of the weights alone, take less.

use std::sync::Arc;
use std::time::{Duration, Instant};

use offshoot_kernels::{
    Activations, BlockType, Buffer, Compute, Cpu, Entries, Forming, FormingScratch, Noise,
    PackedMatrix, Product, SharedBytes, Term, TileError, form_for, multiply, multiply_formed,
};
use offshoot_methods::tune::{HybridOptions, Layout, Setting, TensorSpec};
use offshoot_models::{Architecture, Checkpoint, LinearSpec};
use serde::Serialize;
use serde_json::Value;

use super::trainers::own_options;
use super::{Examples, Method, Objective, RunConfig, Space};
use crate::tune::Example;
use crate::tune::zeroth_order::{Activations as Rounding, TextTree, layer_of};
use crate::{Error, ExecutorKind};

/// Weights of the matrix whose products are timed, at most.
const WEIGHTS: usize = 1 << 22;
/// Tokens that they are multiplied with, at most.
const TOKENS: usize = 256;
/// Points that share a step beside frozen weights, at most.
const LANES: u64 = 32;
/// For how long, once they are warm.
const MEASURED: Duration = Duration::from_millis(50);

/// What a run takes of time, about: products with weights alone are counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TuneTime {
    /// Tokens of a step's examples, in the mean.
    pub tokens: f64,
    /// How often a step runs them through the model: of the method's first step.
    pub passes: u64,
    /// Multiplications with weights in a step.
    pub multiplications: f64,
    /// As many as were done in a second just now.
    pub multiplications_per_s: f64,
    /// Seconds of a step.
    pub step_s: f64,
    /// Steps of the run.
    pub steps: u64,
    /// Seconds of all of them.
    pub run_s: f64,
}

/// Multiplications with weights that a token costs: in the blocks, and where it is asked behind it.
struct PerToken {
    blocks: f64,
    head: f64,
}

impl TuneTime {
    /// For the run of `config` on the model of `checkpoint` with the examples `train`, on `cpu`;
    /// none where answers are written token by token, whose number nobody knows before, and where
    /// products are not those of the kernels.
    ///
    /// # Errors
    /// Those of the examples and of the method's options.
    pub fn of(
        checkpoint: &Checkpoint,
        config: &RunConfig,
        train: &dyn Examples,
        steps: u64,
        cpu: &Cpu,
    ) -> Result<Option<Self>, Error> {
        let by_losses = matches!(config.method, Method::ZerothOrder(_));
        let elsewhere = match config.runs_on()? {
            ExecutorKind::Packed => false,
            ExecutorKind::Dense { device, .. } => by_losses || !device.shares_memory(),
        };
        if elsewhere || config.objective.is_of_answers() {
            return Ok(None);
        }
        let (mut tokens, mut asked) = (0, 0);
        for index in 0..train.count() {
            let tree = tree(&train.example(index)?, &config.objective);
            tokens += tree.tokens.len();
            asked += tree.asked().len();
        }
        let examples = f64::from(config.batch) * f64::from(config.accumulation);
        let mean = |n: usize| examples * n as f64 / train.count().max(1) as f64;
        let (tokens, asked) = (mean(tokens), mean(asked));
        let each = per_token(checkpoint);
        let once = tokens * each.blocks + asked * each.head;
        let (passes, multiplications) = match config.method {
            Method::ZerothOrder(_) => {
                let points = points(checkpoint, config)?;
                (points, points as f64 * once)
            }
            _ => by_gradients(config, once, tokens * each.blocks),
        };
        // Points beside frozen weights share a step, those that move all weights have one each.
        let shared = match (config.method, config.space) {
            (Method::ZerothOrder(_), Space::Full | Space::Scales) => 1,
            (Method::ZerothOrder(_), _) => passes.min(LANES),
            _ => 1,
        };
        let speed = speed(checkpoint, config, tokens as usize * shared as usize, cpu)?;
        let step_s = multiplications / speed;
        Ok(Some(Self {
            tokens,
            passes,
            multiplications,
            multiplications_per_s: speed,
            step_s,
            steps,
            run_s: steps as f64 * step_s,
        }))
    }
}

/// What is run of an example.
fn tree(example: &Example, objective: &Objective) -> TextTree {
    match example {
        Example::Text(text) | Example::Answer { gold: text, .. } => TextTree::of(text),
        Example::Choice { prompt, candidates, answers } => match objective {
            Objective::Loss => {
                let right = answers.first().and_then(|answer| candidates.get(*answer));
                TextTree::of_choice(prompt, right.map_or(&[], std::slice::from_ref))
            }
            _ => TextTree::of_choice(prompt, candidates),
        },
        Example::Preference { .. } => TextTree::default(),
    }
}

fn per_token(checkpoint: &Checkpoint) -> PerToken {
    let linears = Architecture::new(checkpoint.config()).1.linears;
    let weights = |linear: &LinearSpec| (linear.rows * linear.cols) as f64;
    let share = checkpoint
        .config()
        .experts
        .as_ref()
        .map_or(1.0, |experts| experts.num_experts_per_tok as f64 / experts.num_experts as f64);
    let (head, blocks) =
        linears.split_last().map_or((0.0, &[][..]), |(head, blocks)| (weights(head), blocks));
    let of = |linear: &LinearSpec| weights(linear) * if linear.routed { share } else { 1.0 };
    PerToken { blocks: blocks.iter().map(of).sum(), head }
}

/// Passes of a step by gradients and its multiplications, where a pass forward has `once` and the
/// blocks of it `blocks`.
fn by_gradients(config: &RunConfig, once: f64, blocks: f64) -> (u64, f64) {
    let back = 1 + u64::from(config.tunes_all_by_gradients());
    let again = u64::from(config.gradient_checkpointing);
    // The hybrid's last blocks alone run twice and have gradients; what it takes at the least.
    match config.method {
        Method::Hybrid => {
            let options: HybridOptions = own_options(config).unwrap_or_default();
            let passes = 1 + 2 * u64::from(options.directions);
            (passes, passes as f64 * once)
        }
        _ => (1 + back + again, (1 + back) as f64 * once + again as f64 * blocks),
    }
}

/// Losses that the first step of a method without gradients asks for.
fn points(checkpoint: &Checkpoint, config: &RunConfig) -> Result<u64, Error> {
    let linears = Architecture::new(checkpoint.config()).1.linears;
    let spec = |linear: &LinearSpec| TensorSpec {
        name: format!("{}.weight", linear.name),
        rows: linear.rows,
        cols: linear.cols,
        layer: layer_of(&linear.name),
        vector: false,
    };
    let mut tensors: Vec<TensorSpec> = linears.iter().map(spec).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let setting = Setting { seed: 0, layout: Arc::new(Layout { tensors }), decay: 0.0 };
    let Some(card) = config.method.card() else { return Ok(0) };
    // Where a step is a round, each local step has its part of the examples.
    Ok(card.start(&Value::Object(config.options.clone()), &setting)?.forwards(0) as u64)
}

/// Multiplications that products with a matrix of the first block do in a second.
fn speed(
    checkpoint: &Checkpoint,
    config: &RunConfig,
    tokens: usize,
    cpu: &Cpu,
) -> Result<f64, Error> {
    let linears = Architecture::new(checkpoint.config()).1.linears;
    let in_block = |linear: &&LinearSpec| layer_of(&linear.name) == Some(0);
    let largest = linears.iter().filter(in_block).max_by_key(|l| l.rows * l.cols);
    let Some(largest) = largest.or(linears.first()) else { return Ok(f64::INFINITY) };
    let name = format!("{}.weight", largest.name);
    let cols = largest.cols;
    let rows = largest.rows.min(WEIGHTS.div_ceil(cols));
    let stored = config.takes_packed();
    let tensor = checkpoint.get(&name).filter(|_| stored);
    let floats = match config.tunes_all_without_gradients() {
        true => config.store.block(),
        false => BlockType::F32,
    };
    let block = tensor.map_or(floats, |tensor| tensor.block);
    let wrong = |e: TileError| Error::Training(format!("{name}: {e}"));
    let bytes = Buffer::zeroed(PackedMatrix::packed_bytes(block, rows, cols).map_err(wrong)?);
    let weights =
        PackedMatrix::from_packed(block, rows, cols, SharedBytes::from(bytes)).map_err(wrong)?;
    let moved = config.method.card().filter(|_| config.space == Space::Full);
    let noise = moved.map(|card| Noise { distribution: card.distribution, ..Noise::default() });
    let term = noise.map(|z| Term { scale: 1e-3, entries: Entries::Noise(z), mask: None });
    let compute = if config.bfloat16 { Compute::Bfloat16 } else { Compute::Single };
    let forms = compute.forms().and(form_for(block));
    let tokens = tokens.clamp(1, TOKENS);
    let mut x = Activations::new();
    x.fill(cpu, (tokens, cols), forms, |_, row| row.fill(0.5));
    let (mut out, mut scratch) = (vec![0.0; tokens * rows], FormingScratch::default());
    let rounds = stored && config.activations == Rounding::Stored;
    let mut once = || {
        let weights = &weights;
        let mut product = Product { weights, bias: None, accumulate: false, out: &mut out };
        if rounds {
            return multiply(cpu, &x, [&mut product]);
        }
        let forming = Forming { factors: None, terms: term.as_slice(), compute };
        multiply_formed(cpu, &x, &mut product, forming, &mut scratch);
    };
    once();
    let (begun, mut products) = (Instant::now(), 0);
    while products == 0 || begun.elapsed() < MEASURED {
        once();
        products += 1;
    }
    Ok((products * tokens * rows * cols) as f64 / begun.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use offshoot_kernels::Isa;

    use super::*;
    use crate::tune::Sequence;

    fn checkpoint() -> Checkpoint {
        let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../offshoot-models/tests/data/logits");
        Checkpoint::open(format!("{models}/qwen3_tied.gguf").as_ref()).unwrap()
    }

    /// A prompt of three tokens with two candidates that begin alike.
    fn choices() -> Vec<Example> {
        let choice = |answer| Example::Choice {
            prompt: vec![1, 2, 3],
            candidates: vec![vec![4, 5], vec![4, 6]],
            answers: vec![answer],
        };
        vec![choice(0), choice(1)]
    }

    fn time(config: &RunConfig, examples: &[Example]) -> Option<TuneTime> {
        let cpu = Cpu::new(Isa::best(), 1);
        TuneTime::of(&checkpoint(), config, &examples.to_vec(), 7, &cpu).unwrap()
    }

    fn config(method: &str, objective: Objective) -> RunConfig {
        let method = method.parse().unwrap();
        RunConfig { method, objective, batch: 3, accumulation: 2, ..RunConfig::default() }
    }

    #[test]
    fn a_step_counts_its_points_its_tokens_and_what_is_asked_behind_them() {
        let each = per_token(&checkpoint());
        // Both candidates: the prompt and what they share, with two rows behind which is asked. The
        // right one alone comes to the same.
        for objective in [Objective::Classification, Objective::Loss] {
            for (method, points) in [("mezo", 2), ("fzoo", 9), ("cons", 5)] {
                let found = time(&config(method, objective.clone()), &choices()).unwrap();
                assert_eq!((found.tokens, found.passes), (6.0 * 4.0, points), "{method}");
                let asked = 6.0 * 2.0;
                let once = 24.0 * each.blocks + asked * each.head;
                assert_eq!(found.multiplications, points as f64 * once, "{method}");
                assert_eq!(found.step_s, found.multiplications / found.multiplications_per_s);
                assert_eq!((found.steps, found.run_s), (7, 7.0 * found.step_s));
            }
        }
        let more = config("mezo", Objective::Loss);
        let options = serde_json::from_str(r#"{"directions": 5}"#).unwrap();
        let more = RunConfig { options, ..more };
        assert_eq!(time(&more, &choices()).unwrap().passes, 10);
    }

    #[test]
    fn gradients_go_forward_and_back_and_blocks_again_where_they_run_twice() {
        let text = [Example::Text(Sequence::of(&[1, 2], &[3, 4, 5]))];
        let each = per_token(&checkpoint());
        let (blocks, head) = (6.0 * 4.0 * each.blocks, 6.0 * 3.0 * each.head);
        for (method, gradient_checkpointing, passes, expected) in [
            ("lora", true, 3, 3.0 * blocks + 2.0 * head),
            ("lora", false, 2, 2.0 * (blocks + head)),
            ("full", false, 3, 3.0 * (blocks + head)),
        ] {
            let config =
                RunConfig { gradient_checkpointing, ..config(method, Objective::default()) };
            let found = time(&config, &text).unwrap();
            assert_eq!((found.passes, found.multiplications), (passes, expected), "{method}");
        }
        for (options, passes) in [("{}", 3), (r#"{"directions": 4}"#, 9)] {
            let options = serde_json::from_str(options).unwrap();
            let hybrid = RunConfig { options, ..config("hybrid", Objective::default()) };
            let found = time(&hybrid, &text).unwrap();
            assert_eq!(found.passes, passes);
            assert_eq!(found.multiplications, passes as f64 * (blocks + head));
        }
    }

    #[test]
    fn of_answers_that_are_written_nothing_is_said_and_every_form_of_products_is_timed() {
        assert_eq!(time(&config("mezo", Objective::F1), &choices()), None);
        let plain = config("mezo", Objective::Loss);
        for space in [Space::Lora, Space::Full, Space::Prefix] {
            for activations in [Rounding::Float, Rounding::Stored] {
                let bfloat16 = space == Space::Full;
                let config = RunConfig { space, activations, bfloat16, ..plain.clone() };
                assert!(time(&config, &choices()).unwrap().step_s > 0.0);
            }
        }
    }
}
