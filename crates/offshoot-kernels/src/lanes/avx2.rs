//! Lanes as pairs of 256-bit registers, for processors without AVX-512.

use super::Lanes;
use std::arch::x86_64::*;

/// AVX2 with FMA and F16C; with the 256-bit dot instruction of AVX-VNNI if `VNNI`, else with the same
/// sums from products of bytes that are added in 16 bits as long as these cannot overflow.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>;

/// A running dot product: finished sums of 32 bits, and sums of pairs in 16.
#[derive(Clone, Copy)]
pub(crate) struct Running {
    wide: [__m256i; 2],
    pairs: [__m256i; 2],
}

/// Both halves of `a` through `f`.
#[inline(always)]
fn map<T: Copy, U>(a: [T; 2], f: impl Fn(T) -> U) -> [U; 2] {
    [f(a[0]), f(a[1])]
}

/// Both halves of `a` and `b` through `f`.
#[inline(always)]
fn zip<T: Copy, U: Copy, V>(a: [T; 2], b: [U; 2], f: impl Fn(T, U) -> V) -> [V; 2] {
    [f(a[0], b[0]), f(a[1], b[1])]
}

/// Zero of the same sign for subnormal lanes.
#[inline(always)]
unsafe fn flush(x: __m256) -> __m256 {
    // SAFETY: only called from the lanes below.
    unsafe {
        let sign = _mm256_set1_ps(-0.0);
        let tiny = _mm256_cmp_ps::<_CMP_LT_OQ>(
            _mm256_andnot_ps(sign, x),
            _mm256_set1_ps(f32::MIN_POSITIVE),
        );
        _mm256_blendv_ps(x, _mm256_and_ps(x, sign), tiny)
    }
}

/// The sums of neighbouring 16-bit numbers, in 32 bits.
#[inline(always)]
unsafe fn widen(pairs: __m256i) -> __m256i {
    // SAFETY: only called from the lanes below.
    unsafe { _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)) }
}

