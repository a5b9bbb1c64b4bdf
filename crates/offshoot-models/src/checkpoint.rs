//! The one form in which every loader presents a model's weights.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use offshoot_kernels::{BlockType, FileMap};

use crate::{
    Error, GenerationDefaults, ModelConfig, Recipe, RopeRule, TokenizerSpec, gguf, huggingface,
};

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

    /// The canonical row that is stored as row `row`: the inverse of [`RowOrder::stored`].
    pub fn canonical(self, row: usize) -> usize {
        match self {
            RowOrder::Plain => row,
            RowOrder::RotaryPairs { head_dim } => {
                let (head, r) = (row / head_dim, row % head_dim);
                head * head_dim + r % 2 * (head_dim / 2) + r / 2
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
    /// How stored rows map to canonical ones. In a vector, which is one row, the elements stand for
    /// the rows: the bias of a matrix has the order of the matrix.
    pub rows: RowOrder,
    /// What is added to each stored number of a vector to have the canonical one, 0 but for the norms
    /// of Gemma in folders, which store the weight less 1.
    pub shift: f32,
}

/// A tensor of a checkpoint, borrowed from its file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Canonical name.
    pub name: &'a str,
    /// Place and form.
    pub info: &'a TensorInfo,
    /// The format in which its weights are used: that of the file, or the one that they are
    /// quantised to while loading.
    pub block: BlockType,
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

    /// Writes canonical row `row` into `out`, which has [`Tensor::cols`] places; a vector is row 0,
    /// its elements in canonical order. The weights are those that [`Tensor::block`] makes of them.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is no such row, `out` has another length, or a weight is none
    /// that the format can hold.
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> Result<(), Error> {
        if row >= self.row_count() || out.len() != self.cols() {
            return Err(self.error(format!(
                "row {row} asked for in {} places, but the shape is {:?}",
                out.len(),
                self.info.shape
            )));
        }
        let dequantized = self.info.block.dequantize(self.row_bytes(row), out);
        dequantized.map_err(|e| self.error(e.to_string()))?;
        if self.info.shift != 0.0 {
            out.iter_mut().for_each(|weight| *weight += self.info.shift);
        }
        if self.block != self.info.block {
            let rounded = self.block.round(out);
            rounded.map_err(|e| self.error(format!("row {row}: {e}")))?;
        }
        if self.info.shape.len() == 1 && self.info.rows != RowOrder::Plain {
            let stored = out.to_vec();
            for (i, weight) in out.iter_mut().enumerate() {
                *weight = stored[self.info.rows.stored(i)];
            }
        }
        Ok(())
    }

    /// Tells the system that these stored rows are not needed soon. A hint: rows read again are
    /// there again.
    pub(crate) fn release_rows(&self, rows: Range<usize>) {
        let row_bytes = self.bytes().len() / self.row_count().max(1);
        let start = self.info.range.start;
        self.file.release(start + rows.start * row_bytes..start + rows.end * row_bytes);
    }

    /// The tensor for a single pass over its rows, by any number of threads.
    pub(crate) fn passing(self) -> Passing<'a> {
        Passing { tensor: self, read: AtomicUsize::new(0) }
    }

    fn error(&self, what: String) -> Error {
        Error::Tensor { name: self.name.to_owned(), what }
    }

    /// Tells the system that the stored bytes are not needed soon.
    pub fn release(&self) {
        self.file.release(self.info.range.clone());
    }
}

/// Bytes of a tensor that are read before the file's pages are let go.
const PASSED_BYTES: usize = 4 << 20;

/// A tensor whose rows are read once: the file's pages go as that proceeds, so that memory holds a few
/// megabytes of them.
#[derive(Debug)]
pub(crate) struct Passing<'a> {
    tensor: Tensor<'a>,
    read: AtomicUsize,
}

impl<'a> Passing<'a> {
    /// As [`Tensor::row_bytes`].
    pub(crate) fn row_bytes(&self, row: usize) -> &'a [u8] {
        let bytes = self.tensor.row_bytes(row);
        let before = self.read.fetch_add(bytes.len(), Ordering::Relaxed);
        if before / PASSED_BYTES != (before + bytes.len()) / PASSED_BYTES {
            // What another thread is at is read in once more.
            self.tensor.release();
        }
        bytes
    }

    /// As [`Tensor::read_row`].
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) -> Result<(), Error> {
        if row < self.tensor.row_count() {
            self.row_bytes(row);
        }
        self.tensor.read_row(row, out)
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        self.tensor.release();
    }
}

