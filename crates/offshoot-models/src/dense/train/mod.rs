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

mod heads;
mod lora;
mod operations;
mod run;
mod tape;
mod weights;

pub use heads::{DraftTarget, Drafts};
pub use lora::DropoutMasks;

use candle_core::{Tensor, Var};

use super::DenseModel;
use super::ops::{CrossEntropy, Frozen, Scoring, Target, composed, divergence, log_probabilities};
use crate::medusa::{HeadToken, HeadsFile};
use crate::{Error, LoraAdapter, LowRank};
use heads::{DenseHeads, DraftPlaces, HeadGradients};
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
    /// `- sum of weight log p` over the targets, or the divergence; and the weighted loss of drafts.
    pub loss: f64,
    /// By draft head the sum of `- weight log p` over its own targets; nothing without heads.
    pub drafts: Vec<f64>,
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
        self.drafts.resize(self.drafts.len().max(other.drafts.len()), 0.0);
        self.drafts.iter_mut().zip(&other.drafts).for_each(|(sum, more)| *sum += more);
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
    /// What the draft heads learn, where there are some.
    pub drafts: Option<Drafts<'a>>,
    /// Whether the model without LoRA's matrices is the teacher: the loss is then the divergence from it
    /// at the targets' rows, weighted as they are, whatever their tokens.
    pub teacher: bool,
}

/// A model some of whose weights, or whose LoRA matrices, are trained.
#[derive(Debug)]
pub struct DenseTuning {
    model: DenseModel,
    lora: Option<DenseLora>,
    heads: Option<DenseHeads>,
    variables: Vec<(String, Var)>,
    /// The first block in which something is trained; the number of blocks if there is none.
    lowest: usize,
    /// Whether the embedding is trained.
    embedding: bool,
    /// Whether operations of our own run where they suit.
    own: bool,
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

    /// Trains draft heads, too, beginning with those of `file`.
    ///
    /// # Errors
    /// [`Error::Heads`] if they do not fit the model, have output matrices of their own, or the weights
    /// themselves are trained: the heads' output matrix is the base's.
    pub fn with_heads(mut self, file: &HeadsFile) -> Result<Self, Error> {
        if self.lora.is_none() {
            let what = "they are trained beside LoRA's matrices alone";
            return Err(Error::Heads(what.to_owned()));
        }
        let heads = DenseHeads::new(&self.model, file)?;
        self.variables.extend(heads.variables());
        self.heads = Some(heads);
        Ok(self)
    }

    fn of(model: DenseModel, lora: Option<DenseLora>, variables: Vec<(String, Var)>) -> Self {
        let blocks = model.architecture.blocks();
        let lowest = variables.iter().filter_map(|(name, _)| block_of(name)).min();
        let embedding = variables.iter().any(|(name, _)| *name == model.blueprint.embedding);
        Self {
            model,
            lora,
            heads: None,
            variables,
            lowest: lowest.unwrap_or(blocks),
            embedding,
            own: true,
        }
    }

