//! Scores, softmax and weighted sum of a few query vectors over one chunk of positions, and the
//! merging of chunks.

use std::ops::Range;

use crate::isa::by_isa;
use crate::kv_cache::KEYS;
use crate::lanes::Lanes;
use crate::math;

/// Positions of a chunk.
pub(super) const CHUNK: usize = 128;
/// Query vectors that a pass over a chunk serves.
const BATCH: usize = 8;
/// Greatest magnitude of half precision.
const F16_MAX: f32 = 65504.0;

/// Where the keys and values of a head stand: the cache up to block `split`, a copied tail from it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) k: &'a [u16],
    pub(super) v: &'a [u16],
    pub(super) split: usize,
    pub(super) tail_k: &'a [u16],
    pub(super) tail_v: &'a [u16],
}

/// Query vectors of one pass: scaled queries `[n][head_dim]`, scores `[n][CHUNK]`, results
/// `[n][width]`, and from where to where each sees the chunk's positions.
pub(super) struct Pass<'a> {
    pub(super) q: &'a [f32],
    pub(super) scores: &'a mut [f32],
    pub(super) results: &'a mut [f32],
    pub(super) seen: &'a [(usize, usize)],
    pub(super) head_dim: usize,
    pub(super) width: usize,
    /// First position of the chunk.
    pub(super) start: usize,
}

/// Empty states: no position seen.
pub(super) fn clear(state: &mut [f32], width: usize) {
    state.fill(0.0);
    for state in state.chunks_exact_mut(width) {
        state[0] = f32::NEG_INFINITY;
    }
}

by_isa! {
    /// Rounds whole registers of floats to half precision, saturating.
    pub(super) fn narrow(x: &[f32], out: &mut [u16]) = narrow_lanes
}

#[inline(always)]
unsafe fn narrow_lanes<L: Lanes>(x: &[f32], out: &mut [u16]) {
    for (x, out) in x.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
        // SAFETY: 16 elements each; the caller runs where the instructions of `L` exist. A NaN is
        // the second operand and stays.
        unsafe {
            let x = L::max(L::splat(-F16_MAX), L::load(x.as_ptr()));
            L::store_f16(out.as_mut_ptr(), L::min(L::splat(F16_MAX), x));
        }
    }
}

by_isa! {
    /// The results of one chunk for all vectors of a pass.
    pub(super) fn chunk_pass(pass: &mut Pass<'_>, source: Source<'_>) = chunk_pass_lanes
}

by_isa! {
    /// Merges a chunk's results into the state, vector by vector.
    pub(super) fn merge(state: &mut [f32], results: &[f32], width: usize) = merge_lanes
}

#[inline(always)]
unsafe fn chunk_pass_lanes<L: Lanes>(pass: &mut Pass<'_>, source: Source<'_>) {
    let n = pass.seen.len();
    let mut from = 0;
    while from < n {
        let batch = BATCH.min(n - from);
        // SAFETY: the caller runs where the instructions of `L` exist.
        unsafe {
            match batch {
                1 => batch_pass::<L, 1>(pass, source, from),
                2 => batch_pass::<L, 2>(pass, source, from),
                3 => batch_pass::<L, 3>(pass, source, from),
                4 => batch_pass::<L, 4>(pass, source, from),
                5 => batch_pass::<L, 5>(pass, source, from),
                6 => batch_pass::<L, 6>(pass, source, from),
                7 => batch_pass::<L, 7>(pass, source, from),
                _ => batch_pass::<L, 8>(pass, source, from),
            }
        }
        from += batch;
    }
}

