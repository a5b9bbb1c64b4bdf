//! The two types of numbers that the operations work on.

use candle_core::WithDType;
use offshoot_kernels::{FloatMatrix, FloatOutput, Isa, multiply_floats, softmax};
use rayon::prelude::*;

/// Numbers that are summed in lanes, so that compilers can use vectors.
const LANES: usize = 16;

/// A matrix in memory: `numbers` are `[rows, cols]`, or, turned, `[cols, rows]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub(super) numbers: &'a [T],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) turned: bool,
}

/// Where a product goes: that of token `t` and row `r` to `numbers[t * stride + r]`.
#[derive(Debug)]
pub(super) struct Output<'a, T> {
    pub(super) numbers: &'a mut [T],
    pub(super) stride: usize,
    /// Whether it is added to what stands there.
    pub(super) accumulate: bool,
}

/// A type of numbers.
pub(super) trait Real: WithDType {
    /// The nearest number.
    fn near(x: f64) -> Self;

    /// The number in double precision.
    fn wide(self) -> f64;

    /// Its exponential, to within 2 units in the last place; of what would overflow, the greatest.
    fn exp(self) -> Self;

    /// Its square root.
    fn root(self) -> Self;

    /// Replaces `x` by `exp(x) / sum(exp(x))`, and gives the logarithm of the sum.
    fn softmax(x: &mut [Self]) -> Self;

    /// `x W^T` of rows `x`, `[tokens, cols]`, by all threads; results do not depend on how many there are.
    fn multiply(x: &[Self], weights: Matrix<'_, Self>, out: Output<'_, Self>);
}

/// `x W^T` as numbers of its own, `[tokens, rows]`.
pub(super) fn product<T: Real>(x: &[T], weights: Matrix<'_, T>) -> Vec<T> {
    let stride = weights.rows;
    let mut out = vec![T::zero(); x.len() / weights.cols.max(1) * stride];
    T::multiply(x, weights, Output { numbers: &mut out, stride, accumulate: false });
    out
}

/// `[cols, rows]` of `[rows, cols]`.
pub(super) fn turned<T: Real>(x: &[T], cols: usize) -> Vec<T> {
    let rows = x.len() / cols.max(1);
    let mut out = vec![T::zero(); x.len()];
    out.par_chunks_mut(rows.max(1)).enumerate().for_each(|(col, out)| {
        out.iter_mut().zip(x.chunks_exact(cols)).for_each(|(out, x)| *out = x[col]);
    });
    out
}

impl Real for f32 {
    fn near(x: f64) -> Self {
        x as f32
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }

    /// `2^n` times Cephes' polynomial for `exp(r)`, `|r| <= ln 2 / 2`, without a branch.
    fn exp(self) -> Self {
        // Adding 1.5 * 2^23 rounds to a whole number, which then stands in the lowest bits.
        const SHIFT: f32 = 12_582_912.0;
        let x = self.clamp(-87.0, 88.0);
        let shifted = x * std::f32::consts::LOG2_E + SHIFT;
        let n = shifted - SHIFT;
        let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
        let mut p = 1.987_569_1e-4;
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_58e-2, 0.166_666_66, 0.5] {
            p = p * r + c;
        }
        let p = p * (r * r) + r + 1.0;
        let power = shifted.to_bits().wrapping_sub(SHIFT.to_bits()).wrapping_add(127) << 23;
        p * f32::from_bits(power)
    }

    fn root(self) -> Self {
        self.sqrt()
    }

    fn softmax(x: &mut [Self]) -> Self {
        softmax(Isa::best(), x)
    }

    fn multiply(x: &[Self], weights: Matrix<'_, Self>, out: Output<'_, Self>) {
        let Matrix { numbers, rows, cols, turned } = weights;
        let weights = FloatMatrix { numbers, rows, cols, turned };
        let Output { numbers, stride, accumulate } = out;
        let out = FloatOutput { numbers, stride, accumulate };
        multiply_floats(Isa::best(), x, weights, out, &|work| {
            rayon::broadcast(|_| work());
        });
    }
}

impl Real for f64 {
    fn near(x: f64) -> Self {
        x
    }

    fn wide(self) -> f64 {
        self
    }

    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn root(self) -> Self {
        self.sqrt()
    }

    fn softmax(x: &mut [Self]) -> Self {
        let greatest = x.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x));
        let sum: f64 = x.iter().map(|x| (x - greatest).exp()).sum();
        let log = greatest + sum.ln();
        x.iter_mut().for_each(|x| *x = (*x - log).exp());
        log
    }

    fn multiply(x: &[Self], weights: Matrix<'_, Self>, out: Output<'_, Self>) {
        let Matrix { numbers, rows, cols, turned } = weights;
        let Output { numbers: out, stride, accumulate } = out;
        let of_token = |(out, x): (&mut [f64], &[f64])| {
            for (row, out) in out.iter_mut().enumerate().take(rows) {
                let y = match turned {
                    true => sum(cols, |col| numbers[col * rows + row] * x[col]),
                    false => sum(cols, |col| numbers[row * cols + col] * x[col]),
                };
                *out = if accumulate { *out + y } else { y };
            }
        };
        let tokens = out.par_chunks_mut(stride.max(1)).zip(x.par_chunks(cols.max(1)));
        tokens.for_each(of_token);
    }
}

/// The logistic function.
pub(super) fn sigmoid<T: Real>(x: T) -> T {
    T::one() / (T::one() + (T::zero() - x).exp())
}

/// The sum of `f` over the places of a row of `n`, in sixteen sums of every sixteenth place and then
/// over these.
pub(super) fn sum<T: Real>(n: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let whole = n - n % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(start + lane);
        }
    }
    for place in whole..n {
        lanes[place - whole] += f(place);
    }
    lanes.iter().fold(T::zero(), |sum, &lane| sum + lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_in_single_precision_are_those_of_the_library() {
        for i in -86_000..88_000 {
            let x = i as f32 * 1e-3;
            let (ours, exact) = (Real::exp(x), f64::from(x).exp());
            let error = (f64::from(ours) - exact).abs() / exact;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "exp({x}) = {ours}, off by {error}");
        }
        assert!(Real::exp(f32::NAN).is_nan());
        assert!(Real::exp(f32::NEG_INFINITY) < 1e-37 && Real::exp(f32::INFINITY).is_finite());
    }

    #[test]
    fn a_sum_in_lanes_misses_no_place() {
        for n in 0..50 {
            assert_eq!(sum(n, |i| i as f64), (n * n.saturating_sub(1) / 2) as f64);
        }
    }
}
