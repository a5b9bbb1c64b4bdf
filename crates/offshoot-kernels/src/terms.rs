//! What is added to a matrix where it is used, or for good: sums of scaled directions.
//!
//! ```text
//! u(i) = 0 + s_0 z_0(i) + s_1 z_1(i) + ...        a product and a sum each, in order
//! ```
//! in single precision, nothing fused, for the element `i` of a matrix in row-major order. A direction
//! is never stored: its entries are made block by block, where the weights are.

use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::noise::{BLOCK_COLS, Block, BlockPlace, fill_block, fill_lanes};
use crate::tile::TILE_ROWS;
use crate::{Cpu, Isa, Noise};

/// The entries of a direction within a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Entries<'a> {
    /// Independent of one another.
    Noise(Noise),
    /// `factor * sum over k of left[row][k] * right[col][k]`, summed from zero in order of `k`.
    LowRank {
        /// `[rows, rank]`.
        left: &'a [f32],
        /// `[cols, rank]`.
        right: &'a [f32],
        /// Columns of both.
        rank: usize,
        /// Multiplies the sum: `rank^-1/2` makes the variance that of the factors.
        factor: f32,
    },
}

/// Which elements of a matrix a direction has: bit `i mod 64` of word `i / 64` is element `i` in
/// row-major order. A direction is zero at the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask<'a>(pub &'a [u64]);

/// Some way along a direction within a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term<'a> {
    /// How far.
    pub scale: f32,
    /// Where to.
    pub entries: Entries<'a>,
    /// Which elements move; all if there is none.
    pub mask: Option<Mask<'a>>,
}

impl Mask<'_> {
    fn has(self, element: u64) -> bool {
        self.0[(element / 64) as usize] >> (element % 64) & 1 == 1
    }
}

impl Term<'_> {
    /// The direction's entry at (`row`, `col`) of a matrix of `cols` columns: the definition.
    ///
    /// # Panics
    /// If there is no such entry.
    pub fn at(&self, cols: usize, row: usize, col: usize) -> f32 {
        let element = row as u64 * cols as u64 + col as u64;
        if self.mask.is_some_and(|mask| !mask.has(element)) {
            return 0.0;
        }
        match self.entries {
            Entries::Noise(noise) => noise.at(element),
            Entries::LowRank { left, right, rank, factor } => {
                let left = &left[row * rank..(row + 1) * rank];
                let right = &right[col * rank..(col + 1) * rank];
                factor * left.iter().zip(right).fold(0.0, |sum, (l, r)| sum + l * r)
            }
        }
    }

    /// Checks that the direction is one of a matrix `[rows, cols]`.
    ///
    /// # Panics
    /// If it is not.
    fn check(&self, (rows, cols): (usize, usize)) {
        let elements = rows as u64 * cols as u64;
        if let Some(mask) = self.mask {
            assert!(mask.0.len() as u64 >= elements.div_ceil(64), "a mask of the matrix");
        }
        match self.entries {
            // An entry is told apart only below a number of elements.
            Entries::Noise(noise) => noise.check(elements),
            Entries::LowRank { left, right, rank, .. } => {
                assert!(left.len() == rows * rank && right.len() == cols * rank, "two factors");
            }
        }
    }
}

