//! Elementary functions of our own, so that their bits are the same everywhere.

use crate::lanes::Lanes;

/// `exp(x)` for each lane, within two units in the last place for `-87 <= x <= 88`; arguments
/// beyond are taken as the nearest of these. NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`, a polynomial of degree 6 in `r`, and `2^n` by the
/// exponent bits.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        // A NaN is the second operand and therefore the result.
        let x = L::max(L::splat(-87.0), x);
        let x = L::min(L::splat(88.0), x);
        let n = L::to_i32(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
        let nf = L::to_f32(n);
        // ln 2 in two parts, the first short enough that its product with n is exact.
        let r = L::fnma(nf, L::splat(0.693_359_4), x);
        let r = L::fnma(nf, L::splat(-2.121_944_4e-4), r);
        let mut p = L::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
            p = L::fma(p, r, L::splat(c));
        }
        let p = L::fma(L::mul(r, r), p, r);
        L::scale_by_power(L::add(p, L::splat(1.0)), n)
    }
}

/// `x / (1 + exp(-x))` for each lane.
#[inline(always)]
pub(crate) unsafe fn silu<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let e = exp::<L>(L::sub(L::splat(0.0), x));
        L::div(x, L::add(L::splat(1.0), e))
    }
}

/// `x * Phi(x)` with Hendrycks and Gimpel's approximation of the normal distribution's function
/// (2016, <https://arxiv.org/abs/1606.08415>), for each lane:
/// `x (1 + tanh(u)) / 2 = x / (1 + exp(-2 u))`, `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<L: Lanes>(x: L::F) -> L::F {
    // 2 sqrt(2 / pi), and that times 0.044715.
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = 0.071_354_814;
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let slope = L::fma(L::mul(x, x), L::splat(CUBIC), L::splat(LINEAR));
        let e = exp::<L>(L::sub(L::splat(0.0), L::mul(x, slope)));
        L::div(x, L::add(L::splat(1.0), e))
    }
}

/// `tanh(x) = 1 - 2 / (1 + exp(2 x))` for each lane, within a few 1e-7.
#[inline(always)]
pub(crate) unsafe fn tanh<L: Lanes>(x: L::F) -> L::F {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let e = exp::<L>(L::add(x, x));
        L::sub(L::splat(1.0), L::div(L::splat(2.0), L::add(L::splat(1.0), e)))
    }
}

/// `base^exponent` for `base >= 1`, within a few units in the last place of an `f64`.
pub(crate) fn power(base: f64, exponent: f64) -> f64 {
    exp_f64(exponent * ln(base))
}

/// Natural logarithm of a normal number above zero.
pub(crate) fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut n = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m /= 2.0;
        n += 1;
    }
    // ln m = 2 atanh((m - 1) / (m + 1)), whose argument is below 0.172.
    let t = (m - 1.0) / (m + 1.0);
    let t2 = t * t;
    let mut sum = 0.0;
    for k in (0..=12).rev() {
        sum = sum * t2 + 1.0 / f64::from(2 * k + 1);
    }
    n as f64 * std::f64::consts::LN_2 + 2.0 * t * sum
}

