//! Lanes as 512-bit registers, with the VNNI and BF16 dot instructions.

use super::Lanes;
use std::arch::x86_64::*;

/// AVX-512 with F, BW, DQ, VL and VNNI; with the BF16 dot instruction if `BF16`, else with the same
/// result from widened products.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>;

/// Zero of the same sign for subnormal lanes.
#[inline(always)]
unsafe fn flush(x: __m512) -> __m512 {
    // SAFETY: only called from the lanes below.
    unsafe {
        let tiny =
            _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::MIN_POSITIVE));
        let sign = _mm512_castsi512_ps(_mm512_and_si512(
            _mm512_castps_si512(x),
            _mm512_set1_epi32(i32::MIN),
        ));
        _mm512_mask_mov_ps(x, tiny, sign)
    }
}

/// The same register, seen as bfloat16.
#[inline(always)]
fn as_bf16(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 plain bytes.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
}

// SAFETY of the intrinsics below: the trait asks its callers for a processor that has them, and for
// 16 elements (or 64 bytes) behind each pointer; all loads and stores are the unaligned forms.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BF16: bool> Lanes for Avx512<BF16> {
    const TOKENS: usize = 8;
    const ONE_CHAIN: bool = true;
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type D = __m512i;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: Self::F) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F) -> Self::F {
        unsafe { _mm512_abs_ps(a) }
    }
    #[inline(always)]
    unsafe fn first(n: usize, a: Self::F, b: Self::F) -> Self::F {
        let mask = ((1u32 << n.min(16)) - 1) as u16;
        unsafe { _mm512_mask_blend_ps(mask, b, a) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u16, x: Self::F) {
        unsafe {
            let h = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(p.cast(), h);
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn to_i32(x: Self::F) -> Self::I {
        unsafe { _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    unsafe fn to_f32(x: Self::I) -> Self::F {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> Self::I {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn shl_i<const N: u32>(a: Self::I) -> Self::I {
        unsafe { _mm512_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, x: Self::I) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x)) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(x: Self::F, n: Self::I) -> Self::F {
        unsafe {
            let bits = _mm512_castps_si512(x);
            _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_slli_epi32::<23>(n)))
        }
    }

    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        unsafe {
            let half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let quarter =
                _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    unsafe fn greatest(x: Self::F) -> f32 {
        unsafe {
            let half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let quarter =
                _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
            _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)))
        }
    }
    #[inline(always)]
    unsafe fn load_i(p: *const i32) -> Self::I {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_i(p: *mut i32, x: Self::I) {
        unsafe { _mm512_storeu_si512(p.cast(), x) }
    }
    #[inline(always)]
    unsafe fn xor_i(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_xor_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn and_i(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shr_i(a: Self::I, n: u32) -> Self::I {
        unsafe { _mm512_srl_epi32(a, _mm_cvtsi32_si128(n as i32)) }
    }
    #[inline(always)]
    unsafe fn wide_mul(a: Self::I, m: u32) -> (Self::I, Self::I) {
        unsafe {
            let m = _mm512_set1_epi32(m as i32);
            // Even lanes, and odd ones moved to even places.
            let even = _mm512_mul_epu32(a, m);
            let odd = _mm512_mul_epu32(_mm512_srli_epi64::<32>(a), m);
            let high = _mm512_mask_mov_epi32(_mm512_srli_epi64::<32>(even), 0xAAAA, odd);
            (high, _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64::<32>(odd)))
        }
    }
    #[inline(always)]
    unsafe fn to_bits(x: Self::F) -> Self::I {
        unsafe { _mm512_castps_si512(x) }
    }
    #[inline(always)]
    unsafe fn from_bits(x: Self::I) -> Self::F {
        unsafe { _mm512_castsi512_ps(x) }
    }
    #[inline(always)]
    unsafe fn sqrt(x: Self::F) -> Self::F {
        unsafe { _mm512_sqrt_ps(x) }
    }
    #[inline(always)]
    unsafe fn step_of(table: &[f32; 256], x: Self::I) -> Self::F {
        // The upper half of the table in registers; the lower one is its mirror with signs turned.
        unsafe {
            let upper = _mm512_test_epi32_mask(x, _mm512_set1_epi32(128));
            let at = _mm512_mask_xor_epi32(x, !upper, x, _mm512_set1_epi32(127));
            let half = table.as_ptr().add(128);
            let part = |i: usize| {
                let pair = half.add(32 * i);
                _mm512_permutex2var_ps(_mm512_loadu_ps(pair), at, _mm512_loadu_ps(pair.add(16)))
            };
            let second = _mm512_test_epi32_mask(at, _mm512_set1_epi32(32));
            let low = _mm512_mask_mov_ps(part(0), second, part(1));
            let high = _mm512_mask_mov_ps(part(2), second, part(3));
            let third = _mm512_test_epi32_mask(at, _mm512_set1_epi32(64));
            let size = _mm512_castps_si512(_mm512_mask_mov_ps(low, third, high));
            let turned = _mm512_mask_xor_epi32(size, !upper, size, _mm512_set1_epi32(i32::MIN));
            _mm512_castsi512_ps(turned)
        }
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
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(b: Self::B) -> Self::B {
        unsafe { _mm512_and_si512(b, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(b: Self::B) -> Self::B {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(b), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn or_plane<const LEFT: u32, const RIGHT: u32>(
        low: Self::B,
        plane: Self::B,
        mask: u8,
    ) -> Self::B {
        unsafe {
            let moved = _mm512_srli_epi16::<RIGHT>(_mm512_slli_epi16::<LEFT>(plane));
            // 0xF8: the first operand, or the other two both.
            _mm512_ternarylogic_epi32::<0xF8>(low, moved, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    unsafe fn lookup(table: &[u8; 16], b: Self::B) -> Self::B {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, b)
        }
    }
    #[inline(always)]
    unsafe fn dot_from(x: Self::I) -> Self::D {
        x
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::D, _: usize, u: Self::B, s: *const i8) -> Self::D {
        unsafe { _mm512_dpbusd_epi32(acc, u, _mm512_set1_epi32(s.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn dot_sum(_: usize, a: Self::D, b: Self::D) -> Self::I {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: Self::F, w: *const u16, x: *const u16) -> Self::F {
        unsafe {
            let w = _mm512_loadu_si512(w.cast());
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            if BF16 {
                return _mm512_dpbf16_ps(acc, as_bf16(w), as_bf16(x));
            }
            let high = _mm512_set1_epi32(0xFFFF_0000u32 as i32);
            let odd = |v| flush(_mm512_castsi512_ps(_mm512_and_si512(v, high)));
            let even = |v| flush(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)));
            let first = flush(_mm512_fmadd_ps(odd(w), odd(x), flush(acc)));
            flush(_mm512_fmadd_ps(even(w), even(x), first))
        }
    }
}
