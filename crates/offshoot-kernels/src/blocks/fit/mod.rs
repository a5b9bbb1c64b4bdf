//! Quantisation by search: scales and minimums that lose the least, rather than those that cover
//! the range.
//!
//! A block's weights `x[i]` become quants `q[i]` under a scale `d` and a minimum `m`. Sought is the
//! least of
//! ```text
//! sum_i h[i] * (x[i] - (d * q[i] + m))^2,    h[i] = |x[i]| + sqrt(mean(x^2))
//! ```
//! as in ggml's K formats: large weights count more, since they carry more of a product. For given
//! quants the best `d` and `m` are a least-squares fit; for given `d` and `m` each quant is the
//! nearest. The search tries a row of steps, fits each, rounds the best to what the format stores,
//! and goes back and forth from there. The plain rounding of [`BlockType::quantize`] is among what
//! is tried, so the sum above is never more than with it.
//!
//! Everything is a fixed order of single-precision operations on one block: the bytes depend on
//! nothing but the weights. Cost: some twenty passes over a block.

mod affine;
mod super_block;
mod symmetric;
mod weighted;

pub(super) use affine::affine_halves;
pub(super) use super_block::{fit_q4_k, fit_q5_k, fit_q6_k};
pub(super) use symmetric::{furthest_halves, symmetric_halves};
pub(super) use weighted::{Weighted, bytes};

use half::{bf16, f16};

use super::{BlockError, BlockType, Coding};

/// The largest weight that a format takes whose scales are halves.
pub(super) const LARGEST: f32 = 65504.0;
/// Blocks narrower than this are taken for constant: no half can be the step between their weights.
const NARROWEST: f32 = 1e-12;
/// Most bytes of a block that is written.
const BLOCK_BYTES_MAX: usize = 256;

/// Writes one block's bytes.
pub(crate) type FitBlock = fn(&[f32], &mut [u8]);

/// The nearest half, as the number it stands for.
fn half(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

impl BlockType {
    /// Whether [`BlockType::fit`] writes this format.
    pub fn is_written(self) -> bool {
        match self.coding() {
            Coding::Float { .. } => true,
            Coding::Quants(layout) => layout.fit_block.is_some(),
        }
    }

    /// Whether each weight is a number of its own, not a quant under a shared scale.
    pub fn is_float(self) -> bool {
        matches!(self.coding(), Coding::Float { .. })
    }

    /// Writes `weights` to `out` in this format, scales chosen so that the weighted squared error
    /// is small; see the header of `blocks/fit`. Float formats are rounded to nearest, ties to
    /// even.
    ///
    /// # Errors
    /// [`BlockError::ReadOnly`] for a format that is not written, [`BlockError::Ragged`] if
    /// `weights` is no whole number of blocks, [`BlockError::Length`] if `out` is not exactly as
    /// long as they need, [`BlockError::Weight`] for a weight that is not finite or, but in F32 and
    /// BF16, larger than the largest half. Nothing is written then.
    pub fn fit(self, weights: &[f32], out: &mut [u8]) -> Result<(), BlockError> {
        let block = self.name();
        let expected = self.bytes_of(weights.len())?;
        if out.len() != expected {
            let (weights, got) = (weights.len(), out.len());
            return Err(BlockError::Length { block, expected, got, weights });
        }
        let fit_block = match self.coding() {
            Coding::Float { .. } => None,
            Coding::Quants(layout) => Some(layout.fit_block.ok_or(BlockError::ReadOnly { block })?),
        };
        self.check(weights)?;
        match fit_block {
            None => self.write_floats(weights, out),
            Some(fit_block) => {
                let blocks = weights.chunks_exact(self.block_len());
                for (weights, out) in blocks.zip(out.chunks_exact_mut(self.block_bytes())) {
                    fit_block(weights, out);
                }
            }
        }
        Ok(())
    }

    /// Makes `weights` what they are after [`BlockType::fit`] and [`BlockType::dequantize`],
    /// without an allocation.
    ///
    /// # Errors
    /// As [`BlockType::fit`].
    pub fn round(self, weights: &mut [f32]) -> Result<(), BlockError> {
        self.bytes_of(weights.len())?;
        let mut bytes = [0; BLOCK_BYTES_MAX];
        let bytes = &mut bytes[..self.block_bytes()];
        self.check(weights)?;
        for weights in weights.chunks_exact_mut(self.block_len()) {
            self.fit(weights, bytes)?;
            self.dequantize(bytes, weights)?;
        }
        Ok(())
    }

    /// Refuses what the format cannot hold.
    pub(super) fn check(self, weights: &[f32]) -> Result<(), BlockError> {
        let largest = match self {
            BlockType::F32 => f32::MAX,
            // The last number that is not rounded up to infinity.
            BlockType::Bf16 => f32::from_bits(0x7F7F_7FFF),
            _ => LARGEST,
        };
        match weights.iter().position(|w| w.is_nan() || w.abs() > largest) {
            None => Ok(()),
            Some(index) => {
                let weight = weights[index].to_string();
                Err(BlockError::Weight { block: self.name(), index, weight })
            }
        }
    }

    fn write_floats(self, weights: &[f32], out: &mut [u8]) {
        for (w, out) in weights.iter().zip(out.chunks_exact_mut(self.block_bytes())) {
            match self {
                BlockType::F16 => out.copy_from_slice(&f16::from_f32(*w).to_le_bytes()),
                BlockType::Bf16 => out.copy_from_slice(&bf16::from_f32(*w).to_le_bytes()),
                _ => out.copy_from_slice(&w.to_le_bytes()),
            }
        }
    }
}
