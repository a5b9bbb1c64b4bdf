//! Scale and minimum together: `x = d * q + m` with `q` from 0 to `high`.

use super::weighted::sum;
use super::{NARROWEST, Weighted, half};

/// Steps that are tried, as the width of the range over them: from `high - 1` up by a tenth.
const STEPS: usize = 20;
/// How often quants and fit are found from each other, at most.
const POLISH: usize = 4;

/// A scale, a minimum and what they cost.
#[derive(Clone, Copy)]
pub(super) struct Fit {
    pub(super) d: f32,
    pub(super) m: f32,
    pub(super) error: f32,
}

/// The best scale and minimum for quants from 0 to `high`, both halves.
pub(in crate::blocks) fn affine_halves(block: &Weighted<32>, high: f32) -> (f32, f32) {
    let (min, max) = block.range();
    let best = affine(block, (min, max), high, |d, m| (half(d), half(m)));
    (best.d, best.m)
}

/// As [`affine_halves`], for a minimum of at most 0 and numbers that need no rounding yet.
pub(super) fn affine_below_zero(block: &Weighted<32>, high: f32) -> Fit {
    let (min, max) = block.range();
    affine(block, (min.min(0.0), max.max(0.0)), high, |d, m| (d, m.min(0.0)))
}

/// The best that is found, `stored` being what the format makes of a scale and a minimum.
fn affine(
    block: &Weighted<32>,
    (min, max): (f32, f32),
    high: f32,
    stored: impl Fn(f32, f32) -> (f32, f32),
) -> Fit {
    let tried = |d: f32, m: f32| {
        let (d, m) = stored(d, m);
        let q = block.quants(d, m, (0.0, high));
        (Fit { d, m, error: block.error(d, m, &q) }, q)
    };
    if max - min < NARROWEST {
        return tried(0.0, min).0;
    }
    let (mut best, mut q) = tried((max - min) / high, min);
    if let Some((d, m)) = steps(block, (min, max), high) {
        let (fit, other) = tried(d, m);
        if fit.error < best.error {
            (best, q) = (fit, other);
        }
    }
    for _ in 0..POLISH {
        let Some((d, m, _)) = least_squares(block, &q) else { break };
        let (fit, other) = tried(d, m);
        let better = fit.error < best.error;
        // The scale is rounded by now: the minimum that suits it best.
        let (again, others) = tried(fit.d, offset(block, fit.d, &other));
        let candidates = [(fit, other, better), (again, others, again.error < best.error)];
        let Some((fit, other, _)) = candidates
            .into_iter()
            .filter(|(_, _, better)| *better)
            .min_by(|a, b| a.0.error.total_cmp(&b.0.error))
        else {
            break;
        };
        (best, q) = (fit, other);
    }
    best
}

/// The least-squares fit of the step that fits best.
fn steps(block: &Weighted<32>, (min, max): (f32, f32), high: f32) -> Option<(f32, f32)> {
    let mut best: Option<(f32, f32, f32)> = None;
    for step in 0..=STEPS {
        let levels = high - 1.0 + 0.1 * step as f32;
        let q = block.quants((max - min) / levels, min, (0.0, high));
        if let Some((d, m, gain)) = least_squares(block, &q)
            && best.is_none_or(|(_, _, most)| gain > most)
        {
            best = Some((d, m, gain));
        }
    }
    best.map(|(d, m, _)| (d, m))
}

/// The scale and minimum that suit these quants best, and by how much they lower the weighted sum
/// of squares. None if all quants are equal.
#[inline(always)]
fn least_squares(block: &Weighted<32>, q: &[f32; 32]) -> Option<(f32, f32, f32)> {
    let (x, h) = (&block.x, &block.h);
    let hs = sum::<32>(|i| h[i]);
    let hx = sum::<32>(|i| h[i] * x[i]);
    let hq = sum::<32>(|i| h[i] * q[i]);
    let hqq = sum::<32>(|i| h[i] * q[i] * q[i]);
    let hxq = sum::<32>(|i| h[i] * x[i] * q[i]);
    let determinant = hs * hqq - hq * hq;
    if determinant.is_nan() || determinant <= 0.0 {
        return None;
    }
    let d = (hs * hxq - hx * hq) / determinant;
    let m = (hqq * hx - hq * hxq) / determinant;
    Some((d, m, d * hxq + m * hx))
}

/// The minimum that suits the scale and the quants best.
fn offset(block: &Weighted<32>, d: f32, q: &[f32; 32]) -> f32 {
    let hs = sum::<32>(|i| block.h[i]);
    sum::<32>(|i| block.h[i] * (block.x[i] - d * q[i])) / hs
}
