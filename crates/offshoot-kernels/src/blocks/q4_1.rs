//! Q4_1: `w = d * q + m`, 32 weights in 20 bytes.
//!
//! ```text
//! d: f16 | m: f16 | 16 bytes, byte j holding q[j] below and q[j + 16] above
//! ```

use super::parts::{Layout, Levels, Parts, SUBS_MAX, nibbles, sized, u16_at};

pub(super) const LAYOUT: Layout = Layout { sub_len: 32, levels: Levels::Linear { zero: 0 }, parts };

pub(crate) fn parts(block: &[u8]) -> Parts {
    let block = sized::<20>(block);
    let mut parts = Parts::with_scale(u16_at(block, 0));
    parts.dmin = u16_at(block, 2);
    parts.mins = [-1; SUBS_MAX];
    nibbles(&block[4..], &mut parts.q[..32]);
    parts
}
