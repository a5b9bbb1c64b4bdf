//! Losses on whole texts and their gradients, for weights that are trained.
//!
//! A step of training differs from one of answering: texts begin at their beginning and nothing is
//! cached, few rows carry loss, and what the way back needs decides the memory. So the architecture is
//! run over registers of its own ([`run`]), texts one behind the other without padding, block by block.
//!
//! With checkpointing (Chen et al. 2016, section 4, <https://arxiv.org/abs/1604.06174>, a segment for each
//! block) the forward pass keeps the input of each block and nothing else; on the way back a block runs
//! once more, but for the last product, whose value is not needed, then gives its gradients. The numbers are the same, but for the order of the sums over what
//! reads one tensor, for a forward pass more.

mod lora;
mod run;

pub use lora::DropoutMasks;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::DenseModel;
use super::ops::{CrossEntropy, Frozen, Target, log_probabilities};
use crate::{Error, LoraAdapter, LowRank};
use lora::DenseLora;
use run::{Mode, TrainRun};

/// A token that is to be predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextTarget {
    /// Which of the texts.
    pub text: usize,
    /// The place in it whose row predicts: the token is that of the next place, or another one that is
    /// compared with it.
    pub place: usize,
    /// The token.
    pub token: u32,
    /// Its weight in the loss.
    pub weight: f64,
}

/// A loss and how it changes with the weights.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// `- sum of weight log p` over the targets.
    pub loss: f64,
    /// For each of [`DenseTuning::variables`] the gradient, or nothing where the loss does not depend
    /// on it.
    pub tensors: Vec<Option<Tensor>>,
}

impl Gradients {
    /// Adds those of further texts.
    ///
    /// # Errors
    /// [`Error::Tensors`] if they are of other variables.
    pub fn add(&mut self, other: Self) -> Result<(), Error> {
        self.loss += other.loss;
        for (sum, more) in self.tensors.iter_mut().zip(other.tensors) {
            *sum = match (sum.take(), more) {
                (Some(sum), Some(more)) => Some((sum + more)?),
                (sum, more) => sum.or(more),
            };
        }
        Ok(())
    }
}

/// How gradients are computed.
#[derive(Default, Clone, Copy)]
pub struct GradientOptions<'a> {
    /// Whether blocks run once more on the way back instead of keeping what they computed.
    pub checkpointing: bool,
    /// What is dropped of the inputs of LoRA's products.
    pub dropout: Option<&'a dyn DropoutMasks>,
}

/// A model some of whose weights, or whose LoRA matrices, are trained.
#[derive(Debug)]
pub struct DenseTuning {
    model: DenseModel,
    lora: Option<DenseLora>,
    variables: Vec<(String, Var)>,
    /// The first block in which something is trained; the number of blocks if there is none.
    lowest: usize,
    /// Whether the embedding is trained.
    embedding: bool,
}

impl DenseTuning {
    /// Trains LoRA matrices over `model`, beginning with those of `adapter`. If `freeze_a`, only the
    /// `B` are trained (LoRA-FA, Zhang et al. 2023, section 3.1, <https://arxiv.org/abs/2308.03303>).
    ///
    /// # Errors
    /// [`Error::Adapter`] if the adapter is empty or does not fit the model.
    pub fn lora(model: DenseModel, adapter: &LoraAdapter, freeze_a: bool) -> Result<Self, Error> {
        if adapter.matrices.is_empty() {
            return Err(Error::Adapter(
                "no matrix is trained: name some of the model's".to_owned(),
            ));
        }
        let lora = DenseLora::new(&model, adapter, freeze_a)?;
        let variables = lora.variables(&model);
        Ok(Self::of(model, Some(lora), variables))
    }

    /// Trains the weights of these canonical names, each of which [`DenseModel::names`] has.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there are none, or the model has none of a name.
    pub fn full(mut model: DenseModel, names: &[String]) -> Result<Self, Error> {
        let Some(first) = names.first() else {
            let what = "no tensor is trained: name some of the model's".to_owned();
            return Err(Error::Tensor { name: "(none)".to_owned(), what });
        };
        model.tensor(first)?;
        let mut variables = Vec::with_capacity(names.len());
        for name in names {
            variables.push((name.clone(), model.variable(name)?));
        }
        Ok(Self::of(model, None, variables))
    }

    fn of(model: DenseModel, lora: Option<DenseLora>, variables: Vec<(String, Var)>) -> Self {
        let blocks = model.architecture.blocks();
        let lowest = variables.iter().filter_map(|(name, _)| block_of(name)).min();
        let embedding = variables.iter().any(|(name, _)| *name == model.blueprint.embedding);
        Self { model, lora, variables, lowest: lowest.unwrap_or(blocks), embedding }
    }

