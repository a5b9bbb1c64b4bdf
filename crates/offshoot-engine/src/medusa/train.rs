//! Training of Medusa heads on a model's own answers.
//!
//! Medusa-1 of Cai et al. 2024, <https://arxiv.org/abs/2401.10774>, section 2.2.1: the base is frozen,
//! so its states are read from a file and only the residual blocks learn. With `y` the tokens of an
//! answer, `h_i` the state that `y_i` was chosen from, and U the rows of the output head that are
//! scored,
//! ```text
//! L = sum over k = 1..K of 0.8^k mean over i of -log softmax(U z_k(h_i))[y_(i + k)]
//! ```
//! The output head owns `y_i`; head k the token k places behind it. A place where the answer has
//! ended, or whose token is not scored, is left out of the mean.
//!
//! Departs from the paper: heads see the token `y_i` as well, which is chosen when they are asked
//! ([`offshoot_models::medusa::HeadsFile`] has the equation); weights and biases begin at zero, so that a head begins as the output head
//! (the reference leaves the biases to chance); U is not trained, and scores the most frequent tokens
//! alone, as a draft need not know the rare ones; AdamW in single precision at 1e-3 instead of an
//! 8-bit one at 2e-3, with batches of rows instead of texts.
//!
//! Batches are rows in an order that the seed names. Each product is one of candle's, whose threads
//! share out its results and never a sum; all else goes row by row. So the same seed gives the same
//! heads, whatever the number of threads.
//!
//! Cost: `6 K V' d` floating-point operations a row and pass, most of it in two products.

use candle_core::{Device, Tensor};
use offshoot_kernels::{BlockType, Isa, softmax};
use offshoot_models::PackedModel;
use offshoot_models::medusa::{Head, HeadMatrix, HeadsFile, ResBlock, TokenInput};
use serde::{Deserialize, Serialize};

use super::distill::Distilled;
use super::prompts::shuffled_place;
use crate::{Control, Error};

/// A token that is not scored, or a place behind an answer's end.
const NONE: u32 = u32::MAX;
/// Of so many answers the last is kept for evaluation.
const HELD_OUT: usize = 10;

/// How heads are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    /// Heads. The paper has five; three serve trees of the sizes that pay on processors.
    pub heads: usize,
    /// Residual blocks of a head: the paper's 1.
    pub layers: usize,
    /// Whether heads see the token that was chosen from the state they read.
    pub see_token: bool,
    /// Tokens that are scored at most.
    pub vocabulary: usize,
    /// Times that each row is seen.
    pub epochs: usize,
    /// Rows of a step.
    pub batch: usize,
    /// The greatest learning rate; it rises for `warmup` steps and falls along a cosine to zero.
    pub learning_rate: f64,
    /// The paper's 40 steps.
    pub warmup: usize,
    /// Weight of head k in the loss: this to the power of k. The paper's 0.8.
    pub head_weight: f64,
    /// AdamW's decay of weights, none in the paper.
    pub weight_decay: f64,
    /// Orders the rows.
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            heads: 3,
            layers: 1,
            see_token: true,
            vocabulary: 4096,
            epochs: 3,
            batch: 256,
            learning_rate: 1e-3,
            warmup: 40,
            head_weight: 0.8,
            weight_decay: 0.0,
            seed: 1,
        }
    }
}

impl TrainOptions {
    /// Checks the bounds.
    ///
    /// # Errors
    /// [`Error::Training`] that names the field.
    pub fn validate(&self) -> Result<(), Error> {
        let bounds = [
            ("heads", self.heads, 8),
            ("layers", self.layers, 4),
            ("vocabulary", self.vocabulary, 16_384),
            ("epochs", self.epochs, 1000),
            ("batch", self.batch, 1 << 16),
        ];
        for (field, n, most) in bounds {
            if n == 0 || n > most {
                return Err(Error::Training(format!("{field} is {n}, expected 1 to {most}")));
            }
        }
        if !(self.learning_rate > 0.0 && self.learning_rate < 1.0) {
            let rate = self.learning_rate;
            return Err(Error::Training(format!(
                "learning_rate is {rate}, expected between 0 and 1"
            )));
        }
        Ok(())
    }
}

