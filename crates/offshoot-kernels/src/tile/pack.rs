//! From a file's blocks to tiles.

use super::format::Shape;
use super::{PackedMatrix, TILE_ROWS, TileError, tile_row_bytes};
use crate::blocks::Coding;
use crate::blocks::conversion::FirstWrong;
use crate::blocks::parts::Parts;
use crate::{BlockType, Buffer, Conversion, Cpu, SharedBytes};

impl PackedMatrix {
    /// Packs a matrix `[rows, cols]` of `block` into memory of its own, as [`PackedMatrix::pack_into`].
    pub fn pack<'a>(
        cpu: &Cpu,
        block: BlockType,
        (rows, cols): (usize, usize),
        row: impl Fn(usize) -> &'a [u8] + Sync,
    ) -> Result<Self, TileError> {
        let mut tiles = Buffer::zeroed(Self::packed_bytes(block, rows, cols)?);
        Self::pack_into(cpu, block, (rows, cols), row, &mut tiles)?;
        Self::from_packed(block, rows, cols, SharedBytes::from(tiles))
    }

    /// Packs a matrix `[rows, cols]` of `block` into `out`, which has
    /// [`PackedMatrix::packed_bytes`] bytes. `row(r)` gives the file's bytes of row `r`.
    pub fn pack_into<'a>(
        cpu: &Cpu,
        block: BlockType,
        (rows, cols): (usize, usize),
        row: impl Fn(usize) -> &'a [u8] + Sync,
        out: &mut [u8],
    ) -> Result<(), TileError> {
        let expected = Self::packed_bytes(block, rows, cols)?;
        if out.len() != expected {
            return Err(TileError::Length { what: "tiles", expected, got: out.len() });
        }
        let row_bytes = block.row_bytes(cols).ok_or(TileError::Shape { block, rows, cols })?;
        for r in 0..rows {
            let got = row(r).len();
            if got != row_bytes {
                return Err(TileError::Length { what: "a row", expected: row_bytes, got });
            }
        }
        let tile_bytes =
            tile_row_bytes(block, cols).ok_or(TileError::Shape { block, rows, cols })?;
        let tiles = crate::disjoint::Disjoint::new(out);
        cpu.team().for_pieces(rows.div_ceil(TILE_ROWS), 4, |_, piece| {
            for tile in piece {
                // SAFETY: pieces do not overlap, so each tile is written by one member.
                let out = unsafe { tiles.slice(tile * tile_bytes, tile_bytes) };
                out.fill(0);
                for lane in 0..TILE_ROWS.min(rows - tile * TILE_ROWS) {
                    pack_row(block, cols, row(tile * TILE_ROWS + lane), lane, out);
                }
            }
        });
        Ok(())
    }

    /// As [`PackedMatrix::pack_into`], of rows that are brought into another format on the way: the
    /// tiles are those of the rows that [`Conversion::rows`] writes. Besides `out`, memory holds
    /// two rows a thread.
    ///
    /// # Errors
    /// [`TileError::Row`] for the first row with a weight that the format cannot hold; `out` holds
    /// nothing of use then.
    pub fn pack_converted<'a>(
        cpu: &Cpu,
        conversion: &Conversion,
        rows: usize,
        row: impl Fn(usize) -> &'a [u8] + Sync,
        out: &mut [u8],
    ) -> Result<(), TileError> {
        let (block, cols) = (conversion.to(), conversion.cols());
        let expected = Self::packed_bytes(block, rows, cols)?;
        if out.len() != expected {
            return Err(TileError::Length { what: "tiles", expected, got: out.len() });
        }
        let tile_bytes = expected / rows.div_ceil(TILE_ROWS);
        let tiles = crate::disjoint::Disjoint::new(out);
        let wrong = FirstWrong::default();
        cpu.team().for_pieces(rows.div_ceil(TILE_ROWS), 1, |_, piece| {
            let (mut weights, mut bytes) = (vec![0.0; cols], vec![0; conversion.row_bytes()]);
            for tile in piece {
                // SAFETY: pieces do not overlap, so each tile is written by one member.
                let out = unsafe { tiles.slice(tile * tile_bytes, tile_bytes) };
                out.fill(0);
                for lane in 0..TILE_ROWS.min(rows - tile * TILE_ROWS) {
                    let r = tile * TILE_ROWS + lane;
                    wrong.note(r, conversion.row(row(r), &mut weights, &mut bytes));
                    pack_row(block, cols, &bytes, lane, out);
                }
            }
        });
        wrong.result().map_err(|(row, source)| TileError::Row { row, source })
    }
}