// SAFETY of the intrinsics below: the trait asks its callers for a processor that has them, and for
// 16 elements (or 64 bytes) behind each pointer; all loads and stores are the unaligned forms.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Lanes for Avx2<VNNI> {
    const TOKENS: usize = 4;
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    type D = Running;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { _mm256_add_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { _mm256_div_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { _mm256_max_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| unsafe { _mm256_min_ps(a, b) })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        map(a, |a| unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) })
    }
    #[inline(always)]
    unsafe fn first(n: usize, a: Self::F, b: Self::F) -> Self::F {
        unsafe {
            let n = _mm256_set1_epi32(n.min(16) as i32);
            let low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let lanes = [low, _mm256_add_epi32(low, _mm256_set1_epi32(8))];
            let inside = map(lanes, |l| _mm256_castsi256_ps(_mm256_cmpgt_epi32(n, l)));
            [_mm256_blendv_ps(b[0], a[0], inside[0]), _mm256_blendv_ps(b[1], a[1], inside[1])]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        unsafe {
            let [low, high] = map(x, |x| _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
            _mm_storeu_si128(p.cast(), low);
            _mm_storeu_si128(p.add(8).cast(), high);
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe {
            let bytes = _mm_loadu_si128(p.cast());
            let halves = [bytes, _mm_srli_si128::<8>(bytes)];
            map(halves, |b| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe {
            let bytes = _mm_loadu_si128(p.cast());
            let halves = [bytes, _mm_srli_si128::<8>(bytes)];
            map(halves, |b| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)))
        }
    }
    #[inline(always)]
    unsafe fn to_i32(x: Self::F) -> Self::I {
        // By the rounding that the thread is set to, which is to nearest even: Rust allows no other.
        map(x, |x| unsafe { _mm256_cvtps_epi32(x) })
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        map(x, |x| unsafe { _mm256_cvtepi32_ps(x) })
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| unsafe { _mm256_add_epi32(a, b) })
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I {
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            map(a, |a| _mm256_sll_epi32(a, n))
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        unsafe {
            // The low byte of each lane to the low four bytes of each half register.
            let low = _mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, //
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
            );
            let quarters = map(x, |x| {
                let bytes = _mm256_shuffle_epi8(x, low);
                let (a, b) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
                _mm_unpacklo_epi32(a, b)
            });
            _mm_storeu_si128(p.cast(), _mm_unpacklo_epi64(quarters[0], quarters[1]));
        }
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: Self::F, n: Self::I) -> Self::F {
        zip(x, n, |x, n| unsafe {
            let bits = _mm256_castps_si256(x);
            _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_slli_epi32::<23>(n)))
        })
    }

    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        unsafe {
            let half = _mm256_add_ps(x[0], x[1]);
            let quarter =
                _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    unsafe fn greatest(x: Self::F) -> f32 {
        unsafe {
            let half = _mm256_max_ps(x[0], x[1]);
            let quarter =
                _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> Self::I {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(8).cast())] }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, x: Self::I) {
        unsafe {
            _mm256_storeu_si256(p.cast(), x[0]);
            _mm256_storeu_si256(p.add(8).cast(), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn xor_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| unsafe { _mm256_xor_si256(a, b) })
    }
    #[inline(always)]
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| unsafe { _mm256_and_si256(a, b) })
    }
    #[inline(always)]
    unsafe fn shr_i(a: Self::I, n: u32) -> Self::I {
        unsafe {
            let n = _mm_cvtsi32_si128(n as i32);
            map(a, |a| _mm256_srl_epi32(a, n))
        }
    }
    #[inline(always)]
    unsafe fn wide_mul(a: Self::I, m: u32) -> (Self::I, Self::I) {
        unsafe {
            let m = _mm256_set1_epi32(m as i32);
            // Even lanes, and odd ones moved to even places.
            let even = map(a, |a| _mm256_mul_epu32(a, m));
            let odd = map(a, |a| _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), m));
            let high = zip(even, odd, |even, odd| {
                _mm256_blend_epi32::<0xAA>(_mm256_srli_epi64::<32>(even), odd)
            });
            let low = zip(even, odd, |even, odd| {
                _mm256_blend_epi32::<0xAA>(even, _mm256_slli_epi64::<32>(odd))
            });
            (high, low)
        }
    }
    #[inline(always)]
    unsafe fn to_bits(x: Self::F) -> Self::I {
        map(x, |x| unsafe { _mm256_castps_si256(x) })
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        map(x, |x| unsafe { _mm256_castsi256_ps(x) })
    }
    #[inline(always)]
    unsafe fn sqrt(x: Self::F) -> Self::F {
        map(x, |x| unsafe { _mm256_sqrt_ps(x) })
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_second(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn bytes_load(p: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: Self::B) -> Self::B {
        map(b, |b| unsafe { _mm256_and_si256(b, _mm256_set1_epi8(15)) })
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: Self::B) -> Self::B {
        map(b, |b| unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(b), _mm256_set1_epi8(15)) })
    }
    #[inline(always)]
    unsafe fn or_plane<const LEFT: u32, const RIGHT: u32>(
        low: Self::B,
        plane: Self::B,
        mask: u8,
    ) -> Self::B {
        unsafe {
            let (left, right) = (_mm_cvtsi32_si128(LEFT as i32), _mm_cvtsi32_si128(RIGHT as i32));
            zip(low, plane, |low, plane| {
                let moved = _mm256_srl_epi16(_mm256_sll_epi16(plane, left), right);
                _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(mask as i8)))
            })
        }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], b: Self::B) -> Self::B {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            map(b, |b| _mm256_shuffle_epi8(table, b))
        }
    }
    #[inline(always)]
    unsafe fn dot_from(x: Self::I) -> Self::D {
        unsafe { Running { wide: x, pairs: [_mm256_setzero_si256(); 2] } }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::D, bits: usize, u: Self::B, s: *const i8) -> Self::D {
        unsafe {
            let s = _mm256_set1_epi32(s.cast::<i32>().read_unaligned());
            let Running { wide, pairs } = acc;
            if VNNI {
                let wide = zip(wide, u, |wide, u| _mm256_dpbusd_avx_epi32(wide, u, s));
                return Running { wide, pairs };
            }
            if bits == 8 {
                // A pair of products needs 17 bits. Those of the low seven bits and of the eighth
                // have room in 16: 2 * 127 * 128 and 2 * 128 * 128, the latter below zero.
                let low = _mm256_set1_epi8(127);
                let wide = zip(wide, u, |wide, u| {
                    let lower = widen(_mm256_maddubs_epi16(_mm256_and_si256(u, low), s));
                    let upper = widen(_mm256_maddubs_epi16(_mm256_andnot_si256(low, u), s));
                    _mm256_add_epi32(wide, _mm256_add_epi32(lower, upper))
                });
                return Running { wide, pairs };
            }
            // Four pairs of products of 5 bits, 4 * 2 * 31 * 128, or two of 6 have room in 16 bits.
            let pairs =
                zip(pairs, u, |pairs, u| _mm256_add_epi16(pairs, _mm256_maddubs_epi16(u, s)));
            Running { wide, pairs }
        }
    }
    #[inline(always)]
    unsafe fn dot_sum(bits: usize, a: Self::D, b: Self::D) -> Self::I {
        unsafe {
            let wide = Self::add_i(a.wide, b.wide);
            if VNNI || bits == 8 {
                return wide;
            }
            if bits == 4 {
                // Eight pairs of four bits: 8 * 2 * 15 * 128.
                let pairs = zip(a.pairs, b.pairs, |a, b| _mm256_add_epi16(a, b));
                return zip(wide, pairs, |wide, p| _mm256_add_epi32(wide, widen(p)));
            }
            let pairs = zip(a.pairs, b.pairs, |a, b| _mm256_add_epi32(widen(a), widen(b)));
            Self::add_i(wide, pairs)
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, w: *const u16, x: *const u16) -> Self::F {
        unsafe {
            let w = Self::bytes_load(w.cast());
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let high = _mm256_set1_epi32(0xFFFF_0000u32 as i32);
            let odd = |v| flush(_mm256_castsi256_ps(_mm256_and_si256(v, high)));
            let even = |v| flush(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)));
            zip(acc, w, |acc, w| {
                let first = flush(_mm256_fmadd_ps(odd(w), odd(x), flush(acc)));
                flush(_mm256_fmadd_ps(even(w), even(x), first))
            })
        }
    }
}
