//! RMSNorm with its backward pass: Zhang & Sennrich 2019, section 4, <https://arxiv.org/abs/1910.07467>.
//!
//! ```text
//! r = 1 / sqrt(mean(x^2) + eps)        y = x r w
//! dx = r (g w - x r^2 mean(g w x))     dw = sum over rows of g x r
//! ```
//! `g` is the gradient of `y`. Rows are as long as `w`. `dw` is made where it is wanted: of so many
//! rows at a time ([`ROWS`]), in order.
//!
//! Cost: two passes over a row each way.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::real::{Real, sum};
use super::{by_type, numbers, shaped, with};

/// Rows that a thread takes at a time.
const ROWS: usize = 32;

/// `x / sqrt(mean(x^2) + eps) * weight` of each row as long as `weight`.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, RmsNorm::new(eps))
}

/// The norm without what it norms.
pub(crate) struct RmsNorm {
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn new(eps: f32) -> Self {
        Self { eps: f64::from(eps) }
    }

    /// The norm of `x`, which remembers nothing.
    pub(crate) fn of(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op2_no_bwd(&weight.contiguous()?, self)
    }

    /// What the gradient `g` of the result says of `x` and the weight; `wanted` says which of them.
    pub(crate) fn gradients(
        &self,
        x: &Tensor,
        w: &Tensor,
        g: &Tensor,
        wanted: (bool, bool),
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        by_type!(x.dtype(), T => {
            let of = [x, w, g];
            let dx = wanted.0.then(|| with::<T, _, 3>(of, |s| self.backward(s)));
            let dw = wanted.1.then(|| with::<T, _, 3>(of, |s| self.backward_weight(s)));
            let dx = dx.transpose()?.map(|dx| shaped(dx, x)).transpose()?;
            let dw = dw.transpose()?.map(|dw| shaped(dw, w)).transpose()?;
            Ok((dx, dw))
        })
    }

    /// One over the root of the mean square of a row.
    fn scale<T: Real>(&self, x: &[T]) -> T {
        let mean = sum(x.len(), |i| x[i] * x[i]) / T::near(x.len() as f64);
        T::one() / (mean + T::near(self.eps)).root()
    }

    fn forward<T: Real>(&self, x: &[T], w: &[T]) -> Vec<T> {
        let mut y = vec![T::zero(); x.len()];
        let width = w.len() * ROWS;
        y.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
                let r = self.scale(x);
                y.iter_mut().zip(x).zip(w).for_each(|((y, &x), &w)| *y = x * r * w);
            }
        });
        y
    }

    fn backward<T: Real>(&self, [x, w, g]: [&[T]; 3]) -> Vec<T> {
        let mut dx = vec![T::zero(); x.len()];
        let (n, width) = (w.len(), w.len() * ROWS);
        let rows = dx.par_chunks_mut(width).zip(x.par_chunks(width)).zip(g.par_chunks(width));
        rows.for_each(|((dx, x), g)| {
            let rows = dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(g.chunks_exact(n));
            for ((dx, x), g) in rows {
                let r = self.scale(x);
                let along = sum(n, |i| g[i] * w[i] * x[i]) / T::near(n as f64) * r * r;
                for (i, dx) in dx.iter_mut().enumerate() {
                    *dx = r * (g[i] * w[i] - x[i] * along);
                }
            }
        });
        dx
    }

    fn backward_weight<T: Real>(&self, [x, w, g]: [&[T]; 3]) -> Vec<T> {
        let (n, width) = (w.len(), w.len() * ROWS);
        let part = |(x, g): (&[T], &[T])| {
            let mut dw = vec![T::zero(); n];
            for (x, g) in x.chunks_exact(n).zip(g.chunks_exact(n)) {
                let r = self.scale(x);
                dw.iter_mut().zip(x).zip(g).for_each(|((dw, &x), &g)| *dw += g * x * r);
            }
            dw
        };
        let parts: Vec<Vec<T>> = x.par_chunks(width).zip(g.par_chunks(width)).map(part).collect();
        let mut dw = vec![T::zero(); n];
        for part in parts {
            dw.iter_mut().zip(part).for_each(|(dw, part)| *dw += part);
        }
        dw
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = by_type!(candle_core::backend::BackendStorage::dtype(x), T => {
            let y = self.forward(numbers::<T>(x, x_layout)?, numbers::<T>(w, w_layout)?);
            candle_core::WithDType::to_cpu_storage_owned(y)
        });
        Ok((y, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, w, g, (x.track_op(), w.track_op()))
    }
}