    /// Takes what goes into block `block` as a constant: what is trained in the blocks below, and in the
    /// embedding, has no gradients from then on. The blocks below keep nothing for the way back if they
    /// run with [`GradientOptions::checkpointing`].
    pub fn stop_below(&mut self, block: usize) {
        self.lowest = self.lowest.max(block).min(self.model.architecture.blocks());
        self.embedding = false;
    }

    /// Whether what is trained under each of the variables' names is in a block below `block`, or the
    /// embedding.
    pub fn is_below(&self, block: usize) -> Vec<bool> {
        let below = |name: &str| match block_of(name) {
            Some(number) => number < block,
            None => *name == self.model.blueprint.embedding,
        };
        self.variables.iter().map(|(name, _)| below(name)).collect()
    }

    /// The model.
    pub fn model(&self) -> &DenseModel {
        &self.model
    }

    /// What is trained, by name: of LoRA `{matrix}.lora_A.weight` `[r, cols]` and `{matrix}.lora_B.weight`
    /// `[rows, r]`, else canonical names.
    pub fn variables(&self) -> &[(String, Var)] {
        &self.variables
    }

    /// The LoRA matrices as they are now, or nothing if the weights themselves are trained.
    ///
    /// # Errors
    /// [`Error::Tensors`] if they cannot be read from their device.
    pub fn adapter(&self) -> Result<Option<LoraAdapter>, Error> {
        let Some(lora) = &self.lora else { return Ok(None) };
        let mut adapter = LoraAdapter::default();
        for (linear, pair) in lora.pairs() {
            let numbers = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
            let (a, b) = (numbers(&pair.a)?, numbers(&pair.b)?);
            let low = LowRank { rank: pair.a.dim(0)?, scale: pair.scale as f32, a, b };
            let name = self.model.blueprint.linears[linear.index()].name.clone();
            adapter.matrices.insert(name, low);
        }
        Ok(Some(adapter))
    }

    /// For each target the logarithm of its probability, and whether no other token has a greater one.
    /// Weights play no part.
    ///
    /// # Errors
    /// [`Error::Step`] if a text is empty or has tokens that the model does not know, or a target is not
    /// in its text; [`Error::Tensors`] if there is no memory.
    pub fn score(
        &self,
        texts: &[&[u32]],
        targets: &[TextTarget],
    ) -> Result<Vec<(f64, bool)>, Error> {
        let mut run = self.run(texts, Mode::Plain, GradientOptions::default())?;
        let picked = Picked::of(texts, targets)?;
        self.model.architecture.begin(&mut run)?;
        (0..self.model.architecture.blocks())
            .try_for_each(|block| self.model.architecture.block(block, &mut run))?;
        self.model.architecture.end(&mut run)?;
        let (x, head, cap) = run.head()?;
        let x = x.index_select(&Tensor::new(picked.rows.as_slice(), x.device())?, 0)?;
        let scores = log_probabilities(&x, &head, cap, &picked.targets)?;
        Ok(picked.in_order(&scores))
    }

    /// The loss over the targets and its gradients.
    ///
    /// # Errors
    /// As [`DenseTuning::score`].
    pub fn gradients(
        &self,
        texts: &[&[u32]],
        targets: &[TextTarget],
        options: GradientOptions<'_>,
    ) -> Result<Gradients, Error> {
        let picked = Picked::of(texts, targets)?;
        match options.checkpointing {
            true => self.checkpointed(texts, &picked, options),
            false => self.plain(texts, &picked, options),
        }
    }

    fn plain(
        &self,
        texts: &[&[u32]],
        picked: &Picked,
        options: GradientOptions<'_>,
    ) -> Result<Gradients, Error> {
        let architecture = &self.model.architecture;
        let mut run = self.run(texts, Mode::Graph, options)?;
        architecture.begin(&mut run)?;
        (0..architecture.blocks()).try_for_each(|block| architecture.block(block, &mut run))?;
        let (loss, exact) = self.loss(&mut run, picked)?;
        drop(run);
        let mut all = self.none(exact);
        self.collect(&mut all, loss.backward()?)?;
        Ok(all)
    }

