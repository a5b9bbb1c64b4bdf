//! The block formats of weights as files store them, one format a file.
//!
//! A row of a weight matrix is cut into blocks of [`BlockType::block_len`] weights, each stored in
//! [`BlockType::block_bytes`] bytes. The layouts are those of GGUF files
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>); `dequantize` gives the same `f32`
//! bits as ggml's own reference does.

mod bits;
pub(crate) mod conversion;
mod fit;
mod float;
pub(crate) mod iq4_nl;
mod iq4_xs;
pub(crate) mod parts;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod rounding;

use thiserror::Error;

use parts::{Layout, Parts, Write};

/// A block format could not be used as asked.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BlockError {
    /// The bytes given are not a whole number of blocks, or not as many as the output needs.
    #[error("{block}: {got} bytes given where {expected} are needed for {weights} weights")]
    Length {
        /// The format's name.
        block: &'static str,
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        got: usize,
        /// Weights asked for.
        weights: usize,
    },
    /// The number of weights asked for is no multiple of the block length.
    #[error("{block}: {weights} weights are no multiple of the block length {block_len}")]
    Ragged {
        /// The format's name.
        block: &'static str,
        /// Weights asked for.
        weights: usize,
        /// The format's block length.
        block_len: usize,
    },
    /// A weight is no finite number, or one that the format cannot hold.
    #[error(
        "{block}: weight {index} is {weight}, expected a finite number, of at most 65504 but in \
         F32 and BF16"
    )]
    Weight {
        /// The format's name.
        block: &'static str,
        /// Which of the weights given.
        index: usize,
        /// What it is.
        weight: String,
    },
    /// The format is read but not written.
    #[error("{block}: weights cannot be rounded to this format; use F16 or one of Q4_0 to Q8_0")]
    ReadOnly {
        /// The format's name.
        block: &'static str,
    },
}

/// How the weights of a tensor are stored in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum BlockType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// 4 bits, symmetric: `w = d * (q - 8)`, 32 weights.
    Q4_0,
    /// 4 bits with offset: `w = d * q + m`, 32 weights.
    Q4_1,
    /// 5 bits, symmetric: `w = d * (q - 16)`, 32 weights.
    Q5_0,
    /// 5 bits with offset: `w = d * q + m`, 32 weights.
    Q5_1,
    /// 8 bits, symmetric: `w = d * q`, 32 weights.
    Q8_0,
    /// 2 bits, 256 weights in sub-blocks of 16 with 4-bit scales and offsets.
    Q2K,
    /// 3 bits, 256 weights in sub-blocks of 16 with 6-bit scales.
    Q3K,
    /// 4 bits, 256 weights in sub-blocks of 32 with 6-bit scales and offsets.
    Q4K,
    /// 5 bits, 256 weights in sub-blocks of 32 with 6-bit scales and offsets.
    Q5K,
    /// 6 bits, 256 weights in sub-blocks of 16 with 8-bit scales.
    Q6K,
    /// 4 bits through a codebook of 16 values, 32 weights.
    Iq4Nl,
    /// 4 bits through the same codebook, 256 weights in sub-blocks of 32 with 6-bit scales.
    Iq4Xs,
}

impl BlockType {
    /// Every format, in the order of declaration.
    pub const ALL: [BlockType; 15] = [
        BlockType::F32,
        BlockType::F16,
        BlockType::Bf16,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q8_0,
        BlockType::Q2K,
        BlockType::Q3K,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
        BlockType::Iq4Nl,
        BlockType::Iq4Xs,
    ];

    /// The number that GGUF files use for this format.
    pub const fn ggml_id(self) -> u32 {
        match self {
            BlockType::F32 => 0,
            BlockType::F16 => 1,
            BlockType::Q4_0 => 2,
            BlockType::Q4_1 => 3,
            BlockType::Q5_0 => 6,
            BlockType::Q5_1 => 7,
            BlockType::Q8_0 => 8,
            BlockType::Q2K => 10,
            BlockType::Q3K => 11,
            BlockType::Q4K => 12,
            BlockType::Q5K => 13,
            BlockType::Q6K => 14,
            BlockType::Iq4Nl => 20,
            BlockType::Iq4Xs => 23,
            BlockType::Bf16 => 30,
        }
    }