/// What the files of a checkpoint say, under canonical names: all but the weights' bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// The model's own name, if the file gives one.
    pub name: Option<String>,
    /// Sizes and constants, validated.
    pub config: ModelConfig,
    /// The formula of the factors of rotary frequencies, where a file gives one.
    pub rope_rule: Option<RopeRule>,
    /// Every tensor that the architecture has, checked to be there in the right shape.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Tensors of the file that the architecture does not have, under the file's names, sorted.
    pub unused: Vec<String>,
    /// The tokenizer, or why offshoot cannot build the one that the file has.
    pub tokenizer: Result<TokenizerSpec, String>,
    /// The chat template's source, if the file has one or one is assumed.
    pub chat_template: Option<String>,
    /// Whether the chat template is not the file's.
    pub assumes_template: bool,
    /// Ids at which an answer ends, ascending.
    pub stop_tokens: Vec<u32>,
    /// How the model's makers would have answers made.
    pub generation: GenerationDefaults,
}

/// What a loader gives to a checkpoint.
pub(crate) struct Opened {
    /// The files that say what is computed: the GGUF files, or `config.json`, then the weights, sorted
    /// by name.
    pub(crate) paths: Vec<PathBuf>,
    /// The weights' files, as [`Contents::tensors`] numbers them.
    pub(crate) maps: Vec<Arc<FileMap>>,
    pub(crate) contents: Contents,
}

/// A model's weights, configuration, tokenizer data and chat template, whatever file they come from.
///
/// Names and row order are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), so nothing
/// that uses a checkpoint knows which format it was read from.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    paths: Vec<PathBuf>,
    files: Vec<Arc<FileMap>>,
    contents: Contents,
    /// What float matrices are quantised to while loading.
    recipe: Option<Recipe>,
}

