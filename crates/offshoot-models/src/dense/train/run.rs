//! The registers of a step of training.

use std::collections::HashMap;

use candle_core::Tensor;

use super::super::executor::rotations;
use super::super::experts::{Products, run_experts};
use super::super::ops::{self, AttentionShape, Frozen, LowRankPair};
use super::super::{DenseModel, primitives};
use super::{DenseLora, DropoutMasks};
use crate::{
    Activation, Attention, Error, Executor, ExpertLayer, Frequencies, HeadNorms, Input, LinearId,
    Output, PostNorm, Site, VectorId,
};

/// Whether what is computed remembers how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// No: there are results alone.
    Plain,
    /// Yes, so that gradients can flow back.
    Graph,
    /// Yes, and what a block adds to the residual stream in the end was computed before, and is not read.
    Again,
}

/// A step of training in progress.
pub(super) struct TrainRun<'a> {
    model: &'a DenseModel,
    lora: Option<&'a DenseLora>,
    dropout: Option<&'a dyn DropoutMasks>,
    mode: Mode,
    lengths: Vec<usize>,
    /// `[rows]`
    tokens: Tensor,
    /// Cosines and sines of the rotary angles, `[rows, head_dim / 2]`.
    rotations: (Tensor, Tensor),
    /// The same by the model's local frequencies, where it has them.
    local: Option<(Tensor, Tensor)>,
    inputs: HashMap<Input, Tensor>,
    outputs: HashMap<Output, Tensor>,
    /// The head and its cap, once the step has come there.
    head: Option<(LinearId, Option<f32>)>,
}

