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
mod operations;
mod run;
mod tape;
mod weights;

pub use lora::DropoutMasks;

use candle_core::{Tensor, Var};

use super::DenseModel;
use super::ops::{CrossEntropy, Frozen, Target, log_probabilities};
use crate::{Error, LoraAdapter, LowRank};
use lora::DenseLora;
use run::TrainRun;
use tape::{Flow, Traced};

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
        let block = |name: &str| {
            let number = name.strip_prefix("model.layers.")?.split('.').next()?;
            number.parse::<usize>().ok()
        };
        let lowest = variables.iter().filter_map(|(name, _)| block(name)).min();
        let embedding = variables.iter().any(|(name, _)| *name == model.blueprint.embedding);
        Self { model, lora, variables, lowest: lowest.unwrap_or(blocks), embedding }
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
        let mut run = self.run(texts, GradientOptions::default())?;
        let picked = Picked::of(texts, targets)?;
        self.forward(&mut run)?;
        let mut scores = Vec::new();
        run.behind_head(|x, head, cap| {
            let x = picked.rows_of(&x)?;
            scores = log_probabilities(&x, &head, cap, &picked.targets)?;
            Ok(x)
        })?;
        Ok(picked.in_order(&scores))
    }

    fn forward(&self, run: &mut TrainRun<'_>) -> Result<(), Error> {
        let architecture = &self.model.architecture;
        architecture.begin(run)?;
        (0..architecture.blocks()).try_for_each(|block| architecture.block(block, run))?;
        architecture.end(run)
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
        let mut run = self.run(texts, options)?;
        run.trace(false);
        self.forward(&mut run)?;
        let (loss, exact) = loss(&mut run, picked)?;
        let mut all = self.none(exact);
        let gradient = loss.tensor.ones_like()?;
        collect(&mut all, run.back(loss, gradient, &self.variables)?)?;
        Ok(all)
    }

    fn checkpointed(
        &self,
        texts: &[&[u32]],
        picked: &Picked,
        options: GradientOptions<'_>,
    ) -> Result<Gradients, Error> {
        let architecture = &self.model.architecture;
        let mut run = self.run(texts, options)?;
        architecture.begin(&mut run)?;
        let mut inputs = Vec::with_capacity(architecture.blocks());
        for block in 0..architecture.blocks() {
            inputs.push(run.residual()?.tensor);
            architecture.block(block, &mut run)?;
        }
        let lowest = if self.embedding { 0 } else { self.lowest };
        run.trace(false);
        let last = run.residual()?.tensor;
        // Without anything trained below it, the last state is a constant.
        let leaf = run.set_residual(last, lowest < inputs.len() || self.embedding);
        architecture.end(&mut run)?;
        let (loss, exact) = loss(&mut run, picked)?;
        let mut all = self.none(exact);
        let gradient = loss.tensor.ones_like()?;
        let mut flow = run.back(loss, gradient, &self.variables)?;
        let mut upstream = flow.take(&leaf);
        collect(&mut all, flow)?;
        run.trace(true);
        for (block, input) in inputs.into_iter().enumerate().skip(lowest).rev() {
            let Some(gradient) = upstream.take() else { break };
            let leaf = run.set_residual(input, block > lowest || self.embedding);
            architecture.block(block, &mut run)?;
            let result = run.residual()?;
            let mut flow = run.back(result, gradient, &self.variables)?;
            upstream = flow.take(&leaf);
            collect(&mut all, flow)?;
        }
        if let Some(gradient) = upstream.filter(|_| self.embedding) {
            architecture.begin(&mut run)?;
            let rows = run.residual()?;
            collect(&mut all, run.back(rows, gradient, &self.variables)?)?;
        }
        Ok(all)
    }

    fn run<'a>(
        &'a self,
        texts: &[&[u32]],
        options: GradientOptions<'a>,
    ) -> Result<TrainRun<'a>, Error> {
        TrainRun::new(&self.model, self.lora.as_ref(), texts, options.dropout)
    }

    fn none(&self, loss: f64) -> Gradients {
        Gradients { loss, tensors: vec![None; self.variables.len()] }
    }
}

/// The loss, which stands behind the output head, also in double precision.
fn loss<'a>(run: &mut TrainRun<'a>, picked: &Picked) -> Result<(Traced<'a>, f64), Error> {
    let mut exact = 0.0;
    let loss = run.behind_head(|x, head, cap| {
        let x = picked.rows_of(&x)?;
        let trained = matches!(&head, Frozen::Tensor(head) if head.track_op());
        let of = CrossEntropy { head, cap, targets: &picked.targets };
        let loss;
        (loss, exact) = of.loss(&x, trained)?;
        Ok(loss)
    })?;
    Ok((loss, exact))
}

fn collect(all: &mut Gradients, flow: Flow<'_>) -> Result<(), Error> {
    all.add(Gradients { loss: 0.0, tensors: flow.gradients() })
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

    /// Those rows of `x`.
    fn rows_of(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.index_select(&Tensor::new(self.rows.as_slice(), x.device())?, 0)?)
    }

    fn in_order(&self, scores: &[(f64, bool)]) -> Vec<(f64, bool)> {
        let mut out = vec![(0.0, false); scores.len()];
        self.order.iter().zip(scores).for_each(|(&place, &score)| out[place] = score);
        out
    }
}
