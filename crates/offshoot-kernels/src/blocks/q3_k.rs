//! Q3_K: `w = d * scale * (q - 4)`, 256 weights in 110 bytes, sub-blocks of 16.
//!
//! ```text
//! 32 bytes of third bits | 64 bytes of low bits as in Q2_K | 12 bytes of scales | d: f16
//! ```
//! Bit k of third-bit byte l belongs to weight 32 k + l. The 6-bit scales have 32 added; their low
//! 4 bits are the nibbles of the first 8 bytes (all low ones first), their high 2 bits the bit pairs
//! of the last 4 (all lowest ones first).

use super::bits::{nibbles, sized, u16_at};
use super::parts::{Layout, Levels, Parts};
use super::q2_k::bit_pairs;

pub(super) const LAYOUT: Layout = Layout {
    sub_len: 16,
    levels: Levels::Linear { zero: 4 },
    parts,
    quantize_block: None,
    fit_block: None,
};

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let block = sized::<110>(block);
    parts.set_scale(u16_at(block, 108));
    bit_pairs(&block[32..96], &mut parts.q);
    for (k, q) in parts.q.chunks_exact_mut(32).enumerate() {
        for (q, &byte) in q.iter_mut().zip(&block[..32]) {
            *q |= ((byte >> k) & 1) << 2;
        }
    }
    let mut low = [0; 16];
    nibbles(&block[96..104], &mut low);
    for (i, (scale, low)) in parts.scales.iter_mut().zip(low).enumerate() {
        let high = (block[104 + i % 4] >> (2 * (i / 4))) & 3;
        *scale = (low | (high << 4)) as i8 - 32;
    }
}
