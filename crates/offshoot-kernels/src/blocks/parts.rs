//! A block of any quantised format taken apart: unpacked quants and the scales as stored.
//!
//! One formula then gives the weights of every format, with the rounding of ggml's own
//! `dequantize_row_*` (each product and the difference rounded to `f32`, never fused):
//! ```text
//! w[i] = (d * scales[i / sub_len]) * level(q[i]) - dmin * mins[i / sub_len]
//! ```
//! A format without some of these has the number that changes no bit in its place: `scales` of 1,
//! `dmin` and `mins` of +0. Formats that add their minimum (`d * q + m`) have `dmin = m`, `mins = -1`.

use half::f16;

use super::fit::FitBlock;
use super::iq4_nl::CODEBOOK;

/// The most weights a block has.
pub(crate) const BLOCK_LEN_MAX: usize = 256;
/// The most sub-blocks a block has.
pub(crate) const SUBS_MAX: usize = 16;

/// One block taken apart; see the module's formula.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Unsigned quants in the order of the weights; those past the block's length are left
    /// as they were.
    pub(crate) q: [u8; BLOCK_LEN_MAX],
    /// The block's scale, as the bits of an `f16`.
    pub(crate) d: u16,
    /// The scale of `mins`, as the bits of an `f16`.
    pub(crate) dmin: u16,
    /// Each sub-block's multiple of `d`, its stored offset already taken off.
    pub(crate) scales: [i8; SUBS_MAX],
    /// Each sub-block's multiple of `dmin`.
    pub(crate) mins: [i8; SUBS_MAX],
}

impl Parts {
    /// A block of no weights, to be filled by [`Layout::parts`].
    pub(crate) const EMPTY: Self =
        Self { q: [0; BLOCK_LEN_MAX], d: 0, dmin: 0, scales: [1; SUBS_MAX], mins: [0; SUBS_MAX] };

    /// Sets the scale to `d`, every sub-scale to 1, and nothing to subtract.
    pub(super) fn set_scale(&mut self, d: u16) {
        self.d = d;
        self.dmin = 0;
        self.scales = [1; SUBS_MAX];
        self.mins = [0; SUBS_MAX];
    }
}

/// Appends weights in some format, as many as there are.
pub(crate) type Write = fn(&[f32], &mut Vec<u8>);

/// What number a quant stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Levels {
    /// `q - zero`.
    Linear {
        /// The quant that stands for 0.
        zero: u8,
    },
    /// `CODEBOOK[q]` of [`super::iq4_nl`].
    Codebook,
}

/// How to read one quantised format: everything but its block length and bytes.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Weights that share a sub-scale; the block length where there are none.
    pub(crate) sub_len: usize,
    /// What number a quant stands for.
    pub(crate) levels: Levels,
    /// Takes one block of exactly the format's bytes apart; panics on any other length.
    ///
    /// Fills a `Parts` that is used again for the next block: clearing 256 quants takes longer than
    /// unpacking 32.
    pub(crate) parts: fn(&[u8], &mut Parts),
    /// Appends one block of weights, where the format is written at all.
    pub(crate) quantize_block: Option<Write>,
    /// Writes one block of exactly the format's weights and bytes, its scales found by search,
    /// where the format is written so.
    pub(crate) fit_block: Option<FitBlock>,
}

