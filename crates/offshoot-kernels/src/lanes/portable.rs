//! Lanes as arrays: the reference for every other implementation.

use super::Lanes;
use half::{bf16, f16};

/// The scalar implementation; runs anywhere.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn map(a: [f32; 16], f: impl Fn(f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i]))
}

#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

// SAFETY of the pointer reads below: the trait asks its callers for 16 elements (or 64 bytes).
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Portable {
    const TOKENS: usize = 1;
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    type D = [i32; 16];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe { p.cast::<[f32; 16]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        map(a, f32::abs)
    }
    #[inline(always)]
    unsafe fn first(n: usize, a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| if i < n { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        let h = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        h.map(|h| f16::from_bits(h).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        let h = x.map(|x| f16::from_f32(x).to_bits());
        unsafe { p.cast::<[u16; 16]>().write_unaligned(h) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe { p.cast::<[u8; 16]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe { p.cast::<[i8; 16]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn to_i32(x: Self::F) -> Self::I {
        x.map(|x| {
            let r = x.round_ties_even();
            // Out of range gives the same "integer indefinite" as the x86 instruction.
            if (-2147483648.0..2147483648.0).contains(&r) { r as i32 } else { i32::MIN }
        })
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I {
        a.map(|a| a << N)
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        unsafe { p.cast::<[i8; 16]>().write_unaligned(x.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: Self::F, n: Self::I) -> Self::F {
        std::array::from_fn(|i| {
            f32::from_bits((x[i].to_bits() as i32).wrapping_add(n[i].wrapping_shl(23)) as u32)
        })
    }

    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> Self::I {
        unsafe { p.cast::<[i32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, x: Self::I) {
        unsafe { p.cast::<[i32; 16]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn xor_i(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] ^ b[i])
    }
    #[inline(always)]
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn shr_i(a: Self::I, n: u32) -> Self::I {
        a.map(|a| (a as u32 >> n) as i32)
    }
    #[inline(always)]
    unsafe fn wide_mul(a: Self::I, m: u32) -> (Self::I, Self::I) {
        let wide = a.map(|a| u64::from(a as u32) * u64::from(m));
        (wide.map(|x| (x >> 32) as i32), wide.map(|x| x as i32))
    }
    #[inline(always)]
    unsafe fn to_bits(x: Self::F) -> Self::I {
        x.map(|x| x.to_bits() as i32)
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        x.map(|x| f32::from_bits(x as u32))
    }
    #[inline(always)]
    unsafe fn sqrt(x: Self::F) -> Self::F {
        map(x, f32::sqrt)
    }
    #[inline(always)]
    unsafe fn bytes_load(p: *const u8) -> Self::B {
        unsafe { p.cast::<[u8; 64]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: Self::B) -> Self::B {
        b.map(|b| b & 15)
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: Self::B) -> Self::B {
        b.map(|b| b >> 4)
    }
    #[inline(always)]
    unsafe fn or_plane<const LEFT: u32, const RIGHT: u32>(
        low: Self::B,
        plane: Self::B,
        mask: u8,
    ) -> Self::B {
        std::array::from_fn(|i| low[i] | (((plane[i] << LEFT) >> RIGHT) & mask))
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], b: Self::B) -> Self::B {
        b.map(|b| table[usize::from(b & 15)])
    }
    #[inline(always)]
    unsafe fn dot_from(x: Self::I) -> Self::D {
        x
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::D, bits: usize, u: Self::B, s: *const i8) -> Self::D {
        debug_assert!(u.iter().all(|&u| u32::from(u) < 1 << bits), "{u:?} of {bits} bits");
        let s = unsafe { s.cast::<[i8; 4]>().read_unaligned() };
        std::array::from_fn(|i| {
            let products = (0..4).map(|j| i32::from(u[4 * i + j]) * i32::from(s[j]));
            acc[i].wrapping_add(products.sum::<i32>())
        })
    }
    #[inline(always)]
    unsafe fn dot_sum(_: usize, a: Self::D, b: Self::D) -> Self::I {
        unsafe { Self::add_i(a, b) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, w: *const u16, x: *const u16) -> Self::F {
        let w = unsafe { w.cast::<[u16; 32]>().read_unaligned() };
        let x = unsafe { x.cast::<[u16; 2]>().read_unaligned() };
        let wide = |h: u16| flush(bf16::from_bits(h).to_f32());
        std::array::from_fn(|i| {
            let odd = flush(wide(w[2 * i + 1]).mul_add(wide(x[1]), flush(acc[i])));
            flush(wide(w[2 * i]).mul_add(wide(x[0]), odd))
        })
    }
}