/// Scores, softmax and weighted sum of `J` vectors over one chunk.
#[inline(always)]
unsafe fn batch_pass<L: Lanes, const J: usize>(
    pass: &mut Pass<'_>,
    source: Source<'_>,
    from: usize,
) {
    let (hd, width) = (pass.head_dim, pass.width);
    let seen: [(usize, usize); J] = std::array::from_fn(|j| pass.seen[from + j]);
    let longest = seen.iter().fold(0, |longest, seen| seen.1.max(longest));
    // Blocks that no vector sees. Passing them over changes no bit: their weights would be zero.
    let skipped = seen.iter().fold(longest, |least, seen| seen.0.min(least)) / KEYS;
    let results = &mut pass.results[from * width..(from + J) * width];
    let scores = &mut pass.scores[from * CHUNK..(from + J) * CHUNK];
    let q = &pass.q[from * hd..(from + J) * hd];
    // SAFETY: the caller runs where the instructions of `L` exist; `keys` and `values` check their
    // ranges, and the rooms above hold `J` vectors.
    unsafe {
        let first_block = pass.start / KEYS;
        let blocks = longest.div_ceil(KEYS);
        let mut b = skipped;
        // The values of the positions whose keys are read; those of a tree's tail are close already.
        let values = source.v.as_ptr();
        while b + 2 <= blocks {
            let k = [keys(source, first_block + b, hd), keys(source, first_block + b + 1, hd)];
            let v = values.wrapping_add((first_block + b) * KEYS * hd);
            score::<L, J, 2>(q.as_ptr(), hd, k, v, scores.as_mut_ptr().add(b * KEYS));
            b += 2;
        }
        if b < blocks {
            let k = [keys(source, first_block + b, hd)];
            let v = values.wrapping_add((first_block + b) * KEYS * hd);
            score::<L, J, 1>(q.as_ptr(), hd, k, v, scores.as_mut_ptr().add(b * KEYS));
        }
        for (j, seen) in seen.into_iter().enumerate() {
            let scores = scores.as_mut_ptr().add(j * CHUNK);
            let (m, l) = softmax::<L>(scores, seen, skipped..blocks);
            results[j * width] = m;
            results[j * width + 1] = l;
        }
        let (mut d, range) = (0, skipped * KEYS..longest);
        while d + 32 <= hd {
            let range = range.clone();
            sum_values::<L, J, 2>(pass.start, range, source, hd, d, scores, results, width);
            d += 32;
        }
        if d < hd {
            sum_values::<L, J, 1>(pass.start, range, source, hd, d, scores, results, width);
        }
    }
}

/// The keys of absolute block `block`, `[head_dim][16]`.
#[inline(always)]
fn keys(source: Source<'_>, block: usize, hd: usize) -> *const u16 {
    let n = KEYS * hd;
    if block < source.split {
        source.k[block * n..(block + 1) * n].as_ptr()
    } else {
        let block = block - source.split;
        source.tail_k[block * n..(block + 1) * n].as_ptr()
    }
}

/// Scores of `J` vectors against `B` blocks of 16 keys. As many bytes behind the keys, and the values
/// at `v`, are asked for meanwhile.
#[inline(always)]
unsafe fn score<L: Lanes, const J: usize, const B: usize>(
    q: *const f32,
    hd: usize,
    k: [*const u16; B],
    v: *const u16,
    out: *mut f32,
) {
    // SAFETY: see the caller: `q` holds `J * hd` floats, each of `k` `hd * 16` halves, and each of
    // `J` rows of `out` has room for `B * 16` floats.
    unsafe {
        let mut acc = [[L::splat(0.0); B]; J];
        let after = k[B - 1].wrapping_add(hd * KEYS);
        for d in 0..hd {
            // `B` blocks of 16 halves for each element are `B / 2` cache lines.
            if B == 2 || d % 2 == 0 {
                L::prefetch(after.wrapping_add(B * KEYS * d).cast());
                L::prefetch(v.wrapping_add(B * KEYS * d).cast());
            }
            let mut key = [L::splat(0.0); B];
            for (key, k) in key.iter_mut().zip(k) {
                *key = L::load_f16(k.add(d * KEYS));
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                let q = L::splat(*q.add(j * hd + d));
                for (acc, key) in acc.iter_mut().zip(key) {
                    *acc = L::fma(q, key, *acc);
                }
            }
        }
        for (j, acc) in acc.into_iter().enumerate() {
            for (b, acc) in acc.into_iter().enumerate() {
                L::store(out.add(j * CHUNK + b * KEYS), acc);
            }
        }
    }
}

