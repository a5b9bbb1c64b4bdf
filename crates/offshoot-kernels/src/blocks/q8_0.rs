//! Q8_0: `w = d * q`, 32 weights in 34 bytes.
//!
//! ```text
//! d: f16 | 32 signed bytes
//! ```
//! Taken apart, 128 is added to the quants so that they are unsigned as in every other format.

use half::f16;

use super::bits::{sized, u16_at};
use super::fit::{Weighted, furthest_halves};
use super::parts::{Layout, Levels, Parts};
use super::rounding::{furthest, inverse};

pub(super) const LAYOUT: Layout = Layout {
    sub_len: 32,
    levels: Levels::Linear { zero: 128 },
    parts,
    quantize_block: Some(quantize_block),
    fit_block: Some(fit_block),
};

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let block = sized::<34>(block);
    parts.set_scale(u16_at(block, 0));
    for (q, &byte) in parts.q.iter_mut().zip(&block[2..]) {
        *q = byte ^ 128;
    }
}

/// As ggml's `quantize_row_q8_0_ref`: the weight furthest from zero becomes 127 or -127.
fn quantize_block(weights: &[f32], out: &mut Vec<u8>) {
    let d = furthest(weights).abs() / 127.0;
    let inverse = inverse(d);
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    out.extend(weights.iter().map(|w| (w * inverse).round() as i8 as u8));
}

/// Quants as ggml writes them, which leaves -128 unused.
const RANGE: (f32, f32) = (-127.0, 127.0);

fn fit_block(weights: &[f32], out: &mut [u8]) {
    let block = Weighted::<32>::of(weights);
    let d = furthest_halves(&block, RANGE);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (out, q) in out[2..].iter_mut().zip(block.quants(d, 0.0, RANGE)) {
        *out = q as i8 as u8;
    }
}
