//! Q4_K: `w = d * scale * q - dmin * min`, 256 weights in 144 bytes, sub-blocks of 32.
//!
//! ```text
//! d: f16 | dmin: f16 | 12 bytes of scales and mins | 128 bytes of quants
//! ```
//! Each run of 64 weights has 32 bytes of quants, the first 32 weights in the low halves.

use super::bits::{nibbles, sized, u16_at};
use super::fit::fit_q4_k;
use super::parts::{Layout, Levels, Parts};

pub(super) const LAYOUT: Layout = Layout {
    sub_len: 32,
    levels: Levels::Linear { zero: 0 },
    parts,
    quantize_block: None,
    fit_block: Some(fit_q4_k),
};

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let block = sized::<144>(block);
    parts.set_scale(u16_at(block, 0));
    parts.dmin = u16_at(block, 2);
    scales_and_mins(&block[4..16], parts);
    for (packed, q) in block[16..].chunks_exact(32).zip(parts.q.chunks_exact_mut(64)) {
        nibbles(packed, q);
    }
}

/// Unpacks eight 6-bit scales and eight 6-bit mins from 12 bytes.
///
/// The first four scales are the low 6 bits of bytes 0 to 3, the first four mins those of bytes 4 to
/// 7. Of the last four, bytes 8 to 11 hold the low 4 bits (scale below, min above) and the bytes of
/// the first four the high 2.
pub(super) fn scales_and_mins(packed: &[u8], parts: &mut Parts) {
    for i in 0..4 {
        let (scale, min, low) = (packed[i], packed[i + 4], packed[i + 8]);
        parts.scales[i] = (scale & 63) as i8;
        parts.mins[i] = (min & 63) as i8;
        parts.scales[i + 4] = ((low & 15) | ((scale >> 6) << 4)) as i8;
        parts.mins[i + 4] = ((low >> 4) | ((min >> 6) << 4)) as i8;
    }
}
