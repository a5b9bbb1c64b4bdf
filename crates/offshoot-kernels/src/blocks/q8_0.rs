//! Q8_0: `w = d * q`, 32 weights in 34 bytes.
//!
//! ```text
//! d: f16 | 32 signed bytes
//! ```
//! Taken apart, 128 is added to the quants so that they are unsigned as in every other format.

use super::parts::{Layout, Levels, Parts, sized, u16_at};

pub(super) const LAYOUT: Layout =
    Layout { sub_len: 32, levels: Levels::Linear { zero: 128 }, parts };

pub(crate) fn parts(block: &[u8]) -> Parts {
    let block = sized::<34>(block);
    let mut parts = Parts::with_scale(u16_at(block, 0));
    for (q, &byte) in parts.q.iter_mut().zip(&block[2..]) {
        *q = byte ^ 128;
    }
    parts
}