/// A step of training, as told to whoever listens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainStep {
    /// From 1 on.
    pub step: usize,
    /// Of so many.
    pub steps: usize,
    /// The rate that it was made with.
    pub learning_rate: f64,
    /// The mean loss of each head, in nats.
    pub losses: Vec<f32>,
}

/// The rows of answers that are trained on, or held out.
#[derive(Debug)]
pub(super) struct Rows {
    /// The row of each state, and the token that was chosen from it.
    states: Vec<u32>,
    chosen: Vec<u32>,
    /// `K` targets for each, places in the scored vocabulary.
    targets: Vec<u32>,
}

/// The tokens that heads score: the `n` most frequent of the answers that are trained on, the lower
/// first of equals, then the lowest ids.
pub(super) fn frequent_tokens(data: &Distilled, vocab_size: usize, n: usize) -> Vec<u32> {
    let trained = data.answers().iter().filter(|answer| !held_out(answer.index));
    let mut counts = vec![0; vocab_size];
    trained.flat_map(|answer| &answer.tokens).for_each(|&token| counts[token as usize] += 1);
    most_counted(&counts, n)
}

/// The `n` tokens of the greatest counts, ascending; of equals the lower first.
pub(crate) fn most_counted(counts: &[u32], n: usize) -> Vec<u32> {
    let mut counts: Vec<(u32, u32)> = counts.iter().copied().zip(0..).collect();
    counts.sort_by(|(n, a), (m, b)| m.cmp(n).then(a.cmp(b)));
    let mut tokens: Vec<u32> = counts.into_iter().take(n).map(|(_, token)| token).collect();
    tokens.sort_unstable();
    tokens
}

/// Whether the answer to prompt `index` is kept for evaluation.
pub(super) fn held_out(index: usize) -> bool {
    index % HELD_OUT == HELD_OUT - 1
}

/// The rows to train on: those where the first head has a target.
fn training_rows(data: &Distilled, vocabulary: &[u32], vocab_size: usize, heads: usize) -> Rows {
    let mut place = vec![NONE; vocab_size];
    for (i, &token) in vocabulary.iter().enumerate() {
        place[token as usize] = i as u32;
    }
    let (mut states, mut chosen, mut targets) = (Vec::new(), Vec::new(), Vec::new());
    for answer in data.answers().iter().filter(|answer| !held_out(answer.index)) {
        for i in 0..answer.tokens.len().saturating_sub(1) {
            states.push((answer.first_row + i) as u32);
            chosen.push(answer.tokens[i]);
            let target = |k| answer.behind(i).get(k).map_or(NONE, |&t| place[t as usize]);
            targets.extend((0..heads).map(target));
        }
    }
    Rows { states, chosen, targets }
}

/// A parameter with AdamW's moments (Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>).
#[derive(Debug, Clone)]
struct Parameter {
    value: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Parameter {
    fn zeros(n: usize) -> Self {
        Self { value: vec![0.0; n], first: vec![0.0; n], second: vec![0.0; n] }
    }

    /// Step `t`, from 1 on, along `gradient`.
    fn update(&mut self, gradient: &[f32], t: usize, rate: f64, decay: f64) {
        const BETAS: (f32, f32) = (0.9, 0.999);
        const EPS: f32 = 1e-8;
        let t = i32::try_from(t).unwrap_or(i32::MAX);
        let corrections = (1.0 - BETAS.0.powi(t), 1.0 - BETAS.1.powi(t));
        let (rate, keep) = (rate as f32, (1.0 - rate * decay) as f32);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, (m, v)), g) in self.value.iter_mut().zip(moments).zip(gradient) {
            *m = BETAS.0 * *m + (1.0 - BETAS.0) * g;
            *v = BETAS.1 * *v + (1.0 - BETAS.1) * g * g;
            let step = (*m / corrections.0) / ((*v / corrections.1).sqrt() + EPS);
            *value = *value * keep - rate * step;
        }
    }
}

