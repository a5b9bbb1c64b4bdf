//! Builds a store from documents, a shard at a time, in bounded memory.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use offshoot_methods::{SAMPLED_TOKENS, TokenWidth};
use offshoot_models::TokenizerId;

use super::format::{Digests, Header, Notes, STRIDE, buckets, sampled_key};
use super::{DatastoreError, StoreFile, SuffixSorter};

/// Tokens of a passage that must not be shared with excluded texts: what is customary since the
/// appendix C of Brown et al. 2020, <https://arxiv.org/abs/2005.14165>.
const GRAM: usize = 13;

/// What happens while a store is built.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildEvent<'a> {
    /// Documents were read.
    Read {
        /// How many so far.
        documents: u64,
        /// Their tokens.
        tokens: u64,
    },
    /// A file of a folder was left out.
    Skipped {
        /// The file.
        path: &'a Path,
        /// Why.
        why: String,
    },
    /// A shard's suffixes are being sorted.
    Sorting {
        /// Tokens of the shard.
        tokens: usize,
    },
    /// A shard is ready.
    Written {
        /// Its file.
        path: &'a Path,
    },
    /// A shard of these tokens was there already.
    Kept {
        /// Its file.
        path: &'a Path,
    },
}

/// Told of events; stops the building if it breaks.
pub type OnEvent<'a> = dyn FnMut(BuildEvent<'_>) -> ControlFlow<()> + 'a;

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// The folder of the shards.
    pub folder: PathBuf,
    /// Whether the folder may hold shards already.
    pub append: bool,
    /// Which tokenizer makes the tokens.
    pub tokenizer: TokenizerId,
    /// Ids below this are tokens.
    pub vocab_size: u32,
    /// Bytes of memory to use at most, beside the document that is being read, a few words for each
    /// token of the vocabulary and about a hundred bytes for each token of excluded texts.
    pub memory: u64,
    /// Tokens after which building ends.
    pub limit: Option<u64>,
    /// What is told of the building in each shard.
    pub notes: Notes,
}

/// What was built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildSummary {
    /// The shards.
    pub files: Vec<PathBuf>,
    /// Tokens in them, separators among them.
    pub tokens: u64,
    /// Documents in them.
    pub documents: u64,
    /// Documents left out for passages of excluded texts.
    pub excluded: u64,
}

/// Collects documents and writes a shard whenever one is full.
pub struct Builder<'a> {
    options: BuildOptions,
    sorter: &'a dyn SuffixSorter,
    on_event: &'a mut OnEvent<'a>,
    excluded: HashSet<[u32; GRAM]>,
    width: TokenWidth,
    /// Tokens of a shard at most.
    capacity: usize,
    tokens: Vec<u8>,
    documents: u64,
    summary: BuildSummary,
}

impl<'a> Builder<'a> {
    /// Begins a store.
    ///
    /// # Errors
    /// [`DatastoreError::Exists`] if there is one and it may not be added to.
    pub fn new(
        options: BuildOptions,
        sorter: &'a dyn SuffixSorter,
        on_event: &'a mut OnEvent<'a>,
    ) -> Result<Self, DatastoreError> {
        let folder = &options.folder;
        fs::create_dir_all(folder).map_err(DatastoreError::io("create", folder))?;
        if !options.append && !super::store_files(folder)?.is_empty() {
            return Err(DatastoreError::Exists { path: folder.clone() });
        }
        let width = TokenWidth::holding(options.vocab_size);
        // The tokens and room for their growth, the text as words, its suffixes.
        let per_token = 2 * width.bytes() as u64 + 8;
        let capacity = (options.memory / per_token).clamp(1 << 10, i32::MAX as u64 / 2) as usize;
        Ok(Self {
            options,
            sorter,
            on_event,
            excluded: HashSet::new(),
            width,
            capacity,
            tokens: Vec::new(),
            documents: 0,
            summary: BuildSummary::default(),
        })
    }

    /// Leaves out documents added later that share 13 tokens in a row with `text`.
    pub fn exclude(&mut self, text: &[u32]) {
        self.excluded.extend(text.array_windows::<GRAM>());
    }

