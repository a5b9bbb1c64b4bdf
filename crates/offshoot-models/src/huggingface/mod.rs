//! Hugging Face folders: `config.json`, safetensors and what lies beside them, as the canonical
//! [`Contents`] of a checkpoint.
//!
//! A folder's files are a stranger's input. [`contents`] works on their bytes alone: lengths of
//! files, counts, shapes and offsets are bounded and checked before they are used, and every error
//! names the file and the field. What a folder says that would change the computation and that
//! offshoot does not do is an error as well, never passed over.
//!
//! ```text
//! config.json                    sizes and constants    config.rs, rope.rs, windows.rs, experts.rs
//! model.safetensors              weights, in one file                           safetensors.rs
//! model.safetensors.index.json   or in several, with the file of each tensor    shards.rs
//! tokenizer.json                 vocabulary, merges, added tokens               tokenizer.rs
//!                                stages around pieces                           sentence_piece.rs
//! tokenizer_config.json          names of special tokens, chat template         tokenizer_config.rs
//! chat_template.jinja            the chat template, before any other
//! generation_config.json         further ids at which an answer ends, settings of sampling
//! ```
//! The folder is opened on disk by `folder.rs`, the one place here that knows of paths.

mod canonical;
mod config;
mod experts;
mod export;
mod fields;
mod folder;
mod generation_config;
pub mod peft;
mod peft_scales;
mod peft_virtual;
mod peft_writer;
mod rope;
mod safetensors;
mod sentence_piece;
mod shards;
mod tokenizer;
mod tokenizer_config;
mod tokenizer_json;
mod tuned;
mod windows;

pub use canonical::joined_tensor;
pub use export::{FolderExport, FolderOptions};
pub(crate) use folder::{PartFiles, open, part_files};
pub(crate) use generation_config::beside as generation_config_beside;
pub use peft_scales::scale_files;
pub use peft_virtual::virtual_files;
pub use peft_writer::{PeftOptions, adapter_files};
pub use shards::weight_files;
pub use tuned::write_weights;

use generation_config::GenerationConfig;
use std::fmt::Display;
use std::path::PathBuf;

use crate::{Contents, Error, TokenizerSpec, stop_tokens};

/// Sizes and constants.
const CONFIG: &str = "config.json";
/// All weights in one file.
const WEIGHTS: &str = "model.safetensors";
/// Which file holds which tensor.
const INDEX: &str = "model.safetensors.index.json";
/// The tokenizer.
const TOKENIZER: &str = "tokenizer.json";
/// What its special tokens are for.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The chat template in a file of its own.
const TEMPLATE: &str = "chat_template.jinja";

/// The bytes of a folder's files.
#[derive(Debug, Default, Clone, Copy)]
pub struct Parts<'a> {
    /// `config.json`.
    pub config: &'a [u8],
    /// `model.safetensors.index.json`, where the weights are in several files.
    pub index: Option<&'a [u8]>,
    /// The safetensors files by name, in the order of [`weight_files`].
    pub weights: &'a [(String, &'a [u8])],
    /// `tokenizer.json`.
    pub tokenizer: Option<&'a [u8]>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `chat_template.jinja`.
    pub chat_template: Option<&'a [u8]>,
    /// `generation_config.json`.
    pub generation_config: Option<&'a [u8]>,
}

/// The model under canonical names.
///
/// # Errors
/// [`Error::File`], whose path is the file's name within the folder, if the architecture or a
/// setting of it is not supported, a file is damaged, or tensors are missing, in excess, misplaced or
/// of another shape.
pub fn contents(parts: &Parts<'_>) -> Result<Contents, Error> {
    let told = config::read(parts.config)?;
    let stored = shards::read(parts.index, parts.weights)?;
    let (tensors, unused) = canonical::map(&told.config, stored, parts)?;
    let names = tokenizer_config::read(parts.tokenizer_config)?;
    let tokenizer = tokenizer::read(parts.tokenizer, &names, &told)?;
    let generation = match parts.generation_config {
        Some(bytes) => generation_config::parse(bytes)?,
        None => GenerationConfig::default(),
    };
    Ok(Contents {
        name: None,
        stop_tokens: stops(&tokenizer, &told, &generation),
        generation: generation.defaults,
        config: told.config,
        rope_rule: told.rope_rule,
        tensors,
        unused,
        tokenizer,
        chat_template: tokenizer_config::template(names, parts.chat_template)?,
        assumes_template: false,
    })
}

/// Ids at which an answer ends: those that the configurations name and known end markers.
fn stops(
    tokenizer: &Result<TokenizerSpec, String>,
    told: &config::Told,
    generation: &GenerationConfig,
) -> Vec<u32> {
    let named = told.eos.iter().flat_map(|eos| eos.ids().iter().copied());
    let Ok(spec) = tokenizer else {
        return stop_tokens::union(named, std::iter::empty(), &[]);
    };
    let named = named.chain(spec.eos).chain(generation.own_ends(spec.tokens.len()));
    stop_tokens::union(named, spec.tokens.iter().map(String::as_str), &spec.kinds)
}

/// An error about a file of the folder.
fn wrong(file: &str, what: impl Display) -> Error {
    Error::File { path: PathBuf::from(file), what: what.to_string() }
}

/// An error of the JSON reader, which may quote the file, on one short line.
fn not_json(file: &str, error: &serde_json::Error) -> Error {
    let mut text = String::new();
    for c in error.to_string().chars() {
        match c {
            _ if text.len() >= 400 => break,
            '"' | '\'' | '\\' => text.push(c),
            _ => text.extend(c.escape_debug()),
        }
    }
    wrong(file, text)
}