/// A residual block that learns.
#[derive(Debug, Clone)]
struct Block {
    weight: Parameter,
    bias: Parameter,
}

/// What the way back needs of a block's way forth.
struct Passed {
    input: Tensor,
    /// Before the activation, `[n, d]`.
    product: Vec<f32>,
}

/// What the heads read of some rows.
#[derive(Debug)]
pub(super) struct Batch {
    /// States, `[n, d]`.
    h: Tensor,
    /// What the first blocks multiply: the states, or `[n, 2d]` with the chosen tokens.
    input: Tensor,
}

impl Batch {
    /// Of states `h`, `[n, d]`, and the tokens chosen from them in the same shape, or nothing.
    pub(super) fn new(h: Vec<f32>, chosen: Vec<f32>, d: usize) -> Computed<Self> {
        let n = h.len() / d;
        let h = Tensor::from_vec(h, (n, d), &Device::Cpu)?;
        let input = match chosen.is_empty() {
            true => h.clone(),
            false => Tensor::cat(&[&h, &Tensor::from_vec(chosen, (n, d), &Device::Cpu)?], 1)?,
        };
        Ok(Self { h, input })
    }
}

/// Heads in training.
#[derive(Debug)]
pub(super) struct Trainer {
    d: usize,
    /// `[V', d]` and its transpose, row by row.
    output: Tensor,
    output_t: Tensor,
    heads: Vec<Vec<Block>>,
    isa: Isa,
}

/// What the tensor library gives.
type Computed<T> = candle_core::Result<T>;
/// Of a block: its weights, then its biases.
type Gradients = (Vec<f32>, Vec<f32>);

impl Trainer {
    /// Heads that score with `output`, `[V', d]`.
    pub(super) fn new(options: &TrainOptions, output: Vec<f32>, d: usize) -> Result<Self, Error> {
        let block = |l: usize| {
            let cols = if l == 0 && options.see_token { 2 * d } else { d };
            Block { weight: Parameter::zeros(d * cols), bias: Parameter::zeros(d) }
        };
        let head: Vec<Block> = (0..options.layers).map(block).collect();
        let heads = vec![head; options.heads];
        let build = || -> Computed<(Tensor, Tensor)> {
            let rows = output.len() / d;
            let output = Tensor::from_vec(output, (rows, d), &Device::Cpu)?;
            Ok((output.clone(), output.t()?.contiguous()?))
        };
        let (output, output_t) = build().map_err(tensors)?;
        Ok(Self { d, output, output_t, heads, isa: Isa::best() })
    }

    /// The state of head `k` for each row of a batch, `[n, d]`, and what the way back needs.
    fn forward(&self, k: usize, batch: &Batch) -> Computed<(Tensor, Vec<Passed>)> {
        let (n, d) = (batch.h.dim(0)?, self.d);
        let (mut z, mut passed) = (batch.h.clone(), Vec::new());
        for (l, block) in self.heads[k].iter().enumerate() {
            let input = if l == 0 { batch.input.clone() } else { z.clone() };
            let shape = (d, block.weight.value.len() / d);
            let weight = Tensor::from_slice(&block.weight.value, shape, &Device::Cpu)?;
            let mut product = input.matmul(&weight.t()?)?.flatten_all()?.to_vec1::<f32>()?;
            for row in product.chunks_exact_mut(d) {
                row.iter_mut().zip(&block.bias.value).for_each(|(x, b)| *x += b);
            }
            let gate: Vec<f32> = product.iter().map(|&x| x * sigmoid(x)).collect();
            let next = (&z + Tensor::from_vec(gate, (n, d), &Device::Cpu)?)?;
            passed.push(Passed { input, product });
            z = next;
        }
        Ok((z, passed))
    }