    /// Adds a document. Breaks when there are as many tokens as were asked for.
    ///
    /// # Errors
    /// [`DatastoreError::Source`] for a token outside the vocabulary; what writing a shard gives.
    pub fn add(
        &mut self,
        path: &Path,
        document: &[u32],
    ) -> Result<ControlFlow<()>, DatastoreError> {
        let vocab_size = self.options.vocab_size;
        if let Some(token) = document.iter().find(|&&token| token >= vocab_size) {
            let what = format!(
                "token {token} is outside the vocabulary of {vocab_size}: check the width of \
                 tokens and the model"
            );
            return Err(DatastoreError::source(path, what));
        }
        if document.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        if document.array_windows().any(|gram| self.excluded.contains(gram)) {
            self.summary.excluded += 1;
            return Ok(ControlFlow::Continue(()));
        }
        let left =
            self.options.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.read_tokens()));
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let mut rest = &document[..document.len().min(left.saturating_sub(1))];
        while !rest.is_empty() {
            let room = self.capacity - self.tokens.len() / self.width.bytes();
            // Every piece has a separator behind it.
            let (piece, behind) = rest.split_at(rest.len().min(room.saturating_sub(1)));
            piece.iter().for_each(|&token| self.width.push(token, &mut self.tokens));
            if !piece.is_empty() {
                self.width.push(vocab_size, &mut self.tokens);
            }
            rest = behind;
            if !rest.is_empty() {
                self.documents += u64::from(!piece.is_empty());
                self.write_shard()?;
            }
        }
        self.documents += 1;
        let (documents, tokens) = (self.summary.documents + self.documents, self.read_tokens());
        self.tell(BuildEvent::Read { documents, tokens })?;
        Ok(match self.options.limit {
            Some(limit) if self.read_tokens() + 1 >= limit => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// [`DatastoreError::NoTokens`] if nothing was added; what writing a shard gives.
    pub fn finish(mut self) -> Result<BuildSummary, DatastoreError> {
        if !self.tokens.is_empty() {
            self.write_shard()?;
        }
        match self.summary.tokens {
            0 => Err(DatastoreError::NoTokens),
            _ => Ok(self.summary),
        }
    }

    pub(super) fn tell(&mut self, event: BuildEvent<'_>) -> Result<(), DatastoreError> {
        match (self.on_event)(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(DatastoreError::Interrupted),
        }
    }

    fn read_tokens(&self) -> u64 {
        self.summary.tokens + (self.tokens.len() / self.width.bytes()) as u64
    }

    /// Writes the collected tokens as a shard named for them, unless it is there.
    fn write_shard(&mut self) -> Result<(), DatastoreError> {
        let tokens = std::mem::take(&mut self.tokens);
        let n = tokens.len() / self.width.bytes();
        let digest = blake3::Hasher::new().update_rayon(&tokens).finalize();
        let name = format!("{}.store", &digest.to_hex()[..16]);
        let path = self.options.folder.join(name);
        let same = |file: &StoreFile| {
            file.tokens_digest() == digest.as_bytes() && file.tokenizer() == self.options.tokenizer
        };
        if StoreFile::open(&path).is_ok_and(|file| same(&file)) {
            self.tell(BuildEvent::Kept { path: &path })?;
        } else {
            self.tell(BuildEvent::Sorting { tokens: n })?;
            let notes = serde_json::to_vec(&self.options.notes)
                .map_err(|e| DatastoreError::source(&path, e))?;
            let header = Header {
                tokenizer: self.options.tokenizer,
                width: self.width,
                vocab_size: self.options.vocab_size,
                stride: STRIDE,
                tokens: n as u64,
                documents: self.documents,
                notes_bytes: notes.len() as u64,
            };
            write_store(&path, &header, &notes, &tokens, self.sorter)?;
            self.tell(BuildEvent::Written { path: &path })?;
        }
        self.summary.tokens += n as u64;
        self.summary.documents += self.documents;
        self.summary.files.push(path);
        self.documents = 0;
        self.tokens = tokens;
        self.tokens.clear();
        Ok(())
    }
}

/// Writes a store beside its place and moves it there when it is complete.
fn write_store(
    path: &Path,
    header: &Header,
    notes: &[u8],
    tokens: &[u8],
    sorter: &dyn SuffixSorter,
) -> Result<(), DatastoreError> {
    let token = |at: usize| header.width.get(tokens, at);
    // All of its room at once: what grows takes up to twice as much.
    let mut text: Vec<i32> = Vec::with_capacity(header.tokens as usize);
    text.extend((0..header.tokens as usize).filter_map(token).map(u32::cast_signed));
    let mut counts = vec![0u32; header.vocab_size as usize + 1];
    text.iter().for_each(|&token| counts[token.cast_unsigned() as usize] += 1);
    let suffixes = sorter.sort(&mut text)?;
    drop(text);
    let buckets = buckets(&counts);
    let sampled = suffixes.iter().step_by(header.stride);
    let mut keys = Vec::with_capacity(4 * SAMPLED_TOKENS * sampled.len());
    keys.extend(sampled.flat_map(|&at| sampled_key(move |i| token(at as usize + i))));
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let result = (|| {
        let file = File::create(&partial)?;
        write_sections(file, header, [notes, &buckets, &keys, tokens], &suffixes)?.sync_all()?;
        fs::rename(&partial, path)
    })();
    result.map_err(|source| {
        // The failure to report is the first one.
        let _ = fs::remove_file(&partial);
        DatastoreError::Io { what: "write", path: path.to_owned(), source }
    })
}

fn write_sections(
    file: File,
    header: &Header,
    sections: [&[u8]; 4],
    suffixes: &[u32],
) -> io::Result<File> {
    const AT_ONCE: usize = 1 << 18;
    let places = header.sections().ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let mut out = BufWriter::new(file);
    let mut digests: Digests = Default::default();
    for (i, bytes) in sections.into_iter().enumerate() {
        out.seek(SeekFrom::Start(places[i].start as u64))?;
        out.write_all(bytes)?;
        digests[i] = blake3::Hasher::new().update_rayon(bytes).finalize().into();
    }
    out.seek(SeekFrom::Start(places[4].start as u64))?;
    let mut hasher = blake3::Hasher::new();
    for part in suffixes.chunks(AT_ONCE) {
        let bytes: Vec<u8> = part.iter().flat_map(|at| at.to_le_bytes()).collect();
        hasher.update(&bytes);
        out.write_all(&bytes)?;
    }
    digests[4] = hasher.finalize().into();
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&header.bytes(&digests))?;
    out.into_inner().map_err(io::IntoInnerError::into_error)
}
