//! Sixteen logical lanes: the one set of operations that every fast kernel is written in.
//!
//! A kernel is a generic function over [`Lanes`]. Each instruction set implements the same
//! operations with the same rounding, so a kernel gives the same bits on all of them: the portable
//! arrays are the oracle, the registers of AVX2, AVX-512 and NEON the fast forms. What must hold for that:
//!
//! - `fma` rounds once everywhere; products and sums are never contracted by the compiler.
//! - Integer products accumulate in 32 bits and cannot saturate.
//! - A reduction over lanes is one fixed tree: halves are added, 8 + 8, 4 + 4, 2 + 2, 1 + 1.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use portable::Portable;

/// Sixteen lanes of `f32` or `i32`, or the 64 bytes that fill them.
///
/// # Safety
/// All functions may only be called where the implementation's instructions exist; those that take
/// pointers read or write 16 elements (64 bytes for `bytes_load`) there, with no alignment asked.
pub(crate) trait Lanes: Copy {
    /// Tokens that a product is worth taking at once, by the registers there are: 1, 4 or a panel's 8.
    /// What is computed does not depend on it.
    const TOKENS: usize;
    /// Whether all four [`Lanes::dot`]s of a block's half go into one running product, also those of
    /// 6 bits, instead of two into each of two.
    const ONE_CHAIN: bool = false;

    /// 16 x `f32`.
    type F: Copy;
    /// 16 x `i32`.
    type I: Copy;
    /// 64 x `u8`, lane `i` being bytes `4 * i .. 4 * i + 4`.
    type B: Copy;
    /// A running dot product of 16 rows, of at most four [`Lanes::dot`]s, or two of 6 bits.
    type D: Copy;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F;
    /// Reads 16 floats.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Writes 16 floats.
    unsafe fn store(p: *mut f32, x: Self::F);
    /// `a + b`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a` where `a > b`, else `b`.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a` where `a < b`, else `b`.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// The magnitude.
    unsafe fn abs(a: Self::F) -> Self::F;
    /// Lanes `0..n` of `a`, the others of `b`.
    unsafe fn first(n: usize, a: Self::F, b: Self::F) -> Self::F;
    /// 16 half-precision floats, widened.
    unsafe fn load_f16(p: *const u16) -> Self::F;
    /// Rounds to half precision, to nearest even, and writes 16 of them.
    unsafe fn store_f16(p: *mut u16, x: Self::F);
    /// 16 unsigned bytes as floats.
    unsafe fn load_u8(p: *const u8) -> Self::F;
    /// 16 signed bytes as floats.
    unsafe fn load_i8(p: *const i8) -> Self::F;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn to_i32(x: Self::F) -> Self::I;
    /// Converts exactly or to nearest.
    unsafe fn to_f32(x: Self::I) -> Self::F;
    /// All lanes `x`.
    unsafe fn splat_i(x: i32) -> Self::I;
    /// `a + b`, wrapping.
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    /// `a * 2^N`, wrapping.
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I;
    /// Writes the low byte of each lane.
    unsafe fn store_i8(p: *mut i8, x: Self::I);
    /// `x * 2^n` for a result in the normal range, by adding to the exponent bits.
    unsafe fn scale_by_power(x: Self::F, n: Self::I) -> Self::F;

    /// Reads 16 integers.
    unsafe fn load_i(p: *const i32) -> Self::I;
    /// Writes 16 integers.
    unsafe fn store_i(p: *mut i32, x: Self::I);
    /// `a ^ b`.
    unsafe fn xor_i(a: Self::I, b: Self::I) -> Self::I;
    /// `a & b`.
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I;
    /// `a` moved down by `n` bits below 32, zeros following.
    unsafe fn shr_i(a: Self::I, n: u32) -> Self::I;
    /// The high and the low half of `a * m`, both unsigned.
    unsafe fn wide_mul(a: Self::I, m: u32) -> (Self::I, Self::I);
    /// The bits of each lane.
    unsafe fn to_bits(x: Self::F) -> Self::I;
    /// The numbers that have these bits.
    unsafe fn from_bits(x: Self::I) -> Self::F;
    /// The square root.
    unsafe fn sqrt(x: Self::F) -> Self::F;

    /// `table[x]` for each lane, whose `x` is below 256; `table[255 - x]` must be `-table[x]`.
    #[inline(always)]
    unsafe fn step_of(table: &[f32; 256], x: Self::I) -> Self::F {
        let (mut places, mut steps) = ([0i32; 16], [0f32; 16]);
        // SAFETY: both arrays hold 16 elements.
        unsafe { Self::store_i(places.as_mut_ptr(), x) };
        for (step, place) in steps.iter_mut().zip(places) {
            *step = table[(place & 255) as usize];
        }
        // SAFETY: as above.
        unsafe { Self::load(steps.as_ptr()) }
    }

    /// Asks for the cache line at `p`, which may lie anywhere.
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}

    /// The same, into the second cache: for what is read later than the first one holds it.
    #[inline(always)]
    unsafe fn prefetch_second(_p: *const u8) {}

    /// Reads 64 bytes.
    unsafe fn bytes_load(p: *const u8) -> Self::B;
    /// The low four bits of each byte.
    unsafe fn low_nibbles(b: Self::B) -> Self::B;
    /// The high four bits of each byte, moved low.
    unsafe fn high_nibbles(b: Self::B) -> Self::B;
    /// `low | (((plane << LEFT) >> RIGHT) & mask)` byte by byte; bits that a shift carries over a
    /// byte's border must lie outside the mask.
    unsafe fn or_plane<const LEFT: u32, const RIGHT: u32>(
        low: Self::B,
        plane: Self::B,
        mask: u8,
    ) -> Self::B;
    /// `table[b]` for each byte `b` below 16.
    unsafe fn lookup(table: &[u8; 16], b: Self::B) -> Self::B;
    /// A running dot product that begins with `x`.
    unsafe fn dot_from(x: Self::I) -> Self::D;
    /// Adds to each lane the four products of its unsigned bytes, all below `2^bits`, with the four
    /// signed bytes at `s`. `bits` is 4, 5, 6 or 8.
    unsafe fn dot(acc: Self::D, bits: usize, u: Self::B, s: *const i8) -> Self::D;
    /// `a + b`, both of products of `bits`, wrapping.
    unsafe fn dot_sum(bits: usize, a: Self::D, b: Self::D) -> Self::I;
    /// Adds to each lane the two products of its pair of bfloat16 at `w` with the pair at `x`: the
    /// odd element first, each step rounded once, subnormals in and out taken as zero.
    unsafe fn dot_bf16(acc: Self::F, w: *const u16, x: *const u16) -> Self::F;

    /// The sum of all lanes, by the fixed tree.
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        let mut v = [0f32; 16];
        // SAFETY: `v` holds 16 floats.
        unsafe { Self::store(v.as_mut_ptr(), x) };
        let mut n = 8;
        while n > 0 {
            for i in 0..n {
                v[i] += v[i + n];
            }
            n /= 2;
        }
        v[0]
    }

    /// The greatest lane, by the same tree with [`Lanes::max`].
    #[inline(always)]
    unsafe fn greatest(x: Self::F) -> f32 {
        let mut v = [0f32; 16];
        // SAFETY: `v` holds 16 floats.
        unsafe { Self::store(v.as_mut_ptr(), x) };
        let mut n = 8;
        while n > 0 {
            for i in 0..n {
                v[i] = if v[i] > v[i + n] { v[i] } else { v[i + n] };
            }
            n /= 2;
        }
        v[0]
    }
}
