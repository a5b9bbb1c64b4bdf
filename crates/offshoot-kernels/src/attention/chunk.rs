//! Scores, softmax and weighted sum of a few query vectors over one chunk of positions, and the
//! merging of chunks.

use std::ops::Range;

use crate::isa::by_isa;
use crate::kv_cache::{Element, KEYS};
use crate::lanes::Lanes;
use crate::math;

/// Positions of a chunk.
pub(super) const CHUNK: usize = 128;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Query vectors that stand together, element by element, and are scored together.
pub(super) const BATCH: usize = 8;

/// Query vectors of one pass over one chunk.
pub(super) struct Pass<'a> {
    /// Scaled queries, `[batch][head_dim][BATCH]`.
    pub(super) q: &'a [f32],
    /// `[n][CHUNK]`
    pub(super) scores: &'a mut [f32],
    /// `[n][width]`
    pub(super) results: &'a mut [f32],
    /// From where to where each of the `n` vectors sees the chunk's positions.
    pub(super) seen: &'a [(usize, usize)],
    pub(super) head_dim: usize,
    pub(super) width: usize,
    /// First position of the chunk.
    pub(super) start: usize,
    pub(super) tree: Option<Tree<'a>>,
}

/// Rows of a tree: behind the decided positions they stand by their number in the step, and count by
/// their depth.
pub(super) struct Tree<'a> {
    /// Decided positions.
    pub(super) base: usize,
    /// Rows behind them that the pass's vectors may see.
    pub(super) rows: usize,
    /// Vectors of a row.
    pub(super) group: usize,
    /// For each row of the pass, where its path from the root to itself stands in `ancestors`.
    pub(super) paths: &'a [Range<usize>],
    pub(super) ancestors: &'a [u32],
    /// Scores, then weights, of what stands behind the last whole block of decided positions,
    /// `[part][n][CHUNK]`.
    pub(super) scores: &'a mut [f32],
}

impl<'a> Tree<'a> {
    /// The positions of the chunk at `start` that vector `j` sees of the tree, and where each stands,
    /// counted from the last whole block of decided positions.
    fn places(
        &self,
        j: usize,
        start: usize,
        (from, to): (usize, usize),
    ) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let path = &self.ancestors[self.paths[j / self.group].clone()];
        let (base, from) = (self.base, from.max(self.base.saturating_sub(start)));
        (from..to).map(move |p| (p, base % KEYS + path[start + p - base] as usize))
    }

    /// Parts that hold the tree's scores.
    fn parts(&self) -> usize {
        (self.base % KEYS + self.rows).div_ceil(CHUNK)
    }

    /// Scores of `n` vectors behind `base` decided positions that `rows` rows need room for.
    pub(super) fn room(n: usize, base: usize, rows: usize) -> usize {
        (base % KEYS + rows).next_multiple_of(CHUNK) * n
    }
}

/// Values that stand together and their weights, those of a vector `CHUNK` behind the last one's.
#[derive(Clone, Copy)]
struct Run<'a, T> {
    values: &'a [T],
    weights: &'a [f32],
}

/// Empty states: no position seen.
pub(super) fn clear(state: &mut [f32], width: usize) {
    state.fill(0.0);
    for state in state.chunks_exact_mut(width) {
        state[0] = f32::NEG_INFINITY;
    }
}