    /// The format with GGUF number `id`, if offshoot reads it.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|block| block.ggml_id() == id)
    }

    /// The format's name as llama.cpp writes it.
    pub const fn name(self) -> &'static str {
        match self {
            BlockType::F32 => "F32",
            BlockType::F16 => "F16",
            BlockType::Bf16 => "BF16",
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q5_0 => "Q5_0",
            BlockType::Q5_1 => "Q5_1",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q2K => "Q2_K",
            BlockType::Q3K => "Q3_K",
            BlockType::Q4K => "Q4_K",
            BlockType::Q5K => "Q5_K",
            BlockType::Q6K => "Q6_K",
            BlockType::Iq4Nl => "IQ4_NL",
            BlockType::Iq4Xs => "IQ4_XS",
        }
    }

    /// Weights in a block.
    pub const fn block_len(self) -> usize {
        match self {
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => 1,
            BlockType::Q4_0
            | BlockType::Q4_1
            | BlockType::Q5_0
            | BlockType::Q5_1
            | BlockType::Q8_0
            | BlockType::Iq4Nl => 32,
            BlockType::Q2K
            | BlockType::Q3K
            | BlockType::Q4K
            | BlockType::Q5K
            | BlockType::Q6K
            | BlockType::Iq4Xs => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            BlockType::F32 => 4,
            BlockType::F16 | BlockType::Bf16 => 2,
            BlockType::Q4_0 | BlockType::Iq4Nl => 18,
            BlockType::Q4_1 => 20,
            BlockType::Q5_0 => 22,
            BlockType::Q5_1 => 24,
            BlockType::Q8_0 => 34,
            BlockType::Q2K => 84,
            BlockType::Q3K => 110,
            BlockType::Q4K => 144,
            BlockType::Q5K => 176,
            BlockType::Q6K => 210,
            BlockType::Iq4Xs => 136,
        }
    }

    /// Writes the weights stored in `bytes` to `out`: a row, or any whole number of blocks.
    ///
    /// The bits are those of ggml's reference, sign of zero included. Scales that are not finite are
    /// taken as they come: the weights are then infinite or NaN.
    ///
    /// # Errors
    /// [`BlockError::Ragged`] if `out` is no whole number of blocks, [`BlockError::Length`] if
    /// `bytes` is not exactly as long as `out` needs. Nothing is written then.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
        let (block, weights, got) = (self.name(), out.len(), bytes.len());
        let expected = self.bytes_of(weights)?;
        if got != expected {
            return Err(BlockError::Length { block, expected, got, weights });
        }
        match self.coding() {
            Coding::Float { read, .. } => read(bytes, out),
            Coding::Quants(layout) => {
                let blocks = bytes.chunks_exact(self.block_bytes());
                let mut parts = Parts::EMPTY;
                for (block, out) in blocks.zip(out.chunks_exact_mut(self.block_len())) {
                    (layout.parts)(block, &mut parts);
                    layout.weights(&parts, out);
                }
            }
        }
        Ok(())
    }

    /// Rounds `weights` to the format and appends the blocks to `out`.
    ///
    /// The bytes are those of ggml's `quantize_row_*_ref`. Weights so large that a block's scale
    /// exceeds the largest half come back infinite or NaN. The formats of 256 weights and those
    /// with a codebook are not written: choosing their scales is a search ([`BlockType::fit`]), not
    /// a rounding.
    ///
    /// # Errors
    /// [`BlockError::ReadOnly`] for a format that is not written, [`BlockError::Ragged`] if
    /// `weights` is no whole number of blocks. Nothing is appended then.
    pub fn quantize(self, weights: &[f32], out: &mut Vec<u8>) -> Result<(), BlockError> {
        let bytes = self.bytes_of(weights.len())?;
        match self.coding() {
            Coding::Float { write, .. } => {
                out.reserve(bytes);
                write(weights, out);
            }
            Coding::Quants(layout) => {
                let block = self.name();
                let quantize_block = layout.quantize_block.ok_or(BlockError::ReadOnly { block })?;
                out.reserve(bytes);
                for weights in weights.chunks_exact(self.block_len()) {
                    quantize_block(weights, out);
                }
            }
        }
        Ok(())
    }

    /// How the format is read; the quantised ones can be taken apart.
    pub(crate) fn coding(self) -> Coding {
        match self {
            BlockType::F32 => Coding::Float { read: float::read_f32, write: float::write_f32 },
            BlockType::F16 => Coding::Float { read: float::read_f16, write: float::write_f16 },
            BlockType::Bf16 => Coding::Float { read: float::read_bf16, write: float::write_bf16 },
            BlockType::Q4_0 => Coding::Quants(&q4_0::LAYOUT),
            BlockType::Q4_1 => Coding::Quants(&q4_1::LAYOUT),
            BlockType::Q5_0 => Coding::Quants(&q5_0::LAYOUT),
            BlockType::Q5_1 => Coding::Quants(&q5_1::LAYOUT),
            BlockType::Q8_0 => Coding::Quants(&q8_0::LAYOUT),
            BlockType::Q2K => Coding::Quants(&q2_k::LAYOUT),
            BlockType::Q3K => Coding::Quants(&q3_k::LAYOUT),
            BlockType::Q4K => Coding::Quants(&q4_k::LAYOUT),
            BlockType::Q5K => Coding::Quants(&q5_k::LAYOUT),
            BlockType::Q6K => Coding::Quants(&q6_k::LAYOUT),
            BlockType::Iq4Nl => Coding::Quants(&iq4_nl::LAYOUT),
            BlockType::Iq4Xs => Coding::Quants(&iq4_xs::LAYOUT),
        }
    }

    /// Bytes of `weights` weights, or why there can be none.
    fn bytes_of(self, weights: usize) -> Result<usize, BlockError> {
        let (block, block_len) = (self.name(), self.block_len());
        self.row_bytes(weights).ok_or(BlockError::Ragged { block, weights, block_len })
    }

    /// Bytes of a row of `cols` weights, or `None` if `cols` is no multiple of the block length or
    /// the product overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        cols.is_multiple_of(self.block_len())
            .then(|| (cols / self.block_len()).checked_mul(self.block_bytes()))
            .flatten()
    }
}

/// The two kinds of format.
pub(crate) enum Coding {
    /// Each weight a number of its own.
    Float {
        /// Reads little-endian numbers, as many as the output holds.
        read: fn(&[u8], &mut [f32]),
        /// Appends little-endian numbers.
        write: Write,
    },
    /// Blocks of quants under shared scales.
    Quants(&'static Layout),
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_unknown_ones_are_none() {
        for block in BlockType::ALL {
            assert_eq!(BlockType::from_ggml_id(block.ggml_id()), Some(block));
        }
        assert_eq!(BlockType::from_ggml_id(4), None);
        assert_eq!(BlockType::from_ggml_id(16), None);
    }

    #[test]
    fn row_bytes_refuses_ragged_rows_and_overflow() {
        assert_eq!(BlockType::Q4K.row_bytes(512), Some(288));
        assert_eq!(BlockType::Q4K.row_bytes(300), None);
        assert_eq!(BlockType::F32.row_bytes(usize::MAX), None);
    }
}
