//! The weights of a block, or of a part of it, with what each counts.

/// Adding and taking off this number rounds a float below 2^22 to the nearest integer, ties to
/// even.
const ROUND: f32 = 12_582_912.0;

/// `N` weights, a multiple of 8, and how much each counts.
pub(in crate::blocks) struct Weighted<const N: usize> {
    pub(super) x: [f32; N],
    pub(super) h: [f32; N],
}

/// A sum over `N` terms: eight running sums, added in pairs at the end.
#[inline(always)]
pub(super) fn sum<const N: usize>(term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; 8];
    for i in (0..N).step_by(8) {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total += term(i + lane);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

impl<const N: usize> Weighted<N> {
    /// The first `N` of `weights`, each to count as the module says.
    pub(in crate::blocks) fn of(weights: &[f32]) -> Self {
        let x: [f32; N] = std::array::from_fn(|i| weights[i]);
        let rms = (sum::<N>(|i| x[i] * x[i]) / N as f32).sqrt();
        Self { h: x.map(|x| x.abs() + rms), x }
    }

    /// The least and the greatest weight.
    pub(super) fn range(&self) -> (f32, f32) {
        crate::blocks::rounding::range(&self.x)
    }

    /// The quants nearest to `(x - m) / d`, as floats within `low..=high`; all 0, or the nearest to
    /// it that there is, where `d` is 0.
    #[inline(always)]
    pub(in crate::blocks) fn quants(&self, d: f32, m: f32, (low, high): (f32, f32)) -> [f32; N] {
        let inverse = crate::blocks::rounding::inverse(d);
        self.x.map(|x| {
            let q = (x - m) * inverse;
            let q = if q > low { q } else { low };
            let q = if q < high { q } else { high };
            (q + ROUND) - ROUND
        })
    }

    /// The weighted squared error of these quants.
    #[inline(always)]
    pub(super) fn error(&self, d: f32, m: f32, q: &[f32; N]) -> f32 {
        sum::<N>(|i| {
            let off = self.x[i] - (d * q[i] + m);
            self.h[i] * (off * off)
        })
    }
}

/// Quants as bytes, `low` as 0.
pub(in crate::blocks) fn bytes<const N: usize>(q: &[f32; N], low: f32) -> [u8; N] {
    q.map(|q| (q - low) as u8)
}
