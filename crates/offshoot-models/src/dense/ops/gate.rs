//! The gate of a feed-forward layer with its backward pass: Shazeer 2020, section 2,
//! <https://arxiv.org/abs/2002.05202>.
//!
//! ```text
//! y = a(x) u          dx = g u a'(x)      du = g a(x)
//! SiLU:  a(x) = x s,  s = 1 / (1 + exp(-x))           a' = s (1 + x (1 - s))
//! GELU:  a(x) = x s,  s = 1 / (1 + exp(-2 t))         a' = s + x s (1 - s) 2 t'
//!        t = sqrt(2 / pi) (x + 0.044715 x^3)          t' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
//! ```
//! GELU is the approximation by `tanh` (Hendrycks & Gimpel 2016, <https://arxiv.org/abs/1606.08415>), as
//! `(1 + tanh(t)) / 2` is the `s` above. Neither `a(x)` nor `s` is kept.
//!
//! Cost: an exponential for each number each way.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::real::{Real, sigmoid};
use super::{by_type, numbers, shaped, with};
use crate::Activation;

/// Numbers that a thread takes at a time.
const PIECE: usize = 1 << 13;

/// `activation(gate) * up`.
pub(crate) fn gate(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    gate.contiguous()?.apply_op2(&up.contiguous()?, Gate { activation })
}

/// The layer without its two factors.
pub(crate) struct Gate {
    pub(crate) activation: Activation,
}

impl Gate {
    /// The product, which remembers nothing.
    pub(crate) fn of(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        gate.contiguous()?.apply_op2_no_bwd(&up.contiguous()?, self)
    }

    /// What the gradient `g` of the product says of both factors.
    pub(crate) fn gradients(&self, x: &Tensor, u: &Tensor, g: &Tensor) -> Result<[Tensor; 2]> {
        by_type!(x.dtype(), T => {
            let (dx, du) = with::<T, _, 3>([x, u, g], |slices| match self.activation {
                Activation::Silu => backward(slices, silu),
                Activation::GeluTanh => backward(slices, gelu),
            })?;
            Ok([shaped(dx, x)?, shaped(du, u)?])
        })
    }
}

/// `a(x)` and `a'(x)`.
fn silu<T: Real>(x: T) -> (T, T) {
    let s = sigmoid(x);
    (x * s, s * (T::one() + x * (T::one() - s)))
}

/// The same of GELU.
fn gelu<T: Real>(x: T) -> (T, T) {
    let (root, cubic) = (T::near((2.0 / std::f64::consts::PI).sqrt()), T::near(0.044715));
    let two = T::near(2.0);
    let t = root * (x + cubic * x * x * x);
    let slope = root * (T::one() + T::near(3.0) * cubic * x * x);
    let s = sigmoid(two * t);
    (x * s, s + x * s * (T::one() - s) * two * slope)
}

fn forward<T: Real>(x: &[T], u: &[T], a: impl Fn(T) -> (T, T) + Sync) -> Vec<T> {
    let mut y = vec![T::zero(); x.len()];
    let pieces = y.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).zip(u.par_chunks(PIECE));
    pieces.for_each(|((y, x), u)| {
        y.iter_mut().zip(x).zip(u).for_each(|((y, &x), &u)| *y = a(x).0 * u);
    });
    y
}

fn backward<T: Real>([x, u, g]: [&[T]; 3], a: impl Fn(T) -> (T, T) + Sync) -> (Vec<T>, Vec<T>) {
    let (mut dx, mut du) = (vec![T::zero(); x.len()], vec![T::zero(); x.len()]);
    let out = dx.par_chunks_mut(PIECE).zip(du.par_chunks_mut(PIECE));
    let of = x.par_chunks(PIECE).zip(u.par_chunks(PIECE)).zip(g.par_chunks(PIECE));
    out.zip(of).for_each(|((dx, du), ((x, u), g))| {
        for i in 0..x.len() {
            let (value, slope) = a(x[i]);
            dx[i] = g[i] * u[i] * slope;
            du[i] = g[i] * value;
        }
    });
    (dx, du)
}

impl CustomOp2 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        u: &CpuStorage,
        u_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = by_type!(candle_core::backend::BackendStorage::dtype(x), T => {
            let (x, u) = (numbers::<T>(x, x_layout)?, numbers::<T>(u, u_layout)?);
            candle_core::WithDType::to_cpu_storage_owned(match self.activation {
                Activation::Silu => forward(x, u, silu),
                Activation::GeluTanh => forward(x, u, gelu),
            })
        });
        Ok((y, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        u: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, du] = self.gradients(x, u, g)?;
        Ok((Some(dx), Some(du)))
    }
}
