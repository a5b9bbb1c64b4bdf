//! Products of float tiles, where they are stored or where they were formed.
//!
//! Tile rows go in pairs where registers suffice and tokens abound, so that an input that is spread
//! over the lanes serves 32 outputs; a run of tile rows that stays in the second cache goes past eight
//! tokens, which stay in the first, before the next eight come. What is computed for an output does not depend on either.

use super::{Place, TURN_BYTES, Task, store};
use crate::Activations;
use crate::lanes::Lanes;
use crate::tile::TILE_ROWS;

/// Weights that are multiplied as floats, in tiles `[input][16 rows]`, of pairs of bfloat16
/// `[input pair][16 rows][2]`.
pub(super) trait FloatTile {
    /// Bytes of the weights of 16 rows for one input.
    const INPUT_BYTES: usize;
    /// Bytes of an input, and from one token's to the next one's.
    const X_BYTES: usize;
    /// The inputs, and their number for a token: that of columns, or the next even one.
    fn inputs(acts: &Activations) -> (*const u8, usize);
    /// Adds to `sums` the products of `n` inputs of `T` tokens with `R` tiles.
    unsafe fn block<L: Lanes, const R: usize, const T: usize>(
        w: [*const u8; R],
        x: [*const u8; T],
        n: usize,
        sums: &mut [[L::F; T]; R],
    );
}

/// Single precision.
pub(super) struct Single;
/// Half precision.
pub(super) struct Half;
/// Pairs of bfloat16.
pub(super) struct Pairs;

/// Adds the products of `n` inputs, whose weights `load` reads.
#[inline(always)]
unsafe fn float_block<L: Lanes, const R: usize, const T: usize>(
    w: [*const u8; R],
    x: [*const u8; T],
    n: usize,
    sums: &mut [[L::F; T]; R],
    load: impl Fn(*const u8, usize) -> L::F,
) {
    for i in 0..n {
        let w = w.map(|w| load(w, i));
        for t in 0..T {
            // SAFETY: the caller gives `n` floats of each token.
            let x = unsafe { L::splat(x[t].cast::<f32>().add(i).read_unaligned()) };
            for r in 0..R {
                // SAFETY: the caller runs where the instructions of `L` exist.
                sums[r][t] = unsafe { L::fma(w[r], x, sums[r][t]) };
            }
        }
    }
}

impl FloatTile for Single {
    const INPUT_BYTES: usize = 4 * TILE_ROWS;
    const X_BYTES: usize = 4;

    fn inputs(acts: &Activations) -> (*const u8, usize) {
        (acts.x().as_ptr().cast(), acts.cols())
    }

    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const T: usize>(
        w: [*const u8; R],
        x: [*const u8; T],
        n: usize,
        sums: &mut [[L::F; T]; R],
    ) {
        // SAFETY: the caller gives 64 bytes of weights for each input.
        unsafe {
            float_block::<L, R, T>(w, x, n, sums, |w, i| L::load(w.cast::<f32>().add(16 * i)));
        }
    }
}

impl FloatTile for Half {
    const INPUT_BYTES: usize = 2 * TILE_ROWS;
    const X_BYTES: usize = 4;

    fn inputs(acts: &Activations) -> (*const u8, usize) {
        (acts.x().as_ptr().cast(), acts.cols())
    }

    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const T: usize>(
        w: [*const u8; R],
        x: [*const u8; T],
        n: usize,
        sums: &mut [[L::F; T]; R],
    ) {
        // SAFETY: the caller gives 32 bytes of weights for each input.
        unsafe {
            float_block::<L, R, T>(w, x, n, sums, |w, i| L::load_f16(w.cast::<u16>().add(16 * i)));
        }
    }
}

impl FloatTile for Pairs {
    const INPUT_BYTES: usize = 2 * TILE_ROWS;
    const X_BYTES: usize = 2;

    fn inputs(acts: &Activations) -> (*const u8, usize) {
        (acts.bf16().as_ptr().cast(), acts.cols().next_multiple_of(2))
    }

    #[inline(always)]
    unsafe fn block<L: Lanes, const R: usize, const T: usize>(
        w: [*const u8; R],
        x: [*const u8; T],
        n: usize,
        sums: &mut [[L::F; T]; R],
    ) {
        for pair in 0..n / 2 {
            for r in 0..R {
                for t in 0..T {
                    // SAFETY: the caller gives 64 bytes of weights and 4 of inputs for each pair, and
                    // runs where the instructions of `L` exist.
                    sums[r][t] = unsafe {
                        let w = w[r].cast::<u16>().add(32 * pair);
                        L::dot_bf16(sums[r][t], w, x[t].cast::<u16>().add(2 * pair))
                    };
                }
            }
        }
    }
}