/// Checks that `terms` are of a matrix `[rows, cols]`.
///
/// # Panics
/// If one is not.
pub(crate) fn check_terms(terms: &[Term<'_>], shape: (usize, usize)) {
    terms.iter().for_each(|term| term.check(shape));
}

/// Writes the entries of `term` in a block.
#[inline(always)]
pub(crate) unsafe fn block_entries<L: Lanes>(term: &Term<'_>, place: BlockPlace, z: &mut Block) {
    match term.entries {
        // SAFETY: the caller runs where the instructions of `L` exist.
        Entries::Noise(noise) => unsafe { fill_block::<L>(&noise, place, z) },
        Entries::LowRank { left, right, rank, factor } => {
            // SAFETY: as above.
            unsafe { low_rank_block::<L>((left, right), (rank, factor), place, z) };
        }
    }
    let Some(mask) = term.mask else { return };
    let (rows, cols) = place.shape;
    for lane in 0..TILE_ROWS.min(rows - place.row) {
        let first = (place.row + lane) as u64 * cols as u64 + place.col as u64;
        for (i, z) in z.iter_mut().enumerate().take(place.count) {
            if !mask.has(first + i as u64) {
                z[lane] = 0.0;
            }
        }
    }
}

#[inline(always)]
unsafe fn low_rank_block<L: Lanes>(
    (left, right): (&[f32], &[f32]),
    (rank, factor): (usize, f32),
    place: BlockPlace,
    z: &mut Block,
) {
    let height = TILE_ROWS.min(place.shape.0 - place.row);
    z.fill([0.0; TILE_ROWS]);
    for k in 0..rank {
        let mut lanes = [0f32; TILE_ROWS];
        for (lane, x) in lanes.iter_mut().enumerate().take(height) {
            *x = left[(place.row + lane) * rank + k];
        }
        // SAFETY: rows of `z` and `lanes` hold 16 floats; the caller runs where `L` exists.
        unsafe {
            let lanes = L::load(lanes.as_ptr());
            for (i, z) in z.iter_mut().enumerate().take(place.count) {
                let product = L::mul(lanes, L::splat(right[(place.col + i) * rank + k]));
                L::store(z.as_mut_ptr(), L::add(L::load(z.as_ptr()), product));
            }
        }
    }
    // SAFETY: as above.
    unsafe {
        for z in z.iter_mut().take(place.count) {
            L::store(z.as_mut_ptr(), L::mul(L::splat(factor), L::load(z.as_ptr())));
        }
    }
}

/// Writes the sum of `terms` in a block; columns beyond the block's are of no meaning.
#[inline(always)]
pub(crate) unsafe fn block_sum<L: Lanes>(terms: &[Term<'_>], place: BlockPlace, u: &mut Block) {
    u.fill([0.0; TILE_ROWS]);
    let mut z = [[0f32; TILE_ROWS]; BLOCK_COLS];
    for term in terms {
        // SAFETY: the caller runs where the instructions of `L` exist; rows hold 16 floats.
        unsafe {
            block_entries::<L>(term, place, &mut z);
            let scale = L::splat(term.scale);
            for (u, z) in u.iter_mut().zip(&z) {
                let sum = L::add(L::load(u.as_ptr()), L::mul(scale, L::load(z.as_ptr())));
                L::store(u.as_mut_ptr(), sum);
            }
        }
    }
}

/// Elements of a row that are taken at once.
pub(crate) const RUN: usize = 256;

/// Writes the entries of elements `first..first + z.len()`, in row-major order, of a matrix of `cols`
/// columns.
#[inline(always)]
pub(crate) unsafe fn run_entries<L: Lanes>(
    term: &Term<'_>,
    cols: usize,
    first: u64,
    z: &mut [f32],
) {
    let mask = |element| term.mask.is_none_or(|mask| mask.has(element));
    match term.entries {
        Entries::Noise(noise) => {
            // SAFETY: the caller runs where the instructions of `L` exist.
            unsafe { fill_lanes::<L>(&noise, first, z) };
            if term.mask.is_some() {
                for (i, z) in z.iter_mut().enumerate() {
                    if !mask(first + i as u64) {
                        *z = 0.0;
                    }
                }
            }
        }
        Entries::LowRank { .. } => {
            for (i, z) in z.iter_mut().enumerate() {
                let element = (first + i as u64) as usize;
                *z = term.at(cols, element / cols, element % cols);
            }
        }
    }
}

#[inline(always)]
unsafe fn add_terms_lanes<L: Lanes>(terms: &[Term<'_>], cols: usize, first: u64, w: &mut [f32]) {
    let (mut z, mut u) = ([0f32; RUN], [0f32; RUN]);
    for (i, w) in w.chunks_mut(RUN).enumerate() {
        let (z, u) = (&mut z[..w.len()], &mut u[..w.len()]);
        u.fill(0.0);
        for term in terms {
            // SAFETY: the caller runs where the instructions of `L` exist.
            unsafe { run_entries::<L>(term, cols, first + (i * RUN) as u64, z) };
            for (u, z) in u.iter_mut().zip(&*z) {
                *u += term.scale * z;
            }
        }
        for (w, u) in w.iter_mut().zip(&*u) {
            *w += u;
        }
    }
}

by_isa! {
    fn add_terms_run(terms: &[Term<'_>], cols: usize, first: u64, w: &mut [f32]) = add_terms_lanes
}

/// As [`add_terms`], by all threads: no bit depends on how many there are.
///
/// # Panics
/// If a term or `w` is not of such a matrix.
pub fn add_terms_to_rows(
    cpu: &Cpu,
    terms: &[Term<'_>],
    shape: (usize, usize),
    row: usize,
    w: &mut [f32],
) {
    let (first, len) = (row as u64 * shape.1 as u64, w.len());
    check_terms(terms, shape);
    assert!(first + len as u64 <= shape.0 as u64 * shape.1 as u64, "elements of the matrix");
    if terms.is_empty() {
        return;
    }
    let weights = Disjoint::new(w);
    cpu.team().for_pieces(len.div_ceil(RUN), 16, |_, piece| {
        for run in piece {
            let start = run * RUN;
            // SAFETY: pieces do not overlap, so this member alone has the run.
            let w = unsafe { weights.slice(start, RUN.min(len - start)) };
            add_terms_run(cpu.isa(), terms, shape.1, first + start as u64, w);
        }
    });
}

/// Adds the sum of `terms` to `w`, which holds the elements from (`row`, 0) on of a matrix of `shape`:
/// a norm's weight, a bias, a row of an embedding.
///
/// # Panics
/// If a term or `w` is not of such a matrix.
pub fn add_terms(isa: Isa, terms: &[Term<'_>], shape: (usize, usize), row: usize, w: &mut [f32]) {
    let first = row as u64 * shape.1 as u64;
    check_terms(terms, shape);
    assert!(first + w.len() as u64 <= shape.0 as u64 * shape.1 as u64, "elements of the matrix");
    if !terms.is_empty() {
        add_terms_run(isa, terms, shape.1, first, w);
    }
}
