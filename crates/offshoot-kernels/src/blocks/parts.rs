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

use super::iq4_nl::CODEBOOK;

/// The most weights a block has.
pub(crate) const BLOCK_LEN_MAX: usize = 256;
/// The most sub-blocks a block has.
pub(crate) const SUBS_MAX: usize = 16;

/// One block taken apart; see the module's formula.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Unsigned quants in the order of the weights; those past the block's length are 0.
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
    /// A block of zeros with scale `d`, every sub-scale 1 and nothing to subtract.
    pub(super) const fn with_scale(d: u16) -> Self {
        Self { q: [0; BLOCK_LEN_MAX], d, dmin: 0, scales: [1; SUBS_MAX], mins: [0; SUBS_MAX] }
    }
}

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
    pub(crate) parts: fn(&[u8]) -> Parts,
}

impl Layout {
    /// Writes the weights of one block; `out` is as long as the block.
    pub(super) fn dequantize_block(&self, block: &[u8], out: &mut [f32]) {
        let parts = (self.parts)(block);
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

/// A block's bytes as an array, so that no later index needs a check.
pub(super) fn sized<const BYTES: usize>(block: &[u8]) -> &[u8; BYTES] {
    block.try_into().expect("callers cut rows into blocks of the format's own bytes")
}

/// The little-endian `u16` at `at`.
pub(super) fn u16_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Unpacks bytes of two quants: all low halves first, then all high halves.
pub(super) fn nibbles(packed: &[u8], q: &mut [u8]) {
    let (low, high) = q.split_at_mut(packed.len());
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(packed) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// Adds 16 to each of 32 quants whose bit is set, bit 0 of `bits[0]` being that of the first.
///
/// Eight quants a step: a byte is copied to all eight bytes of a word, each keeps its own bit, and
/// adding 0x7f carries whichever bit that was into the top one.
pub(super) fn add_fifth_bits(bits: &[u8], q: &mut [u8]) {
    for (&bits, q) in bits.iter().zip(q.chunks_exact_mut(8)) {
        let own = (u64::from(bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
        let sixteens = ((own + 0x7f7f_7f7f_7f7f_7f7f) & 0x8080_8080_8080_8080) >> 3;
        for (q, sixteen) in q.iter_mut().zip(sixteens.to_le_bytes()) {
            *q |= sixteen;
        }
    }
}