/// `exp(x)` within a few units in the last place, for `|x|` below 690.
pub(crate) fn exp_f64(x: f64) -> f64 {
    let n = (x * std::f64::consts::LOG2_E).round_ties_even().clamp(-1000.0, 1000.0);
    // ln 2 in two parts, the first with trailing zeros so that its product with n is exact.
    let r = (x - n * 6.931_471_803_691_238e-1) - n * 1.908_214_929_270_587_7e-10;
    let mut sum = 1.0;
    for k in (1..=14).rev() {
        sum = sum * r / f64::from(k) + 1.0;
    }
    sum * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// Sine and cosine of `x`, |x| below 2^30, within a unit in the last place of an `f32`.
pub(crate) fn sin_cos(x: f64) -> (f64, f64) {
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    // pi / 2 in three parts, the first two with trailing zeros so that their products are exact.
    let r = x - n * 1.570_796_251_296_997;
    let r = r - n * 7.549_789_415_861_596e-8;
    let r = r - n * 5.390_302_858_158_119e-15;
    let r2 = r * r;
    let (mut s, mut c) = (1.0, 1.0);
    for k in (1..=8).rev() {
        let k = f64::from(2 * k);
        s = 1.0 - s * r2 / (k * (k + 1.0));
        c = 1.0 - c * r2 / (k * (k - 1.0));
    }
    let s = s * r;
    match (n as i64).rem_euclid(4) {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::by_isa;
    use crate::{Isa, lanes::Lanes};

    #[inline(always)]
    unsafe fn map_exp<L: Lanes>(x: &mut [f32]) {
        for x in x.chunks_exact_mut(16) {
            // SAFETY: 16 floats, and the macro checks the instructions.
            unsafe { L::store(x.as_mut_ptr(), exp::<L>(L::load(x.as_ptr()))) };
        }
    }
    by_isa! { fn exp_all(x: &mut [f32]) = map_exp }

    #[test]
    fn exp_is_exact_at_zero_and_near_everywhere() {
        let xs: Vec<f32> = (0..16 * 4000).map(|i| -87.0 + i as f32 * (175.0 / 64_000.0)).collect();
        let mut portable = xs.clone();
        exp_all(Isa::PORTABLE, &mut portable);
        for (x, y) in xs.iter().zip(&portable) {
            let exact = f64::from(*x).exp();
            assert!((f64::from(*y) / exact - 1.0).abs() < 2.5e-7, "{x}: {y} for {exact}");
        }
        for isa in Isa::available() {
            let mut y = xs.clone();
            exp_all(isa, &mut y);
            assert!(y.iter().zip(&portable).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
            let mut edge = [0.0f32; 16];
            edge[1] = f32::NEG_INFINITY;
            edge[2] = f32::NAN;
            exp_all(isa, &mut edge);
            assert_eq!(edge[0], 1.0);
            assert!(edge[1] < 2e-38 && edge[2].is_nan());
        }
    }

    #[inline(always)]
    unsafe fn map_tanh<L: Lanes>(x: &mut [f32]) {
        for x in x.chunks_exact_mut(16) {
            // SAFETY: 16 floats, and the macro checks the instructions.
            unsafe { L::store(x.as_mut_ptr(), tanh::<L>(L::load(x.as_ptr()))) };
        }
    }
    by_isa! { fn tanh_all(x: &mut [f32]) = map_tanh }

    #[inline(always)]
    unsafe fn map_gelu<L: Lanes>(x: &mut [f32]) {
        for x in x.chunks_exact_mut(16) {
            // SAFETY: 16 floats, and the macro checks the instructions.
            unsafe { L::store(x.as_mut_ptr(), gelu_tanh::<L>(L::load(x.as_ptr()))) };
        }
    }
    by_isa! { fn gelu_all(x: &mut [f32]) = map_gelu }

    #[test]
    fn tanh_and_gelu_are_near_everywhere_and_equal_on_every_instruction_set() {
        let xs: Vec<f32> = (0..16 * 1000).map(|i| (i - 8000) as f32 / 200.0).collect();
        let run = |f: fn(Isa, &mut [f32]), isa| {
            let mut y = xs.clone();
            f(isa, &mut y);
            y
        };
        let (tanh, gelu) = (run(tanh_all, Isa::PORTABLE), run(gelu_all, Isa::PORTABLE));
        for (i, x) in xs.iter().map(|x| f64::from(*x)).enumerate() {
            let (t, g) = (f64::from(tanh[i]), f64::from(gelu[i]));
            assert!((t - x.tanh()).abs() < 3e-7, "tanh {x}: {t}");
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            let exact = 0.5 * x * (1.0 + u.tanh());
            assert!((g - exact).abs() < 1e-6 * x.abs().max(0.1), "gelu {x}: {g} for {exact}");
        }
        for isa in Isa::available() {
            assert!(run(tanh_all, isa).iter().zip(&tanh).all(|(a, b)| a.to_bits() == b.to_bits()));
            assert!(run(gelu_all, isa).iter().zip(&gelu).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    #[test]
    fn sines_cosines_and_powers_are_near() {
        for i in 0..200_000 {
            let x = f64::from(i) * 5.123_456;
            let (s, c) = sin_cos(x);
            assert!((s - x.sin()).abs() < 1e-9 && (c - x.cos()).abs() < 1e-9, "{x}");
        }
        for base in [1.0, 10_000.0, 100_000.0, 1e6] {
            for i in 0..64 {
                let e = -f64::from(i) / 64.0;
                assert!((power(base, e) / base.powf(e) - 1.0).abs() < 1e-14, "{base}^{e}");
            }
        }
    }
}
