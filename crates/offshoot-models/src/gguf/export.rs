//! A checkpoint into a GGUF file that llama.cpp and offshoot read alike: the inverse of
//! `canonical.rs` and `tokenizer.rs`.
//!
//! A GGUF file's own keys are copied, but those that say how its tensors are stored. For a folder
//! they are written as llama.cpp's converter does. Two keys are offshoot's own:
//! `offshoot.stop_tokens`, the ids at which an answer ends, where other keys and the tokens' texts
//! do not give all of them, and `offshoot.space_prefix` (`pieces.rs`).

use std::io::{self, Write};

use offshoot_kernels::{BlockType, Conversion, Cpu};

use super::tokenizer::BYTE_LEVEL;
use super::value::Array;
use super::{Gguf, MAGIC, Shown, Writer, canonical, parse, pieces};
use crate::{
    Checkpoint, Error, Family, PreTokenizer, Recipe, RopeScaling, RowOrder, Tensor, TokenKind,
    TokenizerModel, TokenizerSpec, stop_tokens,
};

/// Bytes of a tensor that are made at a time.
const CHUNK_BYTES: usize = 8 << 20;
/// Keys that say how the tensors of one file are stored.
const OF_THE_FILE: [&str; 4] =
    ["general.file_type", "general.quantization_version", "general.alignment", STOP_TOKENS];
/// The ids at which an answer ends, where the format's keys do not give all of them.
pub(super) const STOP_TOKENS: &str = "offshoot.stop_tokens";
/// Divisors of the rotary frequencies.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// How a file is written.
#[derive(Debug, Clone, Copy)]
pub struct ExportOptions<'a> {
    /// Which format each matrix takes.
    pub recipe: Recipe,
    /// Whether matrices that are quantised already may be quantised again, from what is left of
    /// them.
    pub requantize: bool,
    /// The model's name, where the checkpoint has none.
    pub name: Option<&'a str>,
}

/// A file that is ready to be written: all that it says and where each tensor comes from.
#[derive(Debug)]
pub struct Export<'c> {
    writer: Writer,
    tensors: Vec<Source<'c>>,
    /// The divisors of the rotary frequencies, if the file has them.
    factors: Vec<f32>,
    left_out: Vec<String>,
}

#[derive(Debug)]
struct Source<'c> {
    gguf: String,
    tensor: Tensor<'c>,
    block: BlockType,
    rows: RowOrder,
}

impl<'c> Export<'c> {
    /// Decides what a file of `checkpoint` holds.
    ///
    /// # Errors
    /// [`Error::Recipe`] for a matrix that is quantised already and of another format than it is to
    /// have, unless that is allowed; [`Error::File`] if a folder has no tokenizer that can be
    /// written.
    pub fn new(checkpoint: &'c Checkpoint, options: &ExportOptions<'_>) -> Result<Self, Error> {
        let config = checkpoint.config();
        let mut writer = Writer::new();
        let source = gguf_of(checkpoint)?;
        let places = canonical::places(config);
        refuse_unwritable(checkpoint, source.is_some(), &places)?;
        keys(checkpoint, options, source.as_ref(), &mut writer)?;
        let mut tensors = Vec::new();
        for place in places {
            let tensor = checkpoint.require(&place.canonical)?;
            let (name, shape) = (&place.canonical, &tensor.info.shape);
            let block = match shape.len() {
                1 => BlockType::F32,
                _ => options.recipe.block(config, name, shape, tensor.info.block),
            };
            refuse_twice(&tensor, block, options.requantize)?;
            writer.tensor(&place.gguf, shape, block)?;
            tensors.push(Source { gguf: place.gguf, tensor, block, rows: place.rows });
        }
        let mut factors = Vec::new();
        // YaRN's come from keys, which are copied.
        let stored = source.is_none_or(|gguf| gguf.tensor(ROPE_FACTORS).is_some());
        if let (RopeScaling::Factors(of), true) = (&config.rope_scaling, stored) {
            writer.tensor(ROPE_FACTORS, &[of.len()], BlockType::F32)?;
            factors.clone_from(of);
        }
        Ok(Self { writer, tensors, factors, left_out: checkpoint.unused().to_vec() })
    }

