//! Matrices and vectors as a step of training takes them: those of the model, with what LoRA adds.

use candle_core::Tensor;

use super::super::experts::Products;
use super::super::ops::{self, Frozen, Linear, LowRankPair};
use super::super::{DenseModel, primitives};
use super::{DenseLora, DropoutMasks};
use crate::{Activation, Error, LinearId, VectorId};

/// What products are made of.
#[derive(Clone, Copy)]
pub(super) struct Weights<'a> {
    pub(super) model: &'a DenseModel,
    pub(super) lora: Option<&'a DenseLora>,
    pub(super) dropout: Option<&'a dyn DropoutMasks>,
    /// Whether variables are taken as such.
    pub(super) graph: bool,
    /// Whether operations of our own run where they suit.
    pub(super) own: bool,
}

impl Weights<'_> {
    /// Whether operations of our own run on these tensors.
    pub(super) fn suits(&self, tensors: &[&Tensor]) -> bool {
        self.own && ops::suits(tensors)
    }

    /// A weight, with a gradient if one is wanted.
    pub(super) fn weight(&self, weight: &Tensor) -> Tensor {
        if self.graph { weight.clone() } else { weight.detach() }
    }

    pub(super) fn vector(&self, vector: VectorId) -> Result<Tensor, Error> {
        Ok(self.weight(self.model.vector(vector)?))
    }

    pub(super) fn matrix(&self, linear: LinearId) -> Result<Frozen, Error> {
        Ok(match self.model.matrix(linear)? {
            Frozen::Tensor(matrix) => Frozen::Tensor(self.weight(&matrix)),
            stored => stored,
        })
    }

    pub(super) fn bias(&self, linear: LinearId) -> Result<Option<Tensor>, Error> {
        Ok(self.model.bias(linear)?.map(|bias| self.weight(bias)))
    }

    /// Whether a matrix or its bias is a variable, whoever asks: its products then are the tensor library's,
    /// so that they have the same bits with a graph and without.
    fn trained(&self, linear: LinearId) -> Result<bool, Error> {
        let matrix = self.model.matrix(linear)?;
        Ok(matches!(matrix, Frozen::Tensor(matrix) if matrix.track_op())
            || self.model.bias(linear)?.is_some_and(Tensor::track_op))
    }

    pub(super) fn pair(&self, linear: LinearId) -> Option<LowRankPair> {
        self.lora.and_then(|lora| lora.pair(linear, self.graph))
    }

    /// The head and what it multiplies of `x`, where it has LoRA matrices too.
    pub(super) fn head(&self, linear: LinearId, x: &Tensor) -> Result<(Tensor, Frozen), Error> {
        let matrix = self.matrix(linear)?;
        let Some(pair) = self.pair(linear) else { return Ok((x.clone(), matrix)) };
        let whole = match matrix {
            Frozen::Tensor(matrix) => matrix,
            stored => stored.whole(x)?,
        };
        let input = self.dropped(linear, x, None)?;
        let inner = (input.matmul(&pair.a.t()?)? * pair.scale)?;
        let x = Tensor::cat(&[x, &inner], 1)?;
        Ok((x, Frozen::Tensor(Tensor::cat(&[&whole, &pair.b], 1)?)))
    }

    /// The product with `x`, if but for LoRA nothing of it is trained: an operation of our own if
    /// that suits.
    pub(super) fn untrained(
        &self,
        linear: LinearId,
        x: &Tensor,
    ) -> Result<Option<(Linear, Option<LowRankPair>)>, Error> {
        let (weight, bias, pair) = (self.matrix(linear)?, self.bias(linear)?, self.pair(linear));
        let trained = self.trained(linear)?;
        let operands: Vec<&Tensor> =
            [x].into_iter().chain(&bias).chain(pair.iter().flat_map(|p| [&p.a, &p.b])).collect();
        let dropped = pair.is_some() && self.dropout.is_some();
        if trained || dropped {
            return Ok(None);
        }
        let own = self.suits(&operands) && weight.suits(x);
        let bias = bias.map(|bias| bias.contiguous()).transpose()?;
        let scale = pair.as_ref().map_or(0.0, |pair| pair.scale);
        Ok(Some((Linear { weight, bias, scale, own }, pair)))
    }

    /// `x`, which are these rows or all, with some of it dropped.
    pub(super) fn dropped(
        &self,
        linear: LinearId,
        x: &Tensor,
        rows: Option<&[u32]>,
    ) -> Result<Tensor, Error> {
        let Some(dropout) = self.dropout else { return Ok(x.clone()) };
        let (n, cols) = x.dims2()?;
        let mask = match rows {
            Some(rows) => dropout.mask(linear, rows, cols),
            None => dropout.mask(linear, &(0..n as u32).collect::<Vec<_>>(), cols),
        };
        let mask = Tensor::from_vec(mask, (n, cols), x.device())?;
        Ok((x * mask.to_dtype(x.dtype())?)?)
    }

    /// The product with `x`, which are these rows of the step, or all.
    pub(super) fn multiply(
        &self,
        linear: LinearId,
        x: &Tensor,
        rows: Option<&[u32]>,
    ) -> Result<Tensor, Error> {
        let (matrix, bias, pair) = (self.matrix(linear)?, self.bias(linear)?, self.pair(linear));
        let trained = self.trained(linear)?;
        if let (Frozen::Tensor(matrix), true) = (&matrix, trained) {
            let product = x.matmul(&matrix.t()?)?;
            return Ok(match bias {
                Some(bias) => product.broadcast_add(&bias)?,
                None => product,
            });
        }
        match (pair, self.dropout) {
            (Some(LowRankPair { a, b, scale }), Some(_)) => {
                let product = self.linear(x, matrix, bias.as_ref(), None)?;
                let inner = self.dropped(linear, x, rows)?.matmul(&a.t()?)?;
                Ok((product + (inner.matmul(&b.t()?)? * scale)?)?)
            }
            (pair, _) => Ok(self.linear(x, matrix, bias.as_ref(), pair.as_ref())?),
        }
    }

    fn linear(
        &self,
        x: &Tensor,
        matrix: Frozen,
        bias: Option<&Tensor>,
        pair: Option<&LowRankPair>,
    ) -> candle_core::Result<Tensor> {
        match self.own {
            true => ops::linear(x, matrix, bias, pair),
            false => ops::linear_composed(x, &matrix, bias, pair),
        }
    }
}

impl Products for Weights<'_> {
    fn product_of(
        &mut self,
        linear: LinearId,
        x: &Tensor,
        rows: Option<&[u32]>,
    ) -> Result<Tensor, Error> {
        self.multiply(linear, x, rows)
    }

    fn gated(&self, x: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, Error> {
        Ok(match self.suits(&[x, up]) {
            true => ops::gate(x, up, activation)?,
            false => primitives::gate_composed(x, up, activation)?,
        })
    }
}
