//! A matrix that is not trained, however it is kept.

use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

use super::real::Real;
use super::{by_type, suits};
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
    pub(super) fn forward(&self, x: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let (n, cols) = layout.shape().dims2()?;
        let rows = self.shape()?.0;
        by_type!(x.dtype(), T => {
            let mut whole: Vec<T> = Vec::new();
            self.for_pieces(x.dtype(), |first, piece| {
                let part = product(x, layout, &piece.t()?, (1, n, piece.dim(0)?, cols))?;
                let part = T::cpu_storage_data(part)?;
                if part.len() == n * rows {
                    whole = part;
                    return Ok(());
                }
                whole.resize(n * rows, 0.0);
                let width = part.len() / n.max(1);
                for (out, part) in whole.chunks_exact_mut(rows).zip(part.chunks_exact(width)) {
                    out[first..first + width].copy_from_slice(part);
                }
                Ok(())
            })?;
            Ok(T::to_cpu_storage_owned(whole))
        })
    }

    /// `g W`, `[n, cols]`, of `g` `[n, rows]`.
    pub(super) fn backward(&self, g: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let (n, rows) = layout.shape().dims2()?;
        let cols = self.shape()?.1;
        by_type!(g.dtype(), T => {
            let mut whole: Vec<T> = Vec::new();
            self.for_pieces(g.dtype(), |first, piece| {
                let height = piece.dim(0)?;
                let start = layout.start_offset() + first * layout.stride()[1];
                let part = Layout::new((n, height).into(), layout.stride().to_vec(), start);
                let part = product(g, &part, piece, (1, n, cols, height))?;
                let part = T::cpu_storage_data(part)?;
                if height == rows || whole.is_empty() {
                    whole = part;
                } else {
                    add_to(&mut whole, &part);
                }
                Ok(())
            })?;
            Ok(T::to_cpu_storage_owned(whole))
        })
    }

    /// As [`Frozen::backward`], of a tensor.
    pub(super) fn backward_of(&self, g: &Tensor) -> Result<Tensor> {
        let g = g.contiguous()?;
        let (storage, layout) = g.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { bail!("a tensor on another device") };
        let shape = (layout.shape().dims2()?.0, self.shape()?.1);
        by_type!(g.dtype(), T => {
            let numbers: Vec<T> = T::cpu_storage_data(self.backward(storage, layout)?)?;
            Tensor::from_vec(numbers, shape, &Device::Cpu)
        })
    }

    /// Whether activations like `x` can be multiplied with it here.
    pub(super) fn suits(&self, x: &Tensor) -> bool {
        suits(&[x]) && !matches!(self, Self::Tensor(tensor) if !tensor.device().is_cpu())
    }
}

/// The product of a storage with a tensor of the processor.
fn product(
    x: &CpuStorage,
    layout: &Layout,
    y: &Tensor,
    bmnk: (usize, usize, usize, usize),
) -> Result<CpuStorage> {
    let (storage, y_layout) = y.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("a tensor on another device") };
    x.matmul(storage, bmnk, layout, y_layout)
}

/// `acc += x`.
pub(super) fn add_to<T: Real>(acc: &mut [T], x: &[T]) {
    const PIECE: usize = 1 << 14;
    let pieces = acc.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
    pieces.for_each(|(acc, x)| acc.iter_mut().zip(x).for_each(|(acc, &x)| *acc += x));
}
