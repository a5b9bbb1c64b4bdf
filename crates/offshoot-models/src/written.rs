//! A tensor on its way into a file: which rows, in which order and format.

use std::io::{self, Write};

use offshoot_kernels::{BlockType, Conversion, Cpu};

use crate::{Error, RowOrder, Tensor};

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

/// One tensor of a file, made of one tensor of a checkpoint or of several whose rows stand behind each
/// other.
#[derive(Debug)]
pub(crate) struct Written<'c> {
    parts: Vec<(Tensor<'c>, RowOrder)>,
    /// The shape in the file, where that is not the rows of all parts behind each other.
    stored: Option<Vec<usize>>,
    block: BlockType,
    /// What is taken from each number of a vector.
    less: f32,
}

impl<'c> Written<'c> {
    /// All of `tensor` in the format `block`, its rows stored in the order `rows`.
    pub(crate) fn new(tensor: Tensor<'c>, rows: RowOrder, block: BlockType) -> Self {
        Self { parts: vec![(tensor, rows)], stored: None, block, less: 0.0 }
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
        self.parts.push((tensor, rows));
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
        let mut shape = self.parts[0].0.info.shape.clone();
        for (part, _) in &self.parts[1..] {
            shape[0] += part.info.shape[0];
        }
        shape
    }

    /// Number of weights.
    pub(crate) fn weights(&self) -> u64 {
        self.parts.iter().map(|(tensor, _)| tensor.len() as u64).sum()
    }

    /// Writes the bytes to `out`; `more` is told of each lot of weights, and says whether to go on.
    pub(crate) fn write(
        &self,
        cpu: &Cpu,
        out: &mut dyn Write,
        more: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ExportError> {
        if self.parts[0].0.info.shape.len() == 1 {
            return self.write_vector(out, more);
        }
        self.parts
            .iter()
            .try_for_each(|(tensor, rows)| self.write_rows(tensor, *rows, cpu, out, more))
    }

    /// The numbers of a vector in the file's order.
    fn values(&self) -> Result<Vec<f32>, Error> {
        let (tensor, rows) = &self.parts[0];
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
        quantized.map_err(|e| wrong(&self.parts[0].0, e.to_string()))?;
        out.write_all(&bytes)?;
        if more(self.weights()) { Ok(()) } else { Err(ExportError::Stopped) }
    }

    fn write_rows(
        &self,
        tensor: &Tensor<'_>,
        order: RowOrder,
        cpu: &Cpu,
        out: &mut dyn Write,
        more: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ExportError> {
        let (rows, cols) = (tensor.row_count(), tensor.cols());
        let to = Conversion::new(tensor.info.block, self.block, cols);
        let to = to.map_err(|e| wrong(tensor, e.to_string()))?;
        let chunk = (CHUNK_BYTES / to.row_bytes().max(1)).clamp(1, rows.max(1));
        let mut bytes = vec![0; chunk * to.row_bytes()];
        let row = |stored| tensor.row_bytes(order.canonical(stored));
        for start in (0..rows).step_by(chunk) {
            let part = start..rows.min(start + chunk);
            let bytes = &mut bytes[..part.len() * to.row_bytes()];
            to.rows(cpu, part.clone(), row, bytes).map_err(|(stored, e)| {
                wrong(tensor, format!("row {}: {e}", order.canonical(stored)))
            })?;
            out.write_all(bytes)?;
            tensor.release();
            if !more((part.len() * cols) as u64) {
                return Err(ExportError::Stopped);
            }
        }
        Ok(())
    }
}

fn wrong(tensor: &Tensor<'_>, what: String) -> Error {
    Error::Tensor { name: tensor.name.to_owned(), what }
}
