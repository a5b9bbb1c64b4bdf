//! Rows of one format into another, on all threads of a team.

use std::ops::Range;
use std::sync::Mutex;

use super::{BlockError, BlockType};
use crate::Cpu;
use crate::disjoint::Disjoint;

/// Rows that a thread takes at a time, at least.
const GRAIN: usize = 4;

/// From one format to another, for rows of a fixed width. Weights are read as
/// [`BlockType::dequantize`] gives them and written as [`BlockType::fit`] does; a row that has the
/// format already keeps its bytes. Floats that are no numbers are refused in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    from: BlockType,
    to: BlockType,
    cols: usize,
    from_bytes: usize,
    to_bytes: usize,
}

impl Conversion {
    /// From rows of `cols` weights in `from` to such rows in `to`.
    ///
    /// # Errors
    /// [`BlockError::Ragged`] if one of the formats has no rows of that width,
    /// [`BlockError::ReadOnly`] if `to` is another format and not written.
    pub fn new(from: BlockType, to: BlockType, cols: usize) -> Result<Self, BlockError> {
        if from != to && !to.is_written() {
            return Err(BlockError::ReadOnly { block: to.name() });
        }
        Ok(Self { from, to, cols, from_bytes: from.bytes_of(cols)?, to_bytes: to.bytes_of(cols)? })
    }

    /// The format of the rows that are written.
    pub fn to(&self) -> BlockType {
        self.to
    }

    /// Weights of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of a row that is written.
    pub fn row_bytes(&self) -> usize {
        self.to_bytes
    }

    /// Writes one row; `weights` has room for [`Conversion::cols`] of them.
    pub(crate) fn row(
        &self,
        row: &[u8],
        weights: &mut [f32],
        out: &mut [u8],
    ) -> Result<(), BlockError> {
        let same = self.from == self.to && row.len() == self.from_bytes;
        if !same || self.from.is_float() {
            self.from.dequantize(row, weights)?;
        }
        match same {
            false => self.to.fit(weights, out)?,
            true => {
                if self.from.is_float() {
                    self.to.check(weights)?;
                }
                out.copy_from_slice(row);
            }
        }
        Ok(())
    }

    /// Writes `rows` to `out`, [`Conversion::row_bytes`] each; `row(r)` gives the bytes of row `r`.
    /// The bytes do not depend on the number of threads.
    ///
    /// # Errors
    /// The first row that cannot be written, and why; `out` holds nothing of use then.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn rows<'a>(
        &self,
        cpu: &Cpu,
        rows: Range<usize>,
        row: impl Fn(usize) -> &'a [u8] + Sync,
        out: &mut [u8],
    ) -> Result<(), (usize, BlockError)> {
        assert_eq!(out.len(), rows.len() * self.to_bytes, "room for all rows");
        let (out, wrong) = (Disjoint::new(out), FirstWrong::default());
        cpu.team().for_pieces(rows.len(), GRAIN, |_, piece| {
            let mut weights = vec![0.0; self.cols];
            for i in piece {
                // SAFETY: pieces do not overlap, so each row is written by one member.
                let out = unsafe { out.slice(i * self.to_bytes, self.to_bytes) };
                let r = rows.start + i;
                wrong.note(r, self.row(row(r), &mut weights, out));
            }
        });
        wrong.result()
    }
}

/// The first row, in order of rows and not of time, that could not be written.
#[derive(Debug, Default)]
pub(crate) struct FirstWrong(Mutex<Option<(usize, BlockError)>>);

impl FirstWrong {
    pub(crate) fn note(&self, row: usize, result: Result<(), BlockError>) {
        if let Err(error) = result {
            let mut first = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if first.as_ref().is_none_or(|(before, _)| row < *before) {
                *first = Some((row, error));
            }
        }
    }

    pub(crate) fn result(self) -> Result<(), (usize, BlockError)> {
        self.0.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }
}