/// Tile rows that follow one another in memory.
#[derive(Clone, Copy)]
pub(super) struct TileRun {
    /// The first one's place in the matrix.
    pub(super) first: usize,
    /// How many there are.
    pub(super) count: usize,
    /// Where the first begins.
    pub(super) start: *const u8,
    /// Bytes from one to the next.
    pub(super) bytes: usize,
}

/// Tile rows of a matrix whose stored weights are those that are multiplied.
#[inline(always)]
pub(super) unsafe fn stored<L: Lanes, W: FloatTile>(t: &Task<'_>, from: usize, to: usize) {
    let bytes = t.weights.tile(from).len();
    let turn = (TURN_BYTES / bytes).max(2);
    for first in (from..to).step_by(turn) {
        let count = turn.min(to - first);
        let run = TileRun { first, count, start: t.weights.tile(first).as_ptr(), bytes };
        // SAFETY: tile rows follow one another; the caller runs where the instructions of `L` exist.
        unsafe { multiply_run::<L, W>(t, run) };
    }
}

/// [`stored`] of pairs, for processors that may have an instruction for them.
#[inline(always)]
pub(super) unsafe fn stored_pairs<L: Lanes>(t: &Task<'_>, from: usize, to: usize) {
    // SAFETY: the caller's promise.
    unsafe { stored::<L, Pairs>(t, from, to) };
}

/// Multiplies a run of tile rows with the task's tokens.
#[inline(always)]
pub(super) unsafe fn multiply_run<L: Lanes, W: FloatTile>(t: &Task<'_>, run: TileRun) {
    let mut token = t.tokens.start;
    while token < t.tokens.end {
        let count = L::TOKENS.min(t.tokens.end - token);
        // SAFETY: the caller's promise; `count` is at most 8.
        unsafe {
            match count {
                1 => tokens::<L, W, 1>(t, run, token),
                _ if L::TOKENS == 1 => {}
                2 => tokens::<L, W, 2>(t, run, token),
                3 => tokens::<L, W, 3>(t, run, token),
                4 => tokens::<L, W, 4>(t, run, token),
                _ if L::TOKENS == 4 => {}
                5 => tokens::<L, W, 5>(t, run, token),
                6 => tokens::<L, W, 6>(t, run, token),
                7 => tokens::<L, W, 7>(t, run, token),
                _ => tokens::<L, W, 8>(t, run, token),
            }
        }
        token += count;
    }
}

/// All tile rows of the run and `T` tokens.
#[inline(always)]
unsafe fn tokens<L: Lanes, W: FloatTile, const T: usize>(t: &Task<'_>, run: TileRun, token: usize) {
    let (x, width) = W::inputs(t.acts);
    let x: [*const u8; T] =
        std::array::from_fn(|i| x.wrapping_add((token + i) * width * W::X_BYTES));
    let mut i = 0;
    while i < run.count {
        let w = run.start.wrapping_add(i * run.bytes);
        let at = Place { tile: run.first + i, token, count: T };
        // SAFETY: a tile row holds `width` inputs, and so do the inputs of each token; this member
        // alone runs these tiles, and the caller runs where the instructions of `L` exist.
        unsafe {
            if L::TOKENS == 8 && T == 8 && i + 1 < run.count {
                let next = Place { tile: at.tile + 1, ..at };
                let [a, b] = rows::<L, W, 2, T>([w, w.wrapping_add(run.bytes)], x, width);
                store::<L, T>(t, at, a);
                store::<L, T>(t, next, b);
                i += 2;
            } else {
                let [a] = rows::<L, W, 1, T>([w], x, width);
                store::<L, T>(t, at, a);
                i += 1;
            }
        }
    }
}

/// The products of `R` tile rows with `T` tokens, block for block.
#[inline(always)]
pub(super) unsafe fn rows<L: Lanes, W: FloatTile, const R: usize, const T: usize>(
    w: [*const u8; R],
    x: [*const u8; T],
    width: usize,
) -> [[L::F; T]; R] {
    // SAFETY: see the caller.
    unsafe {
        let mut acc = [[L::splat(0.0); T]; R];
        let mut start = 0;
        while start < width {
            let n = 32.min(width - start);
            let mut sums = [[L::splat(0.0); T]; R];
            let w = w.map(|w| w.add(start * W::INPUT_BYTES));
            W::block::<L, R, T>(w, x.map(|x| x.add(start * W::X_BYTES)), n, &mut sums);
            for (acc, sums) in acc.iter_mut().zip(sums) {
                for (acc, sum) in acc.iter_mut().zip(sums) {
                    *acc = L::add(*acc, sum);
                }
            }
            start += n;
        }
        acc
    }
}
