//! Weights packed into tiles: the order in which the dot instruction wants them.
//!
//! A tile row is 16 output rows over all inputs. Of a quantised format it is the quants of one
//! block of 32 inputs after another, then the scales. In a block, inputs stand in 8 groups of 4; a
//! group's 4 bytes of row 0, of row 1, ... of row 15 fill one 64-byte line:
//!
//! ```text
//! 4 bits   line i (i < 4): group i in the low nibbles, group i + 4 in the high ones     256 bytes
//! 5 bits   the same, and a line whose bit g is the high bit of group g                  320 bytes
//! 6 bits   the same, and two lines of 2-bit fields: groups 0 to 3, groups 4 to 7        384 bytes
//! 8 bits   line i: group i, as q + 128                                                  512 bytes
//! scales   16 halves a block of 32, then 16 offsets if the format has them; or, a block of 256:
//!          16 halves, 16 halves for offsets, 16 bytes a sub-block, 16 bytes for its offset
//! ```
//!
//! Quants and scales are the file's own, so a tile holds exactly the weights of the file. Float
//! formats keep `[input][16 rows]`, bfloat16 `[input pair][16 rows][2]`.

pub(crate) mod format;
mod pack;

use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use crate::blocks::iq4_nl::CODEBOOK;
use crate::disjoint::Disjoint;
use crate::{BlockError, BlockType, Buffer, Cpu, FileBlock, ScratchFile, SharedBytes};
use format::Shape;
use half::{bf16, f16};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;

/// Names the shape of these tiles, 16 rows by 32 inputs, in files of packed weights. Tiles of another
/// shape, for other instruction sets, will have another number.
pub const TILE_KIND: u32 = 1;

/// The float that weights which change are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FloatStore {
    /// Single precision.
    #[default]
    F32,
    /// bfloat16, rounded to nearest where weights are filled in and by chance where they are changed.
    Bf16,
}

