//! The parts of a layer as operations with backward passes of their own.
//!
//! The tensor library can make all of them of its small operations, and does where these do not suit
//! ([`suits`]); but then each small operation keeps its result for the way back, and a matrix that is
//! not trained has its gradient computed all the same. Here a forward pass keeps what it was given
//! and nothing else, and a backward pass computes what it needs once more.
//!
//! On a processor, in single or double precision; elsewhere each has a form of the library's
//! operations (`composed`), which training takes there. Work is shared out among threads by rows or
//! by heads, never within a sum, so results do not depend on how many threads there are.

mod attention;
pub(super) mod composed;
mod cross_entropy;
mod divergence;
mod frozen;
mod gate;
mod linear;
mod real;
mod rms_norm;
mod rope;

pub(super) use attention::{Attention, AttentionShape};
pub(super) use cross_entropy::{CrossEntropy, Target, log_probabilities};
pub(super) use divergence::{Scoring, divergence};
pub(super) use frozen::Frozen;
pub(super) use gate::{Gate, gate};
pub(super) use linear::{Linear, LowRankPair, added, linear, linear_composed};
pub(super) use rms_norm::{RmsNorm, rms_norm};
pub(super) use rope::{Rope, rope};

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, bail};
use real::Real;

/// Calls `$body` with the type alias `$T` for the numbers of a tensor of type `$dtype`.
macro_rules! by_type {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!("numbers of type {}, expected f32 or f64", other.as_str()),
        }
    };
}
use by_type;

/// Whether the operations work on these tensors: on a processor, all of one of their two types.
pub(super) fn suits(tensors: &[&Tensor]) -> bool {
    let dtype = tensors.first().map(|x| x.dtype());
    matches!(dtype, Some(DType::F32 | DType::F64))
        && tensors.iter().all(|x| Some(x.dtype()) == dtype && x.device().is_cpu())
}

/// Whether a gradient is wanted of any of these tensors.
pub(super) fn tracked(tensors: &[&Tensor]) -> bool {
    tensors.iter().any(|x| x.track_op())
}

/// The numbers of an operand, which is contiguous.
fn numbers<'a, T: Real>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let all = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&all[start..end]),
        None => bail!("an operand that is not contiguous"),
    }
}

/// Calls `f` with the numbers of each tensor, all on the processor.
fn with<T: Real, R, const N: usize>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[T]; N]) -> R,
) -> Result<R> {
    let mut contiguous = Vec::with_capacity(N);
    for tensor in tensors {
        contiguous.push(tensor.contiguous()?);
    }
    let guards: Vec<_> = contiguous.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices: [&[T]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage) = &**storage else { bail!("a tensor on another device") };
        *slice = numbers(storage, layout)?;
    }
    Ok(f(slices))
}

/// A tensor of the processor, shaped as `like`.
fn shaped<T: Real>(numbers: Vec<T>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(numbers, like.shape(), &Device::Cpu)
}

#[cfg(test)]
mod tests;
