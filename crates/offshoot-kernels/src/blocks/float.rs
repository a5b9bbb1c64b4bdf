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

/// Appends F32.
pub(super) fn write_f32(weights: &[f32], out: &mut Vec<u8>) {
    out.extend(weights.iter().flat_map(|w| w.to_le_bytes()));
}

/// Appends F16, rounded to nearest, ties to even; beyond 65504 comes infinity.
pub(super) fn write_f16(weights: &[f32], out: &mut Vec<u8>) {
    out.extend(weights.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()));
}

/// Appends BF16, rounded to nearest, ties to even.
pub(super) fn write_bf16(weights: &[f32], out: &mut Vec<u8>) {
    out.extend(weights.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()));
}
