//! IQ4_NL: `w = d * CODEBOOK[q]`, 32 weights in 18 bytes, laid out as Q4_0.

use super::parts::{Layout, Levels, Parts};
use super::q4_0;

/// The numbers that the 16 quants of IQ4_NL and IQ4_XS stand for: closer together around zero.
pub(crate) const CODEBOOK: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) const LAYOUT: Layout =
    Layout { sub_len: 32, levels: Levels::Codebook, parts, quantize_block: None, fit_block: None };

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    q4_0::parts(block, parts);
}