impl Checkpoint {
    /// Opens the model at `path`: a Hugging Face folder, or a file of whatever format its first
    /// bytes show.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, and [`Error::File`] if it is damaged or of a format or an
    /// architecture that offshoot does not read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            return Ok(Self::of(path, huggingface::open(path)?));
        }
        let file = map(path)?;
        match file.first_chunk::<4>() {
            Some(magic) if *magic == gguf::MAGIC => Self::from_gguf(path, file),
            _ => Err(Error::File {
                path: path.to_owned(),
                what: format!("{}; offshoot opens GGUF files and folders", describe(&file)),
            }),
        }
    }

    /// Opens the GGUF file at `path`; of one that is split, any part stands for all, which lie beside
    /// one another. What else lies there, as a `generation_config.json`, is not read.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_gguf(path: &Path) -> Result<Self, Error> {
        Ok(Self::of(path, gguf::open(path, map(path)?)?))
    }

    fn from_gguf(path: &Path, file: FileMap) -> Result<Self, Error> {
        let mut opened = gguf::open(path, file)?;
        let contents = &mut opened.contents;
        // What the file says itself goes before what lies beside it.
        let beside = huggingface::generation_config_beside(path, &contents.stop_tokens)?;
        contents.generation = contents.generation.or(beside.defaults);
        if let Ok(tokenizer) = &contents.tokenizer {
            contents.stop_tokens.extend(beside.ends(&tokenizer.kinds));
            contents.stop_tokens.sort_unstable();
            contents.stop_tokens.dedup();
        }
        Ok(Self::of(path, opened))
    }

    fn of(path: &Path, Opened { paths, maps, contents }: Opened) -> Self {
        Self { path: path.to_owned(), paths, files: maps, contents, recipe: None }
    }

    /// The same model with its float matrices quantised as `recipe` says: wherever its weights are
    /// used from now on, they are those that a file of that recipe has. Matrices that are quantised
    /// already stay as they are.
    #[must_use]
    pub fn quantized(self, recipe: Recipe) -> Self {
        Self { recipe: Some(recipe), ..self }
    }

    /// What float matrices are quantised to while loading, where some are.
    pub fn recipe(&self) -> Option<Recipe> {
        self.recipe.filter(|_| self.tensors().any(|t| t.block != t.info.block))
    }

    /// Matrices that a recipe leaves as they are, because they are quantised already.
    pub fn kept_quantised(&self) -> usize {
        let quantised = |t: &Tensor<'_>| t.info.shape.len() > 1 && !t.info.block.is_float();
        self.recipe.map_or(0, |_| self.tensors().filter(quantised).count())
    }

    /// Tells the system that the files' bytes are not needed soon: what lies about a vector that was read
    /// has come into memory with it, up to a large page.
    pub(crate) fn release(&self) {
        self.files.iter().for_each(|file| file.release(0..usize::MAX));
    }

    /// The maps of the model's files, as [`TensorInfo::file`] numbers them.
    pub(crate) fn maps(&self) -> &[Arc<FileMap>] {
        &self.files
    }

    /// Where the checkpoint was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that say what is computed: the GGUF file, or its parts, or a folder's `config.json`
    /// and weights.
    pub fn files(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The model's own name, if its file gives one.
    pub fn name(&self) -> Option<&str> {
        self.contents.name.as_deref()
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.contents.config
    }

    /// The formula of the factors of rotary frequencies, where a file gives one.
    pub fn rope_rule(&self) -> Option<RopeRule> {
        self.contents.rope_rule
    }

    /// What the file says of the tokenizer.
    ///
    /// # Errors
    /// [`Error::File`] if the file has none, or one of a kind that offshoot does not build; the
    /// weights can be used all the same.
    pub fn tokenizer(&self) -> Result<&TokenizerSpec, Error> {
        self.contents
            .tokenizer
            .as_ref()
            .map_err(|what| Error::File { path: self.path.clone(), what: what.clone() })
    }

    /// The chat template's source, if the file has one. A GGUF file without one whose vocabulary has the
    /// marks of ChatML has that.
    pub fn chat_template(&self) -> Option<&str> {
        self.contents.chat_template.as_deref()
    }

    /// Whether the chat template is not the file's, but ChatML as its vocabulary suggests.
    pub fn assumes_template(&self) -> bool {
        self.contents.assumes_template
    }

    /// Ids at which an answer ends, ascending: what the file names as end of text, turn or message,
    /// control tokens whose text is a known end marker, and what a `generation_config.json` beside
    /// the file adds.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.contents.stop_tokens
    }

    /// How the model's makers would have answers made: what the GGUF file says, then what a
    /// `generation_config.json` in the folder or beside the file does.
    pub fn generation(&self) -> GenerationDefaults {
        self.contents.generation
    }

    /// Tensors of the file that the architecture does not have, under the file's own names. A model
    /// with any may be of a variant that offshoot would run wrongly.
    pub fn unused(&self) -> &[String] {
        &self.contents.unused
    }

    /// The tensor of canonical name `name`.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, info) = self.contents.tensors.get_key_value(name)?;
        Some(self.tensor(name, info))
    }

    fn tensor<'c>(&'c self, name: &'c str, info: &'c TensorInfo) -> Tensor<'c> {
        let block = match self.recipe {
            Some(recipe) if info.block.is_float() => {
                recipe.block(self.config(), name, &info.shape, info.block)
            }
            _ => info.block,
        };
        Tensor { name, info, block, file: &self.files[info.file] }
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
        let tensors = self.contents.tensors.iter();
        tensors.map(|(name, info)| self.tensor(name, info))
    }
}

fn map(path: &Path) -> Result<FileMap, Error> {
    FileMap::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// What a file seems to be that is no GGUF file.
fn describe(bytes: &[u8]) -> String {
    match bytes {
        [b'P', b'K', 3, 4, ..] => "a zip archive, as PyTorch writes".to_owned(),
        [b'l' | b'f' | b't' | b'a', b'm' | b'j' | b'l', b'g', b'g', ..] => {
            "a GGML file from before GGUF; convert the model again".to_owned()
        }
        [_, _, _, _, _, 0, 0, 0, b'{', ..] => {
            "a safetensors file; give the folder that it lies in".to_owned()
        }
        _ => format!("begins with \"{}\"", bytes[..bytes.len().min(4)].escape_ascii()),
    }
}