impl FloatStore {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Its name: `f32` or `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The one called `name`, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|store| store.name() == name)
    }

    /// Bytes of a weight.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// The format of its tiles.
    pub const fn block(self) -> BlockType {
        match self {
            Self::F32 => BlockType::F32,
            Self::Bf16 => BlockType::Bf16,
        }
    }
}

/// A tile row whose weights change.
pub(crate) enum TileMut<'a> {
    /// `[column][16 rows]`.
    Single(&'a mut [f32]),
    /// Pairs of bfloat16, `[column pair][16 rows]`, the even column's in the lower half.
    Pairs(&'a mut [u32]),
}

impl<'a> TileMut<'a> {
    /// The tile row that `words` are the bits of.
    fn of(store: FloatStore, words: &'a mut [u32]) -> Self {
        match store {
            FloatStore::Bf16 => Self::Pairs(words),
            FloatStore::F32 => {
                // SAFETY: a float may have any bits, and has the size and the alignment of an integer.
                let (_, singles, _) = unsafe { words.align_to_mut::<f32>() };
                Self::Single(singles)
            }
        }
    }
}

/// A matrix could not be packed.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TileError {
    /// The shape does not suit the format, or is too large to address.
    #[error("{block} cannot tile a matrix of {rows} x {cols}")]
    Shape {
        /// The format.
        block: BlockType,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
    },
    /// The bytes given have the wrong length.
    #[error("{what}: {got} bytes where {expected} are needed")]
    Length {
        /// Which bytes.
        what: &'static str,
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// The weights cannot be changed where they are.
    #[error("weights change only in single precision or bfloat16 and in memory of their own")]
    Fixed,
    /// The file that the weights lie in could not be read or written.
    #[error("the weights' working file: {told}")]
    File {
        /// What kind of failure it is to the system.
        kind: std::io::ErrorKind,
        /// The system's reason.
        told: String,
    },
    /// A block could not be read.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A row could not be brought into the tiles' format.
    #[error("row {row}: {source}")]
    Row {
        /// Which row.
        row: usize,
        /// Why.
        source: BlockError,
    },
}

/// A weight matrix `[rows, cols]` in tiles.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    block: BlockType,
    rows: usize,
    cols: usize,
    tile_bytes: usize,
    bytes: SharedBytes,
}

/// Bytes of a tile row of `cols` inputs, a multiple of 64.
fn tile_row_bytes(block: BlockType, cols: usize) -> Option<usize> {
    block.row_bytes(cols)?;
    let bytes = match Shape::new(block) {
        Some(shape) => {
            let nblk = cols / 32;
            nblk.checked_mul(shape.quant_bytes())?.checked_add(shape.scale_bytes(nblk))?
        }
        None if block == BlockType::F32 => cols.checked_mul(TILE_ROWS * 4)?,
        None => cols.checked_next_multiple_of(2)?.checked_mul(TILE_ROWS * 2)?,
    };
    bytes.checked_next_multiple_of(64)
}

impl PackedMatrix {
    /// Bytes that a matrix `[rows, cols]` of `block` takes in tiles.
    pub fn packed_bytes(block: BlockType, rows: usize, cols: usize) -> Result<usize, TileError> {
        tile_row_bytes(block, cols)
            .filter(|_| rows > 0 && cols > 0)
            .and_then(|tile| rows.div_ceil(TILE_ROWS).checked_mul(tile))
            .ok_or(TileError::Shape { block, rows, cols })
    }

    /// The matrix whose tiles are `bytes`, as [`PackedMatrix::pack_into`] wrote them.
    pub fn from_packed(
        block: BlockType,
        rows: usize,
        cols: usize,
        bytes: SharedBytes,
    ) -> Result<Self, TileError> {
        let expected = Self::packed_bytes(block, rows, cols)?;
        if bytes.len() != expected {
            return Err(TileError::Length { what: "tiles", expected, got: bytes.len() });
        }
        let tile_bytes = expected / rows.div_ceil(TILE_ROWS);
        Ok(Self { block, rows, cols, tile_bytes, bytes })
    }

    /// The format.
    pub fn block(&self) -> BlockType {
        self.block
    }

    /// Output width.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of the tiles: what a product must read.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Tile rows.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// The bytes of tile row `tile`.
    pub(crate) fn tile(&self, tile: usize) -> &[u8] {
        &self.bytes[tile * self.tile_bytes..(tile + 1) * self.tile_bytes]
    }

    /// How the weights are stored, if they are such as can change.
    fn store(&self) -> Option<FloatStore> {
        FloatStore::ALL.into_iter().find(|store| store.block() == self.block)
    }

    /// A matrix `[rows, cols]` of zeros, in memory of its own.
    ///
    /// # Errors
    /// [`TileError::Shape`] if there is no such matrix.
    pub fn zeroed(store: FloatStore, rows: usize, cols: usize) -> Result<Self, TileError> {
        // Small pages: many matrices of a few megabytes would each leave half a large one unused.
        let bytes = Buffer::reserved(Self::packed_bytes(store.block(), rows, cols)?);
        Self::from_packed(store.block(), rows, cols, SharedBytes::from(bytes))
    }

    /// A matrix `[rows, cols]` of zeros, in a block of `file`.
    ///
    /// # Errors
    /// [`TileError::Shape`] if there is no such matrix, [`TileError::File`] if the file fails.
    pub fn in_file(
        store: FloatStore,
        rows: usize,
        cols: usize,
        file: &mut ScratchFile,
    ) -> Result<Self, TileError> {
        let block = file.block(Self::packed_bytes(store.block(), rows, cols)?);
        let block = block.map_err(|e| file_error(&e))?;
        Self::from_packed(store.block(), rows, cols, SharedBytes::from(block))
    }

    /// The block of a file that the tiles are, if they are not in memory.
    pub fn file_block(&self) -> Option<&FileBlock> {
        self.bytes.block()
    }

    /// Replaces all weights: `produce(row, out)` writes each row, by several threads. In bfloat16 they
    /// are rounded to nearest, ties to even.
    ///
    /// # Errors
    /// As [`update_matrix`](crate::update_matrix).
    pub fn fill_rows(
        &mut self,
        cpu: &Cpu,
        produce: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<(), TileError> {
        let (rows, cols) = (self.rows, self.cols);
        // Room for a row, of each thread.
        let rooms = Mutex::new(Vec::new());
        let rooms = || rooms.lock().unwrap_or_else(PoisonError::into_inner);
        self.change_tiles(cpu, false, |tile, mut w| {
            let spare = rooms().pop();
            let mut row = spare.unwrap_or_else(|| vec![0f32; cols]);
            for lane in 0..TILE_ROWS.min(rows - tile * TILE_ROWS) {
                produce(tile * TILE_ROWS + lane, &mut row);
                match &mut w {
                    TileMut::Single(w) => {
                        for (w, x) in w.chunks_exact_mut(TILE_ROWS).zip(&row) {
                            w[lane] = *x;
                        }
                    }
                    TileMut::Pairs(w) => {
                        let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
                        for (w, x) in w.chunks_exact_mut(TILE_ROWS).zip(row.chunks(2)) {
                            w[lane] = bits(x[0]) | x.get(1).map_or(0, |x| bits(*x) << 16);
                        }
                    }
                }
            }
            rooms().push(row);
        })
    }

    /// Changes the weights of each tile row by several threads: as they are, if they are `read`, or
    /// else with nothing known but that, in a file, all are zero. Rows beyond the last are zero.
    pub(crate) fn change_tiles(
        &mut self,
        cpu: &Cpu,
        read: bool,
        change: impl Fn(usize, TileMut<'_>) + Sync,
    ) -> Result<(), TileError> {
        let (tiles, each) = (self.tiles(), self.tile_bytes / 4);
        let store = self.store().ok_or(TileError::Fixed)?;
        let change = |tile: usize, words: &mut [u32]| change(tile, TileMut::of(store, words));
        if let Some(file) = self.bytes.block_mut() {
            return change_file(cpu, (file, tiles, each), read, change);
        }
        let bytes = self.bytes.get_mut().ok_or(TileError::Fixed)?;
        // SAFETY: an integer may have any bits.
        let (before, words, after) = unsafe { bytes.align_to_mut::<u32>() };
        if !before.is_empty() || !after.is_empty() {
            return Err(TileError::Fixed);
        }
        let weights = Disjoint::new(words);
        cpu.team().for_pieces(tiles, 1, |_, piece| {
            for tile in piece {
                // SAFETY: pieces do not overlap, so this member alone has the tile.
                change(tile, unsafe { weights.slice(tile * each, each) });
            }
        });
        Ok(())
    }

    /// Writes the weights of tile row `tile` for inputs `col..col + w.len()`: `w[i][lane]`. `col` is
    /// a multiple of 32 and the run at most 32 long. Lanes beyond the last row are zero.
    pub(crate) fn dequantize_tile(&self, tile: usize, col: usize, w: &mut [[f32; TILE_ROWS]]) {
        let bytes = self.tile(tile);
        let Some(shape) = Shape::new(self.block) else {
            for (i, w) in w.iter_mut().enumerate() {
                for (lane, w) in w.iter_mut().enumerate() {
                    *w = float_weight(self.block, bytes, lane, col + i);
                }
            }
            return;
        };
        let b = col / 32;
        let (quants, scales) = bytes.split_at(self.cols / 32 * shape.quant_bytes());
        let quants = &quants[b * shape.quant_bytes()..];
        for lane in 0..TILE_ROWS {
            for sub in 0..32 / shape.sub {
                let (scale, offset) = scale_of(shape, scales, b, sub, lane);
                for (i, w) in w.iter_mut().enumerate().skip(sub * shape.sub).take(shape.sub) {
                    w[lane] = scale * quant(shape, quants, lane, i) as f32 - offset;
                }
            }
        }
    }

    /// Writes the weights of `row` to `out`, `cols` of them: the same bits as the file's
    /// dequantised row.
    ///
    /// # Panics
    /// If `row` or the length of `out` is out of range.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row of the matrix");
        let tile = self.tile(row / TILE_ROWS);
        let lane = row % TILE_ROWS;
        let Some(shape) = Shape::new(self.block) else {
            for (col, out) in out.iter_mut().enumerate() {
                *out = float_weight(self.block, tile, lane, col);
            }
            return;
        };
        for (b, out) in out.chunks_exact_mut(32).enumerate() {
            let (quants, scales) = tile.split_at(self.cols / 32 * shape.quant_bytes());
            let quants = &quants[b * shape.quant_bytes()..];
            for sub in 0..32 / shape.sub {
                let (scale, offset) = scale_of(shape, scales, b, sub, lane);
                for (i, out) in out.iter_mut().enumerate().skip(sub * shape.sub).take(shape.sub) {
                    *out = scale * quant(shape, quants, lane, i) as f32 - offset;
                }
            }
        }
    }
}

fn file_error(error: &std::io::Error) -> TileError {
    TileError::File { kind: error.kind(), told: error.to_string() }
}

/// [`PackedMatrix::change_tiles`] of weights in a file, of so many tile rows of `each` words.
fn change_file(
    cpu: &Cpu,
    (file, tiles, each): (&mut FileBlock, usize, usize),
    read: bool,
    change: impl Fn(usize, &mut [u32]) + Sync,
) -> Result<(), TileError> {
    let failed = Mutex::new(None);
    let file = &*file;
    cpu.team().for_pieces(tiles, 1, |_, piece| {
        let mut w = vec![0u32; each];
        for tile in piece {
            let at = 4 * tile * each;
            let brought = if read { file.read_at(at, &mut w) } else { Ok(()) };
            let done = brought.and_then(|()| {
                change(tile, &mut w);
                // SAFETY: the block is borrowed mutably, so no part of it is in use, and pieces do not
                // overlap, so this member alone has the tile.
                unsafe { file.write_at(at, &w) }
            });
            if let Err(e) = done {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.get_or_insert(e);
                return;
            }
            if !read {
                w.fill(0);
            }
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(file_error(&e)),
        None => Ok(()),
    }
}

/// The weight of a float tile at (`lane`, `col`).
fn float_weight(block: BlockType, tile: &[u8], lane: usize, col: usize) -> f32 {
    match block {
        BlockType::F32 => {
            let at = 4 * (col * TILE_ROWS + lane);
            f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]])
        }
        BlockType::Bf16 => {
            let at = 2 * ((col / 2 * TILE_ROWS + lane) * 2 + col % 2);
            f32::from_bits(u32::from(u16::from_le_bytes([tile[at], tile[at + 1]])) << 16)
        }
        _ => {
            let at = 2 * (col * TILE_ROWS + lane);
            f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32()
        }
    }
}

/// The signed quant of input `i` of the block at `quants`.
fn quant(shape: Shape, quants: &[u8], lane: usize, i: usize) -> i32 {
    let (group, byte) = (i / 4, 4 * lane + i % 4);
    if shape.bits == 8 {
        return i32::from(quants[64 * group + byte]) - shape.zero;
    }
    let nibbles = quants[64 * (group % 4) + byte];
    let low = if group < 4 { nibbles & 15 } else { nibbles >> 4 };
    let high = match shape.bits {
        5 => (quants[256 + byte] >> group & 1) << 4,
        6 => (quants[256 + 64 * (group / 4) + byte] >> (2 * (group % 4)) & 3) << 4,
        _ => 0,
    };
    if shape.codebook {
        return i32::from(CODEBOOK[usize::from(low)]);
    }
    i32::from(low | high) - shape.zero
}

/// The scale and the offset (to be subtracted) of sub-block `sub` of block `b`.
fn scale_of(shape: Shape, scales: &[u8], b: usize, sub: usize, lane: usize) -> (f32, f32) {
    let half = |at: usize| f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32();
    let halves = if shape.offset { 64 } else { 32 };
    if !shape.sup {
        let at = halves * b + 2 * lane;
        return (half(at), if shape.offset { -half(at + 32) } else { 0.0 });
    }
    let subs = 256 / shape.sub;
    let at = b / 8 * shape.scale_bytes(8);
    let factor_at = at + halves + 16 * (b % 8 * (32 / shape.sub) + sub) + lane;
    let factor = scales[factor_at];
    let factor = if shape.signed { f32::from(factor as i8) } else { f32::from(factor) };
    let d = half(at + 2 * lane);
    let offset = if shape.offset {
        half(at + 32 + 2 * lane) * f32::from(scales[factor_at + 16 * subs])
    } else {
        0.0
    };
    (d * factor, offset)
}
