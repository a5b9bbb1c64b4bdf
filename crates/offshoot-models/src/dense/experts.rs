//! A layer's experts in a step of the dense executor. Gradients flow through the experts that a row goes
//! through and through the shares that they have; which ones these are is taken as given.
//!
//! Axes: n rows of the step, e experts, m rows of one expert, w width of the residual stream.

use candle_core::{D, DType, Tensor};

use super::executor::Run;
use super::primitives::{gate, softmax, wide};
use crate::{Activation, Error, ExpertLayer, Input, LinearId, Output};

/// What multiplies rows with a matrix.
pub(super) trait Products {
    /// The product of `x`, which are the step's `rows`, ascending; all of them if there is no list.
    fn product_of(
        &mut self,
        linear: LinearId,
        x: &Tensor,
        rows: Option<&[u32]>,
    ) -> Result<Tensor, Error>;

    /// `activation(x) * up`.
    fn gated(&self, x: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor, Error> {
        Ok(gate(x, up, activation)?)
    }
}

/// What the experts make of `x_nw`, each of the ones that the router chooses for a row.
pub(super) fn run_experts(
    products: &mut impl Products,
    x_nw: &Tensor,
    layer: ExpertLayer,
) -> Result<Tensor, Error> {
    let scores_ne = products.product_of(layer.router, x_nw, None)?;
    let dtype = scores_ne.dtype();
    let shares_ne = softmax(&scores_ne.to_dtype(wide(dtype))?)?;
    let chosen = chosen(&shares_ne, layer.rule.per_row)?;
    let mask: Vec<f32> = chosen.iter().flatten().map(|chosen| u8::from(*chosen).into()).collect();
    let mask_ne = Tensor::from_vec(mask, shares_ne.shape(), shares_ne.device())?;
    let mut shares_ne = (shares_ne * mask_ne.to_dtype(wide(dtype))?)?;
    if layer.rule.normalized {
        shares_ne = shares_ne.broadcast_div(&shares_ne.sum_keepdim(D::Minus1)?)?;
    }
    let shares_ne = shares_ne.to_dtype(dtype)?;
    let mut sum_nw = x_nw.zeros_like()?;
    for expert in 0..layer.rule.experts {
        let rows = (0..chosen.len()).filter(|&row| chosen[row][expert]);
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        if rows.is_empty() {
            continue;
        }
        let ids = Tensor::new(rows.as_slice(), x_nw.device())?;
        let x_mw = x_nw.index_select(&ids, 0)?;
        let gate = products.product_of(layer.gate(expert), &x_mw, Some(&rows))?;
        let up = products.product_of(layer.up(expert), &x_mw, Some(&rows))?;
        let gated = products.gated(&gate, &up, layer.activation)?;
        let y_mw = products.product_of(layer.down(expert), &gated, Some(&rows))?;
        let share_m1 = shares_ne.narrow(1, expert, 1)?.contiguous()?.index_select(&ids, 0)?;
        sum_nw = sum_nw.index_add(&ids, &y_mw.broadcast_mul(&share_m1)?, 0)?;
    }
    Ok(sum_nw)
}

impl Run<'_, '_> {
    pub(super) fn run_experts(&mut self, x: Input, layer: ExpertLayer) -> Result<(), Error> {
        let (x_nw, residual_nw) = (self.input(x)?, self.output(Output::Residual)?);
        let sum_nw = run_experts(self, &x_nw, layer)?;
        self.set_output(Output::Residual, (residual_nw + sum_nw)?);
        Ok(())
    }
}

impl Products for Run<'_, '_> {
    /// With what the hooks add to the rows of each segment.
    fn product_of(
        &mut self,
        linear: LinearId,
        x: &Tensor,
        rows: Option<&[u32]>,
    ) -> Result<Tensor, Error> {
        self.with_addends(linear, x, |run, segment| {
            let tokens = |s: usize| run.segments[s].tokens.len();
            let Some(rows) = rows else { return tokens(segment) };
            let first: usize = (0..segment).map(tokens).sum();
            let of_it = first..first + tokens(segment);
            rows.iter().filter(|row| of_it.contains(&(**row as usize))).count()
        })
    }
}

/// For each row whether it goes through each expert: those of the greatest shares, of equals the lowest.
fn chosen(shares_ne: &Tensor, per_row: usize) -> Result<Vec<Vec<bool>>, Error> {
    let shares = shares_ne.to_dtype(DType::F64)?.to_vec2::<f64>()?;
    let of_row = |shares: Vec<f64>| {
        let mut chosen = vec![false; shares.len()];
        for _ in 0..per_row {
            let free = (0..shares.len()).filter(|&expert| !chosen[expert]);
            // What is no number beats none and is beaten by none, as in the kernels.
            let best = free.reduce(|best, other| match shares[other] > shares[best] {
                true => other,
                false => best,
            });
            if let Some(best) = best {
                chosen[best] = true;
            }
        }
        chosen
    };
    Ok(shares.into_iter().map(of_row).collect())
}