    /// How many tensors take each format, in the order of the formats.
    pub fn formats(&self) -> Vec<(BlockType, usize)> {
        let mut blocks: Vec<BlockType> = self.tensors.iter().map(|s| s.block).collect();
        blocks.sort_unstable();
        let runs = blocks.chunk_by(|a, b| a == b);
        runs.map(|run| (run[0], run.len())).collect()
    }

    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.tensors.iter().map(|source| source.tensor.len() as u64).sum()
    }

    /// Tensors that the architecture does not have and that the file goes without.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Writes the file. `progress` is told the weights that are done, and says whether to go on.
    ///
    /// Memory holds a few megabytes of one tensor. The bytes do not depend on the number of
    /// threads.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a weight that its format cannot hold, or what `out` says, on which
    /// more is in [`ExportError`].
    pub fn write(
        &self,
        cpu: &Cpu,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ExportError> {
        let mut failed = None;
        let mut done = 0;
        let mut sources = self.tensors.iter();
        let written = self.writer.write(out, |name, out| {
            if name == ROPE_FACTORS {
                return self.factors.iter().try_for_each(|f| out.write_all(&f.to_le_bytes()));
            }
            // The writer asks in the order of declaration.
            let source = sources.next().filter(|source| source.gguf == name);
            let source = source.ok_or_else(|| io::Error::other("tensors out of order"))?;
            let mut more = |weights: u64| {
                done += weights;
                progress(done)
            };
            let result = source.write(cpu, out, &mut more);
            result.map_err(|error| match error {
                ExportError::Output(error) => error,
                other => {
                    failed = Some(other);
                    io::Error::other("stopped")
                }
            })
        });
        match (written, failed) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(error)) => Err(error),
            (Err(error), None) => Err(ExportError::Output(error)),
        }
    }
}

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

impl Source<'_> {
    fn write(
        &self,
        cpu: &Cpu,
        out: &mut dyn Write,
        more: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ExportError> {
        let tensor = &self.tensor;
        if tensor.info.shape.len() == 1 {
            let mut values = vec![0.0; tensor.len()];
            tensor.read_row(0, &mut values)?;
            let finite = BlockType::F32.round(&mut values);
            finite
                .map_err(|e| Error::Tensor { name: tensor.name.to_owned(), what: e.to_string() })?;
            for stored in 0..values.len() {
                out.write_all(&values[self.rows.canonical(stored)].to_le_bytes())?;
            }
            return if more(tensor.len() as u64) { Ok(()) } else { Err(ExportError::Stopped) };
        }
        let (rows, cols) = (tensor.row_count(), tensor.cols());
        let wrong = |what: String| Error::Tensor { name: tensor.name.to_owned(), what };
        let to = Conversion::new(tensor.info.block, self.block, cols);
        let to = to.map_err(|e| wrong(e.to_string()))?;
        let chunk = (CHUNK_BYTES / to.row_bytes().max(1)).clamp(1, rows.max(1));
        let mut bytes = vec![0; chunk * to.row_bytes()];
        let row = |stored| tensor.row_bytes(self.rows.canonical(stored));
        for start in (0..rows).step_by(chunk) {
            let part = start..rows.min(start + chunk);
            let bytes = &mut bytes[..part.len() * to.row_bytes()];
            to.rows(cpu, part.clone(), row, bytes).map_err(|(stored, e)| {
                wrong(format!("row {}: {e}", self.rows.canonical(stored)))
            })?;
            out.write_all(bytes)?;
            if !more((part.len() * cols) as u64) {
                return Err(ExportError::Stopped);
            }
        }
        tensor.release();
        Ok(())
    }
}

