//! Q5_0: `w = d * (q - 16)`, 32 weights in 22 bytes.
//!
//! ```text
//! d: f16 | 4 bytes, bit i the fifth bit of q[i] | 16 bytes of low bits as in Q4_0
//! ```

use half::f16;

use super::bits::{
    add_fifth_bits, nibbles, push_fifth_bits, push_nibbles, put_fifth_bits, put_nibbles, sized,
    u16_at,
};
use super::fit::{Weighted, bytes, symmetric_halves};
use super::parts::{Layout, Levels, Parts};
use super::rounding::{furthest, inverse};

pub(super) const LAYOUT: Layout = Layout {
    sub_len: 32,
    levels: Levels::Linear { zero: 16 },
    parts,
    quantize_block: Some(quantize_block),
    fit_block: Some(fit_block),
};

pub(crate) fn parts(block: &[u8], parts: &mut Parts) {
    let block = sized::<22>(block);
    parts.set_scale(u16_at(block, 0));
    nibbles(&block[6..], &mut parts.q[..32]);
    add_fifth_bits(&block[2..6], &mut parts.q[..32]);
}

/// As ggml's `quantize_row_q5_0_ref`: the weight furthest from zero becomes quant 0.
fn quantize_block(weights: &[f32], out: &mut Vec<u8>) {
    let d = furthest(weights) / -16.0;
    let inverse = inverse(d);
    let q = std::array::from_fn(|i| ((weights[i] * inverse + 16.5) as u8).min(31));
    out.extend_from_slice(&f16::from_f32(d).to_le_bytes());
    push_fifth_bits(&q, out);
    push_nibbles(&q, out);
}

/// Quants run from -16 to 15 below and above the zero point.
const RANGE: (f32, f32) = (-16.0, 15.0);

fn fit_block(weights: &[f32], out: &mut [u8]) {
    let block = Weighted::<32>::of(weights);
    let d = symmetric_halves(&block, RANGE);
    let q = bytes(&block.quants(d, 0.0, RANGE), RANGE.0);
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    put_fifth_bits(&q, &mut out[2..6]);
    put_nibbles(&q, &mut out[6..]);
}