    fn checkpointed(
        &self,
        texts: &[&[u32]],
        picked: &Picked,
        options: GradientOptions<'_>,
    ) -> Result<Gradients, Error> {
        let architecture = &self.model.architecture;
        let mut run = self.run(texts, Mode::Plain, options)?;
        architecture.begin(&mut run)?;
        let mut inputs = Vec::with_capacity(architecture.blocks());
        for block in 0..architecture.blocks() {
            inputs.push(run.residual()?);
            architecture.block(block, &mut run)?;
        }
        let lowest = if self.embedding { 0 } else { self.lowest };
        run.set_mode(Mode::Graph);
        let last = run.residual()?;
        // Without anything trained below it, the last state is a constant.
        let mut leaf = (lowest < inputs.len() || self.embedding).then(|| Var::from_tensor(&last));
        run.set_residual(match &leaf {
            Some(Ok(leaf)) => leaf.as_tensor().clone(),
            _ => last,
        });
        let (loss, exact) = self.loss(&mut run, picked)?;
        let mut all = self.none(exact);
        let mut store = loss.backward()?;
        drop(loss);
        let mut upstream = match leaf.take().transpose()? {
            Some(leaf) => store.remove(&leaf),
            None => None,
        };
        self.collect(&mut all, store)?;
        run.set_mode(Mode::Again);
        for (block, input) in inputs.into_iter().enumerate().skip(lowest).rev() {
            let Some(gradient) = upstream.take() else { break };
            let leaf = match block > lowest || self.embedding {
                true => Some(Var::from_tensor(&input)?),
                false => None,
            };
            run.set_residual(leaf.as_ref().map_or(input, |leaf| leaf.as_tensor().clone()));
            architecture.block(block, &mut run)?;
            let mut store = product(&run.take_residual()?, &gradient)?.backward()?;
            upstream = leaf.and_then(|leaf| store.remove(&leaf));
            self.collect(&mut all, store)?;
        }
        if let Some(gradient) = upstream.filter(|_| self.embedding) {
            architecture.begin(&mut run)?;
            let store = product(&run.take_residual()?, &gradient)?.backward()?;
            self.collect(&mut all, store)?;
        }
        Ok(all)
    }

    fn run<'a>(
        &'a self,
        texts: &[&[u32]],
        mode: Mode,
        options: GradientOptions<'a>,
    ) -> Result<TrainRun<'a>, Error> {
        TrainRun::new(&self.model, self.lora.as_ref(), texts, mode, options.dropout)
    }

    /// Runs what comes behind the blocks, and the loss.
    fn loss(&self, run: &mut TrainRun<'_>, picked: &Picked) -> Result<(Tensor, f64), Error> {
        self.model.architecture.end(run)?;
        let (x, head, cap) = run.head()?;
        let x = x.index_select(&Tensor::new(picked.rows.as_slice(), x.device())?, 0)?;
        let trained = matches!(&head, Frozen::Tensor(head) if head.track_op());
        Ok(CrossEntropy { head, cap, targets: &picked.targets }.loss(&x, trained)?)
    }

    fn none(&self, loss: f64) -> Gradients {
        Gradients { loss, tensors: vec![None; self.variables.len()] }
    }

    fn collect(&self, all: &mut Gradients, mut store: GradStore) -> Result<(), Error> {
        let of = |(_, variable): &(String, Var)| store.remove(variable);
        let tensors = self.variables.iter().map(of).collect();
        all.add(Gradients { loss: 0.0, tensors })
    }
}

/// The block that a tensor of this name is in.
fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// A number whose gradient at `x` is `gradient`.
fn product(x: &Tensor, gradient: &Tensor) -> Result<Tensor, Error> {
    Ok((x * gradient)?.sum_all()?)
}

/// The rows that carry loss.
struct Picked {
    /// Of all texts' rows, ascending, each once.
    rows: Vec<u32>,
    /// The targets in ascending order of these, by their places among them.
    targets: Vec<Target>,
    /// The place of each of them in the order that was given.
    order: Vec<usize>,
}

impl Picked {
    fn of(texts: &[&[u32]], targets: &[TextTarget]) -> Result<Self, Error> {
        let mut firsts = Vec::with_capacity(texts.len());
        let mut rows = 0;
        for text in texts {
            firsts.push(rows);
            rows += text.len();
        }
        let mut places = Vec::with_capacity(targets.len());
        for (number, target) in targets.iter().enumerate() {
            let within = texts.get(target.text).is_some_and(|text| target.place < text.len());
            if !within || !target.weight.is_finite() {
                return Err(Error::Step(format!("target {number} is in none of the texts")));
            }
            places.push((firsts[target.text] + target.place, number));
        }
        if targets.is_empty() {
            return Err(Error::Step("no token is to be predicted".to_owned()));
        }
        places.sort_unstable();
        let mut picked = Self { rows: Vec::new(), targets: Vec::new(), order: Vec::new() };
        for (row, number) in places {
            if picked.rows.last() != Some(&(row as u32)) {
                picked.rows.push(row as u32);
            }
            let TextTarget { token, weight, .. } = targets[number];
            picked.targets.push(Target { row: picked.rows.len() - 1, token, weight });
            picked.order.push(number);
        }
        Ok(picked)
    }

    fn in_order(&self, scores: &[(f64, bool)]) -> Vec<(f64, bool)> {
        let mut out = vec![(0.0, false); scores.len()];
        self.order.iter().zip(scores).for_each(|(&place, &score)| out[place] = score);
        out
    }
}
