//! The registers of a step of training.

use std::collections::HashMap;

use candle_core::{Tensor, Var};

use super::super::DenseModel;
use super::super::executor::rotations;
use super::super::experts::run_experts;
use super::super::ops::{AttentionShape, Frozen};
use super::super::primitives;
use super::tape::{Flow, Tape, Traced};
use super::weights::Weights;
use super::{DenseLora, DropoutMasks};
use crate::{
    Activation, Attention, Error, Executor, ExpertLayer, Frequencies, HeadNorms, Input, LinearId,
    Output, PostNorm, Site, VectorId,
};

/// A step of training in progress.
pub(super) struct TrainRun<'a> {
    pub(super) weights: Weights<'a>,
    /// What leads back, if gradients are wanted.
    pub(super) tape: Option<Tape<'a>>,
    /// Whether what a block adds to the residual stream in the end was computed before, and is not read.
    again: bool,
    lengths: Vec<usize>,
    /// `[rows]`
    tokens: Tensor,
    /// Cosines and sines of the rotary angles, `[rows, rotary_dim / 2]`.
    rotations: (Tensor, Tensor),
    /// The same by the model's local frequencies, where it has them.
    local: Option<(Tensor, Tensor)>,
    inputs: HashMap<Input, Traced<'a>>,
    outputs: HashMap<Output, Traced<'a>>,
    /// What scores of a text of so many rows are masked with, within so many, where the library's
    /// operations attend.
    masks: HashMap<(usize, usize), Tensor>,
    /// The head and its cap, once the step has come there.
    head: Option<(LinearId, Option<f32>)>,
}

impl<'a> TrainRun<'a> {
    pub(super) fn new(
        model: &'a DenseModel,
        lora: Option<&'a DenseLora>,
        texts: &[&[u32]],
        dropout: Option<&'a dyn DropoutMasks>,
        own: bool,
    ) -> Result<Self, Error> {
        let vocab_size = model.config().vocab_size;
        let (mut tokens, mut tables, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for (number, text) in texts.iter().enumerate() {
            if text.is_empty() {
                return Err(Error::Step(format!("text {number} has no tokens")));
            }
            if let Some(token) = text.iter().find(|&&t| t as usize >= vocab_size) {
                return Err(Error::Step(format!(
                    "text {number}: token {token} of a vocabulary of {vocab_size}"
                )));
            }
            tokens.extend_from_slice(text);
            let own: Vec<u32> = (0..text.len() as u32).collect();
            let rope = &model.ropes[model.config().rope_for(text.len()).0];
            tables.push(rotations(model, rope, &own)?);
            positions.extend(own);
        }
        if texts.is_empty() {
            return Err(Error::Step("no texts".to_owned()));
        }
        let (cos, sin): (Vec<_>, Vec<_>) = tables.into_iter().unzip();
        let local = model.local_rope.as_ref().map(|rope| rotations(model, rope, &positions));
        Ok(Self {
            weights: Weights { model, lora, dropout, graph: false, own },
            tape: None,
            again: false,
            lengths: texts.iter().map(|text| text.len()).collect(),
            tokens: Tensor::new(tokens, model.device())?,
            rotations: (Tensor::cat(&cos, 0)?, Tensor::cat(&sin, 0)?),
            local: local.transpose()?,
            inputs: HashMap::new(),
            outputs: HashMap::new(),
            masks: HashMap::new(),
            head: None,
        })
    }

    /// What is added to the scores of a text of `rows` rows, of which each sees the last `window`:
    /// nothing, or minus infinity; `[rows, rows]`.
    pub(super) fn mask(&mut self, rows: usize, window: usize) -> Result<Tensor, Error> {
        let window = window.min(rows);
        if let Some(mask) = self.masks.get(&(rows, window)) {
            return Ok(mask.clone());
        }
        let seen = |row: usize, key: usize| key <= row && row - key < window;
        let mask = (0..rows * rows)
            .map(|at| if seen(at / rows, at % rows) { 0.0 } else { f32::NEG_INFINITY });
        let mask = Tensor::from_vec(mask.collect(), (rows, rows), self.weights.model.device())?;
        let mask = mask.to_dtype(primitives::wide(self.weights.model.dtype()))?;
        self.masks.insert((rows, window), mask.clone());
        Ok(mask)
    }

    /// Writes down from now on what leads back. If `again`, blocks do not compute what they add to the
    /// residual stream in the end.
    pub(super) fn trace(&mut self, again: bool) {
        (self.weights.graph, self.again) = (true, again);
        self.tape = Some(Tape::default());
    }

    /// The residual stream, `[rows, hidden_size]`.
    pub(super) fn residual(&self) -> Result<Traced<'a>, Error> {
        self.output(Output::Residual)
    }