/// Refuses to quantise what is quantised, unless it may be.
fn refuse_twice(tensor: &Tensor<'_>, block: BlockType, allowed: bool) -> Result<(), Error> {
    let stored = tensor.info.block;
    if allowed || stored.is_float() || stored == block {
        return Ok(());
    }
    Err(Error::Recipe(format!(
        "tensor {} is {stored} already, and {block} of it would be worse than of the model it was \
         made from; take that, or give --requantize",
        tensor.name
    )))
}

/// The GGUF file that the checkpoint was read from, if it was.
fn gguf_of(checkpoint: &Checkpoint) -> Result<Option<Gguf<'_>>, Error> {
    let map = checkpoint.maps().first().filter(|map| map.starts_with(&MAGIC));
    map.map(|map| parse(map)).transpose()
}

/// Refuses models of which a file could not say everything.
fn refuse_unwritable(
    checkpoint: &Checkpoint,
    is_gguf: bool,
    places: &[canonical::Part],
) -> Result<(), Error> {
    let config = checkpoint.config();
    let family = config.family.name();
    if places.iter().any(|place| place.within.is_some()) {
        return Err(Error::Recipe(format!(
            "a model of {family}, whose files keep several matrices in one, cannot be written yet"
        )));
    }
    let keys_are_known = matches!(config.family, Family::Llama | Family::Qwen2)
        && config.sliding_window.is_none()
        && config.rope_magnitude == 1.0
        // llama.cpp reads factors of Llama and of no other.
        && (config.family == Family::Llama
            || !matches!(config.rope_scaling, RopeScaling::Factors(_)));
    if is_gguf || keys_are_known {
        return Ok(());
    }
    Err(Error::Recipe(format!(
        "a folder of {family} with this config.json cannot be written as GGUF yet; give a GGUF file \
         of the model"
    )))
}

/// Writes the keys.
fn keys(
    checkpoint: &Checkpoint,
    options: &ExportOptions<'_>,
    source: Option<&Gguf<'_>>,
    writer: &mut Writer,
) -> Result<(), Error> {
    match source {
        Some(gguf) => {
            for (key, value) in gguf.metadata() {
                if !OF_THE_FILE.contains(&key) && !key.starts_with("split.") {
                    writer.key(key, value.clone())?;
                }
            }
        }
        None => {
            architecture(checkpoint, options.name, writer)?;
            tokenizer(checkpoint.tokenizer()?, checkpoint.config().family.name(), writer)?;
            if let Some(template) = checkpoint.chat_template() {
                writer.key("tokenizer.chat_template", template)?;
            }
        }
    }
    if let Ok(spec) = checkpoint.tokenizer() {
        let named = spec.eos.into_iter().chain(spec.end_of_turn.iter().copied());
        let texts = spec.tokens.iter().map(String::as_str);
        if stop_tokens::union(named, texts, &spec.kinds) != checkpoint.stop_tokens() {
            let ids: Array<'_> = checkpoint.stop_tokens().iter().copied().collect();
            writer.key(STOP_TOKENS, ids)?;
        }
    }
    writer.key("general.file_type", options.recipe.file_type())?;
    if options.recipe.is_quantised() {
        writer.key("general.quantization_version", 2u32)?;
    }
    Ok(())
}

