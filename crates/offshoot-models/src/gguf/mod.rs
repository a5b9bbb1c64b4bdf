//! GGUF files, versions 2 and 3, little endian: a checked reader, a writer, and the way from a
//! file's names and keys to the canonical [`Contents`](crate::Contents) of a checkpoint.
//!
//! The layout is ggml's (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): a header
//! (magic, version, two counts), keys with typed values, one record a tensor (name, dimensions,
//! type, offset), padding, then the tensors' bytes.
//!
//! A model file is a stranger's input, so [`parse`] trusts no number in it. It borrows from the
//! file's bytes and copies nothing: an array stays a checked slice ([`Array`]) until somebody walks
//! it, so a count or a length cannot make it allocate. Every count is held against the bytes that
//! remain before it is used, every product and sum is checked, and a tensor's range is known to lie
//! inside the file, aligned, and apart from every other before anyone sees it.

mod canonical;
mod cursor;
mod experts;
mod export;
mod keys;
mod pieces;
mod reader;
mod rope;
mod sampling;
mod split;
mod template;
mod tokenizer;
mod value;
mod writer;

use crate::shown::Shown;

pub use export::{Export, ExportOptions};
pub use reader::{Gguf, GgufTensor, parse};
pub(crate) use split::open;
pub use split::{PARTS_MAX, PartName, join};
pub use value::{Array, Value, ValueKind};
pub use writer::Writer;

/// The first four bytes of every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// Alignment of tensor data where `general.alignment` does not set one, in bytes.
const DEFAULT_ALIGNMENT: usize = 32;
/// The largest alignment taken, in bytes; files in use have 32 to 65536.
const MAX_ALIGNMENT: usize = 1 << 20;
/// Longest tensor name, in bytes, as the format's document sets it.
const MAX_NAME_BYTES: usize = 64;
/// Longest key, in bytes, as the format's document sets it.
const MAX_KEY_BYTES: usize = 65_535;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 4;
/// How deep arrays may nest; no known file goes past one.
const MAX_ARRAY_DEPTH: usize = 4;
/// Most keys and most tensors taken: a model of 126 layers has some 1,200 tensors and 50 keys.
const MAX_RECORDS: u64 = 1 << 16;

/// An error about the bytes of a file, which have no path here.
fn malformed(what: impl std::fmt::Display) -> crate::Error {
    crate::Error::Gguf(what.to_string())
}
