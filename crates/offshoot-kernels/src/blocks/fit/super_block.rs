//! The K formats: scales of sub-blocks that are themselves quantised under a scale of the block.

use half::f16;

use super::affine::affine_below_zero;
use super::half;
use super::symmetric::symmetric;
use super::weighted::{Weighted, bytes};
use crate::blocks::rounding::{furthest, inverse};

/// Sub-blocks of Q4_K and Q5_K.
const SUBS: usize = 8;
/// The largest scale and minimum of a sub-block there.
const SCALE_MAX: f32 = 63.0;
/// Sub-blocks of Q6_K.
const SUBS_6: usize = 16;

/// Writes a block of Q4_K.
pub(in crate::blocks) fn fit_q4_k(weights: &[f32], out: &mut [u8]) {
    let block = Offset::of(weights, 15.0);
    block.write_head(out);
    for (pair, out) in out[16..144].chunks_exact_mut(32).enumerate() {
        let (low, high) = (block.quants(2 * pair), block.quants(2 * pair + 1));
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            *out = low | high << 4;
        }
    }
}

/// Writes a block of Q5_K.
pub(in crate::blocks) fn fit_q5_k(weights: &[f32], out: &mut [u8]) {
    let block = Offset::of(weights, 31.0);
    block.write_head(out);
    let (fifth, quants) = out[16..176].split_at_mut(32);
    fifth.fill(0);
    for (pair, out) in quants.chunks_exact_mut(32).enumerate() {
        let (low, high) = (block.quants(2 * pair), block.quants(2 * pair + 1));
        for (i, out) in out.iter_mut().enumerate() {
            *out = low[i] & 15 | high[i] << 4;
            fifth[i] |= (low[i] >> 4) << (2 * pair) | (high[i] >> 4) << (2 * pair + 1);
        }
    }
}

/// A block with minimums, `x = d * scale * q - dmin * min`, and the numbers chosen for it.
struct Offset {
    subs: [Weighted<32>; SUBS],
    high: f32,
    d: f32,
    dmin: f32,
    scales: [f32; SUBS],
    mins: [f32; SUBS],
}

impl Offset {
    fn of(weights: &[f32], high: f32) -> Self {
        let subs = std::array::from_fn(|i| Weighted::of(&weights[32 * i..]));
        // Steps and minimums that the sub-blocks would have alone: by search, and as they cover
        // their ranges, which is seldom better but may not be worse.
        let searched = subs.each_ref().map(|sub| {
            let fit = affine_below_zero(sub, high);
            (fit.d, -fit.m)
        });
        let covering = subs.each_ref().map(|sub| {
            let (min, max) = sub.range();
            let (min, max) = (min.min(0.0), max.max(0.0));
            ((max - min) / high, -min)
        });
        let mut block =
            Self { subs, high, d: 0.0, dmin: 0.0, scales: [0.0; SUBS], mins: [0.0; SUBS] };
        let plain = block.take(&covering, false);
        let kept = (block.d, block.dmin, block.scales, block.mins);
        if block.take(&searched, true) > plain {
            (block.d, block.dmin, block.scales, block.mins) = kept;
        }
        block
    }

    /// Quantises the sub-blocks' steps and minimums, and gives what all of it costs. With `near`,
    /// the neighbours of each pair are tried too.
    fn take(&mut self, alone: &[(f32, f32); SUBS], near: bool) -> f32 {
        let most = alone.iter().fold((0f32, 0f32), |(d, m), of| (d.max(of.0), m.max(of.1)));
        (self.d, self.dmin) = (half(most.0 / SCALE_MAX), half(most.1 / SCALE_MAX));
        let (to_scale, to_min) = (inverse(self.d), inverse(self.dmin));
        let mut total = 0.0;
        for (i, of) in alone.iter().enumerate() {
            let scale = (of.0 * to_scale).round().clamp(0.0, SCALE_MAX);
            let min = (of.1 * to_min).round().clamp(0.0, SCALE_MAX);
            let mut best = (self.cost(i, scale, min), scale, min);
            if near {
                for (by_scale, by_min) in NEIGHBOURS {
                    let (scale, min) = (scale + by_scale, min + by_min);
                    if [scale, min].iter().all(|n| (0.0..=SCALE_MAX).contains(n)) {
                        let cost = self.cost(i, scale, min);
                        if cost < best.0 {
                            best = (cost, scale, min);
                        }
                    }
                }
            }
            total += best.0;
            (self.scales[i], self.mins[i]) = (best.1, best.2);
        }
        total
    }

