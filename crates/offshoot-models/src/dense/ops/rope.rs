//! Rotary positions with their backward pass: Su et al. 2021, section 3.2.2,
//! <https://arxiv.org/abs/2104.09864>, in the half-split order of Hugging Face.
//!
//! ```text
//! y_i = x_i cos_i - x_(i + r/2) sin_i        y_(i + r/2) = x_(i + r/2) cos_i + x_i sin_i
//! ```
//! of the first `r` elements of a head, and `y = x` of the others.
//! A rotation's transpose is the rotation back: the gradient turns by the opposite angles.
//!
//! Cost: a pass over the rows each way.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::real::Real;
use super::{by_type, numbers, shaped, with};

/// Rows that a thread takes at a time.
const ROWS: usize = 16;

/// Rotates every head of `x`, whose first axis are the rows and whose last is a head, by the angles
/// with these cosines and sines, `[rows, rotary_dim / 2]`.
pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Rope::new(cos, sin)?)
}

/// The rotation without what it turns.
pub(crate) struct Rope {
    cos: Tensor,
    sin: Tensor,
}

/// Widths of a head: of the half of what is rotated of it, and of all.
type Widths = (usize, usize);

/// Turns the rows of `x`, each as wide as that of `y`, forth, or back if `back`.
fn turn_rows<T: Real>(y: &mut [T], x: &[T], [cos, sin]: [&[T]; 2], head: Widths, back: bool) {
    let (half, head) = head;
    let width = x.len() / (cos.len() / half);
    let rows = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
    for ((y, x), (cos, sin)) in rows.zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
        for (y, x) in y.chunks_exact_mut(head).zip(x.chunks_exact(head)) {
            let ((y, rest), (x, stays)) = (y.split_at_mut(2 * half), x.split_at(2 * half));
            rest.copy_from_slice(stays);
            let ((y_a, y_b), (a, b)) = (y.split_at_mut(half), x.split_at(half));
            for i in 0..half {
                let s = if back { T::zero() - sin[i] } else { sin[i] };
                y_a[i] = a[i] * cos[i] - b[i] * s;
                y_b[i] = b[i] * cos[i] + a[i] * s;
            }
        }
    }
}

/// The same by all threads.
fn turn<T: Real>(x: &[T], [cos, sin]: [&[T]; 2], head: Widths, back: bool) -> Vec<T> {
    let half = head.0;
    let mut y = vec![T::zero(); x.len()];
    if x.is_empty() || half == 0 {
        return y;
    }
    let (width, of_table) = (x.len() / (cos.len() / half) * ROWS, half * ROWS);
    let tables = cos.par_chunks(of_table).zip(sin.par_chunks(of_table));
    let pieces = y.par_chunks_mut(width).zip(x.par_chunks(width)).zip(tables);
    pieces.for_each(|((y, x), (cos, sin))| turn_rows(y, x, [cos, sin], head, back));
    y
}

impl Rope {
    pub(crate) fn new(cos: &Tensor, sin: &Tensor) -> Result<Self> {
        Ok(Self { cos: cos.detach().contiguous()?, sin: sin.detach().contiguous()? })
    }

    /// `x` turned, which remembers nothing.
    pub(crate) fn of(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1_no_bwd(self)
    }

    /// What the gradient `g` of the result says of what was turned: `g` turned back.
    pub(crate) fn gradient(&self, g: &Tensor) -> Result<Tensor> {
        let head = self.widths(g.shape())?;
        by_type!(g.dtype(), T => {
            let dx = with::<T, _, 3>([g, &self.cos, &self.sin], |[g, cos, sin]| {
                turn(g, [cos, sin], head, true)
            })?;
            shaped(dx, g)
        })
    }

    /// Of the heads of a tensor of this shape.
    fn widths(&self, x: &Shape) -> Result<Widths> {
        Ok((self.cos.dim(D::Minus1)?, x.dim(D::Minus1)?))
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let head = self.widths(layout.shape())?;
        let y = by_type!(candle_core::backend::BackendStorage::dtype(x), T => {
            let x = numbers::<T>(x, layout)?;
            let y = with([&self.cos, &self.sin], |tables| turn(x, tables, head, false))?;
            candle_core::WithDType::to_cpu_storage_owned(y)
        });
        Ok((y, layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        self.gradient(g).map(Some)
    }
}