by_isa! {
    /// The results of one chunk for all vectors of a pass over the keys and values of a head,
    /// `[block][head_dim][16]` and `[position][head_dim]`.
    pub(super) fn chunk_pass(pass: &mut Pass<'_>, k: &[u16], v: &[u16]) = chunk_pass_lanes [u16]
}

by_isa! {
    /// The same over those of single precision.
    pub(super) fn chunk_pass_single(pass: &mut Pass<'_>, k: &[f32], v: &[f32])
        = chunk_pass_lanes [f32]
}

by_isa! {
    /// Merges a chunk's results into the state, vector by vector.
    pub(super) fn merge(state: &mut [f32], results: &[f32], width: usize) = merge_lanes
}

/// Does `$do` with `J`, a constant, for each batch of at most `BATCH` of `$n` vectors, `$from` being
/// its first.
macro_rules! for_batches {
    ($n:expr, |$from:ident| $do:block) => {
        // Where registers are few, half a batch at a time.
        let most = if L::TOKENS < BATCH { BATCH / 2 } else { BATCH };
        for $from in (0..$n).step_by(most) {
            for_batches!(@one most.min($n - $from), $do, 1 2 3 4 5 6 7 8)
        }
    };
    (@one $batch:expr, $do:block, $($j:literal)*) => {
        match $batch {
            $($j => {
                const J: usize = $j;
                $do
            })*
            _ => unreachable!("at most {BATCH} vectors"),
        }
    };
}

#[inline(always)]
unsafe fn chunk_pass_lanes<L: Lanes, T: Element>(pass: &mut Pass<'_>, k: &[T], v: &[T]) {
    let Pass { q, seen, head_dim: hd, width, start, .. } = *pass;
    let (n, scores, results) = (seen.len(), &mut *pass.scores, &mut *pass.results);
    let longest = seen.iter().fold(0, |longest, seen| seen.1.max(longest));
    // Blocks that no vector sees. Passing them over changes no bit: their weights would be zero.
    let skipped = seen.iter().fold(longest, |least, seen| seen.0.min(least)) / KEYS;
    // What stands where it counts.
    let decided = pass.tree.as_ref().map_or(CHUNK, |tree| tree.base.saturating_sub(start));
    let kept = longest.min(decided);
    let mut tree = pass.tree.as_mut().filter(|_| longest > decided);
    assert!(q.len() >= n.next_multiple_of(BATCH) * hd, "whole batches of queries");
    assert!(scores.len() >= n * CHUNK && results.len() >= n * width, "room for each vector");
    // SAFETY: the caller runs where the instructions of `L` exist; there is room for `n` vectors, and
    // softmax stays within the chunk.
    unsafe {
        let blocks = start / KEYS + skipped..(start + kept).div_ceil(KEYS);
        score_blocks::<L, T>((k, v), hd, (q, n), blocks, &mut scores[skipped * KEYS..]);
        if let Some(tree) = &mut tree {
            let (first, end) = (tree.base / KEYS, (tree.base + tree.rows).div_ceil(KEYS));
            for part in 0..tree.parts() {
                let from = first + part * (CHUNK / KEYS);
                let blocks = from..end.min(from + CHUNK / KEYS);
                let scores = &mut tree.scores[part * n * CHUNK..];
                score_blocks::<L, T>((k, v), hd, (q, n), blocks, scores);
            }
            for (j, &seen) in seen.iter().enumerate() {
                for (p, at) in tree.places(j, start, seen) {
                    scores[j * CHUNK + p] = tree.scores[(at / CHUNK * n + j) * CHUNK + at % CHUNK];
                }
            }
        }
        for (j, &seen) in seen.iter().enumerate() {
            let scores = scores.as_mut_ptr().add(j * CHUNK);
            let (m, l) = softmax::<L>(scores, seen, skipped..longest.div_ceil(KEYS));
            results[j * width] = m;
            results[j * width + 1] = l;
        }
        let main = Run {
            values: &v[(start + skipped * KEYS).min(start + kept) * hd..(start + kept) * hd],
            weights: &scores[skipped * KEYS..],
        };
        let Some(tree) = tree else {
            return sum_values::<L, T>(std::iter::once(main), n, hd, results, width);
        };
        let parts = tree.parts();
        tree.scores[..parts * n * CHUNK].fill(0.0);
        for (j, &seen) in seen.iter().enumerate() {
            for (p, at) in tree.places(j, start, seen) {
                tree.scores[(at / CHUNK * n + j) * CHUNK + at % CHUNK] = scores[j * CHUNK + p];
            }
        }
        let first = tree.base / KEYS * KEYS;
        let parts = (0..parts).map(|part| {
            let from = (part * CHUNK).max(tree.base - first);
            let to = ((part + 1) * CHUNK).min(tree.base - first + tree.rows);
            Run {
                values: &v[(first + from) * hd..(first + to) * hd],
                weights: &tree.scores[part * n * CHUNK + from % CHUNK..],
            }
        });
        sum_values::<L, T>(std::iter::once(main).chain(parts), n, hd, results, width);
    }
}

/// Scores of all `n` vectors of `q` against the keys of `blocks`, the first block's to the beginning
/// of `out`. A few keys at a time serve all vectors, while they are in the first cache.
#[inline(always)]
unsafe fn score_blocks<L: Lanes, T: Element>(
    (k, v): (&[T], &[T]),
    hd: usize,
    (q, n): (&[f32], usize),
    blocks: Range<usize>,
    out: &mut [f32],
) {
    if blocks.is_empty() {
        return;
    }
    let size = KEYS * hd;
    assert!(k.len() >= blocks.end * size, "keys of whole blocks");
    assert!(out.len() >= (n - 1) * CHUNK + blocks.len() * KEYS, "room for the scores");
    // Where registers are few, one block at a time.
    let most = if L::TOKENS < BATCH { 1 } else { 2 };
    for block in blocks.clone().step_by(most) {
        // SAFETY: there are whole batches of queries; the rest was checked above.
        unsafe {
            let keys = k.as_ptr().add(block * size);
            let out = out.as_mut_ptr().add((block - blocks.start) * KEYS);
            // The values of the same positions are read after their keys.
            let values = v.as_ptr().wrapping_add(block * size);
            let two = most == 2 && block + 1 < blocks.end;
            for_batches!(n, |from| {
                let q = q.as_ptr().add(from / BATCH * BATCH * hd + from % BATCH);
                let out = out.add(from * CHUNK);
                if two {
                    score::<L, T, J, 2>(q, hd, keys, values, out);
                } else {
                    score::<L, T, J, 1>(q, hd, keys, values, out);
                }
            });
        }
    }
}

/// Scores of `J` vectors against `B` blocks of 16 keys. As many bytes behind the keys, and the values
/// at `v`, are asked for meanwhile.
#[inline(always)]
unsafe fn score<L: Lanes, T: Element, const J: usize, const B: usize>(
    q: *const f32,
    hd: usize,
    k: *const T,
    v: *const T,
    out: *mut f32,
) {
    // SAFETY: see the caller: `q` holds `hd` batches from vector 0 or 4 on, `k` whole blocks of keys,
    // and each of `J` rows of `out` has room for `B * 16` floats.
    unsafe {
        let q = twins::<B>(q);
        let mut acc = [[L::splat(0.0); B]; J];
        let after = k.wrapping_add(B * hd * KEYS);
        // Bytes of one element of the keys of all blocks: half a cache line, one or two.
        let each = B * KEYS * size_of::<T>();
        for d in 0..hd {
            if (d * each).is_multiple_of(LINE) {
                for line in (0..each).step_by(LINE) {
                    L::prefetch(after.cast::<u8>().wrapping_add(d * each + line));
                    L::prefetch(v.cast::<u8>().wrapping_add(d * each + line));
                }
            }
            let mut key = [L::splat(0.0); B];
            for (b, key) in key.iter_mut().enumerate() {
                *key = T::load::<L>(k.add((b * hd + d) * KEYS));
            }
            for (j, acc) in acc.iter_mut().enumerate() {
                for (b, acc) in acc.iter_mut().enumerate() {
                    *acc = L::fma(L::splat(*q[b].add(d * BATCH + j)), key[b], *acc);
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

/// The same pointer, such that the compiler does not know that it is: what is read through one is not
/// taken from what was read through another. An operand in memory is spread by the multiplication
/// that reads it, while spreading it for two takes an instruction, and a time on the same pipes.
#[inline(always)]
fn twins<const N: usize>(p: *const f32) -> [*const f32; N] {
    std::array::from_fn(|i| if i == 0 { p } else { std::hint::black_box(p) })
}

/// Turns the scores from `from` to `to` into weights, the others of `blocks` of 16 into zeroes; gives
/// the greatest score and the sum of the weights.
#[inline(always)]
unsafe fn softmax<L: Lanes>(
    scores: *mut f32,
    (from, to): (usize, usize),
    blocks: Range<usize>,
) -> (f32, f32) {
    // Blocks that are seen as a whole.
    let whole = from.div_ceil(KEYS)..to / KEYS;
    // SAFETY: see the caller: there are scores up to the end of the last block.
    unsafe {
        let lowest = L::splat(f32::NEG_INFINITY);
        let mut m = lowest;
        for b in blocks.start..to.div_ceil(KEYS) {
            let mut s = L::load(scores.add(b * KEYS));
            if !whole.contains(&b) {
                s = L::first(to - b * KEYS, s, lowest);
                s = L::first(from.saturating_sub(b * KEYS), lowest, s);
            }
            m = L::max(m, s);
        }
        let greatest = L::greatest(m);
        let m = L::splat(greatest);
        let mut l = L::splat(0.0);
        for b in blocks {
            let p = scores.add(b * KEYS);
            let mut e = math::exp::<L>(L::sub(L::load(p), m));
            if !whole.contains(&b) {
                e = L::first(to.saturating_sub(b * KEYS), e, L::splat(0.0));
                e = L::first(from.saturating_sub(b * KEYS), L::splat(0.0), e);
            }
            L::store(p, e);
            l = L::add(l, e);
        }
        (greatest, L::sum(l))
    }
}

/// Adds up the values of all runs, in order, with the weights of all `n` vectors. Two registers of a
/// value's elements at a time serve all vectors, while they are in the first cache.
#[inline(always)]
unsafe fn sum_values<'a, L: Lanes, T: Element>(
    runs: impl Iterator<Item = Run<'a, T>> + Clone,
    n: usize,
    hd: usize,
    results: &mut [f32],
    width: usize,
) {
    let most = if L::TOKENS < BATCH { 1 } else { 2 };
    for d in (0..hd).step_by(most * 16) {
        let two = most == 2 && d + 32 <= hd;
        // SAFETY: the caller's promise.
        unsafe {
            for_batches!(n, |from| {
                let results = &mut results[from * width..(from + J) * width];
                if two {
                    weighted::<L, T, J, 2>(runs.clone(), from, (d, hd), results, width);
                } else {
                    weighted::<L, T, J, 1>(runs.clone(), from, (d, hd), results, width);
                }
            });
        }
    }
}

/// The sums of `J` vectors, the first being `from`, over elements `d .. d + 16 * V` of the values.
#[inline(always)]
unsafe fn weighted<'a, L: Lanes, T: Element, const J: usize, const V: usize>(
    runs: impl Iterator<Item = Run<'a, T>>,
    from: usize,
    (d, hd): (usize, usize),
    results: &mut [f32],
    width: usize,
) {
    // SAFETY: the caller runs where the instructions of `L` exist; values are whole rows of `hd`
    // elements, and that there is a weight for each of them and vector is checked.
    unsafe {
        let mut acc = [[L::splat(0.0); V]; J];
        for Run { values, weights } in runs {
            let positions = values.len() / hd;
            assert!(
                positions == 0 || weights.len() >= (from + J - 1) * CHUNK + positions,
                "weights"
            );
            let weights = twins::<V>(weights.as_ptr().wrapping_add(from * CHUNK));
            for (p, v) in values.chunks_exact(hd).enumerate() {
                let mut value = [L::splat(0.0); V];
                for (i, value) in value.iter_mut().enumerate() {
                    *value = T::load::<L>(v.as_ptr().add(d + 16 * i));
                }
                for (j, acc) in acc.iter_mut().enumerate() {
                    for (i, acc) in acc.iter_mut().enumerate() {
                        *acc = L::fma(L::splat(*weights[i].add(j * CHUNK + p)), value[i], *acc);
                    }
                }
            }
        }
        for (j, acc) in acc.into_iter().enumerate() {
            for (i, acc) in acc.into_iter().enumerate() {
                // Adding zero makes -0, which skipped positions could leave, +0.
                let o = L::add(acc, L::splat(0.0));
                L::store(results[j * width + 16 + d + 16 * i..][..16].as_mut_ptr(), o);
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
            // One of the two is exp(0), which is 1 to the bit.
            let (one, less) =
                (L::splat(1.0), math::exp::<L>(L::splat(if m > n { n - m } else { m - n })));
            let (a, b) = if m > n { (one, less) } else { (less, one) };
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
