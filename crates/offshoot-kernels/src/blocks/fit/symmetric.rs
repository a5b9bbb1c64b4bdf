//! A scale alone: `x = d * q` with `q` from `low` below 0 to `high`.

use super::weighted::sum;
use super::{NARROWEST, Weighted, half};
use crate::blocks::rounding::furthest;

/// Steps that are tried to either side of the plain one, a tenth of a quant apart.
const STEPS: i32 = 9;
/// How often quants and fit are found from each other, at most.
const POLISH: usize = 3;

/// The best scale for quants from `low` to `high`, a half; its sign is the one that suits best.
pub(in crate::blocks) fn symmetric_halves<const N: usize>(
    block: &Weighted<N>,
    range: (f32, f32),
) -> f32 {
    let far = furthest(&block.x);
    let start = [far / range.0, best_step(block, far, range)];
    polished(block, range, start, half)
}

/// As [`symmetric_halves`], from the plain scale alone: with 8 bits a search gains nothing.
pub(in crate::blocks) fn furthest_halves<const N: usize>(
    block: &Weighted<N>,
    range: (f32, f32),
) -> f32 {
    let plain = furthest(&block.x).abs() / range.1;
    polished(block, range, [plain; 1], half)
}

/// As [`symmetric_halves`], for a scale that needs no rounding yet.
pub(super) fn symmetric<const N: usize>(block: &Weighted<N>, range: (f32, f32)) -> f32 {
    let far = furthest(&block.x);
    let start = [far / range.0, best_step(block, far, range)];
    polished(block, range, start, |d| d)
}

/// The best of `start`, then back and forth between quants and scale while that helps.
fn polished<const N: usize, const S: usize>(
    block: &Weighted<N>,
    range: (f32, f32),
    start: [f32; S],
    stored: impl Fn(f32) -> f32,
) -> f32 {
    if furthest(&block.x).abs() < NARROWEST {
        return 0.0;
    }
    let tried = |d: f32| {
        let d = stored(d);
        let q = block.quants(d, 0.0, range);
        (block.error(d, 0.0, &q), d, q)
    };
    let mut best = tried(start[0]);
    for d in &start[1..] {
        let other = tried(*d);
        if other.0 < best.0 {
            best = other;
        }
    }
    for _ in 0..POLISH {
        let Some((d, _)) = least_squares(block, &best.2) else { break };
        let other = tried(d);
        if other.0 < best.0 {
            best = other;
        } else {
            break;
        }
    }
    best.1
}

/// The least-squares fit of the step that fits best, the furthest weight on either side.
fn best_step<const N: usize>(block: &Weighted<N>, far: f32, (low, high): (f32, f32)) -> f32 {
    let mut best = (far / low, f32::MIN);
    for levels in [low, high] {
        for step in -STEPS..=STEPS {
            let levels = levels + levels.signum() * 0.1 * step as f32;
            let q = block.quants(far / levels, 0.0, (low, high));
            if let Some((d, gain)) = least_squares(block, &q)
                && gain > best.1
            {
                best = (d, gain);
            }
        }
    }
    best.0
}

/// The scale that suits these quants best, and by how much it lowers the weighted sum of squares.
/// None if all quants are 0.
#[inline(always)]
fn least_squares<const N: usize>(block: &Weighted<N>, q: &[f32; N]) -> Option<(f32, f32)> {
    let (x, h) = (&block.x, &block.h);
    let hqq = sum::<N>(|i| h[i] * q[i] * q[i]);
    let hxq = sum::<N>(|i| h[i] * x[i] * q[i]);
    (hqq > 0.0).then(|| (hxq / hqq, hxq * (hxq / hqq)))
}
