//! The layers of a transformer, out of operations that record their gradients.
//!
//! Axes: n rows of a step, t positions attended to, h heads, c heads of keys and values, g heads of
//! queries for each of them, d width of a head, w width of the residual stream.

use candle_core::{D, DType, Result, Tensor};

use super::ops;
use crate::Activation;

/// Whether a gradient is wanted of any of these and our own operations can give it. Where none is, the
/// tensor library's are used, whose bits the dense executor is known by.
pub(super) fn with_gradients(tensors: &[&Tensor]) -> bool {
    ops::tracked(tensors) && ops::suits(tensors)
}

/// The type that sums over many numbers are made in.
pub(super) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// `x / sqrt(mean(x^2) + eps) * weight`; `x_nw`, `weight_w`. A weight of a wider type than `x` is
/// multiplied before the result is rounded to that of `x`, as Gemma's are, any other after it.
pub(super) fn rms_norm(x_nw: &Tensor, weight_w: &Tensor, eps: f32) -> Result<Tensor> {
    match with_gradients(&[x_nw, weight_w]) {
        true => ops::rms_norm(x_nw, weight_w, eps),
        false => rms_norm_composed(x_nw, weight_w, eps),
    }
}

/// The same of the tensor library's operations.
pub(super) fn rms_norm_composed(x_nw: &Tensor, weight_w: &Tensor, eps: f32) -> Result<Tensor> {
    let dtype = x_nw.dtype();
    let x_nw = x_nw.to_dtype(wide(dtype))?;
    let root_n1 = (x_nw.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    let normed_nw = x_nw.broadcast_div(&root_n1)?;
    if weight_w.dtype() == normed_nw.dtype() {
        return normed_nw.broadcast_mul(weight_w)?.to_dtype(dtype);
    }
    normed_nw.to_dtype(dtype)?.broadcast_mul(weight_w)
}

/// `activation(x) * up`.
pub(super) fn gate(x: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    match with_gradients(&[x, up]) {
        true => ops::gate(x, up, activation),
        false => gate_composed(x, up, activation),
    }
}

/// The same of the tensor library's operations.
pub(super) fn gate_composed(x: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let gate = match activation {
        Activation::Silu => x.silu(),
        // The approximation by `tanh`.
        Activation::GeluTanh => x.gelu(),
    };
    gate? * up
}

/// `exp(x) / sum(exp(x))` over the last axis. The greatest element is subtracted first, as a
/// constant: the result does not depend on it, so neither does the gradient.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(wide(dtype))?;
    let powers = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)?.to_dtype(dtype)
}

/// Rotates the pairs `(i, i + r / 2)` of the first `r` elements of every head by the angles whose
/// cosines and sines are given, `[n, r / 2]`; `x_nhd`.
pub(super) fn rotate(x_nhd: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    match with_gradients(&[x_nhd]) && ops::suits(&[x_nhd, cos, sin]) {
        true => ops::rope(x_nhd, cos, sin),
        false => rotate_composed(x_nhd, cos, sin),
    }
}

/// The same of the tensor library's operations.
pub(super) fn rotate_composed(x_nhd: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (half, width) = (cos.dim(D::Minus1)?, x_nhd.dim(D::Minus1)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let (a, b) = (x_nhd.narrow(2, 0, half)?, x_nhd.narrow(2, half, half)?);
    let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let turned_b = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    match width - 2 * half {
        0 => Tensor::cat(&[turned_a, turned_b], 2),
        rest => Tensor::cat(&[turned_a, turned_b, x_nhd.narrow(2, 2 * half, rest)?], 2),
    }
}

/// `softmax(q k^T * scale + mask) v`: `q_nhd`, `k_ctd`, `v_ctd`, `mask_nt`, result `[n, h * d]`. Head
/// `h` of the queries reads head `h / g` of keys and values.
pub(super) fn attend(
    q_nhd: &Tensor,
    k_ctd: &Tensor,
    v_ctd: &Tensor,
    mask_nt: &Tensor,
    scale: f32,
) -> Result<Tensor> {
    let ((n, h, d), (c, t, _)) = (q_nhd.dims3()?, k_ctd.dims3()?);
    let g = h / c;
    let q = (q_nhd * f64::from(scale))?.reshape((n, c, g, d))?.permute((1, 2, 0, 3))?;
    let q = q.contiguous()?.reshape((c, g * n, d))?;
    let scores = q.matmul(&k_ctd.t()?)?.reshape((c, g, n, t))?;
    let scores = scores.to_dtype(mask_nt.dtype())?.broadcast_add(mask_nt)?;
    let shares = softmax(&scores)?.to_dtype(v_ctd.dtype())?.reshape((c, g * n, t))?;
    let mixed = shares.matmul(&v_ctd.contiguous()?)?.reshape((c, g, n, d))?;
    mixed.permute((2, 0, 1, 3))?.contiguous()?.reshape((n, h * d))
}
