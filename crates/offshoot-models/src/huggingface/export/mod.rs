//! A checkpoint into a Hugging Face folder that transformers and offshoot read alike: the inverse of the
//! loader beside.
//!
//! ```text
//! config.json               of a folder, with another type of weights; else made, config.rs
//! model*.safetensors        and the index where they are several                  shards.rs
//! tokenizer.json, tokenizer_config.json, generation_config.json
//!                           a folder's own; else made, text.rs
//! ```
//! Weights are floats in the folder: what a GGUF file has quantised is what its blocks stand for, brought
//! to the float asked for. Vectors take that float if it holds each of their numbers, else, or if asked, single
//! precision. Where matrices are floats of that type or a narrower one already, the folder is the same
//! model: one identity, one set of logits. The norms of Gemma, stored less 1, are so but for the last bit
//! of numbers below a half that bfloat16 models do not have.

mod config;
mod shards;
mod text;

use std::io::{self, Write};

use offshoot_kernels::{BlockType, Cpu};
use serde_json::Value;

use super::shards::FILES_MAX;
use super::{CONFIG, canonical, folder, wrong};
use crate::written::{ExportError, Written, merge};
use crate::{Adapter, Checkpoint, Error, Family, Recipe, RowOrder, gguf};
use shards::Shard;

/// How a folder is written.
#[derive(Debug, Clone, Copy)]
pub struct FolderOptions {
    /// The float of the weights: [`Recipe::F32`], [`Recipe::F16`] or [`Recipe::Bf16`].
    pub floats: Recipe,
    /// Whether vectors are in single precision whatever they hold, for who writes others in their place.
    pub single_vectors: bool,
    /// Bytes of weights in one file, which a single tensor may go past.
    pub shard_bytes: u64,
}

/// A folder that is ready to be written: all that its files say and where each tensor comes from.
#[derive(Debug)]
pub struct FolderExport<'c> {
    /// All files but the weights.
    files: Vec<(String, Vec<u8>)>,
    shards: Vec<Shard<'c>>,
    left_out: Vec<String>,
    without_tokenizer: Option<String>,
}

impl<'c> FolderExport<'c> {
    /// Decides what a folder of `checkpoint` holds.
    ///
    /// # Errors
    /// [`Error::Export`] if `options` name no float, or a folder could not say all that the model does;
    /// [`Error::File`] or [`Error::Io`] if a file of the model's folder cannot be read any more.
    pub fn new(checkpoint: &'c Checkpoint, options: &FolderOptions) -> Result<Self, Error> {
        let floats = match options.floats {
            Recipe::F32 => BlockType::F32,
            Recipe::F16 => BlockType::F16,
            Recipe::Bf16 => BlockType::Bf16,
            other => {
                let what = format!("{other} in a folder; expected f32, f16 or bf16");
                return Err(Error::Export(what));
            }
        };
        let is_gguf = checkpoint.maps().first().is_some_and(|map| map.starts_with(&gguf::MAGIC));
        let mut without_tokenizer = None;
        let mut files = match is_gguf {
            true => {
                let mut files = vec![(CONFIG.to_owned(), json(&config::made(checkpoint, floats)?))];
                files.push(text::generation_config(checkpoint));
                match checkpoint.tokenizer() {
                    Ok(spec) => files.extend(text::tokenizer(spec, checkpoint.chat_template())),
                    Err(error) => without_tokenizer = Some(error.to_string()),
                }
                files
            }
            false => {
                let mut files = folder::side_files(checkpoint.path())?;
                let own = files.iter_mut().find(|(name, _)| name == CONFIG);
                let (_, own) = own.ok_or_else(|| wrong(CONFIG, "missing"))?;
                *own = json(&config::with_type(own, floats)?);
                files
            }
        };
        let vectors = if options.single_vectors { BlockType::F32 } else { floats };
        let shards = shards::cut(tensors(checkpoint, (floats, vectors))?, options.shard_bytes);
        if shards.len() > FILES_MAX {
            let what = format!(
                "{} files of weights, and more than {FILES_MAX} are not read: give a larger \
                 --shard-size",
                shards.len()
            );
            return Err(Error::Export(what));
        }
        files.extend(shards::index(&shards));
        let left_out = checkpoint.unused().to_vec();
        Ok(Self { files, shards, left_out, without_tokenizer })
    }

