//! Q5_K: `w = d * scale * q - dmin * min`, 256 weights in 176 bytes, sub-blocks of 32.
//!
//! ```text
//! d: f16 | dmin: f16 | 12 bytes of scales and mins as in Q4_K | 32 bytes of fifth bits
//! | 128 bytes of low bits as in Q4_K
//! ```
//! Bit k of fifth-bit byte l belongs to weight 32 k + l.

use super::bits::{nibbles, sized, u16_at};
use super::fit::fit_q5_k;
use super::parts::{Layout, Levels, Parts};
use super::q4_k::scales_and_mins;

pub(super) const LAYOUT: Layout = Layout {
    sub_len: 32,
    levels: Levels::Linear { zero: 0 },
    parts,
    quantize_block: None,
    fit_block: Some(fit_q5_k),
};

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let block = sized::<176>(block);
    parts.set_scale(u16_at(block, 0));
    parts.dmin = u16_at(block, 2);
    scales_and_mins(&block[4..16], parts);
    for (packed, q) in block[48..].chunks_exact(32).zip(parts.q.chunks_exact_mut(64)) {
        nibbles(packed, q);
    }
    for (k, q) in parts.q.chunks_exact_mut(32).enumerate() {
        for (q, &byte) in q.iter_mut().zip(&block[16..48]) {
            *q |= ((byte >> k) & 1) << 4;
        }
    }
}
