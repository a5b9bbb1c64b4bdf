//! Files of Medusa heads: the published layouts and our own.
//!
//! Cai et al. 2024, "Medusa: Simple LLM inference acceleration framework with multiple decoding
//! heads", <https://arxiv.org/abs/2401.10774>, section 2.1.1. With `h` the final norm's result, the
//! very vector that the output head multiplies, head `k = 1..K` scores the token `k + 1` places on:
//! ```text
//! z_0 = h        z_l = z_(l-1) + silu(W_l z_(l-1) + b_l),  l = 1..L        logits_k = U_k z_L
//! ```
//! Three layouts are published, all in safetensors, heads and blocks counted from 0:
//! ```text
//! own      {k}.{l}.linear.weight [d, d], {k}.{l}.linear.bias [d], {k}.{L}.weight = U_k [V, d]
//! shared   the same without U_k, which is the base's output head for all ("version 2")
//! whole    the layout "own" under `medusa_head.`, among the weights of a whole model, in one file
//!          or in several with an index
//! ```
//! K, L and the layout are read from the names: configurations of published heads are often wrong
//! (<https://github.com/FasterDecoding/Medusa/issues/76>), so what disagrees is only a warning.
//!
//! Ours is "shared" with three additions: a tensor `vocabulary` of token ids, the rows of U that are
//! scored; a metadata entry `offshoot` of JSON that says which base the heads belong to; and heads that
//! see the token `x` that was chosen from `h`, which is known when they are asked. Then the first
//! block is wider, `W_1 [d, 2d]`, and with `E` the base's embedding
//! ```text
//! z_1 = z_0 + silu(W_1 [z_0; e] + b_1)        e = E_x / rms(E_x)
//! ```
//! That is the first step of Hydra's heads (Ankner et al. 2024, section 3,
//! <https://arxiv.org/abs/2402.05109>), which go on to see drafted tokens too and so must be asked once
//! for each node. Blocks are independent; the reference ties those of a head with L above 1.

use std::collections::BTreeMap;
use std::path::Path;

use offshoot_kernels::{BlockType, FileMap};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::beside::write_to;
use crate::huggingface::{PartFiles, part_files};
use crate::{BaseId, Error, ModelConfig, TokenizerId};

/// The file of heads in the folder of a variant, named as published ones are.
pub const HEADS_FILE: &str = "medusa_lm_head.safetensors";
/// Heads of a file at most; published ones have five.
pub const HEADS_MAX: usize = 16;
/// Blocks of a head at most; published ones have one.
const LAYERS_MAX: usize = 8;
/// What begins the names of heads among the weights of a whole model.
pub(crate) const HEADS_PREFIX: &str = "medusa_head.";
/// How the name of an index of such files ends.
const INDEX_END: &str = ".safetensors.index.json";
/// Longest header that is read: names and shapes of a whole model take far less.
const HEADER_MAX: u64 = 16 << 20;
/// The metadata entry that is ours, and the version of what it says.
const ENTRY: &str = "offshoot";
const FORMAT: u32 = 1;
/// The ids that the heads score.
const VOCABULARY: &str = "vocabulary";

/// Where the matrices that turn a head's state into logits come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadLayout {
    /// Each head has its own.
    Own,
    /// All heads use the base's output head.
    Shared,
    /// As [`HeadLayout::Own`], inside the file of a whole model.
    Whole,
}

/// A float matrix as a file holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadMatrix {
    /// F32, F16 or BF16.
    pub block: BlockType,
    /// Output width; 1 for a vector.
    pub rows: usize,
    /// Input width, or the vector's length.
    pub cols: usize,
    /// The file's bytes, rows in order.
    pub bytes: Vec<u8>,
}

impl HeadMatrix {
    /// Rounds `values`, `[rows, cols]`, to `block`.
    ///
    /// # Panics
    /// If there are not as many values, or `block` is no float format.
    pub fn new(block: BlockType, (rows, cols): (usize, usize), values: &[f32]) -> Self {
        assert_eq!(values.len(), rows * cols, "a value for each place");
        let mut bytes = Vec::new();
        block.quantize(values, &mut bytes).expect("every row is whole blocks of one float");
        Self { block, rows, cols, bytes }
    }

