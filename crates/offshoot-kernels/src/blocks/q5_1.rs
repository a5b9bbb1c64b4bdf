//! Q5_1: `w = d * q + m`, 32 weights in 24 bytes.
//!
//! ```text
//! d: f16 | m: f16 | 4 bytes, bit i the fifth bit of q[i] | 16 bytes of low bits as in Q4_0
//! ```

use half::f16;

use super::bits::{
    add_fifth_bits, nibbles, push_fifth_bits, push_nibbles, put_fifth_bits, put_nibbles, sized,
    u16_at,
};
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
    let block = sized::<24>(block);
    parts.set_scale(u16_at(block, 0));
    parts.dmin = u16_at(block, 2);
    parts.mins = [-1; SUBS_MAX];
    nibbles(&block[8..], &mut parts.q[..32]);
    add_fifth_bits(&block[4..8], &mut parts.q[..32]);
}

/// As ggml's `quantize_row_q5_1_ref`: the least weight becomes quant 0, the greatest quant 31.
fn quantize_block(weights: &[f32], out: &mut Vec<u8>) {
    let (min, max) = range(weights);
    let d = (max - min) / 31.0;
    let inverse = inverse(d);
    let q = std::array::from_fn(|i| (((weights[i] - min) * inverse + 0.5) as u8).min(31));
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    out.extend_from_slice(&f16::from_f32(min).to_le_bytes());
    push_fifth_bits(&q, out);
    push_nibbles(&q, out);
}

/// The greatest quant.
const HIGH: f32 = 31.0;

fn fit_block(weights: &[f32], out: &mut [u8]) {
    let block = Weighted::<32>::of(weights);
    let (d, m) = affine_halves(&block, HIGH);
    let q = bytes(&block.quants(d, m, (0.0, HIGH)), 0.0);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..4].copy_from_slice(&f16::from_f32(m).to_le_bytes());
    put_fifth_bits(&q, &mut out[4..8]);
    put_nibbles(&q, &mut out[8..]);
}
