//! Q6_K: `w = d * scale * (q - 32)`, 256 weights in 210 bytes, sub-blocks of 16.
//!
//! ```text
//! 128 bytes of low 4 bits | 64 bytes of high 2 bits | 16 signed bytes of scales | d: f16
//! ```
//! Each half of 128 weights has 64 bytes of low bits (the first 64 weights in the low halves) and 32
//! of high bits, laid out as the quants of Q2_K.

use super::bits::{nibbles, sized, u16_at};
use super::fit::fit_q6_k;
use super::parts::{Layout, Levels, Parts};

pub(super) const LAYOUT: Layout = Layout {
    sub_len: 16,
    levels: Levels::Linear { zero: 32 },
    parts,
    quantize_block: None,
    fit_block: Some(fit_q6_k),
};

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let block = sized::<210>(block);
    parts.set_scale(u16_at(block, 208));
    let halves = block[..128].chunks_exact(64).zip(block[128..192].chunks_exact(32));
    for (q, (low, high)) in parts.q.chunks_exact_mut(128).zip(halves) {
        nibbles(low, q);
        for (pair, q) in q.chunks_exact_mut(32).enumerate() {
            for (q, &byte) in q.iter_mut().zip(high) {
                *q |= ((byte >> (2 * pair)) & 3) << 4;
            }
        }
    }
    for (scale, &byte) in parts.scales.iter_mut().zip(&block[192..208]) {
        *scale = byte as i8;
    }
}