    /// The scores of head `k`, `[n, V']`.
    fn scores(&self, k: usize, batch: &Batch) -> Computed<(Vec<f32>, Vec<Passed>)> {
        let (z, passed) = self.forward(k, batch)?;
        Ok((z.matmul(&self.output_t)?.flatten_all()?.to_vec1()?, passed))
    }

    /// The loss of head `k`, and its gradients times `weight` by block: weights, then biases.
    fn gradients(
        &self,
        k: usize,
        batch: &Batch,
        targets: &[u32],
        weight: f32,
    ) -> Computed<(f32, Vec<Gradients>)> {
        let (n, d) = (batch.h.dim(0)?, self.d);
        let (mut scores, passed) = self.scores(k, batch)?;
        let width = scores.len() / n;
        let counted = targets.iter().filter(|&&t| t != NONE).count().max(1) as f32;
        let mut loss = 0.0;
        for (row, &target) in scores.chunks_exact_mut(width).zip(targets) {
            if target == NONE {
                row.fill(0.0);
                continue;
            }
            let score = row[target as usize];
            loss += softmax(self.isa, row) - score;
            row[target as usize] -= 1.0;
            row.iter_mut().for_each(|g| *g *= weight / counted);
        }
        let scores = Tensor::from_vec(scores, (n, width), &Device::Cpu)?;
        let mut back = scores.matmul(&self.output)?;
        let mut gradients = Vec::new();
        for (block, passed) in self.heads[k].iter().zip(&passed).rev() {
            let mut inner = back.flatten_all()?.to_vec1::<f32>()?;
            for (g, &x) in inner.iter_mut().zip(&passed.product) {
                let s = sigmoid(x);
                *g *= s * (1.0 + x * (1.0 - s));
            }
            let mut bias = vec![0.0; d];
            for row in inner.chunks_exact(d) {
                bias.iter_mut().zip(row).for_each(|(b, g)| *b += g);
            }
            let inner = Tensor::from_vec(inner, (n, d), &Device::Cpu)?;
            let weight = inner.t()?.matmul(&passed.input)?.flatten_all()?.to_vec1()?;
            gradients.push((weight, bias));
            if gradients.len() < self.heads[k].len() {
                let value = Tensor::from_slice(&block.weight.value, (d, d), &Device::Cpu)?;
                back = (back + inner.matmul(&value)?)?;
            }
        }
        gradients.reverse();
        Ok((loss / counted, gradients))
    }

    /// One step of all heads on a batch with `K` targets for each row; gives the losses.
    fn step(
        &mut self,
        batch: &Batch,
        targets: &[u32],
        (t, rate): (usize, f64),
        options: &TrainOptions,
    ) -> Computed<Vec<f32>> {
        let heads = self.heads.len();
        let mut losses = Vec::with_capacity(heads);
        for k in 0..heads {
            let own: Vec<u32> = targets.iter().skip(k).step_by(heads).copied().collect();
            let weight = head_weight(options, k) as f32;
            let (loss, gradients) = self.gradients(k, batch, &own, weight)?;
            for (block, (weight, bias)) in self.heads[k].iter_mut().zip(&gradients) {
                block.weight.update(weight, t, rate, options.weight_decay);
                block.bias.update(bias, t, rate, 0.0);
            }
            losses.push(loss);
        }
        Ok(losses)
    }

    /// The heads, rounded to half precision.
    pub(super) fn heads(&self) -> Vec<Head> {
        let d = self.d;
        let block = |block: &Block| ResBlock {
            weight: HeadMatrix::new(
                BlockType::F16,
                (d, block.weight.value.len() / d),
                &block.weight.value,
            ),
            bias: HeadMatrix::new(BlockType::F16, (1, d), &block.bias.value),
        };
        let head =
            |blocks: &Vec<Block>| Head { blocks: blocks.iter().map(block).collect(), output: None };
        self.heads.iter().map(head).collect()
    }
}

/// The weight of head `k`, from 0 on, in the loss.
fn head_weight(options: &TrainOptions, k: usize) -> f64 {
    options.head_weight.powi(k as i32 + 1)
}

