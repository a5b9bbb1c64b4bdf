//! A checkpoint into a GGUF file that llama.cpp and offshoot read alike: the inverse of
//! `canonical.rs` and `tokenizer.rs`.
//!
//! A GGUF file's own keys are copied, but those that say how its tensors are stored. For a folder
//! they are written as llama.cpp's converter does (`keys.rs`). Two keys are offshoot's own:
//! `offshoot.stop_tokens`, the ids at which an answer ends, where other keys and the tokens' texts
//! do not give all of them, and `offshoot.space_prefix` (`pieces.rs`).

use std::io::{self, Write};

use offshoot_kernels::{BlockType, Cpu};

use super::rope::TENSORS;
use super::tokenizer::BYTE_LEVEL;
use super::value::Array;
use super::{Gguf, MAGIC, Shown, Writer, canonical, join, keys, parse, pieces, sampling};
use crate::written::{ExportError, Written, merge};
use crate::{
    Adapter, Checkpoint, Error, Recipe, Tensor, TokenKind, TokenizerModel, TokenizerSpec,
    stop_tokens,
};

/// Keys that say how the tensors of one file are stored.
const OF_THE_FILE: [&str; 4] =
    ["general.file_type", "general.quantization_version", "general.alignment", STOP_TOKENS];
/// The ids at which an answer ends, where the format's keys do not give all of them.
pub(super) const STOP_TOKENS: &str = "offshoot.stop_tokens";

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
    tensors: Vec<(String, Written<'c>)>,
    /// Tensors of the configuration: divisors of the rotary frequencies.
    made: Vec<(&'static str, Vec<f32>)>,
    left_out: Vec<String>,
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
        let made = keys(checkpoint, options, source.as_ref(), &mut writer)?;
        let mut tensors: Vec<(String, Written<'c>)> = Vec::new();
        for place in canonical::places(config) {
            let tensor = checkpoint.require(&place.canonical)?;
            let (name, shape) = (&place.canonical, &tensor.info.shape);
            let block = match shape.len() {
                1 => BlockType::F32,
                _ => options.recipe.block(config, name, shape, tensor.info.block),
            };
            refuse_twice(&tensor, block, options.requantize)?;
            match tensors.last_mut() {
                // What a file keeps in one matrix stands behind each other.
                Some((gguf, whole)) if *gguf == place.gguf => {
                    whole.add(tensor, place.rows, block)?;
                }
                _ => {
                    let stored = place.stored_shape().to_vec();
                    let whole = Written::within(tensor, place.rows, block, stored);
                    tensors.push((place.gguf, whole));
                }
            }
        }
        for (name, tensor) in &tensors {
            writer.tensor(name, &tensor.shape(), tensor.block())?;
        }
        for (name, values) in &made {
            writer.tensor(name, &[values.len()], BlockType::F32)?;
        }
        Ok(Self { writer, tensors, made, left_out: checkpoint.unused().to_vec() })
    }

    /// Writes the variant that `adapter` makes of the model: differences are added to its matrices, what
    /// multiplies scales multiplies weights.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it does not fit, changes the output head of a model in which that is the
    /// embedding, or is no change of weights but positions before texts.
    pub fn merge(&mut self, adapter: &'c Adapter) -> Result<(), Error> {
        merge(self.tensors.iter_mut().map(|(_, tensor)| tensor), adapter)
    }

    /// How many tensors take each format, in the order of the formats.
    pub fn formats(&self) -> Vec<(BlockType, usize)> {
        let mut blocks: Vec<BlockType> = self.tensors.iter().map(|(_, t)| t.block()).collect();
        blocks.sort_unstable();
        let runs = blocks.chunk_by(|a, b| a == b);
        runs.map(|run| (run[0], run.len())).collect()
    }

    /// Number of weights.
    pub fn weights(&self) -> u64 {
        self.tensors.iter().map(|(_, tensor)| tensor.weights()).sum()
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
        let mut tensors = self.tensors.iter();
        let written = self.writer.write(out, |name, out| {
            if let Some((_, values)) = self.made.iter().find(|(made, _)| *made == name) {
                return values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()));
            }
            // The writer asks in the order of declaration.
            let tensor = tensors.next().filter(|(gguf, _)| gguf == name);
            let (_, tensor) = tensor.ok_or_else(|| io::Error::other("tensors out of order"))?;
            let mut more = |weights: u64| {
                done += weights;
                progress(done)
            };
            let result = tensor.write(cpu, out, &mut more);
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

/// The GGUF file, or all parts of it, that the checkpoint was read from, if it was.
fn gguf_of(checkpoint: &Checkpoint) -> Result<Option<Gguf<'_>>, Error> {
    let maps = checkpoint.maps();
    if !maps.first().is_some_and(|map| map.starts_with(&MAGIC)) {
        return Ok(None);
    }
    let mut files = maps.iter().map(|map| parse(map)).collect::<Result<Vec<_>, _>>()?;
    Ok(match files.len() {
        1 => files.pop(),
        _ => Some(join(files).map_err(|(_, error)| error)?),
    })
}

/// Writes the keys, and gives the tensors that say the rest of the configuration.
fn keys(
    checkpoint: &Checkpoint,
    options: &ExportOptions<'_>,
    source: Option<&Gguf<'_>>,
    writer: &mut Writer,
) -> Result<Vec<keys::Made>, Error> {
    let mut made = Vec::new();
    match source {
        Some(gguf) => {
            made.extend(TENSORS.into_iter().filter_map(|name| Some((name, floats(gguf, name)?))));
            for (key, value) in gguf.metadata() {
                // What ends an answer is told anew, where the tokens are known.
                let kept = key == STOP_TOKENS && checkpoint.tokenizer().is_err();
                if kept || !OF_THE_FILE.contains(&key) && !key.starts_with("split.") {
                    writer.key(key, value.clone())?;
                }
            }
            // What the file itself does not say came from beside it.
            sampling::write(&checkpoint.generation().without(&sampling::read(gguf)?), writer)?;
        }
        None => {
            made = keys::write(checkpoint, options.name, writer)?;
            let arch = canonical::arch(checkpoint.config().family);
            tokenizer(checkpoint.tokenizer()?, arch, writer)?;
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
    Ok(made)
}

/// The numbers of a tensor in single precision.
fn floats(gguf: &Gguf<'_>, name: &str) -> Option<Vec<f32>> {
    let tensor = gguf.tensor(name).filter(|tensor| tensor.block == BlockType::F32)?;
    let words = gguf.data(tensor).as_chunks().0.iter();
    Some(words.map(|word| f32::from_le_bytes(*word)).collect())
}

/// The tokenizer.
fn tokenizer(spec: &TokenizerSpec, arch: &str, writer: &mut Writer) -> Result<(), Error> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    // llama.cpp prints added tokens as they are, so their spaces are spaces.
    let spaces = |(text, kind): (&String, &TokenKind)| {
        let signs = text.strip_prefix(pieces::SPACE).map_or(0, |_| text.chars().count());
        let pieces = matches!(spec.model, TokenizerModel::SentencePiece(_));
        let all = pieces::SPACE.repeat(signs) == *text && signs > 0;
        match pieces && all && *kind == TokenKind::UserDefined {
            true => " ".repeat(signs),
            false => text.clone(),
        }
    };
    let texts: Vec<String> = spec.tokens.iter().zip(&spec.kinds).map(spaces).collect();
    let tokens: Array<'_> = texts.iter().map(String::as_str).collect();
    let kinds: Array<'_> = spec.kinds.iter().map(|kind| kind_number(*kind)).collect();
    writer.key(&key("tokens"), tokens)?.key(&key("token_type"), kinds)?;
    match &spec.model {
        TokenizerModel::ByteLevel { merges, pre } => {
            writer.key(&key("model"), BYTE_LEVEL)?.key(&key("pre"), pre.name())?;
            writer.key(&key("merges"), joined(merges)?)?;
        }
        TokenizerModel::SentencePiece(model) => {
            let written = pieces::written(spec, model, arch)?;
            let scores: Array<'_> = written.scores.into_iter().collect();
            writer.key(&key("model"), written.model)?.key(&key("pre"), "default")?;
            writer.key(&key("scores"), scores)?;
            writer.key(&key("add_space_prefix"), written.add_space_prefix)?;
            if let Some(bytes) = written.charsmap {
                writer.key(pieces::CHARSMAP, bytes.into_iter().collect::<Array<'_>>())?;
            }
            if let Some((own, value)) = written.space_prefix {
                writer.key(own, value)?;
            }
            if written.remove_extra_spaces {
                writer.key(pieces::EXTRA_SPACES, true)?;
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
