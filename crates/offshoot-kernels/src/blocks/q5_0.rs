//! Q5_0: `w = d * (q - 16)`, 32 weights in 22 bytes.
//!
//! ```text
//! d: f16 | 4 bytes, bit i the fifth bit of q[i] | 16 bytes of low bits as in Q4_0
//! ```

use super::parts::{Layout, Levels, Parts, add_fifth_bits, nibbles, sized, u16_at};

pub(super) const LAYOUT: Layout =
    Layout { sub_len: 32, levels: Levels::Linear { zero: 16 }, parts };

pub(crate) fn parts(block: &[u8]) -> Parts {
    let block = sized::<22>(block);
    let mut parts = Parts::with_scale(u16_at(block, 0));
    nibbles(&block[6..], &mut parts.q[..32]);
    add_fifth_bits(&block[2..6], &mut parts.q[..32]);
    parts
}
