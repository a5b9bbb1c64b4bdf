//! The one form in which every loader presents a model's weights.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_kernels::{BlockType, FileMap};

use crate::{Error, ModelConfig, TokenizerSpec};

/// How the rows of a stored matrix map to the canonical, Hugging Face order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// Row `r` is stored as row `r`.
    Plain,
    /// Rotary pairs are neighbours in the file and half a head apart in canonical order: within a
    /// head of `head_dim` rows, canonical row `h * head_dim / 2 + i` (h = 0, 1) is stored as row
    /// `2 * i + h`. GGUF stores Llama's q and k so.
    RotaryPairs {
        /// Rows of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The stored row that holds canonical row `row`.
    pub fn stored(self, row: usize) -> usize {
        match self {
            RowOrder::Plain => row,
            RowOrder::RotaryPairs { head_dim } => {
                let (head, r) = (row / head_dim, row % head_dim);
                let (half, i) = (r / (head_dim / 2), r % (head_dim / 2));
                head * head_dim + 2 * i + half
            }
        }
    }
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Shape in canonical order: `[out, in]` for a matrix, `[n]` for a vector.
    pub shape: Vec<usize>,
    /// Format of the stored blocks; blocks run along the last axis.
    pub block: BlockType,
    /// Bytes of the file that hold it, checked to lie inside and to be as many as the shape needs.
    pub range: Range<usize>,
    /// Which file of the checkpoint holds it.
    pub file: usize,
    /// How stored rows map to canonical ones.
    pub rows: RowOrder,
}

/// A tensor of a checkpoint, borrowed from its file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Canonical name.
    pub name: &'a str,
    /// Place and form.
    pub info: &'a TensorInfo,
    /// The file it lies in.
    pub file: &'a FileMap,
}

impl<'a> Tensor<'a> {
    /// All stored bytes, rows in the file's order.
    pub fn bytes(&self) -> &'a [u8] {
        &self.file[self.info.range.clone()]
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.info.shape.iter().product()
    }

    /// Whether there are no weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Width of a row: the last axis.
    pub fn cols(&self) -> usize {
        self.info.shape.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all axes but the last.
    pub fn row_count(&self) -> usize {
        self.info.shape.iter().rev().skip(1).product()
    }

    /// The stored bytes of canonical row `row`.
    pub fn row_bytes(&self, row: usize) -> &'a [u8] {
        let all = self.bytes();
        let row_bytes = all.len() / self.row_count().max(1);
        let stored = self.info.rows.stored(row);
        &all[stored * row_bytes..(stored + 1) * row_bytes]
    }

    /// Tells the system that the stored bytes are not needed soon.
    pub fn release(&self) {
        self.file.release(self.info.range.clone());
    }
}

/// A model's weights, configuration, tokenizer data and chat template, whatever file they come from.
///
/// Names and row order are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), so nothing
/// that uses a checkpoint knows which format it was read from.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) path: PathBuf,
    pub(crate) files: Vec<Arc<FileMap>>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
    pub(crate) config: ModelConfig,
    pub(crate) tokenizer: TokenizerSpec,
    pub(crate) chat_template: Option<String>,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) name: Option<String>,
}

impl Checkpoint {
    /// Where the checkpoint was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's own name, if its file gives one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the file says of the tokenizer.
    pub fn tokenizer(&self) -> &TokenizerSpec {
        &self.tokenizer
    }

    /// The chat template's source, if the file has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Ids at which an answer ends: the union of what the file names, ascending.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// The tensor of canonical name `name`.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, info) = self.tensors.get_key_value(name)?;
        Some(Tensor { name, info, file: &self.files[info.file] })
    }

    /// The tensor of canonical name `name`, or an error that names it.
    pub fn require(&self, name: &str) -> Result<Tensor<'_>, Error> {
        self.get(name).ok_or_else(|| Error::Tensor {
            name: name.to_owned(),
            what: format!("missing from {}", self.path.display()),
        })
    }

    /// All tensors, sorted by canonical name.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|(name, info)| Tensor { name, info, file: &self.files[info.file] })
    }
}
