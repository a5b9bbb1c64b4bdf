//! F32, F16 and BF16: little-endian numbers, one a block.

use half::{bf16, f16};

/// Reads F32, four bytes a weight.
pub(super) fn read_f32(bytes: &[u8], out: &mut [f32]) {
    for (w, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *w = f32::from_le_bytes(bytes);
    }
}

/// Reads F16, two bytes a weight; every half is exact in single precision.
pub(super) fn read_f16(bytes: &[u8], out: &mut [f32]) {
    for (w, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *w = f16::from_le_bytes(bytes).to_f32();
    }
}

/// Reads BF16, two bytes a weight: the upper half of the `f32`.
pub(super) fn read_bf16(bytes: &[u8], out: &mut [f32]) {
    for (w, &bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *w = bf16::from_le_bytes(bytes).to_f32();
    }
}