    /// The bytes of row `row`.
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        let n = self.bytes.len() / self.rows;
        &self.bytes[row * n..(row + 1) * n]
    }

    /// All values, row by row.
    pub fn values(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.cols];
        self.block.dequantize(&self.bytes, &mut out).expect("the length was checked");
        out
    }
}

/// A residual block: `z + silu(weight z + bias)`.
#[derive(Debug, Clone, PartialEq)]
pub struct ResBlock {
    /// `[d, d]`; `[d, 2d]` in the first block of heads that see the chosen token.
    pub weight: HeadMatrix,
    /// `[d]`.
    pub bias: HeadMatrix,
}

/// One head.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Its residual blocks, in order.
    pub blocks: Vec<ResBlock>,
    /// Its own output matrix `[V, d]`; `None` if it shares the base's.
    pub output: Option<HeadMatrix>,
}

/// What our files say beside the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadsCard {
    /// Version of the format, 1.
    pub format: u32,
    /// The model whose states the heads were trained on.
    pub base: BaseId,
    /// The digest of the adapter that the base had then, [`crate::Adapter::digest`], if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Its tokenizer.
    pub tokenizer: TokenizerId,
    /// What was measured on text that the heads were not trained on, in its owner's form.
    pub calibration: Option<serde_json::Value>,
    /// How the heads were made.
    pub recipe: Option<serde_json::Value>,
}

impl HeadsCard {
    /// A card for heads of this model.
    pub fn new(base: BaseId, tokenizer: TokenizerId) -> Self {
        Self { format: FORMAT, base, adapter: None, tokenizer, calibration: None, recipe: None }
    }
}

/// The heads of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadsFile {
    /// Width of the states that they read.
    pub hidden_size: usize,
    /// At least one, each of as many blocks.
    pub heads: Vec<Head>,
    /// The tokens that are scored, ascending; `None` is all of the base's vocabulary.
    pub vocabulary: Option<Vec<u32>>,
    /// What our own files say.
    pub card: Option<HeadsCard>,
}

/// The names of a head's tensors, apart.
enum Part {
    Weight(usize),
    Bias(usize),
    Output(usize),
}

