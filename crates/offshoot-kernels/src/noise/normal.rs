//! Gaussian numbers by Box and Muller, in operations that round alike everywhere.
//!
//! Box and Muller 1958, "A note on the generation of random normal deviates",
//! <https://doi.org/10.1214/aoms/1177706645>. Of two words `a`, `b`:
//! ```text
//! u = (a + 0.5) 2^-32        r = sqrt(-2 ln u)        t = 2 pi (b + 0.5) 2^-32
//! z0 = r cos t               z1 = r sin t
//! ```
//! The logarithm and the two turns are polynomials in single precision: additions, multiplications,
//! one division and one root, each rounded on its own. So all processors and all compilers give the
//! same bits, which no library function promises. The two errors are a few units of the last place.
//! Adding half a turn to `b` turns both signs and nothing else: the numbers are symmetric to the bit.

/// `ln 2`.
pub(crate) const LN_2: f32 = std::f32::consts::LN_2;
/// Bits of the mantissa's lower end, `sqrt(1/2)`.
pub(crate) const ROOT_HALF: u32 = 0x3f35_04f3;
/// `2 / (2 k + 1)` for `k` from 4 down to 0: the series of `ln((1 + s) / (1 - s)) / s` in `s^2`.
pub(crate) const LOG: [f32; 5] = [2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0];
/// Taylor's coefficients of `sin x / x` in `x^2`, the highest first.
pub(crate) const SIN: [f32; 5] = [1.0 / 362_880.0, -1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0, 1.0];
/// Taylor's coefficients of `cos x` in `x^2`, the highest first.
pub(crate) const COS: [f32; 6] =
    [-1.0 / 3_628_800.0, 1.0 / 40_320.0, -1.0 / 720.0, 1.0 / 24.0, -0.5, 1.0];
/// `2^-30 pi / 2`: the angle of the lowest bit of a word whose whole is a turn.
pub(crate) const ANGLE: f32 = std::f32::consts::FRAC_PI_2 / 1_073_741_824.0;

/// The two numbers of a pair of words.
pub(super) fn pair(a: u32, b: u32) -> [f32; 2] {
    let radius = (-2.0 * log_uniform(a)).sqrt();
    let (cos, sin) = turn(b);
    [radius * cos, radius * sin]
}

/// `ln((a + 0.5) 2^-32)`, at most 0.
fn log_uniform(a: u32) -> f32 {
    // Exact but for the one rounding of the sum.
    let low = (a & 0xffff) as f32 + 0.5;
    let u = ((a >> 16) as f32 * 65_536.0 + low) * (1.0 / 4_294_967_296.0);
    let offset = u.to_bits().wrapping_sub(ROOT_HALF) as i32;
    let mantissa = f32::from_bits((offset as u32 & 0x007f_ffff).wrapping_add(ROOT_HALF));
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    s * series(&LOG, s * s) + (offset >> 23) as f32 * LN_2
}

/// Cosine and sine of `2 pi (b + 0.5) 2^-32`.
fn turn(b: u32) -> (f32, f32) {
    // Quarters of a turn, and the rest between -1/8 and 1/8 of one.
    let quarter = b.wrapping_add(1 << 29) >> 30;
    let rest = b.wrapping_sub(quarter << 30) as i32;
    let x = (rest as f32 + 0.5) * ANGLE;
    let squared = x * x;
    let (cos, sin) = (series(&COS, squared), x * series(&SIN, squared));
    let (c, s) = if quarter & 1 == 0 { (cos, sin) } else { (sin, cos) };
    let c = if (quarter + 1) & 2 == 0 { c } else { -c };
    (c, if quarter & 2 == 0 { s } else { -s })
}

/// The polynomial by Horner's rule, products and sums rounded each.
fn series(coefficients: &[f32], x: f32) -> f32 {
    coefficients[1..].iter().fold(coefficients[0], |sum, c| sum * x + c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_those_of_exact_functions_and_symmetric() {
        let mut word = 12_345u32;
        let mut next = || {
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            word ^ word >> 15
        };
        let edges = [0, 1, 2, 0xffff, 0x1_0000, 1 << 29, (1 << 30) - 1, 1 << 31, u32::MAX];
        let pairs = edges.into_iter().flat_map(|a| edges.map(|b| (a, b)));
        for (a, b) in pairs.chain((0..20_000).map(|_| (next(), next()))).collect::<Vec<_>>() {
            let exact = |x: u32| (f64::from(x) + 0.5) / 4_294_967_296.0;
            let radius = (-2.0 * exact(a).ln()).sqrt();
            let angle = std::f64::consts::TAU * exact(b);
            let got = pair(a, b);
            for (got, exact) in got.into_iter().zip([radius * angle.cos(), radius * angle.sin()]) {
                // A rounding of `u` next to 1 moves the root there by up to 2^-12.
                let bound = 4e-6 + if radius < 1e-2 { 4e-4 } else { 0.0 };
                assert!((f64::from(got) - exact).abs() < bound, "{a:x} {b:x}: {got} {exact}");
            }
            let turned = pair(a, b.wrapping_add(1 << 31)).map(|z| (-z).to_bits());
            assert_eq!(turned, got.map(f32::to_bits), "{a:x} {b:x}");
        }
    }
}
