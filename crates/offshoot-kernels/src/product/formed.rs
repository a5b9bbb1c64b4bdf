//! Products of weights that are formed for them: dequantised, moved along directions, and multiplied as
//! floats, while what is stored stays as it is.
//!
//! A run of tile rows is formed into a member's scratch, which its second cache holds, and multiplied
//! with all tokens from there: a step forms each weight once. The arithmetic is that of a float matrix
//! that holds the formed weights, to the bit.
//!
//! ```text
//! w(i) = stored(i) f(g) + u(i)        u as in `terms.rs`; f: the factor of the group g that has i
//! ```
//! without what there is not: neither a sum where there are no terms nor a product without factors.
//! In bfloat16, `w` is then rounded to nearest even and goes with bfloat16 inputs through the rule of
//! the BF16 dot instruction.

use super::float::{Pairs, Single, TileRun, multiply_run};
use std::ops::Range;

use super::{Product, Task, check, run_tiles};
use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::noise::{BLOCK_COLS, Block, BlockPlace};
use crate::terms::{block_sum, check_terms};
use crate::tile::TILE_ROWS;
use crate::{Activations, BlockType, Buffer, Cpu, Forms, Isa, PackedMatrix, Term};

/// What formed weights are multiplied as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compute {
    /// Single precision.
    #[default]
    Single,
    /// bfloat16 weights and inputs, summed in single precision.
    Bfloat16,
}

impl Compute {
    /// The form of activations that it multiplies.
    pub fn forms(self) -> Forms {
        Forms { bf16: self == Self::Bfloat16, ..Forms::default() }
    }

    /// Floats of scratch that a tile row of `cols` inputs takes.
    fn tile_floats(self, cols: usize) -> usize {
        let floats = cols.next_multiple_of(2) * TILE_ROWS;
        if self == Self::Bfloat16 { floats / 2 } else { floats }
    }
}

/// What the stored weights of a matrix are multiplied by, group by group of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupFactors<'a> {
    /// One of each group, `[rows, ceil(cols / group)]`.
    pub values: &'a [f32],
    /// Columns of a group: a multiple of 32.
    pub group: usize,
}

impl GroupFactors<'_> {
    /// Groups of a row of `cols`.
    fn columns(&self, cols: usize) -> usize {
        cols.div_ceil(self.group)
    }

    /// Checks that they are of a matrix `[rows, cols]`.
    ///
    /// # Panics
    /// If they are not.
    fn check(&self, rows: usize, cols: usize) {
        assert!(self.group > 0 && self.group.is_multiple_of(BLOCK_COLS), "groups of whole blocks");
        assert_eq!(self.values.len(), rows * self.columns(cols), "a factor for each group");
    }

    /// The factors of 16 rows from `row` on at column `col`; 0 beyond the last row.
    fn lanes(&self, row: usize, col: usize, (rows, cols): (usize, usize)) -> [f32; TILE_ROWS] {
        let (columns, at) = (self.columns(cols), col / self.group);
        std::array::from_fn(|lane| match row + lane < rows {
            true => self.values[(row + lane) * columns + at],
            false => 0.0,
        })
    }
}

/// How the weights of a product are formed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Forming<'a> {
    /// What the stored weights are multiplied by, if by anything.
    pub factors: Option<GroupFactors<'a>>,
    /// What is added to the stored weights; nothing if there are none, and even then the inputs are
    /// taken as floats.
    pub terms: &'a [Term<'a>],
    /// What they are multiplied as.
    pub compute: Compute,
}

impl Forming<'_> {
    /// Whether weights that are stored as `block` have to be formed, or are right as they stand.
    pub(crate) fn changes(&self, block: BlockType) -> bool {
        let same = match self.compute {
            Compute::Single => BlockType::F32,
            Compute::Bfloat16 => BlockType::Bf16,
        };
        self.factors.is_some() || !self.terms.is_empty() || block != same
    }
}

/// Bytes of scratch for each member of the team, unless two tile rows are more.
const MEMBER_BYTES: usize = 1 << 19;