    /// Writes the variant that `adapter` makes of the model: differences are added to its matrices, what
    /// multiplies scales multiplies weights.
    ///
    /// # Errors
    /// [`Error::Adapter`] if it does not fit, changes the output head of a model in which that is the
    /// embedding, or is no change of weights but positions before texts.
    pub fn merge(&mut self, adapter: &'c Adapter) -> Result<(), Error> {
        merge(self.shards.iter_mut().flat_map(Shard::tensors_mut), adapter)
    }

    /// How many tensors take each format, in the order of the formats.
    pub fn formats(&self) -> Vec<(BlockType, usize)> {
        let tensors = self.shards.iter().flat_map(|shard| shard.tensors());
        let mut blocks: Vec<BlockType> = tensors.map(|(_, tensor)| tensor.block()).collect();
        blocks.sort_unstable();
        blocks.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
    }

    /// Number of weights.
    pub fn weights(&self) -> u64 {
        let tensors = self.shards.iter().flat_map(|shard| shard.tensors());
        tensors.map(|(_, tensor)| tensor.weights()).sum()
    }

    /// Names and bytes of all files but the weights.
    pub fn side_files(&self) -> &[(String, Vec<u8>)] {
        &self.files
    }

    /// Number of files of weights.
    pub fn weight_files(&self) -> usize {
        self.shards.len()
    }

    /// Tensors that the architecture does not have and that the folder goes without.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Why the folder has no tokenizer, where it has none because offshoot cannot write the model's.
    pub fn without_tokenizer(&self) -> Option<&str> {
        self.without_tokenizer.as_deref()
    }

    /// Writes the files; `create` is asked for a place for each, by its name. `progress` is told the
    /// weights that are done, and says whether to go on.
    ///
    /// Memory holds a few megabytes of one tensor. The bytes do not depend on the number of threads.
    ///
    /// # Errors
    /// [`ExportError::Model`] for a weight that its format cannot hold, or what `create` and its
    /// places say.
    pub fn write(
        &self,
        cpu: &Cpu,
        create: &mut dyn FnMut(&str) -> io::Result<Box<dyn Write>>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ExportError> {
        let mut done = 0;
        let mut more = |weights: u64| {
            done += weights;
            progress(done)
        };
        for (number, shard) in self.shards.iter().enumerate() {
            let mut out = create(&shards::name(number, self.shards.len()))?;
            shard.write(cpu, &mut *out, &mut more)?;
            out.flush()?;
        }
        for (name, bytes) in &self.files {
            let mut out = create(name)?;
            out.write_all(bytes)?;
            out.flush()?;
        }
        Ok(())
    }
}

/// A JSON file, as people read it.
fn json(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The tensors under the names of folders, by their canonical names: what Phi-3 keeps in one matrix
/// stands where its first part does.
fn tensors(
    checkpoint: &Checkpoint,
    (floats, vectors): (BlockType, BlockType),
) -> Result<Vec<(String, Written<'_>)>, Error> {
    let family = checkpoint.config().family;
    let mut tensors: Vec<(String, Written<'_>)> = Vec::new();
    for tensor in checkpoint.tensors() {
        let name = tensor.name;
        if tensor.info.shape.len() == 1 {
            let less = canonical::shift(family, name);
            tensors.push((name.to_owned(), Written::vector(tensor, less, vectors)?));
            continue;
        }
        let rows = RowOrder::Plain;
        match canonical::fused(name).filter(|_| family == Family::Phi3) {
            None => tensors.push((name.to_owned(), Written::new(tensor, rows, floats))),
            Some((whole, [first, rest @ ..])) if name.contains(*first) => {
                let mut fused = Written::new(tensor, rows, floats);
                for part in rest {
                    let part = checkpoint.require(&name.replace(*first, part))?;
                    fused.add(part, rows, floats)?;
                }
                let room = name.split(*first).next().unwrap_or_default();
                tensors.push((format!("{room}{whole}.weight"), fused));
            }
            Some(_) => {}
        }
    }
    Ok(tensors)
}
