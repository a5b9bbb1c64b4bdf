//! A matrix that is not trained, however it is kept.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use rayon::prelude::*;

use super::real::{Matrix, Output, Real};
use super::{suits, with};
use crate::Checkpoint;

/// Numbers of a matrix that are brought to the type of the activations at a time.
const PIECE: usize = 1 << 20;

/// A matrix `[rows, cols]` without a gradient.
#[derive(Debug, Clone)]
pub(crate) enum Frozen {
    /// A tensor of any float type.
    Tensor(Tensor),
    /// A matrix that stays in its file, quantised or not, and is read in pieces of rows.
    Stored {
        /// The file.
        checkpoint: Arc<Checkpoint>,
        /// The matrix's canonical name, which the checkpoint has.
        name: String,
        /// Rows and columns.
        shape: (usize, usize),
    },
}

impl Frozen {
    /// Rows and columns.
    pub(crate) fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Tensor(tensor) => tensor.dims2(),
            Self::Stored { shape, .. } => Ok(*shape),
        }
    }

    /// Rows `first..first + count` in the type `dtype`, on the processor if they come from a file.
    pub(crate) fn rows(&self, first: usize, count: usize, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Tensor(tensor) => tensor.detach().narrow(0, first, count)?.to_dtype(dtype),
            Self::Stored { checkpoint, name, shape: (_, cols) } => {
                let stored = checkpoint.require(name).map_err(candle_core::Error::msg)?;
                let mut numbers = vec![0f32; count * cols];
                let read = |(row, out): (usize, &mut [f32])| stored.read_row(first + row, out);
                let rows = numbers.par_chunks_mut((*cols).max(1)).enumerate();
                rows.try_for_each(read).map_err(candle_core::Error::msg)?;
                Tensor::from_vec(numbers, (count, *cols), &Device::Cpu)?.to_dtype(dtype)
            }
        }
    }

    /// All of it where `x` is and in its type, for products of the tensor library.
    pub(crate) fn whole(&self, x: &Tensor) -> Result<Tensor> {
        self.rows(0, self.shape()?.0, x.dtype())?.to_device(x.device())
    }

    /// Calls `f` with the number of its first row and each piece of rows, in order; with all of a tensor
    /// that is of type `dtype` as it is.
    fn for_pieces(
        &self,
        dtype: DType,
        mut f: impl FnMut(usize, &Tensor) -> Result<()>,
    ) -> Result<()> {
        if let Self::Tensor(tensor) = self
            && tensor.dtype() == dtype
        {
            return f(0, &tensor.detach());
        }
        let (rows, cols) = self.shape()?;
        let height = (PIECE / cols.max(1)).clamp(1, rows.max(1));
        for first in (0..rows).step_by(height) {
            f(first, &self.rows(first, height.min(rows - first), dtype)?)?;
        }
        Ok(())
    }

    /// `x W^T`, `[n, rows]`, of `x` `[n, cols]`.
    pub(super) fn forward<T: Real>(&self, x: &[T]) -> Result<Vec<T>> {
        let (stride, cols) = self.shape()?;
        let mut out = vec![T::zero(); x.len() / cols.max(1) * stride];
        self.for_pieces(T::DTYPE, |first, piece| {
            let rows = piece.dim(0)?;
            with::<T, _, 1>([piece], |[numbers]| {
                let numbers = Matrix { numbers, rows, cols, turned: false };
                let out = out.get_mut(first..).unwrap_or_default();
                T::multiply(x, numbers, Output { numbers: out, stride, accumulate: false });
            })
        })?;
        Ok(out)
    }

    /// `g W`, `[n, cols]`, of `g` `[n, rows]`.
    pub(super) fn backward<T: Real>(&self, g: &[T]) -> Result<Vec<T>> {
        let (rows, cols) = self.shape()?;
        let mut out = vec![T::zero(); g.len() / rows.max(1) * cols];
        self.for_pieces(T::DTYPE, |first, piece| {
            let height = piece.dim(0)?;
            // A piece of the matrix multiplies a part of each row of `g`.
            let part: Vec<T> = match height == rows {
                true => Vec::new(),
                false => {
                    g.chunks_exact(rows).flat_map(|g| &g[first..][..height]).copied().collect()
                }
            };
            let g = if height == rows { g } else { &part };
            with::<T, _, 1>([piece], |[numbers]| {
                let numbers = Matrix { numbers, rows: cols, cols: height, turned: true };
                let accumulate = first > 0;
                T::multiply(g, numbers, Output { numbers: &mut out, stride: cols, accumulate });
            })
        })?;
        Ok(out)
    }

    /// Whether activations like `x` can be multiplied with it here.
    pub(crate) fn suits(&self, x: &Tensor) -> bool {
        suits(&[x]) && !matches!(self, Self::Tensor(tensor) if !tensor.device().is_cpu())
    }
}