    fn cost(&self, sub: usize, scale: f32, min: f32) -> f32 {
        let (d, m) = (self.d * scale, -(self.dmin * min));
        let q = self.subs[sub].quants(d, m, (0.0, self.high));
        self.subs[sub].error(d, m, &q)
    }

    fn quants(&self, sub: usize) -> [u8; 32] {
        let (d, m) = (self.d * self.scales[sub], -(self.dmin * self.mins[sub]));
        bytes(&self.subs[sub].quants(d, m, (0.0, self.high)), 0.0)
    }

    /// Writes both scales, then the sub-blocks' as `scales_and_mins` of Q4_K unpacks them.
    fn write_head(&self, out: &mut [u8]) {
        out[..2].copy_from_slice(&f16::from_f32(self.d).to_le_bytes());
        out[2..4].copy_from_slice(&f16::from_f32(self.dmin).to_le_bytes());
        let (scales, mins) = (self.scales.map(|s| s as u8), self.mins.map(|m| m as u8));
        for i in 0..4 {
            out[4 + i] = scales[i] | (scales[i + 4] >> 4) << 6;
            out[8 + i] = mins[i] | (mins[i + 4] >> 4) << 6;
            out[12 + i] = scales[i + 4] & 15 | (mins[i + 4] & 15) << 4;
        }
    }
}

/// The pairs around one of scale and minimum.
const NEIGHBOURS: [(f32, f32); 8] = [
    (-1.0, -1.0),
    (-1.0, 0.0),
    (-1.0, 1.0),
    (0.0, -1.0),
    (0.0, 1.0),
    (1.0, -1.0),
    (1.0, 0.0),
    (1.0, 1.0),
];

/// Writes a block of Q6_K, `x = d * scale * (q - 32)`.
pub(in crate::blocks) fn fit_q6_k(weights: &[f32], out: &mut [u8]) {
    const RANGE: (f32, f32) = (-32.0, 31.0);
    let subs: [Weighted<16>; SUBS_6] = std::array::from_fn(|i| Weighted::of(&weights[16 * i..]));
    let searched = subs.each_ref().map(|sub| symmetric(sub, RANGE));
    let covering = subs.each_ref().map(|sub| furthest(&sub.x) / RANGE.0);
    let cost = |i: usize, step: f32| {
        let sub: &Weighted<16> = &subs[i];
        sub.error(step, 0.0, &sub.quants(step, 0.0, RANGE))
    };
    let take = |alone: &[f32; SUBS_6], near: &[f32]| {
        // The step furthest from 0 becomes -128 of the scale, which has one more on that side.
        let d = half(furthest(alone) / -128.0);
        let mut scales = [0f32; SUBS_6];
        let mut total = 0.0;
        for (i, (step, chosen)) in alone.iter().zip(&mut scales).enumerate() {
            let scale = (step * inverse(d)).round().clamp(-128.0, 127.0);
            let mut best = (cost(i, d * scale), scale);
            for by in near {
                let scale = (scale + by).clamp(-128.0, 127.0);
                let other = cost(i, d * scale);
                if other < best.0 {
                    best = (other, scale);
                }
            }
            total += best.0;
            *chosen = best.1;
        }
        (total, d, scales)
    };
    let plain = take(&covering, &[]);
    let searched = take(&searched, &[-1.0, 1.0]);
    let (_, d, scales) = if searched.0 <= plain.0 { searched } else { plain };
    let (low, rest) = out.split_at_mut(128);
    low.fill(0);
    rest[..64].fill(0);
    for i in 0..SUBS_6 {
        let q = bytes(&subs[i].quants(d * scales[i], 0.0, RANGE), RANGE.0);
        for (j, q) in q.into_iter().enumerate() {
            // Weight `at` of a half of 128: see the layout.
            let (half, at) = (i / 8, 16 * (i % 8) + j);
            low[64 * half + at % 64] |= (q & 15) << (4 * (at / 64));
            rest[32 * half + at % 32] |= (q >> 4) << (2 * (at / 32));
        }
        rest[64 + i] = scales[i] as i8 as u8;
    }
    rest[80..82].copy_from_slice(&f16::from_f32(d).to_le_bytes());
}
