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

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes() as u64).sum()
    }

    /// Reads everything in ahead of use, so that searches do not wait for the disk.
    pub fn populate(&self) {
        self.pieces().for_each(|(file, range)| self.files[file].populate(range));
    }

    /// The same on a thread beside, which ends early if nobody else holds the store any longer. Does
    /// nothing if the store would take more than half of the memory that is left.
    pub fn populate_beside(self: &Arc<Self>) {
        if crate::available_memory().is_some_and(|left| self.bytes() > left / 2) {
            return;
        }
        let (pieces, store) = (self.pieces().collect::<Vec<_>>(), Arc::downgrade(self));
        // Without a thread, pages come in as they are searched.
        let _ = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            for (file, range) in pieces {
                let Some(store) = store.upgrade() else { return };
                store.files[file].populate(range);
            }
        });
    }

    /// All files in pieces that are soon read: places in the list, and bytes.
    fn pieces(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        const PIECE: usize = 8 << 20;
        self.files.iter().enumerate().flat_map(|(at, file)| {
            let starts = (0..file.bytes()).step_by(PIECE);
            starts.map(move |start| (at, start..(start + PIECE).min(file.bytes())))
        })
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