/// What a folder's `config.json` says, as llama.cpp's converter writes it.
fn architecture(
    checkpoint: &Checkpoint,
    name: Option<&str>,
    writer: &mut Writer,
) -> Result<(), Error> {
    let c = checkpoint.config();
    let arch = c.family.name();
    writer.key("general.architecture", arch)?.key("general.type", "model")?;
    if let Some(name) = checkpoint.name().or(name) {
        writer.key("general.name", name)?;
    }
    for (key, value) in [
        ("block_count", c.num_hidden_layers),
        ("context_length", c.max_position_embeddings),
        ("embedding_length", c.hidden_size),
        ("feed_forward_length", c.intermediate_size),
        ("attention.head_count", c.num_attention_heads),
        ("attention.head_count_kv", c.num_key_value_heads),
        ("attention.key_length", c.head_dim),
        ("attention.value_length", c.head_dim),
        ("rope.dimension_count", c.head_dim),
        ("vocab_size", c.vocab_size),
    ] {
        let what = || Error::Config(format!("{key}: {value} does not fit a file"));
        writer.key(&format!("{arch}.{key}"), u32::try_from(value).map_err(|_| what())?)?;
    }
    writer.key(&format!("{arch}.attention.layer_norm_rms_epsilon"), c.rms_norm_eps)?;
    // llama.cpp reads these in single precision and no other.
    writer.key(&format!("{arch}.rope.freq_base"), c.rope_theta as f32)?;
    if let RopeScaling::Linear { factor } = c.rope_scaling {
        writer.key(&format!("{arch}.rope.scaling.type"), "linear")?;
        writer.key(&format!("{arch}.rope.scaling.factor"), factor as f32)?;
    }
    Ok(())
}

/// The tokenizer.
fn tokenizer(spec: &TokenizerSpec, arch: &str, writer: &mut Writer) -> Result<(), Error> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let tokens: Array<'_> = spec.tokens.iter().map(String::as_str).collect();
    let kinds: Array<'_> = spec.kinds.iter().map(|kind| kind_number(*kind)).collect();
    writer.key(&key("tokens"), tokens)?.key(&key("token_type"), kinds)?;
    match &spec.model {
        TokenizerModel::ByteLevel { merges, pre } => {
            writer.key(&key("model"), BYTE_LEVEL)?.key(&key("pre"), pre_name(*pre))?;
            writer.key(&key("merges"), joined(merges)?)?;
        }
        TokenizerModel::SentencePiece(model) => {
            let written = pieces::written(spec, model, arch)?;
            let scores: Array<'_> = written.scores.into_iter().collect();
            writer.key(&key("model"), written.model)?.key(&key("pre"), "default")?;
            writer.key(&key("scores"), scores)?;
            writer.key(&key("add_space_prefix"), written.add_space_prefix)?;
            if let Some((own, value)) = written.space_prefix {
                writer.key(own, value)?;
            }
        }
    }
    for (name, id) in
        [("bos", spec.bos), ("eos", spec.eos), ("padding", spec.pad), ("unknown", spec.unk)]
    {
        if let Some(id) = id {
            writer.key(&key(&format!("{name}_token_id")), id)?;
        }
    }
    writer.key(&key("add_bos_token"), spec.add_bos)?;
    writer.key(&key("add_eos_token"), spec.add_eos)?;
    Ok(())
}

/// Merges as a file has them, a space between.
fn joined(merges: &[(String, String)]) -> Result<Array<'static>, Error> {
    let mut texts = Vec::with_capacity(merges.len());
    for (left, right) in merges {
        let merge = format!("{left} {right}");
        if left.contains(' ') || right.contains(' ') {
            return Err(Error::Tokenizer(format!(
                "merge {}: a GGUF file has no place for spaces in it",
                Shown(&merge)
            )));
        }
        texts.push(merge);
    }
    Ok(texts.iter().map(String::as_str).collect())
}

fn pre_name(pre: PreTokenizer) -> &'static str {
    match pre {
        PreTokenizer::Gpt2 => "gpt-2",
        PreTokenizer::SmolLm => "smollm",
        PreTokenizer::Qwen2 => "qwen2",
        PreTokenizer::Llama3 => "llama-bpe",
        PreTokenizer::Tekken => "tekken",
        PreTokenizer::Gpt4o => "gpt-4o",
    }
}

fn kind_number(kind: TokenKind) -> i32 {
    match kind {
        TokenKind::Normal => 1,
        TokenKind::Unknown => 2,
        TokenKind::Control => 3,
        TokenKind::UserDefined => 4,
        TokenKind::Unused => 5,
        TokenKind::Byte => 6,
    }
}