/// The learning rate of step `t` of `steps`, from 1 on.
fn rate(options: &TrainOptions, t: usize, steps: usize) -> f64 {
    let warmup = options.warmup.min(steps / 10);
    if t <= warmup {
        return options.learning_rate * t as f64 / warmup as f64;
    }
    let share = (t - warmup) as f64 / (steps - warmup).max(1) as f64;
    options.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * share).cos())
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn tensors(error: candle_core::Error) -> Error {
    Error::Training(error.to_string().lines().next().unwrap_or_default().to_owned())
}

/// Trains heads for `model` on `data`; `listen` is told each step and may end the training.
///
/// # Errors
/// [`Error::Training`] if an option is out of bounds, there is nothing to learn from, or the losses
/// are no numbers; [`Error::Stopped`] if `listen` says so.
pub fn train(
    model: &PackedModel,
    data: &Distilled,
    options: &TrainOptions,
    mut listen: impl FnMut(&TrainStep) -> Control,
) -> Result<HeadsFile, Error> {
    options.validate()?;
    let (d, vocab_size) = (data.hidden_size(), model.config().vocab_size);
    let vocabulary = frequent_tokens(data, vocab_size, options.vocabulary);
    let rows = training_rows(data, &vocabulary, vocab_size, options.heads);
    if rows.states.is_empty() {
        return Err(Error::Training("no answer is longer than a token: make more".to_owned()));
    }
    let mut trainer = Trainer::new(options, output_rows(model, &vocabulary)?, d)?;
    let form = options.see_token.then(|| TokenInput::new(model));
    let count = rows.states.len();
    let per_epoch = count.div_ceil(options.batch);
    let steps = per_epoch * options.epochs;
    for step in 1..=steps {
        let (epoch, first) = ((step - 1) / per_epoch, (step - 1) % per_epoch * options.batch);
        let batch = first..count.min(first + options.batch);
        let mut h = vec![0.0; batch.len() * d];
        let mut chosen = vec![0.0; if form.is_some() { h.len() } else { 0 }];
        let mut targets = Vec::with_capacity(batch.len() * options.heads);
        for (n, i) in batch.enumerate() {
            let row = shuffled_place(options.seed, epoch as u32, i, count);
            data.state(rows.states[row] as usize, &mut h[n * d..(n + 1) * d]);
            if let Some(form) = &form {
                form.write(rows.chosen[row], &mut chosen[n * d..(n + 1) * d])?;
            }
            targets.extend(&rows.targets[row * options.heads..(row + 1) * options.heads]);
        }
        let learning_rate = rate(options, step, steps);
        let losses = Batch::new(h, chosen, d)
            .and_then(|batch| trainer.step(&batch, &targets, (step, learning_rate), options))
            .map_err(tensors)?;
        if losses.iter().any(|loss| !loss.is_finite()) {
            return Err(Error::Training(
                "the loss is no number: lower the learning rate".to_owned(),
            ));
        }
        let told = TrainStep { step, steps, learning_rate, losses };
        if listen(&told) == Control::Stop {
            return Err(Error::Stopped);
        }
    }
    Ok(HeadsFile {
        hidden_size: d,
        heads: trainer.heads(),
        vocabulary: Some(vocabulary),
        card: None,
    })
}

/// The rows of the output head for these tokens, `[n, d]`.
pub(super) fn output_rows(model: &PackedModel, tokens: &[u32]) -> Result<Vec<f32>, Error> {
    let d = model.config().hidden_size;
    let head = model.blueprint().linears.last();
    let head = head.ok_or_else(|| Error::Training("the model has no output head".to_owned()))?;
    let tensor = model.checkpoint().require(&format!("{}.weight", head.name))?;
    let mut rows = vec![0.0; tokens.len() * d];
    for (&token, out) in tokens.iter().zip(rows.chunks_exact_mut(d)) {
        tensor.read_row(token as usize, out)?;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests;
