//! Products with float matrices as they lie in memory, row by row or column by column: what training
//! multiplies, where each matrix is met once in either direction.
//!
//! ```text
//! out[token, row] = sum over col of w(row, col) * x[token, col]
//! w(row, col) = numbers[row * cols + col], or, turned, numbers[col * rows + row]
//! ```
//! A worker copies some tile rows into a room of its own, which its second cache holds, and multiplies
//! them with all tokens from there. The arithmetic is that of a packed matrix of these weights, to the
//! bit; an output depends neither on the workers nor on the other tokens.
//!
//! Cost: a pass over the weights beside the product.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::float::{Single, rows};
use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::tile::TILE_ROWS;
use crate::{Buffer, Isa};

/// Bytes of a worker's room, unless two tile rows are more.
const ROOM_BYTES: usize = 1 << 18;
/// Tile rows that are copied at a time at most, so that workers share even a small matrix.
const TILES: usize = 4;
/// Pieces of a product that is worth sharing: of a low matrix, tokens are shared out, too.
const PIECES: usize = 8;
/// Tokens of a piece at least.
const TOKENS: usize = 64;
/// Columns that are turned at a time.
const BLOCK: usize = 16;

/// A float matrix in memory.
#[derive(Debug, Clone, Copy)]
pub struct FloatMatrix<'a> {
    /// `rows * cols` numbers.
    pub numbers: &'a [f32],
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Whether `numbers` are `[cols, rows]` and not `[rows, cols]`.
    pub turned: bool,
}

/// Where a product of floats goes.
#[derive(Debug)]
pub struct FloatOutput<'a> {
    /// The product of token `t` with row `r` is `numbers[t * stride + r]`.
    pub numbers: &'a mut [f32],
    /// How far apart tokens are.
    pub stride: usize,
    /// Whether the product is added to what stands there or replaces it.
    pub accumulate: bool,
}

/// What the workers share.
struct Task<'a> {
    x: &'a [f32],
    weights: FloatMatrix<'a>,
    out: Disjoint<'a, f32>,
    stride: usize,
    accumulate: bool,
}

/// Tile rows and tokens that one worker takes.
struct Piece {
    tiles: Range<usize>,
    tokens: Range<usize>,
}

/// Multiplies `weights` with the rows of `x`, `[tokens, cols]`. `workers` is handed what each of any
/// number of threads runs once; what they leave is done by the caller.
///
/// # Panics
/// If a shape does not fit.
pub fn multiply_floats(
    isa: Isa,
    x: &[f32],
    weights: FloatMatrix<'_>,
    out: FloatOutput<'_>,
    workers: &dyn Fn(&(dyn Fn() + Sync)),
) {
    let FloatMatrix { numbers, rows, cols, .. } = weights;
    assert_eq!(Some(numbers.len()), rows.checked_mul(cols), "the matrix");
    assert!(cols > 0 && x.len().is_multiple_of(cols), "the product's inner width");
    let tokens = x.len() / cols;
    if rows == 0 || tokens == 0 {
        return;
    }
    assert!(out.stride >= rows, "room for a token's outputs");
    let needed = (tokens - 1).checked_mul(out.stride).and_then(|n| n.checked_add(rows));
    assert!(needed.is_some_and(|n| n <= out.numbers.len()), "the product's output");
    let FloatOutput { numbers, stride, accumulate } = out;
    let task = Task { x, weights, out: Disjoint::new(numbers), stride, accumulate };
    let tile_floats = cols * TILE_ROWS;
    let tiles = rows.div_ceil(TILE_ROWS);
    let height = (ROOM_BYTES / 4 / tile_floats).clamp(2, TILES);
    let groups = tiles.div_ceil(height);
    let width = tokens.div_ceil(PIECES.div_ceil(groups)).max(TOKENS);
    let pieces = groups * tokens.div_ceil(width);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut room = Buffer::default();
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return;
            }
            room.grow(height.min(tiles) * tile_floats);
            let (first, token) = (piece % groups * height, piece / groups * width);
            let piece = Piece {
                tiles: first..tiles.min(first + height),
                tokens: token..tokens.min(token + width),
            };
            copy(task.weights, piece.tiles.clone(), &mut room);
            run_piece(isa, &task, &piece, &room);
        }
    };
    if pieces > 1 {
        workers(&work);
    }
    work();
}