impl<'a> TrainRun<'a> {
    pub(super) fn new(
        model: &'a DenseModel,
        lora: Option<&'a DenseLora>,
        texts: &[&[u32]],
        mode: Mode,
        dropout: Option<&'a dyn DropoutMasks>,
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
            model,
            lora,
            dropout,
            mode,
            lengths: texts.iter().map(|text| text.len()).collect(),
            tokens: Tensor::new(tokens, model.device())?,
            rotations: (Tensor::cat(&cos, 0)?, Tensor::cat(&sin, 0)?),
            local: local.transpose()?,
            inputs: HashMap::new(),
            outputs: HashMap::new(),
            head: None,
        })
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// The residual stream, `[rows, hidden_size]`.
    pub(super) fn residual(&self) -> Result<Tensor, Error> {
        self.output(Output::Residual)
    }

    /// The same; all that led to it is forgotten here.
    pub(super) fn take_residual(&mut self) -> Result<Tensor, Error> {
        let residual = self.residual()?;
        self.inputs.clear();
        self.outputs.clear();
        Ok(residual)
    }

    pub(super) fn set_residual(&mut self, rows: Tensor) {
        self.inputs.clear();
        self.outputs.clear();
        self.outputs.insert(Output::Residual, rows);
    }

    /// These rows of what the head multiplies, before LoRA's part of it: the final norm's result,
    /// `[n, d]`.
    pub(super) fn normed_rows(&self, rows: &[u32]) -> Result<Tensor, Error> {
        let x = self.input(Input::Normed)?;
        Ok(x.index_select(&Tensor::new(rows, x.device())?, 0)?)
    }

    /// What the head multiplies, `[rows, d]`, the head, `[vocab_size, d]`, and the cap of logits. Where the
    /// head has LoRA matrices they stand beside the rest: `[x, s A x]` and `[W, B]`.
    pub(super) fn head(&mut self) -> Result<(Tensor, Frozen, Option<f32>), Error> {
        let Some((linear, cap)) = self.head else {
            return Err(Error::Step("the architecture has no output head".to_owned()));
        };
        let x = self.input(Input::Normed)?;
        self.inputs.clear();
        self.outputs.clear();
        let matrix = match self.model.matrix(linear)? {
            Frozen::Tensor(matrix) => Frozen::Tensor(self.weight(&matrix)),
            stored => stored,
        };
        let Some(pair) = self.pair(linear) else { return Ok((x, matrix, cap)) };
        let whole = match matrix {
            Frozen::Tensor(matrix) => matrix,
            stored => stored.rows(0, stored.shape()?.0, x.dtype())?,
        };
        let input = self.dropped(linear, &x, None)?;
        let inner = (input.matmul(&pair.a.t()?)? * pair.scale)?;
        let x = Tensor::cat(&[&x, &inner], 1)?;
        Ok((x, Frozen::Tensor(Tensor::cat(&[&whole, &pair.b], 1)?), cap))
    }

    fn graph(&self) -> bool {
        self.mode != Mode::Plain
    }

    /// The last product of a block that runs again, if it has nothing behind it that reads it and its
    /// matrix is not trained.
    fn unread(
        &self,
        x: Input,
        linear: LinearId,
        norm: Option<PostNorm>,
    ) -> Result<Option<Tensor>, Error> {
        let last = self.mode == Mode::Again && x == Input::Gated && norm.is_none();
        let matrix = self.model.matrix(linear)?;
        let trained = matches!(&matrix, Frozen::Tensor(matrix) if matrix.track_op());
        if !last || trained || self.dropout.is_some() || self.model.bias(linear)?.is_some() {
            return Ok(None);
        }
        let pair = self.pair(linear);
        Ok(Some(ops::unread_linear(&self.input(x)?, matrix, pair.as_ref())?))
    }

    fn input(&self, register: Input) -> Result<Tensor, Error> {
        self.inputs.get(&register).cloned().ok_or_else(|| unwritten(&register))
    }

    fn output(&self, register: Output) -> Result<Tensor, Error> {
        self.outputs.get(&register).cloned().ok_or_else(|| unwritten(&register))
    }

    /// A weight, with a gradient if one is wanted.
    fn weight(&self, weight: &Tensor) -> Tensor {
        if self.graph() { weight.clone() } else { weight.detach() }
    }

    fn vector(&self, vector: VectorId) -> Result<Tensor, Error> {
        Ok(self.weight(self.model.vector(vector)?))
    }

    fn pair(&self, linear: LinearId) -> Option<LowRankPair> {
        self.lora.and_then(|lora| lora.pair(linear, self.graph()))
    }

    /// `x`, which are these rows or all, with some of it dropped.
    fn dropped(&self, linear: LinearId, x: &Tensor, rows: Option<&[u32]>) -> Result<Tensor, Error> {
        let Some(dropout) = self.dropout else { return Ok(x.clone()) };
        let (n, cols) = x.dims2()?;
        let mask = match rows {
            Some(rows) => dropout.mask(linear, rows, cols),
            None => dropout.mask(linear, &(0..n as u32).collect::<Vec<_>>(), cols),
        };
        let mask = Tensor::from_vec(mask, (n, cols), x.device())?;
        Ok((x * mask.to_dtype(x.dtype())?)?)
    }

    fn multiply(&self, linear: LinearId, x: &Tensor) -> Result<Tensor, Error> {
        self.multiply_rows(linear, x, None)
    }

    /// The product with `x`, which are these rows of the step, or all.
    fn multiply_rows(
        &self,
        linear: LinearId,
        x: &Tensor,
        rows: Option<&[u32]>,
    ) -> Result<Tensor, Error> {
        let bias = self.model.bias(linear)?.map(|bias| self.weight(bias));
        let pair = self.pair(linear);
        let matrix = match self.model.matrix(linear)? {
            Frozen::Tensor(matrix) => Frozen::Tensor(self.weight(&matrix)),
            stored => stored,
        };
        let trained = matches!(&matrix, Frozen::Tensor(matrix) if matrix.track_op())
            || bias.as_ref().is_some_and(Tensor::track_op);
        if let (Frozen::Tensor(matrix), true) = (&matrix, trained) {
            let product = x.matmul(&matrix.t()?)?;
            return Ok(match bias {
                Some(bias) => product.broadcast_add(&bias)?,
                None => product,
            });
        }
        match (pair, self.dropout) {
            (Some(LowRankPair { a, b, scale }), Some(_)) => {
                let product = ops::linear(x, matrix, bias.as_ref(), None)?;
                let inner = self.dropped(linear, x, rows)?.matmul(&a.t()?)?;
                Ok((product + (inner.matmul(&b.t()?)? * scale)?)?)
            }
            (pair, _) => Ok(ops::linear(x, matrix, bias.as_ref(), pair.as_ref())?),
        }
    }

    /// Our own norm where it suits, so that its bits do not depend on whether a gradient is wanted.
    fn normed(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor, Error> {
        Ok(match ops::suits(&[x, weight]) {
            true => ops::rms_norm(x, weight, eps)?,
            false => primitives::rms_norm(x, weight, eps)?,
        })
    }

    /// Queries or keys, `[rows, heads * head_dim]`, normed head by head and rotated.
    fn turned(
        &self,
        x: Output,
        norm: Option<(VectorId, f32)>,
        (cos, sin): (&Tensor, &Tensor),
    ) -> Result<Tensor, Error> {
        let x = self.output(x)?;
        let ((rows, width), d) = (x.dims2()?, self.model.config().head_dim);
        let mut heads = x.reshape((rows, (), d))?;
        if let Some((weight, eps)) = norm {
            heads = self.normed(&heads, &self.vector(weight)?, eps)?;
        }
        let turned = match ops::suits(&[&heads, cos, sin]) {
            true => ops::rope(&heads, cos, sin)?,
            false => primitives::rotate(&heads, cos, sin)?,
        };
        Ok(turned.reshape((rows, width))?)
    }

    /// The attention of each text, of the tensor library's operations.
    fn attend_composed(
        &self,
        [q, k, v]: [&Tensor; 3],
        shape: &AttentionShape,
    ) -> Result<Tensor, Error> {
        let (mut attended, mut first) = (Vec::with_capacity(shape.lengths.len()), 0);
        for &rows in &shape.lengths {
            let of = |x: &Tensor| x.narrow(0, first, rows)?.reshape((rows, (), shape.head_dim));
            let by_head = |x: &Tensor| of(x)?.transpose(0, 1)?.contiguous();
            let seen = |row: usize, key: usize| key <= row && row - key < shape.window;
            let mask = (0..rows * rows)
                .map(|at| if seen(at / rows, at % rows) { 0.0 } else { f32::NEG_INFINITY });
            let mask = Tensor::from_vec(mask.collect(), (rows, rows), q.device())?;
            let mask = mask.to_dtype(primitives::wide(q.dtype()))?;
            let (k, v) = (by_head(k)?, by_head(v)?);
            attended.push(primitives::attend(&of(q)?, &k, &v, &mask, shape.scale)?);
            first += rows;
        }
        Ok(Tensor::cat(&attended, 0)?)
    }
}

