//! Q4_1: `w = d * q + m`, 32 weights in 20 bytes.
//!
//! ```text
//! d: f16 | m: f16 | 16 bytes, byte j holding q[j] below and q[j + 16] above
//! ```

use half::f16;

use super::bits::{nibbles, push_nibbles, put_nibbles, sized, u16_at};
use super::fit::{Weighted, affine_halves, bytes};
use super::parts::{Layout, Levels, Parts, SUBS_MAX};
use super::rounding::{inverse, range};

pub(super) const LAYOUT: Layout = Layout {
    sub_len: 32,
    levels: Levels::Linear { zero: 0 },
    parts,
    quantize_block: Some(quantize_block),
    fit_block: Some(fit_block),
};

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let block = sized::<20>(block);
    parts.set_scale(u16_at(block, 0));
    parts.dmin = u16_at(block, 2);
    parts.mins = [-1; SUBS_MAX];
    nibbles(&block[4..], &mut parts.q[..32]);
}

/// As ggml's `quantize_row_q4_1_ref`: the least weight becomes quant 0, the greatest quant 15.
fn quantize_block(weights: &[f32], out: &mut Vec<u8>) {
    let (min, max) = range(weights);
    let d = (max - min) / 15.0;
    let inverse = inverse(d);
    let q = std::array::from_fn(|i| (((weights[i] - min) * inverse + 0.5) as u8).min(15));
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    out.extend_from_slice(&f16::from_f32(min).to_le_bytes());
    push_nibbles(&q, out);
}

/// The greatest quant.
const HIGH: f32 = 15.0;

fn fit_block(weights: &[f32], out: &mut [u8]) {
    let block = Weighted::<32>::of(weights);
    let (d, m) = affine_halves(&block, HIGH);
    let q = bytes(&block.quants(d, m, (0.0, HIGH)), 0.0);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..4].copy_from_slice(&f16::from_f32(m).to_le_bytes());
    put_nibbles(&q, &mut out[4..]);
}
