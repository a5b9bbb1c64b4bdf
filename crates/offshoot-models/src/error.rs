//! What can go wrong with a model.

use std::path::PathBuf;
use thiserror::Error;

/// A model, or a part of one, cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A model file is damaged, hostile, or of a kind that offshoot does not read.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Which field is wrong, what stands there, what was expected.
        what: String,
    },
    /// The bytes of a GGUF file, which have no path here, are damaged, hostile, or of a kind that
    /// offshoot does not read. [`crate::Checkpoint::open`] turns it into [`Error::File`].
    #[error("GGUF: {0}")]
    Gguf(String),
    /// The weights do not fit the architecture.
    #[error("tensor {name}: {what}")]
    Tensor {
        /// The tensor's canonical name.
        name: String,
        /// What stands there and what was expected.
        what: String,
    },
    /// A recipe for quantising is unknown, or does not suit the model.
    #[error("quantising: {0}")]
    Recipe(String),
    /// A model cannot be written in the form that is asked for.
    #[error("export: {0}")]
    Export(String),
    /// Text is not an identity.
    #[error("identity {0}")]
    Identity(String),
    /// The configuration is contradictory or out of bounds.
    #[error("model configuration: {0}")]
    Config(String),
    /// The tokenizer cannot be built or cannot encode.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template refuses the conversation, in its own words.
    #[error("chat template: {0}")]
    Template(String),
    /// The chat template is wrong or runs past its limits: the fault is the model file's.
    #[error("chat template: {0}")]
    BrokenTemplate(String),
    /// Draft heads are broken, of a layout that offshoot does not read, or another model's.
    #[error("draft heads: {0}")]
    Heads(String),
    /// An adapter does not fit the model.
    #[error("adapter: {0}")]
    Adapter(String),
    /// A step was asked for that the model or its caches cannot take.
    #[error("step: {0}")]
    Step(String),
    /// The dense executor's tensor library could not do what was asked: no such device, no memory on
    /// it, or shapes or number types that do not go together.
    #[error("tensors: {0}")]
    Tensors(String),
}

impl Error {
    /// The error about a file of the folder at `path`, where its path is the file's name alone.
    pub(crate) fn within(self, path: &std::path::Path) -> Self {
        match self {
            Error::File { path: file, what } => Error::File { path: path.join(file), what },
            other => other,
        }
    }
}
