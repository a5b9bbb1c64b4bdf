//! A tensor on its way into a file: which rows, in which order and format.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::Range;

use offshoot_kernels::{BlockType, Conversion, Cpu};

use crate::{Adapter, Error, LowRank, MatrixFactors, RowOrder, Tensor};

/// Bytes of a tensor that are made at a time.
const CHUNK_BYTES: usize = 8 << 20;

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The model cannot be written so.
    #[error(transparent)]
    Model(#[from] Error),
    /// The output takes no more.
    #[error(transparent)]
    Output(#[from] io::Error),
    /// Whoever was told of the progress ended it.
    #[error("stopped")]
    Stopped,
}

/// A tensor of a checkpoint within one of a file.
#[derive(Debug)]
struct Part<'c> {
    tensor: Tensor<'c>,
    rows: RowOrder,
    /// What a variant makes of it.
    change: Option<Change<'c>>,
}

/// What a variant makes of a matrix.
#[derive(Debug, Clone, Copy)]
enum Change<'c> {
    Added(&'c LowRank),
    Multiplied(&'c MatrixFactors),
}

impl Change<'_> {
    /// Whether it is of a matrix of this shape.
    fn fits(self, shape: &[usize]) -> bool {
        match (self, shape) {
            (Self::Added(low), [rows, cols]) => {
                low.a.len() == low.rank * cols && low.b.len() == rows * low.rank
            }
            (Self::Multiplied(factors), [rows, cols]) => factors.fit(*rows, *cols),
            _ => false,
        }
    }

    /// Makes it of `weights`, which are row `row`. `sum` has as many places, and is written over.
    fn make(self, row: usize, sum: &mut [f32], weights: &mut [f32]) {
        match self {
            Self::Added(low) => low.add_row(row, sum, weights),
            Self::Multiplied(factors) => factors.multiply_row(row, weights),
        }
    }
}

/// One tensor of a file, made of one tensor of a checkpoint or of several whose rows stand behind each
/// other.
#[derive(Debug)]
pub(crate) struct Written<'c> {
    parts: Vec<Part<'c>>,
    /// The shape in the file, where that is not the rows of all parts behind each other.
    stored: Option<Vec<usize>>,
    block: BlockType,
    /// What is taken from each number of a vector.
    less: f32,
}

impl<'c> Written<'c> {
    /// All of `tensor` in the format `block`, its rows stored in the order `rows`.
    pub(crate) fn new(tensor: Tensor<'c>, rows: RowOrder, block: BlockType) -> Self {
        Self { parts: vec![Part { tensor, rows, change: None }], stored: None, block, less: 0.0 }
    }

    /// The same as the first part of a tensor of shape `stored`.
    pub(crate) fn within(
        tensor: Tensor<'c>,
        rows: RowOrder,
        block: BlockType,
        stored: Vec<usize>,
    ) -> Self {
        Self { stored: Some(stored), ..Self::new(tensor, rows, block) }
    }

    /// A vector whose numbers are stored less `less`: in the format `wanted` if that has a place for
    /// each of them, else in single precision.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the vector cannot be read.
    pub(crate) fn vector(tensor: Tensor<'c>, less: f32, wanted: BlockType) -> Result<Self, Error> {
        let mut whole = Self { less, ..Self::new(tensor, RowOrder::Plain, BlockType::F32) };
        let exact = whole.values()?;
        let mut rounded = exact.clone();
        if wanted.round(&mut rounded).is_ok() && rounded == exact {
            whole.block = wanted;
        }
        Ok(whole)
    }

    /// Puts the rows of another matrix behind these.
    ///
    /// # Errors
    /// [`Error::Export`] if it would have another format.
    pub(crate) fn add(
        &mut self,
        tensor: Tensor<'c>,
        rows: RowOrder,
        block: BlockType,
    ) -> Result<(), Error> {
        if block != self.block {
            let what = format!(
                "tensor {} would be {block} in a matrix of {}; choose a format that suits rows of {}",
                tensor.name,
                self.block,
                tensor.cols()
            );
            return Err(Error::Export(what));
        }
        self.parts.push(Part { tensor, rows, change: None });
        Ok(())
    }

    /// The format it takes.
    pub(crate) fn block(&self) -> BlockType {
        self.block
    }

    /// Its shape in the file, the contiguous axis last.
    pub(crate) fn shape(&self) -> Vec<usize> {
        if let Some(stored) = &self.stored {
            return stored.clone();
        }
        let mut shape = self.parts[0].tensor.info.shape.clone();
        for part in &self.parts[1..] {
            shape[0] += part.tensor.info.shape[0];
        }
        shape
    }

    /// Number of weights.
    pub(crate) fn weights(&self) -> u64 {
        self.parts.iter().map(|part| part.tensor.len() as u64).sum()
    }

