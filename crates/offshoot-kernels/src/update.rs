//! What a step of tuning does to weights: one definition, in tiles and in row-major order.
//!
//! ```text
//! linear    w' = w (1 - decay) - u                      u = 0 + s_0 z_0 + s_1 z_1 + ..., in order
//! moments   for gradients of the history, the oldest first, x = 0 + g_0 z_0 + ..., a group's terms:
//!               m = first m  + (1 - first)  x           v = second v + (1 - second) (x x)
//!           w' = w (1 - decay) - (rate (m first_correction)) / (sqrt(v second_correction) + epsilon)
//! ```
//! in single precision from `m = v = 0`, an operation at a time, nothing fused. Moments are Adam's
//! (Kingma and Ba 2015, <https://arxiv.org/abs/1412.6980>), made again from the directions instead of
//! kept: memory holds none, and time grows with the history.
//!
//! What is stored in bfloat16 is then rounded by chance, as [`Rounding::round`] says.
//!
//! [`Change::apply`] is the definition; what runs by the million is tested against it to the bit. So an
//! update made again gives the weights of the run, on any processor and any number of threads.

use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::noise::{BLOCK_COLS, Block, BlockPlace, PairBits, round_pair};
use crate::terms::{RUN, block_sum, check_terms, run_entries};
use crate::tile::{TILE_ROWS, TileMut};
use crate::{Cpu, PackedMatrix, Rounding, Term, TileError};

/// What happens to the weights of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change<'a> {
    /// The sum of terms is subtracted.
    Linear {
        /// What is lost of each weight first.
        decay: f32,
        /// What is subtracted.
        terms: &'a [Term<'a>],
    },
    /// A step by Adam's rule, whose moments are those of a history.
    Moments {
        /// What is lost of each weight first.
        decay: f32,
        /// The constants.
        rule: Moments,
        /// How many terms make one gradient, at least 1.
        group: usize,
        /// Projected gradients, as scales, and their directions, the oldest first.
        history: &'a [Term<'a>],
    },
}

/// The constants of a step by Adam's rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// The learning rate.
    pub rate: f32,
    /// Decay of the first moment.
    pub first: f32,
    /// Decay of the second.
    pub second: f32,
    /// `1 / (1 - first^t)`.
    pub first_correction: f32,
    /// `1 / (1 - second^t)`.
    pub second_correction: f32,
    /// Keeps the quotient finite.
    pub epsilon: f32,
}

impl<'a> Change<'a> {
    /// What becomes of the weight `w` at (`row`, `col`) of a tensor of `shape`: the definition.
    ///
    /// # Panics
    /// If there is no such weight.
    pub fn apply(&self, shape: (usize, usize), row: usize, col: usize, w: f32) -> f32 {
        let kept = w * self.keep();
        let scaled = |term: &Term<'_>| term.scale * term.at(shape.1, row, col);
        match *self {
            Change::Linear { terms, .. } => {
                kept - terms.iter().fold(0.0, |u, term| u + scaled(term))
            }
            Change::Moments { rule, group, history, .. } => {
                let (mut m, mut v) = (0.0, 0.0);
                for terms in history.chunks(group.max(1)) {
                    let x = terms.iter().fold(0.0, |x, term| x + scaled(term));
                    m = rule.first * m + (1.0 - rule.first) * x;
                    v = rule.second * v + (1.0 - rule.second) * (x * x);
                }
                let root = (v * rule.second_correction).sqrt() + rule.epsilon;
                kept - rule.rate * (m * rule.first_correction) / root
            }
        }
    }

    /// What weights are multiplied with first.
    fn keep(&self) -> f32 {
        let (Change::Linear { decay, .. } | Change::Moments { decay, .. }) = *self;
        1.0 - decay
    }

    fn terms(&self) -> &'a [Term<'a>] {
        match *self {
            Change::Linear { terms, .. } => terms,
            Change::Moments { history, .. } => history,
        }
    }
}

/// Changes the weights of `matrix`; those in bfloat16 are rounded by `rounding`, which those in single
/// precision do not ask.
///
/// # Errors
/// [`TileError::Fixed`] if they are in neither, or in memory that others share; [`TileError::File`] if
/// they lie in a file that fails, where some are changed then.
///
/// # Panics
/// If a term is not of such a matrix.
pub fn update_matrix(
    cpu: &Cpu,
    matrix: &mut PackedMatrix,
    change: &Change<'_>,
    rounding: &Rounding,
) -> Result<(), TileError> {
    let shape = (matrix.rows(), matrix.cols());
    check_terms(change.terms(), shape);
    rounding.check(shape.0 as u64 * shape.1 as u64);
    matrix.change_tiles(cpu, true, |tile, w| {
        let row = tile * TILE_ROWS;
        match w {
            TileMut::Single(w) => update_tile(cpu.isa(), change, shape, row, w),
            TileMut::Pairs(w) => update_pairs(cpu.isa(), (change, rounding), shape, row, w),
        }
    })
}