fn unwritten(register: &impl std::fmt::Debug) -> Error {
    Error::Step(format!("the architecture reads {register:?} before it writes it"))
}

impl Products for TrainRun<'_> {
    fn product_of(
        &mut self,
        linear: LinearId,
        x: &Tensor,
        rows: Option<&[u32]>,
    ) -> Result<Tensor, Error> {
        self.multiply_rows(linear, x, rows)
    }

    fn gated(&self, x: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, Error> {
        Ok(match ops::suits(&[x, up]) {
            true => ops::gate(x, up, activation)?,
            false => primitives::gate(x, up, activation)?,
        })
    }
}

impl Executor for TrainRun<'_> {
    type Error = Error;

    fn embed(&mut self, scale: f32) -> Result<(), Error> {
        let rows = self.model.embedded(&self.tokens)?;
        let rows = if scale == 1.0 { rows } else { (rows * f64::from(scale))? };
        let rows = self.weight(&rows);
        self.outputs.insert(Output::Residual, rows);
        Ok(())
    }

    fn norm(&mut self, weight: VectorId, eps: f32) -> Result<(), Error> {
        let normed = self.normed(&self.residual()?, &self.vector(weight)?, eps)?;
        self.inputs.insert(Input::Normed, normed);
        Ok(())
    }

    fn linear(&mut self, x: Input, outs: &[(LinearId, Output)]) -> Result<(), Error> {
        let x = self.input(x)?;
        for &(linear, out) in outs {
            self.outputs.insert(out, self.multiply(linear, &x)?);
        }
        Ok(())
    }

    fn linear_residual(
        &mut self,
        x: Input,
        linear: LinearId,
        norm: Option<PostNorm>,
    ) -> Result<(), Error> {
        let mut product = match self.unread(x, linear, norm)? {
            Some(unread) => unread,
            None => self.multiply(linear, &self.input(x)?)?,
        };
        if let Some(PostNorm { weight, eps }) = norm {
            product = self.normed(&product, &self.vector(weight)?, eps)?;
        }
        let sum = (self.residual()? + product)?;
        self.outputs.insert(Output::Residual, sum);
        Ok(())
    }

    fn attend(&mut self, how: Attention) -> Result<(), Error> {
        let (cos, sin) = match (how.frequencies, &self.local) {
            (Frequencies::Segment, _) => &self.rotations,
            (Frequencies::Local, Some(local)) => local,
            (Frequencies::Local, None) => return Err(unwritten(&how.frequencies)),
        };
        let norms = how.norms.map(|HeadNorms { query, key, eps }| ((query, eps), (key, eps)));
        let (query, key) = norms.unzip();
        let q = self.turned(Output::Query, query, (cos, sin))?;
        let k = self.turned(Output::Key, key, (cos, sin))?;
        let v = self.output(Output::Value)?;
        let config = self.model.config();
        let shape = AttentionShape {
            lengths: self.lengths.clone(),
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: how.scale,
            window: how.window.map_or(usize::MAX, std::num::NonZeroUsize::get),
        };
        let attended = match ops::suits(&[&q, &k, &v]) {
            true => ops::attention(&q, &k, &v, shape)?,
            false => self.attend_composed([&q, &k, &v], &shape)?,
        };
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
        let (gate, up) = (self.multiply(gate, &x)?, self.multiply(up, &x)?);
        let gated = Products::gated(self, &gate, &up, activation)?;
        self.inputs.insert(Input::Gated, gated);
        Ok(())
    }

    fn experts(&mut self, x: Input, layer: ExpertLayer) -> Result<(), Error> {
        let x = self.input(x)?;
        let sum = run_experts(self, &x, layer)?;
        self.outputs.insert(Output::Residual, (self.residual()? + sum)?);
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