/// Turns the scores from `from` to `to` into weights, the others of `blocks` of 16 into zeroes; gives
/// the greatest score and the sum of the weights.
#[inline(always)]
unsafe fn softmax<L: Lanes>(
    scores: *mut f32,
    (from, to): (usize, usize),
    blocks: Range<usize>,
) -> (f32, f32) {
    // SAFETY: see the caller: there are scores up to the end of the last block.
    unsafe {
        let lowest = L::splat(f32::NEG_INFINITY);
        let mut m = lowest;
        for b in blocks.start..to.div_ceil(KEYS) {
            let s = L::load(scores.add(b * KEYS));
            let s = L::first(to - b * KEYS, s, lowest);
            m = L::max(m, L::first(from.saturating_sub(b * KEYS), lowest, s));
        }
        let greatest = L::greatest(m);
        let m = L::splat(greatest);
        let mut l = L::splat(0.0);
        for b in blocks {
            let p = scores.add(b * KEYS);
            let e = math::exp::<L>(L::sub(L::load(p), m));
            let e = L::first(to.saturating_sub(b * KEYS), e, L::splat(0.0));
            let e = L::first(from.saturating_sub(b * KEYS), L::splat(0.0), e);
            L::store(p, e);
            l = L::add(l, e);
        }
        (greatest, L::sum(l))
    }
}

/// Adds up the values of the chunk's positions `range` with their weights, elements `d .. d + 16 * V`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn sum_values<L: Lanes, const J: usize, const V: usize>(
    start: usize,
    range: Range<usize>,
    source: Source<'_>,
    hd: usize,
    d: usize,
    weights: &[f32],
    results: &mut [f32],
    width: usize,
) {
    // SAFETY: see the caller; the two ranges of positions are checked by slicing.
    unsafe {
        let mut acc = [[L::splat(0.0); V]; J];
        let split = source.split.saturating_mul(KEYS);
        let cached = split.saturating_sub(start).clamp(range.start, range.end);
        let v = &source.v[(start + range.start) * hd..(start + cached) * hd];
        weighted::<L, J, V>(v, hd, d, weights.as_ptr().add(range.start), &mut acc);
        if cached < range.end {
            let from = start + cached - split;
            let v = &source.tail_v[from * hd..(from + range.end - cached) * hd];
            weighted::<L, J, V>(v, hd, d, weights.as_ptr().add(cached), &mut acc);
        }
        for (j, acc) in acc.into_iter().enumerate() {
            for (i, acc) in acc.into_iter().enumerate() {
                // Adding zero makes -0, which skipped positions could leave, +0.
                let o = L::add(acc, L::splat(0.0));
                L::store(results.as_mut_ptr().add(j * width + 16 + d + 16 * i), o);
            }
        }
    }
}

#[inline(always)]
unsafe fn weighted<L: Lanes, const J: usize, const V: usize>(
    v: &[u16],
    hd: usize,
    d: usize,
    weights: *const f32,
    acc: &mut [[L::F; V]; J],
) {
    // SAFETY: see the caller: `weights` has `J` rows of `CHUNK`.
    unsafe {
        for (p, v) in v.chunks_exact(hd).enumerate() {
            let mut value = [L::splat(0.0); V];
            for (i, value) in value.iter_mut().enumerate() {
                *value = L::load_f16(v.as_ptr().add(d + 16 * i));
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                let w = L::splat(*weights.add(j * CHUNK + p));
                for (acc, value) in acc.iter_mut().zip(value) {
                    *acc = L::fma(w, value, *acc);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn merge_lanes<L: Lanes>(state: &mut [f32], results: &[f32], width: usize) {
    assert_eq!(state.len(), results.len(), "a result for each state");
    for (state, result) in state.chunks_exact_mut(width).zip(results.chunks_exact(width)) {
        let (m, n) = (state[0], result[0]);
        if result[1] == 0.0 {
            // The vector sees nothing of this chunk.
            continue;
        }
        let both = if m > n { m } else { n };
        // SAFETY: the caller runs where the instructions of `L` exist; widths are whole registers.
        unsafe {
            let a = math::exp::<L>(L::splat(m - both));
            let b = math::exp::<L>(L::splat(n - both));
            let l = L::fma(L::splat(result[1]), b, L::mul(L::splat(state[1]), a));
            for i in (16..width).step_by(16) {
                let o = L::load(state.as_ptr().add(i));
                let r = L::load(result.as_ptr().add(i));
                L::store(state.as_mut_ptr().add(i), L::fma(r, b, L::mul(o, a)));
            }
            let mut lanes = [0f32; 16];
            L::store(lanes.as_mut_ptr(), l);
            state[0] = both;
            state[1] = lanes[0];
        }
    }
}
