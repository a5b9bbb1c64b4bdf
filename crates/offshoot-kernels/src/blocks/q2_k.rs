//! Q2_K: `w = d * scale * q - dmin * min`, 256 weights in 84 bytes, sub-blocks of 16.
//!
//! ```text
//! 16 bytes, scale below and min above | 64 bytes of quants | d: f16 | dmin: f16
//! ```
//! Each half of 128 weights has 32 bytes of quants; byte l holds those of l, l + 32, l + 64, l + 96.

use super::bits::{sized, u16_at};
use super::parts::{Layout, Levels, Parts};

pub(super) const LAYOUT: Layout = Layout {
    sub_len: 16,
    levels: Levels::Linear { zero: 0 },
    parts,
    quantize_block: None,
    fit_block: None,
};

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let block = sized::<84>(block);
    parts.set_scale(u16_at(block, 80));
    parts.dmin = u16_at(block, 82);
    for (i, &byte) in block[..16].iter().enumerate() {
        parts.scales[i] = (byte & 15) as i8;
        parts.mins[i] = (byte >> 4) as i8;
    }
    bit_pairs(&block[16..80], &mut parts.q);
}

/// Unpacks bytes of four quants: in each run of 32 bytes, all lowest pairs of bits first.
pub(super) fn bit_pairs(packed: &[u8], q: &mut [u8]) {
    for (packed, q) in packed.chunks_exact(32).zip(q.chunks_exact_mut(128)) {
        for (pair, q) in q.chunks_exact_mut(32).enumerate() {
            for (q, &byte) in q.iter_mut().zip(packed) {
                *q = (byte >> (2 * pair)) & 3;
            }
        }
    }
}