/// Puts `tiles` into `room`, one after another: `[input][16 rows]`, zero beyond the last row.
fn copy(weights: FloatMatrix<'_>, tiles: Range<usize>, room: &mut [f32]) {
    let FloatMatrix { numbers, rows, cols, turned } = weights;
    let floats = cols * TILE_ROWS;
    let each = tiles.clone().zip(room.chunks_exact_mut(floats));
    if turned {
        let mut each: Vec<(Range<usize>, &mut [f32])> = each
            .map(|(tile, out)| (tile * TILE_ROWS..rows.min((tile + 1) * TILE_ROWS), out))
            .collect();
        for (col, numbers) in numbers.chunks_exact(rows).enumerate() {
            for (part, out) in &mut each {
                let out = &mut out[col * TILE_ROWS..][..TILE_ROWS];
                if part.len() == TILE_ROWS {
                    out.copy_from_slice(&numbers[part.clone()]);
                } else {
                    out[..part.len()].copy_from_slice(&numbers[part.clone()]);
                    out[part.len()..].fill(0.0);
                }
            }
        }
        return;
    }
    for (tile, out) in each {
        let height = TILE_ROWS.min(rows - tile * TILE_ROWS);
        if height < TILE_ROWS {
            out.fill(0.0);
        }
        let numbers = &numbers[tile * TILE_ROWS * cols..][..height * cols];
        for (block, out) in out.chunks_mut(BLOCK * TILE_ROWS).enumerate() {
            for (lane, numbers) in numbers.chunks_exact(cols).enumerate() {
                let numbers = &numbers[block * BLOCK..cols.min((block + 1) * BLOCK)];
                for (out, x) in out.chunks_exact_mut(TILE_ROWS).zip(numbers) {
                    out[lane] = *x;
                }
            }
        }
    }
}

by_isa! { fn run_piece(t: &Task<'_>, piece: &Piece, room: &[f32]) = piece_lanes }

/// Multiplies the tile rows in `room` with a piece's tokens. Callers never let two workers run one
/// piece.
#[inline(always)]
unsafe fn piece_lanes<L: Lanes>(t: &Task<'_>, piece: &Piece, room: &[f32]) {
    let mut token = piece.tokens.start;
    while token < piece.tokens.end {
        let count = L::TOKENS.min(piece.tokens.end - token);
        // SAFETY: the caller's promise; `count` is at most 8.
        unsafe {
            match count {
                1 => tokens::<L, 1>(t, piece, room, token),
                _ if L::TOKENS == 1 => {}
                2 => tokens::<L, 2>(t, piece, room, token),
                3 => tokens::<L, 3>(t, piece, room, token),
                4 => tokens::<L, 4>(t, piece, room, token),
                _ if L::TOKENS == 4 => {}
                5 => tokens::<L, 5>(t, piece, room, token),
                6 => tokens::<L, 6>(t, piece, room, token),
                7 => tokens::<L, 7>(t, piece, room, token),
                _ => tokens::<L, 8>(t, piece, room, token),
            }
        }
        token += count;
    }
}

/// The tile rows in `room` and `T` tokens.
#[inline(always)]
unsafe fn tokens<L: Lanes, const T: usize>(
    t: &Task<'_>,
    piece: &Piece,
    room: &[f32],
    token: usize,
) {
    let cols = t.weights.cols;
    let floats = cols * TILE_ROWS;
    let x: [*const u8; T] =
        std::array::from_fn(|i| t.x[(token + i) * cols..][..cols].as_ptr().cast());
    let count = piece.tiles.len();
    let tile = |i: usize| room[i * floats..][..floats].as_ptr().cast::<u8>();
    let mut i = 0;
    while i < count {
        let first = piece.tiles.start + i;
        // SAFETY: a tile row holds `cols` inputs, and so does each token; this worker alone runs the
        // piece, and the caller runs where the instructions of `L` exist.
        unsafe {
            if L::TOKENS == 8 && T == 8 && i + 1 < count {
                let [a, b] = rows::<L, Single, 2, T>([tile(i), tile(i + 1)], x, cols);
                store::<L, T>(t, first, token, a);
                store::<L, T>(t, first + 1, token, b);
                i += 2;
            } else {
                let [a] = rows::<L, Single, 1, T>([tile(i)], x, cols);
                store::<L, T>(t, first, token, a);
                i += 1;
            }
        }
    }
}

/// Writes the results of one tile row.
#[inline(always)]
unsafe fn store<L: Lanes, const T: usize>(t: &Task<'_>, tile: usize, token: usize, acc: [L::F; T]) {
    let row = tile * TILE_ROWS;
    let height = TILE_ROWS.min(t.weights.rows - row);
    for (i, y) in acc.into_iter().enumerate() {
        // SAFETY: this worker alone has these tokens' outputs of the tile row.
        let out = unsafe { t.out.slice((token + i) * t.stride + row, height) };
        if height == TILE_ROWS {
            // SAFETY: `out` holds 16 floats here.
            unsafe {
                let y = if t.accumulate { L::add(L::load(out.as_ptr()), y) } else { y };
                L::store(out.as_mut_ptr(), y);
            }
            continue;
        }
        let mut lanes = [0f32; TILE_ROWS];
        // SAFETY: `lanes` holds 16 floats.
        unsafe { L::store(lanes.as_mut_ptr(), y) };
        for (out, y) in out.iter_mut().zip(lanes) {
            *out = if t.accumulate { *out + y } else { y };
        }
    }
}
