//! Q4_0: `w = d * (q - 8)`, 32 weights in 18 bytes.
//!
//! ```text
//! d: f16 | 16 bytes, byte j holding q[j] below and q[j + 16] above
//! ```

use super::parts::{Layout, Levels, Parts, nibbles, sized, u16_at};

pub(super) const LAYOUT: Layout = Layout { sub_len: 32, levels: Levels::Linear { zero: 8 }, parts };

pub(crate) fn parts(block: &[u8]) -> Parts {
    let block = sized::<18>(block);
    let mut parts = Parts::with_scale(u16_at(block, 0));
    nibbles(&block[2..], &mut parts.q[..32]);
    parts
}
