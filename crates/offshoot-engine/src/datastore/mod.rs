//! Stored text for drafting by retrieval: files of tokens with their suffix array.
//!
//! A datastore is a `.store` file or a folder of them, all of one tokenizer. Each file is a shard
//! that is searched by itself, so that a store grows by adding files and is built within any
//! memory; [`offshoot_methods::Retriever`] searches them together. A file is named for its tokens:
//! building the same text again finds what an interrupted run left, and adds nothing twice.

mod build;
mod error;
mod format;
mod sample;
mod sources;
mod suffix_array;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use offshoot_methods::Shard;
use offshoot_models::TokenizerId;

pub use build::{BuildEvent, BuildOptions, BuildSummary, Builder, OnEvent};
pub use error::DatastoreError;
pub use format::{Notes, Section, SourceNote, StoreFile};
pub use sample::SampleReport;
pub use sources::{Share, SourceOptions, Sources, TokenBits, import_reference};
pub use suffix_array::{Libsais, SuffixSorter};

/// Shards that are searched together.
#[derive(Debug)]
pub struct Datastore {
    files: Vec<StoreFile>,
    shards: Vec<Shard<Section>>,
}

impl Datastore {
    /// Opens a `.store` file, or all of a folder.
    ///
    /// # Errors
    /// [`DatastoreError`] if there is none, one is broken, or their tokenizers differ.
    pub fn open(path: &Path) -> Result<Self, DatastoreError> {
        let paths = match path.is_dir() {
            true => store_files(path)?,
            false => vec![path.to_owned()],
        };
        if paths.is_empty() {
            return Err(DatastoreError::Empty { path: path.to_owned() });
        }
        let files = paths.iter().map(|path| StoreFile::open(path));
        Self::of(files.collect::<Result<_, _>>()?)
    }

    /// Joins opened files.
    ///
    /// # Errors
    /// [`DatastoreError::Tokenizer`] if their tokenizers differ.
    pub fn of(files: Vec<StoreFile>) -> Result<Self, DatastoreError> {
        let store = Self { shards: files.iter().map(|file| file.shard().clone()).collect(), files };
        if let Some(first) = store.files.first() {
            store.require_tokenizer(first.tokenizer())?;
        }
        Ok(store)
    }

    /// Checks that the store is for the model that has this tokenizer.
    ///
    /// # Errors
    /// [`DatastoreError::Tokenizer`] if it is not.
    pub fn require_tokenizer(&self, expected: TokenizerId) -> Result<(), DatastoreError> {
        match self.files.iter().find(|file| file.tokenizer() != expected) {
            None => Ok(()),
            Some(file) => Err(DatastoreError::Tokenizer {
                path: file.path().to_owned(),
                got: file.tokenizer(),
                expected,
            }),
        }
    }

    /// What [`offshoot_methods::Retriever::draft`] searches.
    pub fn shards(&self) -> &[Shard<Section>] {
        &self.shards
    }

    /// The files.
    pub fn files(&self) -> &[StoreFile] {
        &self.files
    }

    /// Tokens of all files, separators among them.
    pub fn tokens(&self) -> u64 {
        self.files.iter().map(StoreFile::tokens).sum()
    }

    /// Asks the system to read everything in ahead of use.
    pub fn will_need(&self) {
        self.files.iter().for_each(StoreFile::will_need);
    }
}

/// The `.store` files of a folder, by name.
fn store_files(folder: &Path) -> Result<Vec<PathBuf>, DatastoreError> {
    let wrong = || DatastoreError::io("list", folder);
    let entries = std::fs::read_dir(folder).map_err(wrong())?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(wrong())?.path();
        if path.extension().is_some_and(|e| e == "store") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
