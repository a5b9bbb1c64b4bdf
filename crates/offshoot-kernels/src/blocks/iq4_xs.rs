//! IQ4_XS: `w = d * scale * CODEBOOK[q]`, 256 weights in 136 bytes, sub-blocks of 32.
//!
//! ```text
//! d: f16 | u16 of the scales' high 2 bits | 4 bytes of their low 4 bits | 128 bytes of quants
//! ```
//! The 6-bit scales have 32 added and lie lowest bits first. Each sub-block of 32 weights has 16
//! bytes of quants, its first half in the low halves.

use super::bits::{nibbles, sized, u16_at};
use super::parts::{Layout, Levels, Parts};

pub(super) const LAYOUT: Layout =
    Layout { sub_len: 32, levels: Levels::Codebook, parts, quantize_block: None, fit_block: None };

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let block = sized::<136>(block);
    parts.set_scale(u16_at(block, 0));
    let high = u16_at(block, 2);
    for i in 0..8 {
        let low = (block[4 + i / 2] >> (4 * (i % 2))) & 15;
        let high = ((high >> (2 * i)) & 3) as u8;
        parts.scales[i] = (low | (high << 4)) as i8 - 32;
    }
    for (packed, q) in block[8..].chunks_exact(16).zip(parts.q.chunks_exact_mut(32)) {
        nibbles(packed, q);
    }
}
