//! Q5_1: `w = d * q + m`, 32 weights in 24 bytes.
//!
//! ```text
//! d: f16 | m: f16 | 4 bytes, bit i the fifth bit of q[i] | 16 bytes of low bits as in Q4_0
//! ```

use super::parts::{Layout, Levels, Parts, SUBS_MAX, add_fifth_bits, nibbles, sized, u16_at};

pub(super) const LAYOUT: Layout = Layout { sub_len: 32, levels: Levels::Linear { zero: 0 }, parts };

pub(crate) fn parts(block: &[u8]) -> Parts {
    let block = sized::<24>(block);
    let mut parts = Parts::with_scale(u16_at(block, 0));
    parts.dmin = u16_at(block, 2);
    parts.mins = [-1; SUBS_MAX];
    nibbles(&block[8..], &mut parts.q[..32]);
    add_fifth_bits(&block[4..8], &mut parts.q[..32]);
    parts
}