    /// Begins anew with the residual stream `rows`, whose gradient is asked for if it is a `leaf`.
    pub(super) fn set_residual(&mut self, rows: Tensor, leaf: bool) -> Traced<'a> {
        let rows = match self.tape.as_mut().filter(|_| leaf) {
            Some(tape) => tape.leaf(rows),
            None => Traced::constant(rows),
        };
        self.inputs.clear();
        self.outputs.clear();
        self.outputs.insert(Output::Residual, rows.clone());
        rows
    }

    /// Goes back from `result`, whose gradient is `gradient`; what follows is written down anew.
    pub(super) fn back<'v>(
        &mut self,
        result: Traced<'a>,
        gradient: Tensor,
        variables: &'v [(String, Var)],
    ) -> Result<Flow<'v>, Error> {
        self.inputs.clear();
        self.outputs.clear();
        let tape = self.tape.replace(Tape::default()).unwrap_or_default();
        tape.back(&result, gradient, variables)
    }

    /// What the head multiplies, before LoRA's part of it: the final norm's result, `[rows, d]`.
    pub(super) fn states(&self) -> Result<Tensor, Error> {
        Ok(self.input(Input::Normed)?.tensor)
    }

    /// What `f` makes of the final norm's result, `[rows, d]`, of what the head multiplies, `[rows, d]`,
    /// the head, `[vocab_size, d]`, and the cap of logits. Where the head has LoRA matrices they stand
    /// beside the rest: `[x, s A x]` and `[W, B]`.
    pub(super) fn behind_head(
        &mut self,
        f: impl FnOnce(&Tensor, Tensor, Frozen, Option<f32>) -> Result<Tensor, Error>,
    ) -> Result<Traced<'a>, Error> {
        let Some((linear, cap)) = self.head else {
            return Err(Error::Step("the architecture has no output head".to_owned()));
        };
        let x = self.input(Input::Normed)?;
        self.inputs.clear();
        self.outputs.clear();
        let weights = self.weights;
        self.composed(&x, |normed| {
            let (x, head) = weights.head(linear, normed)?;
            f(normed, x, head, cap)
        })
    }

    fn input(&self, register: Input) -> Result<Traced<'a>, Error> {
        self.inputs.get(&register).cloned().ok_or_else(|| unwritten(&register))
    }

    pub(super) fn output(&self, register: Output) -> Result<Traced<'a>, Error> {
        self.outputs.get(&register).cloned().ok_or_else(|| unwritten(&register))
    }
}

fn unwritten(register: &impl std::fmt::Debug) -> Error {
    Error::Step(format!("the architecture reads {register:?} before it writes it"))
}

impl Executor for TrainRun<'_> {
    type Error = Error;

    fn embed(&mut self, scale: f32) -> Result<(), Error> {
        let rows = self.weights.model.embedded(&self.tokens)?;
        let rows = if scale == 1.0 { rows } else { (rows * f64::from(scale))? };
        let (detached, wanted) = (rows.detach(), rows.track_op());
        let rows = self.traced(detached, wanted, move |g, flow| flow.through(&rows, g, &[]));
        self.outputs.insert(Output::Residual, rows);
        Ok(())
    }

    fn norm(&mut self, weight: VectorId, eps: f32) -> Result<(), Error> {
        let normed = self.normed(&self.residual()?, weight, eps)?;
        self.inputs.insert(Input::Normed, normed);
        Ok(())
    }

    fn linear(&mut self, x: Input, outs: &[(LinearId, Output)]) -> Result<(), Error> {
        let x = self.input(x)?;
        for &(linear, out) in outs {
            let product = self.product(linear, &x, true)?;
            self.outputs.insert(out, product);
        }
        Ok(())
    }

    fn linear_residual(
        &mut self,
        x: Input,
        linear: LinearId,
        norm: Option<PostNorm>,
    ) -> Result<(), Error> {
        let (input, residual) = (self.input(x)?, self.residual()?);
        // The last product of a block that runs again, if nothing behind it reads it.
        let unread = self.again
            && x == Input::Gated
            && norm.is_none()
            && self.weights.untrained(linear, &input.tensor)?.is_some();
        let mut product = self.product(linear, &input, !unread)?;
        if let Some(PostNorm { weight, eps }) = norm {
            product = self.normed(&product, weight, eps)?;
        }
        let sum = match unread {
            true => self.same_gradient(residual.tensor.clone(), &residual, &product),
            false => self.sum(&residual, &product)?,
        };
        self.outputs.insert(Output::Residual, sum);
        Ok(())
    }

    fn attend(&mut self, how: Attention) -> Result<(), Error> {
        let (cos, sin) = match (how.frequencies, &self.local) {
            (Frequencies::Segment, _) => self.rotations.clone(),
            (Frequencies::Local, Some(local)) => local.clone(),
            (Frequencies::Local, None) => return Err(unwritten(&how.frequencies)),
        };
        let norms = how.norms.map(|HeadNorms { query, key, eps }| ((query, eps), (key, eps)));
        let (query, key) = norms.unzip();
        let q = self.turned(Output::Query, query, (&cos, &sin))?;
        let k = self.turned(Output::Key, key, (&cos, &sin))?;
        let v = self.output(Output::Value)?;
        let config = self.weights.model.config();
        let shape = AttentionShape {
            lengths: self.lengths.clone(),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: how.scale,
            window: how.window.map_or(usize::MAX, std::num::NonZeroUsize::get),
        };
        let attended = self.attended([&q, &k, &v], shape)?;
        for register in [Output::Query, Output::Key, Output::Value] {
            self.outputs.remove(&register);
        }
        self.inputs.insert(Input::Attended, attended);
        Ok(())
    }

    fn gated(
        &mut self,
        x: Input,
        gate: LinearId,
        up: LinearId,
        activation: Activation,
    ) -> Result<(), Error> {
        let x = self.input(x)?;
        let gate = self.product(gate, &x, true)?;
        let up = self.product(up, &x, true)?;
        let gated = self.gate(&gate, &up, activation)?;
        self.inputs.insert(Input::Gated, gated);
        Ok(())
    }

    fn experts(&mut self, x: Input, layer: ExpertLayer) -> Result<(), Error> {
        let (x, mut weights) = (self.input(x)?, self.weights);
        let made = self.composed(&x, |x| run_experts(&mut weights, x, layer))?;
        let sum = self.sum(&self.residual()?, &made)?;
        self.outputs.insert(Output::Residual, sum);
        Ok(())
    }

    fn tap(&mut self, _site: Site) -> Result<(), Error> {
        Ok(())
    }

    fn logits(&mut self, head: LinearId, cap: Option<f32>) -> Result<(), Error> {
        self.head = Some((head, cap));
        Ok(())
    }
}