    /// Writes the bytes to `out`; `more` is told of each lot of weights, and says whether to go on.
    pub(crate) fn write(
        &self,
        cpu: &Cpu,
        out: &mut dyn Write,
        more: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ExportError> {
        if self.parts[0].tensor.info.shape.len() == 1 {
            return self.write_vector(out, more);
        }
        self.parts.iter().try_for_each(|part| self.write_rows(part, cpu, out, more))
    }

    /// The numbers of a vector in the file's order.
    fn values(&self) -> Result<Vec<f32>, Error> {
        let Part { tensor, rows, .. } = &self.parts[0];
        let mut values = vec![0.0; tensor.len()];
        tensor.read_row(0, &mut values)?;
        let finite = BlockType::F32.round(&mut values);
        finite.map_err(|e| wrong(tensor, e.to_string()))?;
        Ok((0..values.len()).map(|stored| values[rows.canonical(stored)] - self.less).collect())
    }

    fn write_vector(
        &self,
        out: &mut dyn Write,
        more: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ExportError> {
        let mut bytes = Vec::new();
        let quantized = self.block.quantize(&self.values()?, &mut bytes);
        quantized.map_err(|e| wrong(&self.parts[0].tensor, e.to_string()))?;
        out.write_all(&bytes)?;
        if more(self.weights()) { Ok(()) } else { Err(ExportError::Stopped) }
    }

    fn write_rows(
        &self,
        part: &Part<'_>,
        cpu: &Cpu,
        out: &mut dyn Write,
        more: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ExportError> {
        let Part { tensor, rows: order, change } = part;
        let (rows, cols) = (tensor.row_count(), tensor.cols());
        let from = if change.is_some() { BlockType::F32 } else { tensor.info.block };
        let to = Conversion::new(from, self.block, cols);
        let to = to.map_err(|e| wrong(tensor, e.to_string()))?;
        let chunk = (CHUNK_BYTES / to.row_bytes().max(1)).clamp(1, rows.max(1));
        let mut bytes = vec![0; chunk * to.row_bytes()];
        let row = |stored| tensor.row_bytes(order.canonical(stored));
        for start in (0..rows).step_by(chunk) {
            let range = start..rows.min(start + chunk);
            let bytes = &mut bytes[..range.len() * to.row_bytes()];
            let converted = match *change {
                None => to.rows(cpu, range.clone(), row, bytes),
                Some(change) => {
                    let merged = part.merged(change, range.clone(), cpu.team().threads())?;
                    let row = |stored| &merged[4 * cols * (stored - start)..][..4 * cols];
                    to.rows(cpu, range.clone(), row, bytes)
                }
            };
            converted.map_err(|(stored, e)| {
                wrong(tensor, format!("row {}: {e}", order.canonical(stored)))
            })?;
            out.write_all(bytes)?;
            tensor.release();
            if !more((range.len() * cols) as u64) {
                return Err(ExportError::Stopped);
            }
        }
        Ok(())
    }
}

impl Part<'_> {
    /// What `change` makes of the stored rows of `range`, in single precision, little-endian. Each is
    /// one thread's, so the bytes do not depend on how many there are.
    fn merged(
        &self,
        change: Change<'_>,
        range: Range<usize>,
        threads: usize,
    ) -> Result<Vec<u8>, Error> {
        let cols = self.tensor.cols();
        let mut bytes = vec![0; 4 * cols * range.len()];
        let share = range.len().div_ceil(threads.max(1)).max(1);
        let rows = |first: usize, bytes: &mut [u8]| {
            let (mut row, mut sum) = (vec![0.0; cols], vec![0.0; cols]);
            for (i, bytes) in bytes.chunks_mut(4 * cols).enumerate() {
                let canonical = self.rows.canonical(first + i);
                self.tensor.read_row(canonical, &mut row)?;
                change.make(canonical, &mut sum, &mut row);
                for (place, number) in bytes.chunks_mut(4).zip(&row) {
                    place.copy_from_slice(&number.to_le_bytes());
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let shares = bytes.chunks_mut(4 * cols * share).enumerate();
            let spawned: Vec<_> = shares
                .map(|(i, bytes)| scope.spawn(move || rows(range.start + i * share, bytes)))
                .collect();
            let joined = spawned.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            joined.collect::<Result<Vec<()>, Error>>()
        })?;
        Ok(bytes)
    }
}

/// Makes of `tensors`, which are all of a model's, what `adapter` makes of them.
///
/// # Errors
/// [`Error::Adapter`] if a matrix is not there or of another shape, or is the embedding as well, which an
/// adapter of the output head leaves as it is; and if what the adapter has is no weights.
pub(crate) fn merge<'c, 't>(
    tensors: impl Iterator<Item = &'t mut Written<'c>>,
    adapter: &'c Adapter,
) -> Result<(), Error>
where
    'c: 't,
{
    let changes: BTreeMap<&str, Change<'c>> = match adapter {
        Adapter::Lora(lora) => {
            let added = lora.matrices.iter();
            added.map(|(name, low)| (name.as_str(), Change::Added(low))).collect()
        }
        Adapter::Scales(scales) => {
            let multiplied = scales.matrices.iter();
            multiplied.map(|(name, all)| (name.as_str(), Change::Multiplied(all))).collect()
        }
        Adapter::Virtual(tokens) => {
            let what = format!(
                "{} positions before every text are no weights and cannot be merged: run the base with \
                 --variant",
                tokens.tokens()
            );
            return Err(Error::Adapter(what));
        }
    };
    let mut merged = 0;
    for part in tensors.flat_map(|written| &mut written.parts) {
        let name = part.tensor.name;
        let Some(matrix) = name.strip_suffix(".weight") else { continue };
        let Some(change) = changes.get(matrix) else { continue };
        let refused = |what: &str| Err(Error::Adapter(format!("matrix {matrix}: {what}")));
        if matrix == "model.embed_tokens" {
            return refused(
                "is the embedding and the output head in one, and the adapter changes the head alone: \
                 it cannot be merged",
            );
        }
        if !change.fits(&part.tensor.info.shape) {
            return refused("of another shape than the model's");
        }
        part.change = Some(*change);
        merged += 1;
    }
    match merged == changes.len() {
        true => Ok(()),
        false => Err(Error::Adapter("the model does not have all of its matrices".to_owned())),
    }
}

fn wrong(tensor: &Tensor<'_>, what: String) -> Error {
    Error::Tensor { name: tensor.name.to_owned(), what }
}