/// Changes the weights `w` of a tensor of `shape`, in row-major order.
///
/// # Panics
/// If `w` or a term is not of such a tensor.
pub fn update_rows(cpu: &Cpu, shape: (usize, usize), w: &mut [f32], change: &Change<'_>) {
    check_terms(change.terms(), shape);
    assert_eq!(w.len(), shape.0 * shape.1, "the tensor's weights");
    let (len, weights) = (w.len(), Disjoint::new(w));
    cpu.team().for_pieces(len.div_ceil(RUN), 16, |_, piece| {
        for run in piece {
            let first = run * RUN;
            // SAFETY: pieces do not overlap, so this member alone has the run.
            let w = unsafe { weights.slice(first, RUN.min(len - first)) };
            update_run(cpu.isa(), change, shape, first as u64, w);
        }
    });
}

by_isa! {
    fn update_tile(change: &Change<'_>, shape: (usize, usize), row: usize, w: &mut [f32])
        = update_tile_lanes
}
by_isa! {
    fn update_pairs(by: (&Change<'_>, &Rounding), shape: (usize, usize), row: usize, w: &mut [u32])
        = update_pairs_lanes
}
by_isa! {
    fn update_run(change: &Change<'_>, shape: (usize, usize), first: u64, w: &mut [f32])
        = update_run_lanes
}

#[inline(always)]
unsafe fn update_tile_lanes<L: Lanes>(
    change: &Change<'_>,
    shape: (usize, usize),
    row: usize,
    w: &mut [f32],
) {
    let height = TILE_ROWS.min(shape.0 - row);
    let keep = change.keep();
    let mut u: Block = [[0.0; TILE_ROWS]; BLOCK_COLS];
    for (i, w) in w.chunks_mut(BLOCK_COLS * TILE_ROWS).enumerate() {
        let (col, count) = (i * BLOCK_COLS, w.len() / TILE_ROWS);
        let place = BlockPlace { row, col, count, shape };
        // SAFETY: all rows hold 16 floats; the caller runs where the instructions of `L` exist.
        unsafe {
            subtrahend::<L>(change, place, &mut u);
            for (w, u) in w.chunks_exact_mut(TILE_ROWS).zip(&u) {
                let old = L::load(w.as_ptr());
                let new = L::sub(L::mul(old, L::splat(keep)), L::load(u.as_ptr()));
                // Rows that the matrix does not have stay zero.
                L::store(w.as_mut_ptr(), L::first(height, new, L::splat(0.0)));
            }
        }
    }
}

/// The same of pairs of bfloat16.
#[inline(always)]
unsafe fn update_pairs_lanes<L: Lanes>(
    (change, rounding): (&Change<'_>, &Rounding),
    shape: (usize, usize),
    row: usize,
    w: &mut [u32],
) {
    let height = TILE_ROWS.min(shape.0 - row);
    let mut u: Block = [[0.0; TILE_ROWS]; BLOCK_COLS];
    let mut bits: PairBits = [[0; TILE_ROWS]; BLOCK_COLS / 2];
    for (i, w) in w.chunks_mut(BLOCK_COLS / 2 * TILE_ROWS).enumerate() {
        let col = i * BLOCK_COLS;
        let count = BLOCK_COLS.min(shape.1 - col);
        let place = BlockPlace { row, col, count, shape };
        // SAFETY: all rows hold 16 numbers; the caller runs where the instructions of `L` exist.
        unsafe {
            subtrahend::<L>(change, place, &mut u);
            // The other half of a last column is zero and stays so.
            u[count..].fill([0.0; TILE_ROWS]);
            rounding.fill_pairs::<L>(place, &mut bits);
            let keep = L::splat(change.keep());
            for ((w, u), bits) in w.chunks_exact_mut(TILE_ROWS).zip(u.chunks_exact(2)).zip(&bits) {
                let old = L::load_i(w.as_ptr().cast());
                let even = L::mul(L::from_bits(L::shl_i::<16>(old)), keep);
                let odd = L::mul(L::from_bits(L::and_i(old, L::splat_i(-65_536))), keep);
                let even = L::sub(even, L::load(u[0].as_ptr()));
                let odd = L::sub(odd, L::load(u[1].as_ptr()));
                // Rows that the matrix does not have stay zero.
                let even = L::first(height, even, L::splat(0.0));
                let odd = L::first(height, odd, L::splat(0.0));
                let new = round_pair::<L>(even, odd, L::load_i(bits.as_ptr().cast()));
                L::store_i(w.as_mut_ptr().cast(), new);
            }
        }
    }
}

/// Writes what is subtracted in a block.
#[inline(always)]
unsafe fn subtrahend<L: Lanes>(change: &Change<'_>, place: BlockPlace, u: &mut Block) {
    match *change {
        // SAFETY: the caller runs where the instructions of `L` exist.
        Change::Linear { terms, .. } => unsafe { block_sum::<L>(terms, place, u) },
        Change::Moments { rule, group, history, .. } => {
            u.fill([0.0; TILE_ROWS]);
            let mut v: Block = [[0.0; TILE_ROWS]; BLOCK_COLS];
            let mut x: Block = [[0.0; TILE_ROWS]; BLOCK_COLS];
            for terms in history.chunks(group.max(1)) {
                // SAFETY: all rows hold 16 floats, and as above.
                unsafe {
                    block_sum::<L>(terms, place, &mut x);
                    let rows = u.iter_mut().zip(&mut v).zip(&x).take(place.count);
                    rows.for_each(|((m, v), x)| moments::<L>(rule, x, m, v));
                }
            }
            for (u, v) in u.iter_mut().zip(&v).take(place.count) {
                // SAFETY: as above.
                unsafe { quotient::<L>(rule, u, v) };
            }
        }
    }
}

/// Brings both moments of 16 weights up to date.
#[inline(always)]
unsafe fn moments<L: Lanes>(rule: Moments, x: &[f32], m: &mut [f32], v: &mut [f32]) {
    // SAFETY: all slices hold 16 floats; the caller runs where the instructions of `L` exist.
    unsafe {
        let x = L::load(x.as_ptr());
        let first = L::mul(L::splat(rule.first), L::load(m.as_ptr()));
        let first = L::add(first, L::mul(L::splat(1.0 - rule.first), x));
        L::store(m.as_mut_ptr(), first);
        let second = L::mul(L::splat(rule.second), L::load(v.as_ptr()));
        let second = L::add(second, L::mul(L::splat(1.0 - rule.second), L::mul(x, x)));
        L::store(v.as_mut_ptr(), second);
    }
}

/// Makes of 16 first moments what is subtracted.
#[inline(always)]
unsafe fn quotient<L: Lanes>(rule: Moments, m: &mut [f32], v: &[f32]) {
    // SAFETY: all slices hold 16 floats; the caller runs where the instructions of `L` exist.
    unsafe {
        let root = L::sqrt(L::mul(L::load(v.as_ptr()), L::splat(rule.second_correction)));
        let root = L::add(root, L::splat(rule.epsilon));
        let first = L::mul(L::load(m.as_ptr()), L::splat(rule.first_correction));
        L::store(m.as_mut_ptr(), L::div(L::mul(L::splat(rule.rate), first), root));
    }
}

#[inline(always)]
unsafe fn update_run_lanes<L: Lanes>(
    change: &Change<'_>,
    shape: (usize, usize),
    first: u64,
    w: &mut [f32],
) {
    let (mut u, mut v) = ([0f32; RUN], [0f32; RUN]);
    let n = w.len();
    match *change {
        // SAFETY: the caller runs where the instructions of `L` exist.
        Change::Linear { terms, .. } => unsafe { run_sum::<L>(terms, shape.1, first, &mut u[..n]) },
        Change::Moments { rule, group, history, .. } => {
            let mut x = [0f32; RUN];
            for terms in history.chunks(group.max(1)) {
                x.fill(0.0);
                // SAFETY: as above; chunks hold 16 floats.
                unsafe {
                    run_sum::<L>(terms, shape.1, first, &mut x[..n]);
                    let rows = u.chunks_exact_mut(16).zip(v.chunks_exact_mut(16));
                    rows.zip(x.chunks_exact(16))
                        .for_each(|((u, v), x)| moments::<L>(rule, x, u, v));
                }
            }
            for (u, v) in u.chunks_exact_mut(16).zip(v.chunks_exact(16)) {
                // SAFETY: as above.
                unsafe { quotient::<L>(rule, u, v) };
            }
        }
    }
    let keep = change.keep();
    w.iter_mut().zip(&u).for_each(|(w, u)| *w = *w * keep - u);
}

/// Adds the sum of `terms` from element `first` on to `sum`, at most a run of them.
#[inline(always)]
unsafe fn run_sum<L: Lanes>(terms: &[Term<'_>], cols: usize, first: u64, sum: &mut [f32]) {
    let mut z = [0f32; RUN];
    let n = sum.len();
    for term in terms {
        // SAFETY: the caller runs where the instructions of `L` exist.
        unsafe { run_entries::<L>(term, cols, first, &mut z[..n]) };
        sum.iter_mut().zip(&z).for_each(|(sum, z)| *sum += term.scale * z);
    }
}
