//! Lanes as fours of 128-bit registers, for Arm processors with the dot instructions.

use super::Lanes;
use std::arch::aarch64::*;
use std::arch::asm;

/// NEON with the dot instruction of signed bytes; with that of unsigned by signed ones if `I8MM`, else
/// with the same sums from bytes moved down by 128.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const I8MM: bool>;

/// A running dot product, and the sums of the signed bytes that 128 more of each weight count for.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    wide: [int32x4_t; 4],
    moved: int32x4_t,
}

/// All quarters of `a` through `f`.
#[inline(always)]
fn map<T: Copy, U>(a: [T; 4], f: impl Fn(T) -> U) -> [U; 4] {
    a.map(f)
}

/// All quarters of `a` and `b` through `f`.
#[inline(always)]
fn zip<T: Copy, U: Copy, V>(a: [T; 4], b: [U; 4], f: impl Fn(T, U) -> V) -> [V; 4] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// `acc` and, in each lane, the four products of the signed bytes of `a` and `b`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: only called from the lanes below, where the instruction exists; it touches no memory.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// As [`sdot`], with unsigned bytes `a`.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn usdot(mut acc: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: only called from the lanes below, where the instruction exists; it touches no memory.
    unsafe {
        asm!("usdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// Zero of the same sign for subnormal lanes.
#[inline(always)]
unsafe fn flush(x: float32x4_t) -> float32x4_t {
    // SAFETY: only called from the lanes below.
    unsafe {
        let tiny = vcltq_f32(vabsq_f32(x), vdupq_n_f32(f32::MIN_POSITIVE));
        let sign = vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(1 << 31));
        vbslq_f32(tiny, vreinterpretq_f32_u32(sign), x)
    }
}

/// Sixteen numbers of 16 bits as floats.
#[inline(always)]
unsafe fn floats_of(low: int16x8_t, high: int16x8_t) -> [float32x4_t; 4] {
    // SAFETY: only called from the lanes below.
    unsafe {
        [
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
            vcvtq_f32_s32(vmovl_high_s16(low)),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
            vcvtq_f32_s32(vmovl_high_s16(high)),
        ]
    }
}

// SAFETY of the intrinsics below: the trait asks its callers for a processor that has them, and for
// 16 elements (or 64 bytes) behind each pointer; no load or store asks for alignment.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const I8MM: bool> Lanes for Neon<I8MM> {
    const TOKENS: usize = 4;
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];
    type D = Running;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        std::array::from_fn(|i| unsafe { vld1q_f32(p.add(4 * i)) })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe { vst1q_f32(p.add(4 * i), x) };
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| unsafe { vfmsq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // Not the instruction for it, which has a rule of its own for NaN.
        zip(a, b, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        map(a, |a| unsafe { vabsq_f32(a) })
    }
    #[inline(always)]
    unsafe fn first(n: usize, a: Self::F, b: Self::F) -> Self::F {
        unsafe {
            let n = vdupq_n_u32(n.min(16) as u32);
            std::array::from_fn(|i| {
                let lanes: [u32; 4] = std::array::from_fn(|lane| (4 * i + lane) as u32);
                vbslq_f32(vcltq_u32(vld1q_u32(lanes.as_ptr()), n), a[i], b[i])
            })
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        std::array::from_fn(|i| unsafe {
            vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.add(4 * i))))
        })
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe { vst1_u16(p.add(4 * i), vreinterpret_u16_f16(vcvt_f16_f32(x))) };
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe {
            let bytes = vld1q_u8(p);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            floats_of(vreinterpretq_s16_u16(low), vreinterpretq_s16_u16(high))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe {
            let bytes = vld1q_s8(p);
            floats_of(vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes))
        }
    }
    #[inline(always)]
    unsafe fn to_i32(x: Self::F) -> Self::I {
        map(x, |x| unsafe {
            // What is out of range is the least integer, as on other processors.
            let (least, end) = (vdupq_n_f32(-2147483648.0), vdupq_n_f32(2147483648.0));
            let inside = vandq_u32(vcgeq_f32(x, least), vcltq_f32(x, end));
            vbslq_s32(inside, vcvtnq_s32_f32(x), vdupq_n_s32(i32::MIN))
        })
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        map(x, |x| unsafe { vcvtq_f32_s32(x) })
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| unsafe { vaddq_s32(a, b) })
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I {
        map(a, |a| unsafe { vshlq_s32(a, vdupq_n_s32(N as i32)) })
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        unsafe {
            let [a, b, c, d] = map(x, |x| vmovn_s32(x));
            let halves = [vcombine_s16(a, b), vcombine_s16(c, d)].map(|x| vmovn_s16(x));
            vst1q_s8(p, vcombine_s8(halves[0], halves[1]));
        }
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: Self::F, n: Self::I) -> Self::F {
        zip(x, n, |x, n| unsafe {
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32::<23>(n)))
        })
    }

    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> Self::I {
        std::array::from_fn(|i| unsafe { vld1q_s32(p.add(4 * i)) })
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, x: Self::I) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe { vst1q_s32(p.add(4 * i), x) };
        }
    }
    #[inline(always)]
    unsafe fn xor_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| unsafe { veorq_s32(a, b) })
    }
    #[inline(always)]
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| unsafe { vandq_s32(a, b) })
    }
    #[inline(always)]
    unsafe fn shr_i(a: Self::I, n: u32) -> Self::I {
        map(a, |a| unsafe {
            let moved = vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-(n as i32)));
            vreinterpretq_s32_u32(moved)
        })
    }
    #[inline(always)]
    unsafe fn wide_mul(a: Self::I, m: u32) -> (Self::I, Self::I) {
        unsafe {
            let high = map(a, |a| {
                let a = vreinterpretq_u32_s32(a);
                let low = vshrn_n_u64::<32>(vmull_n_u32(vget_low_u32(a), m));
                let high = vshrn_n_u64::<32>(vmull_n_u32(vget_high_u32(a), m));
                vreinterpretq_s32_u32(vcombine_u32(low, high))
            });
            (high, map(a, |a| vmulq_n_s32(a, m as i32)))
        }
    }
    #[inline(always)]
    unsafe fn to_bits(x: Self::F) -> Self::I {
        map(x, |x| unsafe { vreinterpretq_s32_f32(x) })
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        map(x, |x| unsafe { vreinterpretq_f32_s32(x) })
    }
    #[inline(always)]
    unsafe fn sqrt(x: Self::F) -> Self::F {
        map(x, |x| unsafe { vsqrtq_f32(x) })
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe {
            asm!("prfm pldl1keep, [{0}]", in(reg) p,
                options(readonly, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn prefetch_second(p: *const u8) {
        unsafe {
            asm!("prfm pldl2keep, [{0}]", in(reg) p,
                options(readonly, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn bytes_load(p: *const u8) -> Self::B {
        std::array::from_fn(|i| unsafe { vld1q_u8(p.add(16 * i)) })
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: Self::B) -> Self::B {
        map(b, |b| unsafe { vandq_u8(b, vdupq_n_u8(15)) })
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: Self::B) -> Self::B {
        map(b, |b| unsafe { vshrq_n_u8::<4>(b) })
    }
    #[inline(always)]
    unsafe fn or_plane<const LEFT: u32, const RIGHT: u32>(
        low: Self::B,
        plane: Self::B,
        mask: u8,
    ) -> Self::B {
        zip(low, plane, |low, plane| unsafe {
            let moved = vshlq_u8(plane, vdupq_n_s8(LEFT as i8));
            let moved = vshlq_u8(moved, vdupq_n_s8(-(RIGHT as i8)));
            vorrq_u8(low, vandq_u8(moved, vdupq_n_u8(mask)))
        })
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], b: Self::B) -> Self::B {
        unsafe {
            let table = vld1q_u8(table.as_ptr());
            map(b, |b| vqtbl1q_u8(table, b))
        }
    }
    #[inline(always)]
    unsafe fn dot_from(x: Self::I) -> Self::D {
        unsafe { Running { wide: x, moved: vdupq_n_s32(0) } }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::D, bits: usize, u: Self::B, s: *const i8) -> Self::D {
        unsafe {
            let s = vreinterpretq_s8_s32(vdupq_n_s32(s.cast::<i32>().read_unaligned()));
            let Running { wide, moved } = acc;
            if bits < 8 {
                let wide = zip(wide, u, |wide, u| sdot(wide, vreinterpretq_s8_u8(u), s));
                return Running { wide, moved };
            }
            if I8MM {
                return Running { wide: zip(wide, u, |wide, u| usdot(wide, u, s)), moved };
            }
            let wide = zip(wide, u, |wide, u| {
                sdot(wide, vreinterpretq_s8_u8(veorq_u8(u, vdupq_n_u8(128))), s)
            });
            Running { wide, moved: sdot(moved, vdupq_n_s8(1), s) }
        }
    }
    #[inline(always)]
    unsafe fn dot_sum(bits: usize, a: Self::D, b: Self::D) -> Self::I {
        unsafe {
            let wide = Self::add_i(a.wide, b.wide);
            if I8MM || bits < 8 {
                return wide;
            }
            let moved = vshlq_n_s32::<7>(vaddq_s32(a.moved, b.moved));
            map(wide, |wide| vaddq_s32(wide, moved))
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, w: *const u16, x: *const u16) -> Self::F {
        unsafe {
            let w = map(Self::bytes_load(w.cast()), |w| vreinterpretq_u32_u8(w));
            let x = vdupq_n_u32(x.cast::<u32>().read_unaligned());
            let odd = |v| flush(vreinterpretq_f32_u32(vandq_u32(v, vdupq_n_u32(0xFFFF_0000))));
            let even = |v| flush(vreinterpretq_f32_u32(vshlq_n_u32::<16>(v)));
            zip(acc, w, |acc, w| {
                let first = flush(vfmaq_f32(flush(acc), odd(w), odd(x)));
                flush(vfmaq_f32(first, even(w), even(x)))
            })
        }
    }
}