    /// Trains by the tensor library's operations alone, as a model is trained that is on another
    /// device than the processor: so that what these give can be compared with our own on a
    /// processor.
    #[must_use]
    pub fn by_library(self) -> Self {
        Self { own: false, ..self }
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

    /// The draft heads as they are now, in half precision and without a card, if there are some.
    ///
    /// # Errors
    /// [`Error::Tensors`] if they cannot be read from their device.
    pub fn heads(&self) -> Result<Option<HeadsFile>, Error> {
        let width = self.model.config().hidden_size;
        self.heads.as_ref().map(|heads| heads.file(width)).transpose()
    }

    /// Whether draft heads score `token`.
    pub fn drafts(&self, token: u32) -> bool {
        self.heads.as_ref().is_some_and(|heads| heads.scores(token))
    }

    /// The `ranks` likeliest tokens of each draft head, fewer if fewer are scored, at the places of
    /// `text` where these tokens are chosen: place after place, head after head, likeliest first.
    ///
    /// # Errors
    /// [`Error::Step`] if there are no heads, or a place or token is none of the text's or model's;
    /// [`Error::Tensors`] if there is no memory.
    pub fn guesses(
        &self,
        text: &[u32],
        places: &[(usize, u32)],
        ranks: usize,
    ) -> Result<Vec<HeadToken>, Error> {
        let Some(heads) = &self.heads else {
            return Err(Error::Step("the model has no draft heads".to_owned()));
        };
        let vocab_size = self.model.config().vocab_size;
        let known =
            |&(place, token): &(usize, u32)| place < text.len() && (token as usize) < vocab_size;
        if places.is_empty() || !places.iter().all(known) {
            return Err(Error::Step("places that are not of the text, or none".to_owned()));
        }
        let mut run = self.run(&[text], GradientOptions::default())?;
        self.forward(&mut run)?;
        let (rows, chosen): (Vec<u32>, Vec<u32>) =
            places.iter().map(|&(place, token)| (place as u32, token)).unzip();
        let h = run.states()?;
        let h = h.index_select(&Tensor::new(rows, h.device())?, 0)?;
        heads.guesses(&self.model, &h, &chosen, ranks)
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
        run.behind_head(|_, x, head, cap| {
            let x = picked.rows_of(&x)?;
            scores = match self.own {
                true => log_probabilities(&x, &head, cap, &picked.targets)?,
                false => composed::log_probabilities(&x, &head, cap, &picked.targets)?,
            };
            Ok(x)
        })?;
        Ok(picked.in_order(&scores))
    }

    /// The loss over the targets and its gradients.
    ///
    /// # Errors
    /// As [`DenseTuning::score`], also of a target of heads, of heads that there are none of, or of a
    /// teacher where the weights themselves are trained.
    pub fn gradients(
        &self,
        texts: &[&[u32]],
        targets: &[TextTarget],
        options: GradientOptions<'_>,
    ) -> Result<Gradients, Error> {
        let wanted = self.wanted(texts, targets, options)?;
        match (options.drafts, options.checkpointing) {
            (Some(Drafts { alone: true, .. }), _) => self.heads_alone(texts, &wanted, options),
            (_, true) => self.checkpointed(texts, &wanted, options),
            (_, false) => self.plain(texts, &wanted, options),
        }
    }

    fn wanted(
        &self,
        texts: &[&[u32]],
        targets: &[TextTarget],
        options: GradientOptions<'_>,
    ) -> Result<Wanted, Error> {
        let picked = Picked::of(texts, targets)?;
        let drafts = match (&self.heads, options.drafts) {
            (_, None) => None,
            (None, Some(_)) => return Err(Error::Step("there are no draft heads".to_owned())),
            (Some(heads), Some(Drafts { targets, weight, .. })) => {
                Some((DraftPlaces::of(heads, texts, targets)?, weight))
            }
        };
        let teacher = options.teacher.then(|| self.teacher(texts, &picked)).transpose()?;
        Ok(Wanted { picked, drafts, teacher })
    }

    /// What the model without LoRA's matrices makes of the rows.
    fn teacher(&self, texts: &[&[u32]], picked: &Picked) -> Result<Scoring, Error> {
        if self.lora.is_none() {
            return Err(Error::Step("there is no teacher where all weights are tuned".to_owned()));
        }
        let mut run = TrainRun::new(&self.model, None, texts, None, self.own)?;
        self.forward(&mut run)?;
        let mut scoring = None;
        run.behind_head(|_, x, head, _| {
            let x = picked.rows_of(&x)?;
            scoring = Some(Scoring { x: x.clone(), head });
            Ok(x)
        })?;
        scoring.ok_or_else(|| Error::Step("the architecture has no output head".to_owned()))
    }

    /// All of the architecture but the product with the output head.
    fn forward(&self, run: &mut TrainRun<'_>) -> Result<(), Error> {
        let architecture = &self.model.architecture;
        architecture.begin(run)?;
        (0..architecture.blocks()).try_for_each(|block| architecture.block(block, run))?;
        architecture.end(run)
    }

    /// As the others, where nothing but the draft heads has a gradient.
    fn heads_alone(
        &self,
        texts: &[&[u32]],
        wanted: &Wanted,
        options: GradientOptions<'_>,
    ) -> Result<Gradients, Error> {
        let mut run = self.run(texts, options)?;
        self.forward(&mut run)?;
        self.loss(&mut run, wanted).map(|(_, all)| all)
    }

    fn plain(
        &self,
        texts: &[&[u32]],
        wanted: &Wanted,
        options: GradientOptions<'_>,
    ) -> Result<Gradients, Error> {
        let mut run = self.run(texts, options)?;
        run.trace(false);
        self.forward(&mut run)?;
        let (loss, mut all) = self.loss(&mut run, wanted)?;
        let gradient = loss.tensor.ones_like()?;
        collect(&mut all, run.back(loss, gradient, &self.variables)?)?;
        Ok(all)
    }

    fn checkpointed(
        &self,
        texts: &[&[u32]],
        wanted: &Wanted,
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
        let (loss, mut all) = self.loss(&mut run, wanted)?;
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
        TrainRun::new(&self.model, self.lora.as_ref(), texts, options.dropout, self.own)
    }

    /// The loss, where the architecture was run to its end: what goes back into the model, and the value
    /// in double precision with the gradients of the heads.
    fn loss<'a>(
        &self,
        run: &mut TrainRun<'a>,
        wanted: &Wanted,
    ) -> Result<(Traced<'a>, Gradients), Error> {
        let (picked, mut exact, mut heads) = (&wanted.picked, 0.0, None);
        let loss = run.behind_head(|normed, x, head, cap| {
            let x = picked.rows_of(&x)?;
            let trained = matches!(&head, Frozen::Tensor(head) if head.track_op());
            let mut tensor;
            (tensor, exact) = match &wanted.teacher {
                None => CrossEntropy { head, cap, targets: &picked.targets }
                    .by(self.own, &x, trained)?,
                Some(teacher) => {
                    let model = Scoring { x: x.clone(), head };
                    let weights = picked.weights();
                    let found = match self.own {
                        true => divergence(&model, teacher, cap, &weights, trained)?,
                        false => composed::divergence(&model, teacher, cap, &weights, trained)?,
                    };
                    let mut tensor = product(&x, &found.dx)?;
                    if let (Frozen::Tensor(head), Some(dw)) = (&model.head, &found.dw) {
                        tensor = (tensor + product(head, dw)?)?;
                    }
                    (tensor, found.value)
                }
            };
            let drafts = wanted.drafts.as_ref().filter(|(places, _)| !places.rows.is_empty());
            if let (Some(own), Some((places, weight))) = (&self.heads, drafts) {
                let rows = Tensor::new(places.rows.as_slice(), normed.device())?;
                let h = normed.index_select(&rows, 0)?;
                let mut found = own.gradients(&self.model, &h, places, self.own)?;
                exact += weight * found.losses.iter().sum::<f64>();
                let slopes = found.states.take().map(|slopes| slopes.detach());
                if let Some(slopes) = slopes.filter(|_| *weight != 0.0 && h.track_op()) {
                    tensor = (tensor + product(&h, &(slopes * *weight)?)?)?;
                }
                heads = Some(found);
            }
            Ok(tensor)
        })?;
        let none = vec![None; self.variables.len()];
        let mut all = Gradients { loss: exact, drafts: Vec::new(), tensors: none };
        if let Some(HeadGradients { losses, mut store, .. }) = heads {
            all.drafts = losses;
            for ((_, variable), tensor) in self.variables.iter().zip(&mut all.tensors) {
                *tensor = store.remove(variable);
            }
        }
        Ok((loss, all))
    }
}

fn collect(all: &mut Gradients, flow: Flow<'_>) -> Result<(), Error> {
    all.add(Gradients { loss: 0.0, drafts: Vec::new(), tensors: flow.gradients() })
}

/// The block that a tensor of this name is in.
fn block_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// A number whose gradient at `x` is `gradient`.
fn product(x: &Tensor, gradient: &Tensor) -> Result<Tensor, Error> {
    Ok((x * gradient)?.sum_all()?)
}

/// What a step is to learn.
struct Wanted {
    picked: Picked,
    /// What heads are to guess, and how much the model hears of it.
    drafts: Option<(DraftPlaces, f64)>,
    /// What the model is held to instead of the targets' tokens.
    teacher: Option<Scoring>,
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

    /// What each row weighs.
    fn weights(&self) -> Vec<f64> {
        let mut weights = vec![0.0; self.rows.len()];
        self.targets.iter().for_each(|target| weights[target.row] += target.weight);
        weights
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