/// Writes one row into lane `lane` of a zeroed tile row.
fn pack_row(block: BlockType, cols: usize, row: &[u8], lane: usize, tile: &mut [u8]) {
    let (Some(shape), Coding::Quants(layout)) = (Shape::new(block), block.coding()) else {
        return pack_float_row(block, row, lane, tile);
    };
    let (quants, scales) = tile.split_at_mut(cols / 32 * shape.quant_bytes());
    let per_block = block.block_len() / 32;
    let mut parts = Parts::EMPTY;
    for (i, bytes) in row.chunks_exact(block.block_bytes()).enumerate() {
        (layout.parts)(bytes, &mut parts);
        for b in 0..per_block {
            let at = (i * per_block + b) * shape.quant_bytes();
            let out = &mut quants[at..at + shape.quant_bytes()];
            if let Ok(q) = <&[u8; 32]>::try_from(&parts.q[32 * b..32 * b + 32]) {
                pack_quants(shape, q, lane, out);
            }
        }
        pack_scales(shape, &parts, i, lane, scales);
    }
}

/// Writes the 32 quants of one row and block.
#[inline]
fn pack_quants(shape: Shape, q: &[u8; 32], lane: usize, out: &mut [u8]) {
    if shape.bits == 8 {
        for group in 0..8 {
            let at = 64 * group + 4 * lane;
            out[at..at + 4].copy_from_slice(&q[4 * group..4 * group + 4]);
        }
        return;
    }
    let mut nibbles = [0u8; 16];
    for (i, n) in nibbles.iter_mut().enumerate() {
        *n = q[i] & 15 | q[i + 16] << 4;
    }
    for line in 0..4 {
        let at = 64 * line + 4 * lane;
        out[at..at + 4].copy_from_slice(&nibbles[4 * line..4 * line + 4]);
    }
    if shape.bits == 5 {
        let mut plane = [0u8; 4];
        for group in 0..8 {
            for (byte, p) in plane.iter_mut().enumerate() {
                *p |= (q[4 * group + byte] >> 4 & 1) << group;
            }
        }
        out[256 + 4 * lane..256 + 4 * lane + 4].copy_from_slice(&plane);
    }
    if shape.bits == 6 {
        for half in 0..2 {
            let mut plane = [0u8; 4];
            for group in 0..4 {
                for (byte, p) in plane.iter_mut().enumerate() {
                    *p |= (q[16 * half + 4 * group + byte] >> 4 & 3) << (2 * group);
                }
            }
            let at = 256 + 64 * half + 4 * lane;
            out[at..at + 4].copy_from_slice(&plane);
        }
    }
}

/// Writes the scales of file block `i` of one row.
#[inline]
fn pack_scales(shape: Shape, parts: &Parts, i: usize, lane: usize, scales: &mut [u8]) {
    let at = i * if shape.sup { shape.scale_bytes(8) } else { shape.scale_bytes(1) };
    let halves = if shape.offset { 64 } else { 32 };
    scales[at + 2 * lane..at + 2 * lane + 2].copy_from_slice(&parts.d.to_le_bytes());
    if shape.offset {
        let at = at + 32 + 2 * lane;
        scales[at..at + 2].copy_from_slice(&parts.dmin.to_le_bytes());
    }
    if shape.sup {
        let subs = 256 / shape.sub;
        for sub in 0..subs {
            scales[at + halves + 16 * sub + lane] = parts.scales[sub] as u8;
            if shape.offset {
                scales[at + halves + 16 * (subs + sub) + lane] = parts.mins[sub] as u8;
            }
        }
    }
}

fn pack_float_row(block: BlockType, row: &[u8], lane: usize, tile: &mut [u8]) {
    if block == BlockType::F32 {
        for (col, bytes) in row.chunks_exact(4).enumerate() {
            let at = 4 * (col * TILE_ROWS + lane);
            tile[at..at + 4].copy_from_slice(bytes);
        }
        return;
    }
    for (col, bytes) in row.chunks_exact(2).enumerate() {
        let at = match block {
            BlockType::Bf16 => 2 * ((col / 2 * TILE_ROWS + lane) * 2 + col % 2),
            _ => 2 * (col * TILE_ROWS + lane),
        };
        tile[at..at + 2].copy_from_slice(bytes);
    }
}
