//! The random numbers of this room: [`Philox`], which the kernels define and make in bulk.

pub use offshoot_kernels::Philox;

/// The low and the high half of `x`.
pub(crate) fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}