impl Layout {
    /// Writes the weights of one block taken apart; `out` is as long as the block.
    pub(super) fn weights(&self, parts: &Parts, out: &mut [f32]) {
        let d = f16::from_bits(parts.d).to_f32();
        let dmin = f16::from_bits(parts.dmin).to_f32();
        let subs = out.chunks_exact_mut(self.sub_len).zip(parts.q.chunks_exact(self.sub_len));
        for ((sub, q), (&scale, &min)) in subs.zip(parts.scales.iter().zip(&parts.mins)) {
            let step = d * f32::from(scale);
            let offset = dmin * f32::from(min);
            match self.levels {
                Levels::Linear { zero } => {
                    for (w, &q) in sub.iter_mut().zip(q) {
                        *w = step * f32::from(i16::from(q) - i16::from(zero)) - offset;
                    }
                }
                Levels::Codebook => {
                    for (w, &q) in sub.iter_mut().zip(q) {
                        *w = step * f32::from(CODEBOOK[usize::from(q & 15)]) - offset;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::blocks::{BlockType, Coding};

    /// The module's formula, a weight at a time.
    fn weight(layout: &Layout, parts: &Parts, i: usize) -> f32 {
        let sub = i / layout.sub_len;
        let level = match layout.levels {
            Levels::Linear { zero } => i32::from(parts.q[i]) - i32::from(zero),
            Levels::Codebook => i32::from(CODEBOOK[usize::from(parts.q[i])]),
        };
        let d = f16::from_bits(parts.d).to_f32();
        let dmin = f16::from_bits(parts.dmin).to_f32();
        (d * f32::from(parts.scales[sub])) * level as f32 - dmin * f32::from(parts.mins[sub])
    }

    fn taken_apart(layout: &Layout, block: &[u8]) -> Parts {
        let mut parts = Parts::EMPTY;
        (layout.parts)(block, &mut parts);
        parts
    }

    fn quantised() -> impl Iterator<Item = (BlockType, &'static Layout)> {
        BlockType::ALL.into_iter().filter_map(|block| match block.coding() {
            Coding::Quants(layout) => Some((block, layout)),
            Coding::Float { .. } => None,
        })
    }

    proptest! {
        #[test]
        fn the_formula_gives_the_bits_of_dequantize(
            bytes in prop::collection::vec(any::<u8>(), 210),
        ) {
            for (block, layout) in quantised() {
                let bytes = &bytes[..block.block_bytes()];
                let parts = taken_apart(layout, bytes);
                let mut out = vec![0.0; block.block_len()];
                block.dequantize(bytes, &mut out)?;
                for (i, w) in out.into_iter().enumerate() {
                    let expected = weight(layout, &parts, i);
                    let same = w.to_bits() == expected.to_bits() || (w.is_nan() && expected.is_nan());
                    prop_assert!(same, "{}: weight {}: {} for {}", block, i, w, expected);
                }
            }
        }

        #[test]
        fn every_bit_of_a_block_is_in_its_parts(
            bytes in prop::collection::vec(any::<u8>(), 210),
            bit in 0usize..8,
            at in 0usize..210,
        ) {
            for (block, layout) in quantised() {
                let mut bytes = bytes[..block.block_bytes()].to_vec();
                let before = taken_apart(layout, &bytes);
                bytes[at % block.block_bytes()] ^= 1 << bit;
                prop_assert_ne!(before, taken_apart(layout, &bytes), "{}", block);
            }
        }
    }

    #[test]
    fn quants_fill_their_bits() {
        for (block, layout) in quantised() {
            let ones = taken_apart(layout, &vec![0xff; block.block_bytes()]);
            let zeros = taken_apart(layout, &vec![0; block.block_bytes()]);
            let (most, least) = match block {
                BlockType::Q2K => (3, 0),
                BlockType::Q3K => (7, 0),
                BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5K => (31, 0),
                BlockType::Q6K => (63, 0),
                BlockType::Q8_0 => (127, 128), // -1 and 0
                _ => (15, 0),
            };
            let len = block.block_len();
            assert!(ones.q[..len].iter().all(|&q| q == most), "{block}");
            assert!(zeros.q[..len].iter().all(|&q| q == least), "{block}");
        }
    }

    #[test]
    fn used_parts_give_the_same_as_empty_ones() {
        for (block, layout) in quantised() {
            let bytes: Vec<u8> = (0..block.block_bytes()).map(|i| (i * 37 + 11) as u8).collect();
            let expected = taken_apart(layout, &bytes);
            let used = Parts { q: [85; 256], d: 1, dmin: 2, scales: [3; 16], mins: [4; 16] };
            let mut got = used.clone();
            (layout.parts)(&bytes, &mut got);
            let len = block.block_len();
            assert_eq!(got.q[len..], used.q[len..], "{block}");
            got.q[len..].fill(0);
            assert_eq!(got, expected, "{block}");
        }
    }

    #[test]
    fn sub_blocks_cover_a_block() {
        for (block, layout) in quantised() {
            let (len, sub_len) = (block.block_len(), layout.sub_len);
            assert!(len.is_multiple_of(sub_len) && len / sub_len <= SUBS_MAX, "{block}");
            assert!(len <= BLOCK_LEN_MAX, "{block}");
        }
    }
}