/// Room in which weights are formed: about half a megabyte for each member of the team.
#[derive(Debug, Default)]
pub struct FormingScratch {
    rooms: Buffer<f32>,
}

/// Room for the members of a team.
#[derive(Clone, Copy)]
pub(crate) struct FormedRows<'a> {
    rooms: Disjoint<'a, f32>,
    each: usize,
}

impl FormingScratch {
    /// Makes room in which each member forms at least `tiles` tile rows of `cols` inputs.
    pub(crate) fn begin(
        &mut self,
        cpu: &Cpu,
        compute: Compute,
        cols: usize,
        tiles: usize,
    ) -> FormedRows<'_> {
        let tile = compute.tile_floats(cols);
        let each = (MEMBER_BYTES / 4 / tile).max(tiles) * tile;
        self.rooms.grow(cpu.team().threads() * each);
        FormedRows { rooms: Disjoint::new(&mut self.rooms), each }
    }
}

impl FormedRows<'_> {
    /// The room of `member`.
    ///
    /// # Safety
    /// Nobody else uses it at the same time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn of(&self, member: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.rooms.slice(member * self.each, self.each) }
    }
}

/// Checks that `weights` can be formed and multiplied with `acts`.
///
/// # Panics
/// If they cannot.
pub(crate) fn check_formed(
    acts: &Activations,
    weights: &PackedMatrix,
    bias: Option<&[f32]>,
    forming: Forming<'_>,
) {
    check(acts, weights, bias, forming.compute.forms());
    check_terms(forming.terms, (weights.rows(), weights.cols()));
    if let Some(factors) = forming.factors {
        factors.check(weights.rows(), weights.cols());
    }
}

/// As [`crate::multiply`] of one product, whose weights are formed as `forming` says. No stored weight
/// changes.
///
/// # Panics
/// If a shape does not fit, or `acts` lacks the form that [`Compute::forms`] names.
pub fn multiply_formed(
    cpu: &Cpu,
    acts: &Activations,
    product: &mut Product<'_>,
    forming: Forming<'_>,
    scratch: &mut FormingScratch,
) {
    check_formed(acts, product.weights, product.bias, forming);
    let task = Task::new(acts, product, forming.compute.forms());
    run_formed(cpu, &task, forming, scratch);
}

/// Runs all tiles of a task that was checked.
pub(crate) fn run_formed(
    cpu: &Cpu,
    task: &Task<'_>,
    forming: Forming<'_>,
    scratch: &mut FormingScratch,
) {
    let rooms = scratch.begin(cpu, forming.compute, task.weights.cols(), 2);
    let tiles = task.weights.tiles();
    cpu.team().for_pieces(tiles.div_ceil(2), 1, |member, piece| {
        let (from, to) = (2 * piece.start, tiles.min(2 * piece.end));
        // SAFETY: a member's room is its own.
        let room = unsafe { rooms.of(member) };
        form_and_multiply(cpu.isa(), task, forming, room, from, to);
    });
}

/// Forms tile rows `from..to` into `room`, as many at a time as it holds, and multiplies them. Callers
/// never let two members run the same tile.
fn form_and_multiply(
    isa: Isa,
    task: &Task<'_>,
    forming: Forming<'_>,
    room: &mut [f32],
    from: usize,
    to: usize,
) {
    if !forming.changes(task.weights.block()) {
        return run_tiles(isa, task, from, to);
    }
    let turn = room.len() / forming.compute.tile_floats(task.weights.cols());
    for first in (from..to).step_by(turn) {
        let end = to.min(first + turn);
        form(isa, task.weights, forming, room, first..end);
        multiply_room(isa, task, forming.compute, room, first..end);
    }
}

/// Forms `tiles` into `room`, one after another.
///
/// # Panics
/// If they do not fit.
pub(crate) fn form(
    isa: Isa,
    weights: &PackedMatrix,
    forming: Forming<'_>,
    room: &mut [f32],
    tiles: Range<usize>,
) {
    match forming.compute {
        Compute::Single => form_single(isa, weights, forming, room, tiles),
        Compute::Bfloat16 => form_bfloat16(isa, weights, forming, room, tiles),
    }
}

