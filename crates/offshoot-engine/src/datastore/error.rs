//! What can go wrong with a datastore.

use std::path::{Path, PathBuf};

use offshoot_models::TokenizerId;
use thiserror::Error;

/// A datastore cannot be built, read or used. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatastoreError {
    /// A file could not be opened, read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is no store, or a damaged one.
    #[error("{}: {what}; build the store anew", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Which part is wrong, what stands there, what was expected.
        what: String,
    },
    /// A folder without a store in it.
    #[error("{}: no .store file in this folder; `offshoot datastore build` makes one", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// There are stores where a new one was to be built.
    #[error("{}: holds a store already; give --append to add to it", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The store was built with another tokenizer than it is to be used with.
    #[error(
        "{}: its tokenizer is {}, the model's {}; build a store with this model",
        path.display(), got.short(), expected.short()
    )]
    Tokenizer {
        /// The store.
        path: PathBuf,
        /// The store's tokenizer.
        got: TokenizerId,
        /// The model's tokenizer.
        expected: TokenizerId,
    },
    /// A source cannot be turned into tokens.
    #[error("{}: {what}", path.display())]
    Source {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// The sources hold no tokens.
    #[error("the sources hold no text: check their paths and --extension")]
    NoTokens,
    /// The suffix array could not be made.
    #[error("the suffix array of {tokens} tokens: {what}; lower --memory for smaller shards")]
    Sort {
        /// Tokens to be sorted.
        tokens: usize,
        /// What the library says.
        what: String,
    },
    /// Building was stopped on request.
    #[error("interrupted")]
    Interrupted,
}

impl DatastoreError {
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }

    pub(super) fn source(path: &Path, what: impl ToString) -> Self {
        Self::Source { path: path.to_owned(), what: what.to_string() }
    }
}