impl HeadsFile {
    /// Reads the heads at `path`: a file of heads, or a whole model with heads among its weights, in
    /// one file, as the index of several or as the folder of either. Of a folder with a file of heads
    /// that one is read.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::File`] if it holds no heads or broken ones.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let heads = path.join(HEADS_FILE);
        let is_index = path.to_str().is_some_and(|path| path.ends_with(INDEX_END));
        match heads.is_file() {
            true => Self::open_file(&heads),
            false if is_index || path.is_dir() => {
                Self::of_part(path, &part_files(path, HEADS_PREFIX)?)
            }
            false => Self::open_file(path),
        }
    }

    fn open_file(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = FileMap::open(path).map_err(io)?;
        if file.starts_with(b"PK\x03\x04") {
            let what = "a torch checkpoint; turn it into safetensors with `offshoot medusa import`";
            return Err(Error::File { path: path.to_owned(), what: what.to_owned() });
        }
        Self::parse(&file).map_err(|error| about(path, error))
    }

    /// The heads in files of a whole model, all of those that its index lists.
    fn of_part(path: &Path, part: &PartFiles) -> Result<Self, Error> {
        let mut found = Found::default();
        for (file, bytes) in &part.files {
            found.add(bytes).map_err(|error| about(file, error))?;
        }
        let missing = |name: &&String| !found.tensors.contains_key(&name[HEADS_PREFIX.len()..]);
        if let Some(name) = part.listed.iter().find(missing) {
            let what = format!("tensor {} is in none of the index's files", one_line(name));
            return Err(about(path, Error::Heads(what)));
        }
        found.heads().map_err(|error| about(path, error))
    }

    /// Reads the heads in the bytes of a safetensors file.
    ///
    /// # Errors
    /// [`Error::Heads`] if there are none or they are broken.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut found = Found::default();
        found.add(bytes)?;
        found.heads()
    }

    /// Puts named tensors together to heads: names as in the layout "own" or "shared".
    pub(crate) fn of_tensors(
        tensors: BTreeMap<String, HeadMatrix>,
        vocabulary: Option<Vec<u32>>,
        card: Option<HeadsCard>,
    ) -> Result<Self, Error> {
        let mut parts: BTreeMap<usize, HeadParts> = BTreeMap::new();
        for (name, matrix) in tensors {
            let (head, part) = parse_name(&name)?;
            let head = parts.entry(head).or_default();
            match part {
                Part::Weight(l) => drop(head.weights.insert(l, matrix)),
                Part::Bias(l) => drop(head.biases.insert(l, matrix)),
                Part::Output(l) => drop(head.outputs.insert(l, matrix)),
            }
        }
        if parts.is_empty() {
            return Err(Error::Heads(
                "no tensor named like a Medusa head's, 0.0.linear.weight".into(),
            ));
        }
        if parts.keys().copied().ne(0..parts.len()) {
            let there: Vec<usize> = parts.keys().copied().collect();
            return Err(Error::Heads(format!("heads {there:?}, expected all from 0 on")));
        }
        let first = parts[&0].weights.get(&0);
        let (hidden_size, first_cols) = first.map_or((0, 0), |w| (w.rows, w.cols));
        if first_cols != hidden_size && first_cols != 2 * hidden_size {
            return Err(Error::Heads(format!(
                "head 0: a residual block of {hidden_size} x {first_cols}, neither as wide as it is \
                 high nor twice"
            )));
        }
        let vocab_size = parts[&0].outputs.values().next().map(|u| u.rows);
        let layers = parts[&0].weights.len();
        let heads = parts
            .into_iter()
            .map(|(k, head)| head.build(k, layers, (hidden_size, first_cols), vocab_size))
            .collect::<Result<Vec<_>, _>>()?;
        let limit = vocab_size.map_or(u32::MAX as usize, |v| v);
        if let Some(ids) = &vocabulary
            && (ids.is_empty() || ids.last().is_some_and(|&id| id as usize >= limit))
        {
            return Err(Error::Heads(format!("a vocabulary of {} ids, some too high", ids.len())));
        }
        Ok(Self { hidden_size, heads, vocabulary, card })
    }

    /// Residual blocks of a head.
    pub fn layers(&self) -> usize {
        self.heads[0].blocks.len()
    }

    /// Whether the heads see the token that was chosen from the state.
    pub fn sees_token(&self) -> bool {
        self.heads[0].blocks[0].weight.cols > self.hidden_size
    }

    /// Whether the heads have output matrices of their own.
    pub fn layout(&self) -> HeadLayout {
        match self.heads[0].output {
            Some(_) => HeadLayout::Own,
            None => HeadLayout::Shared,
        }
    }

    /// Checks that the heads can read the states of a model of `config` and score its tokens.
    ///
    /// # Errors
    /// [`Error::Heads`] that says what does not fit.
    pub fn check(&self, config: &ModelConfig) -> Result<(), Error> {
        let wrong = |what, heads, model| {
            Err(Error::Heads(format!(
                "they are another model's: {what} is {heads} in the heads, {model} in the model"
            )))
        };
        if self.hidden_size != config.hidden_size {
            return wrong("the width", self.hidden_size, config.hidden_size);
        }
        let output = self.heads.iter().filter_map(|head| head.output.as_ref());
        if let Some(output) = output.into_iter().find(|u| u.rows != config.vocab_size) {
            return wrong("the vocabulary", output.rows, config.vocab_size);
        }
        match self.vocabulary.as_ref().and_then(|ids| ids.last()) {
            Some(&id) if id as usize >= config.vocab_size => {
                wrong("the highest token or vocabulary", id as usize, config.vocab_size)
            }
            _ => Ok(()),
        }
    }

    /// Checks that the heads were trained on the model `base`; files that do not say pass.
    ///
    /// # Errors
    /// [`Error::Heads`] that names both.
    pub fn check_base(&self, base: BaseId) -> Result<(), Error> {
        match &self.card {
            Some(card) if card.base != base => Err(Error::Heads(format!(
                "they belong to the model {}, this one is {}: train heads for it with \
                 `offshoot medusa train`",
                card.base.short(),
                base.short()
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that heads that were trained beside an adapter are used with that one: `adapter` is the
    /// digest of the one that is run, if one is. Heads of the base pass, as they guess well enough
    /// what its variants say.
    ///
    /// # Errors
    /// [`Error::Heads`] that names both.
    pub fn check_adapter(&self, adapter: Option<&str>) -> Result<(), Error> {
        let Some(own) = self.card.as_ref().and_then(|card| card.adapter.as_deref()) else {
            return Ok(());
        };
        if adapter == Some(own) {
            return Ok(());
        }
        let short = |digest: &str| digest.chars().take(12).collect::<String>();
        let found = adapter.map_or("the base".to_owned(), |found| format!("variant {found:.12}"));
        Err(Error::Heads(format!(
            "they belong to the variant {:?}, this is {found}: run the variant that they lie beside",
            short(own)
        )))
    }

    /// What `config.json` beside published heads says otherwise than the file does.
    pub fn disagreements(&self, config: &serde_json::Value) -> Vec<String> {
        let said = [("medusa_num_heads", self.heads.len()), ("medusa_num_layers", self.layers())];
        let differs = |&(key, here): &(&str, usize)| {
            config.get(key).and_then(serde_json::Value::as_u64).is_some_and(|n| n != here as u64)
        };
        let told = |(key, here): (&str, usize)| {
            format!("config.json says {key} {}, the weights say {here}", config[key])
        };
        said.into_iter().filter(differs).map(told).collect()
    }

    /// The file's bytes, in our layout or, with output matrices and `layout` so, in that. The same
    /// heads give the same bytes.
    pub fn bytes(&self, layout: HeadLayout) -> Vec<u8> {
        let prefix = if layout == HeadLayout::Whole { HEADS_PREFIX } else { "" };
        let mut tensors: Vec<(String, &'static str, Vec<usize>, &[u8])> = Vec::new();
        for (k, head) in self.heads.iter().enumerate() {
            let push = |name: String, m: &HeadMatrix, vector: bool| {
                let shape = if vector { vec![m.cols] } else { vec![m.rows, m.cols] };
                (name, dtype_name(m.block), shape)
            };
            for (l, block) in head.blocks.iter().enumerate() {
                let (name, dtype, shape) =
                    push(format!("{prefix}{k}.{l}.linear.weight"), &block.weight, false);
                tensors.push((name, dtype, shape, &block.weight.bytes));
                let (name, dtype, shape) =
                    push(format!("{prefix}{k}.{l}.linear.bias"), &block.bias, true);
                tensors.push((name, dtype, shape, &block.bias.bytes));
            }
            if let Some(output) = &head.output {
                let name = format!("{prefix}{k}.{}.weight", head.blocks.len());
                let (name, dtype, shape) = push(name, output, false);
                tensors.push((name, dtype, shape, &output.bytes));
            }
        }
        let ids: Option<Vec<u8>> = self
            .vocabulary
            .as_ref()
            .map(|ids| ids.iter().flat_map(|id| id.to_le_bytes()).collect());
        if let Some(ids) = &ids {
            tensors.push((VOCABULARY.to_owned(), "U32", vec![ids.len() / 4], ids));
        }
        let mut header = serde_json::Map::new();
        if let Some(card) = &self.card {
            let json = serde_json::to_string(card).expect("a card is plain data");
            header.insert("__metadata__".to_owned(), serde_json::json!({ ENTRY: json }));
        }
        let mut at = 0;
        for (name, dtype, shape, data) in &tensors {
            let place = serde_json::json!({
                "dtype": dtype, "shape": shape, "data_offsets": [at, at + data.len()],
            });
            header.insert(name.clone(), place);
            at += data.len();
        }
        let mut header = serde_json::Value::from(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        tensors.iter().for_each(|(_, _, _, data)| bytes.extend_from_slice(data));
        bytes
    }

    /// Writes the file to `path`, as [`Output`](crate::beside::Output) does.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let written = write_to(path, &self.bytes(HeadLayout::Shared));
        written.map_err(|source| Error::Io { path: path.to_owned(), source })
    }
}

/// What files hold of heads.
#[derive(Default)]
struct Found {
    /// By their names in the layout "own" or "shared".
    tensors: BTreeMap<String, HeadMatrix>,
    vocabulary: Option<Vec<u32>>,
    card: Option<HeadsCard>,
}

impl Found {
    /// Takes what is in the bytes of a safetensors file.
    fn add(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let wrong = |e: &dyn std::fmt::Display| {
            Error::Heads(format!("no sound safetensors file: {}", one_line(&e.to_string())))
        };
        let header = bytes.first_chunk().map(|n| u64::from_le_bytes(*n));
        if header.is_none_or(|n| n > HEADER_MAX) {
            return Err(wrong(&"the header's length is missing or too large"));
        }
        let file = SafeTensors::deserialize(bytes).map_err(|e| wrong(&e))?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| wrong(&e))?;
        if let Some(json) = metadata.metadata().as_ref().and_then(|m| m.get(ENTRY)) {
            self.card = Some(read_card(json)?);
        }
        for (name, view) in file.iter() {
            if name == VOCABULARY {
                self.vocabulary = Some(read_vocabulary(view.dtype(), view.shape(), view.data())?);
                continue;
            }
            // A whole model's own weights are somebody else's to read.
            let inner = name.strip_prefix(HEADS_PREFIX);
            if inner.is_none() && !name.starts_with(|c: char| c.is_ascii_digit()) {
                continue;
            }
            let matrix = read_matrix(name, view.dtype(), view.shape(), view.data())?;
            if self.tensors.insert(inner.unwrap_or(name).to_owned(), matrix).is_some() {
                return Err(Error::Heads(format!("tensor {} is there twice", one_line(name))));
            }
        }
        Ok(())
    }

    fn heads(self) -> Result<HeadsFile, Error> {
        HeadsFile::of_tensors(self.tensors, self.vocabulary, self.card)
    }
}

/// `error` as one about the file at `path`.
fn about(path: &Path, error: Error) -> Error {
    match error {
        Error::Heads(what) => Error::File { path: path.to_owned(), what },
        other => other,
    }
}

/// The tensors of one head, by block.
#[derive(Default)]
struct HeadParts {
    weights: BTreeMap<usize, HeadMatrix>,
    biases: BTreeMap<usize, HeadMatrix>,
    outputs: BTreeMap<usize, HeadMatrix>,
}

impl HeadParts {
    fn build(
        mut self,
        k: usize,
        layers: usize,
        (d, first_cols): (usize, usize),
        vocab_size: Option<usize>,
    ) -> Result<Head, Error> {
        let wrong = |what: String| Error::Heads(format!("head {k}: {what}"));
        if layers == 0 || d == 0 {
            return Err(wrong("it has no residual block".to_owned()));
        }
        if self.weights.keys().copied().ne(0..layers) || self.biases.keys().copied().ne(0..layers) {
            return Err(wrong(format!(
                "{} weights and {} biases of residual blocks, expected {layers} of each",
                self.weights.len(),
                self.biases.len()
            )));
        }
        let mut blocks = Vec::with_capacity(layers);
        for (weight, bias) in self.weights.into_values().zip(self.biases.into_values()) {
            let cols = if blocks.is_empty() { first_cols } else { d };
            if (weight.rows, weight.cols) != (d, cols) || (bias.rows, bias.cols) != (1, d) {
                return Err(wrong(format!(
                    "a residual block of {} x {} with a bias of {} x {}, expected width {d}",
                    weight.rows, weight.cols, bias.rows, bias.cols
                )));
            }
            blocks.push(ResBlock { weight, bias });
        }
        let output = self.outputs.remove(&layers);
        if !self.outputs.is_empty() || output.as_ref().map(|u| u.rows) != vocab_size {
            return Err(wrong("its output matrix is missing, of another size or misplaced".into()));
        }
        match &output {
            Some(u) if u.cols != d => Err(wrong(format!("an output matrix of width {}", u.cols))),
            _ => Ok(Head { blocks, output }),
        }
    }
}

fn parse_name(name: &str) -> Result<(usize, Part), Error> {
    let wrong = || {
        let name = one_line(name);
        Error::Heads(format!("tensor {name} is named like none of a Medusa head"))
    };
    let fields: Vec<&str> = name.split('.').collect();
    let index = |text: &str, limit: usize| {
        let n = text.parse::<usize>().ok().filter(|n| n.to_string() == text);
        n.filter(|&n| n < limit).ok_or_else(wrong)
    };
    let (head, layer) = match fields[..] {
        [k, l, ..] => (index(k, HEADS_MAX)?, index(l, LAYERS_MAX + 1)?),
        _ => return Err(wrong()),
    };
    match fields[2..] {
        ["linear", "weight"] => Ok((head, Part::Weight(layer))),
        ["linear", "bias"] => Ok((head, Part::Bias(layer))),
        ["weight"] => Ok((head, Part::Output(layer))),
        _ => Err(wrong()),
    }
}

fn read_card(json: &str) -> Result<HeadsCard, Error> {
    let wrong = |what: String| Error::Heads(format!("metadata: {what}"));
    let card: HeadsCard =
        serde_json::from_str(json).map_err(|e| wrong(one_line(&e.to_string())))?;
    if card.format != FORMAT {
        let found = card.format;
        return Err(wrong(format!("format {found}; this offshoot reads format {FORMAT}")));
    }
    Ok(card)
}

fn read_vocabulary(dtype: Dtype, shape: &[usize], data: &[u8]) -> Result<Vec<u32>, Error> {
    let wrong = |what: &str| Error::Heads(format!("vocabulary: {what}"));
    if dtype != Dtype::U32 || shape.len() != 1 {
        return Err(wrong("expected one axis of U32"));
    }
    let (ids, _) = data.as_chunks::<4>();
    let ids: Vec<u32> = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
    match ids.is_sorted_by(|a, b| a < b) {
        true => Ok(ids),
        false => Err(wrong("expected ascending ids")),
    }
}

fn read_matrix(
    name: &str,
    dtype: Dtype,
    shape: &[usize],
    data: &[u8],
) -> Result<HeadMatrix, Error> {
    let block = match dtype {
        Dtype::F32 => Some(BlockType::F32),
        Dtype::F16 => Some(BlockType::F16),
        Dtype::BF16 => Some(BlockType::Bf16),
        _ => None,
    };
    let dims = match shape {
        [cols] => Some((1, *cols)),
        [rows, cols] => Some((*rows, *cols)),
        _ => None,
    };
    match (block, dims) {
        (Some(block), Some((rows, cols))) if rows > 0 && cols > 0 => {
            Ok(HeadMatrix { block, rows, cols, bytes: data.to_vec() })
        }
        _ => Err(Error::Heads(format!(
            "tensor {} is {dtype:?} of shape {shape:?}, expected a float matrix or vector",
            one_line(name)
        ))),
    }
}

fn dtype_name(block: BlockType) -> &'static str {
    match block {
        BlockType::F16 => "F16",
        BlockType::Bf16 => "BF16",
        _ => "F32",
    }
}

/// The beginning of a file's own words, fit for one line.
fn one_line(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}