/// Multiplies `tiles`, which [`form`] put into `room`.
pub(crate) fn multiply_room(
    isa: Isa,
    task: &Task<'_>,
    compute: Compute,
    room: &[f32],
    tiles: Range<usize>,
) {
    let floats = compute.tile_floats(task.weights.cols());
    assert!(tiles.len() * floats <= room.len(), "room for the tiles");
    assert_eq!(task.acts.cols(), task.weights.cols(), "the product's inner width");
    let (start, bytes) = (room.as_ptr().cast(), 4 * floats);
    let run = TileRun { first: tiles.start, count: tiles.len(), start, bytes };
    match compute {
        Compute::Single => run_single(isa, task, run),
        Compute::Bfloat16 => run_bfloat16(isa, task, run),
    }
}

by_isa! {
    fn form_single(w: &PackedMatrix, forming: Forming<'_>, room: &mut [f32], tiles: Range<usize>)
        = single
}
by_isa! {
    fn form_bfloat16(w: &PackedMatrix, forming: Forming<'_>, room: &mut [f32], tiles: Range<usize>)
        = bfloat16
}
by_isa! { fn run_single(t: &Task<'_>, run: TileRun) = multiply_run [Single] }
by_isa! { bf16 fn run_bfloat16(t: &Task<'_>, run: TileRun) = multiply_pairs }

#[inline(always)]
unsafe fn multiply_pairs<L: Lanes>(t: &Task<'_>, run: TileRun) {
    // SAFETY: the caller's promise.
    unsafe { multiply_run::<L, Pairs>(t, run) };
}

#[inline(always)]
unsafe fn single<L: Lanes>(
    weights: &PackedMatrix,
    forming: Forming<'_>,
    room: &mut [f32],
    tiles: Range<usize>,
) {
    let floats = Compute::Single.tile_floats(weights.cols());
    for (tile, out) in tiles.clone().zip(room[..tiles.len() * floats].chunks_exact_mut(floats)) {
        let each = |w: &Block, col: usize, n: usize| {
            for (w, out) in w.iter().zip(out[col * TILE_ROWS..].chunks_exact_mut(16)).take(n) {
                out.copy_from_slice(w);
            }
        };
        // SAFETY: the caller runs where the instructions of `L` exist.
        unsafe { form_tile::<L>(weights, forming, tile, each) };
    }
}

#[inline(always)]
unsafe fn bfloat16<L: Lanes>(
    weights: &PackedMatrix,
    forming: Forming<'_>,
    room: &mut [f32],
    tiles: Range<usize>,
) {
    let floats = Compute::Bfloat16.tile_floats(weights.cols());
    for (tile, out) in tiles.clone().zip(room[..tiles.len() * floats].chunks_exact_mut(floats)) {
        let each = |w: &Block, col: usize, n: usize| {
            let pairs = out[col / 2 * TILE_ROWS..].chunks_exact_mut(16);
            for (w, out) in w.chunks_exact(2).zip(pairs).take(n.div_ceil(2)) {
                // SAFETY: all three hold 16 floats, and as below.
                unsafe { round_pair::<L>(&w[0], &w[1], out) };
            }
        };
        // SAFETY: the caller runs where the instructions of `L` exist.
        unsafe { form_tile::<L>(weights, forming, tile, each) };
    }
}

/// Forms a tile row block by block: `each` sees the weights, the first column and how many columns
/// there are; the columns beyond are zero.
#[inline(always)]
unsafe fn form_tile<L: Lanes>(
    weights: &PackedMatrix,
    Forming { factors, terms, .. }: Forming<'_>,
    tile: usize,
    mut each: impl FnMut(&Block, usize, usize),
) {
    let shape = (weights.rows(), weights.cols());
    let mut w = [[0f32; TILE_ROWS]; BLOCK_COLS];
    let mut u = [[0f32; TILE_ROWS]; BLOCK_COLS];
    for col in (0..shape.1).step_by(BLOCK_COLS) {
        let count = BLOCK_COLS.min(shape.1 - col);
        // SAFETY: rows of blocks hold 16 floats; the caller runs where the instructions of `L` exist.
        unsafe {
            read_block::<L>(weights, tile, col, count, &mut w);
            if let Some(factors) = factors {
                // A block lies within one group.
                let lanes = factors.lanes(tile * TILE_ROWS, col, shape);
                let lanes = L::load(lanes.as_ptr());
                for w in w.iter_mut().take(count) {
                    L::store(w.as_mut_ptr(), L::mul(L::load(w.as_ptr()), lanes));
                }
            }
            if !terms.is_empty() {
                let place = BlockPlace { row: tile * TILE_ROWS, col, count, shape };
                block_sum::<L>(terms, place, &mut u);
                for (w, u) in w.iter_mut().zip(&u).take(count) {
                    L::store(w.as_mut_ptr(), L::add(L::load(w.as_ptr()), L::load(u.as_ptr())));
                }
            }
        }
        w[count..].fill([0.0; TILE_ROWS]);
        each(&w, col, count);
    }
}

/// Reads `count` columns of a block of weights.
#[inline(always)]
unsafe fn read_block<L: Lanes>(
    weights: &PackedMatrix,
    tile: usize,
    col: usize,
    count: usize,
    w: &mut Block,
) {
    let stored = weights.tile(tile).as_ptr();
    // SAFETY: a tile row has 64 bytes for each column in single precision, and for each two in
    // bfloat16; rows of blocks hold 16 floats; the caller runs where the instructions of `L` exist.
    unsafe {
        match weights.block() {
            BlockType::F32 => {
                let singles = stored.cast::<f32>().add(col * TILE_ROWS);
                for (i, w) in w.iter_mut().enumerate().take(count) {
                    L::store(w.as_mut_ptr(), L::load(singles.add(i * TILE_ROWS)));
                }
            }
            BlockType::Bf16 => {
                let pairs = stored.cast::<i32>().add(col / 2 * TILE_ROWS);
                for (i, w) in w.chunks_exact_mut(2).enumerate().take(count.div_ceil(2)) {
                    let pair = L::load_i(pairs.add(i * TILE_ROWS));
                    L::store(w[0].as_mut_ptr(), L::from_bits(L::shl_i::<16>(pair)));
                    let odd = L::and_i(pair, L::splat_i(-65_536));
                    L::store(w[1].as_mut_ptr(), L::from_bits(odd));
                }
            }
            _ => weights.dequantize_tile(tile, col, &mut w[..count]),
        }
    }
}

/// Rounds the weights of two columns to bfloat16, the first in the low halves.
#[inline(always)]
unsafe fn round_pair<L: Lanes>(even: &[f32; TILE_ROWS], odd: &[f32; TILE_ROWS], out: &mut [f32]) {
    // SAFETY: all three hold 16 floats; the caller runs where the instructions of `L` exist.
    unsafe {
        let (e, o) = (L::load(even.as_ptr()), L::load(odd.as_ptr()));
        let zero = L::splat(0.0);
        let probe = L::sum(L::fma(e, zero, L::mul(o, zero)));
        let pairs = if probe == 0.0 {
            let (e, o) = (rounded::<L>(e), rounded::<L>(o));
            L::xor_i(L::shr_i(e, 16), L::and_i(o, L::splat_i(-65_536)))
        } else {
            // Something is no finite number; rounding by sums of bits could make one of it.
            let bits = |x: f32| u32::from(half::bf16::from_f32(x).to_bits());
            let pairs: [i32; TILE_ROWS] =
                std::array::from_fn(|i| (bits(even[i]) | bits(odd[i]) << 16) as i32);
            L::load_i(pairs.as_ptr())
        };
        L::store_i(out.as_mut_ptr().cast(), pairs);
    }
}

/// The bits of finite numbers, whose upper halves are those of the nearest bfloat16, ties to even.
#[inline(always)]
unsafe fn rounded<L: Lanes>(x: L::F) -> L::I {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let bits = L::to_bits(x);
        let tie = L::and_i(L::shr_i(bits, 16), L::splat_i(1));
        L::add_i(bits, L::add_i(tie, L::splat_i(0x7fff)))
    }
}
