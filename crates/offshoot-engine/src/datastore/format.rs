//! The layout of a `.store` file, and its reader.
//!
//! ```text
//! 0     magic "OFFSTORE"
//! 8     version, u32          12  bytes a token: 2, 3 or 4, u32
//! 16    tokenizer id, 32 bytes
//! 48    vocabulary size, u32  52  suffixes from one sampled key to the next, u32
//! 56    tokens, u64           64  documents, u64              72  bytes of notes, u64
//! 80    BLAKE3 of each section, 32 bytes each
//! 4064  BLAKE3 of the bytes before
//! 4096  sections, each at a multiple of 4096, zeros between them:
//!       notes, JSON: how it was built, of what, under which licences
//!       buckets, keys, tokens, suffixes: those of `ShardParts` in offshoot-methods
//! ```
//! Numbers are little-endian. The header alone fixes the places of all sections and the length of
//! the file. Opening verifies the digests of header, notes, buckets and keys; those of tokens and
//! suffixes, the bulk, are for [`StoreFile::verify`], and searches do not rely on them.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use offshoot_kernels::FileMap;
use offshoot_methods::{SAMPLED_TOKENS, Shard, ShardParts, TokenWidth};
use offshoot_models::TokenizerId;
use serde::{Deserialize, Serialize};

use super::DatastoreError;

const MAGIC: &[u8; 8] = b"OFFSTORE";
const VERSION: u32 = 1;
/// Bytes of the header, and the alignment of sections.
const PAGE: usize = 4096;
/// Bytes of notes at most: some thousands of sources.
const MAX_NOTES: usize = 4 << 20;
/// Characters of a message at most.
const MAX_MESSAGE: usize = 300;
/// Suffixes from one sampled key to the next.
pub(super) const STRIDE: usize = 1 << 14;

/// The sections in the order of the file.
const SECTIONS: [&str; 5] = ["notes", "buckets", "keys", "tokens", "suffixes"];

/// Where documents came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceNote {
    /// The path or name given.
    pub name: String,
    /// The licence given, if any.
    pub licence: Option<String>,
}

/// How a store was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notes {
    /// The program and its version.
    pub built_by: String,
    /// The library that sorted the suffixes.
    pub sorter: String,
    /// Which share of the documents this is, as in `2/4`.
    pub share: Option<String>,
    /// What the documents were read from.
    pub sources: Vec<SourceNote>,
}

/// What a header says beside digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) tokenizer: TokenizerId,
    pub(super) width: TokenWidth,
    pub(super) vocab_size: u32,
    pub(super) stride: usize,
    pub(super) tokens: u64,
    pub(super) documents: u64,
    pub(super) notes_bytes: u64,
}

/// Digests of the sections.
pub(super) type Digests = [[u8; 32]; SECTIONS.len()];

impl Header {
    /// Where the sections are; `None` if no file can be so long.
    pub(super) fn sections(&self) -> Option<[Range<usize>; SECTIONS.len()]> {
        let tokens = usize::try_from(self.tokens).ok().filter(|&n| n <= u32::MAX as usize)?;
        let vocab_size = usize::try_from(self.vocab_size).ok()?;
        let lengths = [
            usize::try_from(self.notes_bytes).ok()?,
            vocab_size.checked_add(2)?.checked_mul(4)?,
            tokens.div_ceil(self.stride.max(1)).checked_mul(4 * SAMPLED_TOKENS)?,
            tokens.checked_mul(self.width.bytes())?,
            tokens.checked_mul(4)?,
        ];
        let mut start = PAGE;
        let mut sections = [const { 0..0 }; SECTIONS.len()];
        for (section, length) in sections.iter_mut().zip(lengths) {
            let end = start.checked_add(length)?;
            *section = start..end;
            start = end.checked_next_multiple_of(PAGE)?;
        }
        Some(sections)
    }

    pub(super) fn bytes(&self, digests: &Digests) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            page[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(MAGIC);
        put(&VERSION.to_le_bytes());
        put(&(self.width.bytes() as u32).to_le_bytes());
        put(self.tokenizer.as_bytes());
        put(&self.vocab_size.to_le_bytes());
        put(&(self.stride as u32).to_le_bytes());
        put(&self.tokens.to_le_bytes());
        put(&self.documents.to_le_bytes());
        put(&self.notes_bytes.to_le_bytes());
        digests.iter().for_each(|digest| put(digest));
        let digest = blake3::hash(&page[..PAGE - 32]);
        page[PAGE - 32..].copy_from_slice(digest.as_bytes());
        page
    }

    fn parse(bytes: &[u8]) -> Result<(Self, Digests), String> {
        if !bytes.starts_with(MAGIC) {
            let begin = String::from_utf8_lossy(&bytes[..bytes.len().min(8)]);
            return Err(format!("begins with {begin:?}, a store with \"OFFSTORE\""));
        }
        let page = bytes.get(..PAGE).ok_or("is cut off within its header")?;
        let u32_at = |at: usize| u32::from_le_bytes(array(page, at));
        let u64_at = |at: usize| u64::from_le_bytes(array(page, at));
        if u32_at(8) != VERSION {
            return Err(format!("is of version {}, this program reads {VERSION}", u32_at(8)));
        }
        if page[PAGE - 32..] != *blake3::hash(&page[..PAGE - 32]).as_bytes() {
            return Err("its header is damaged: the digest differs".to_owned());
        }
        let header = Self {
            tokenizer: TokenizerId::from_bytes(array(page, 16)),
            width: TokenWidth::from_bytes(u32_at(12))
                .ok_or_else(|| format!("has {} bytes a token, expected 2 to 4", u32_at(12)))?,
            vocab_size: u32_at(48),
            stride: u32_at(52) as usize,
            tokens: u64_at(56),
            documents: u64_at(64),
            notes_bytes: u64_at(72),
        };
        Ok((header, std::array::from_fn(|i| array(page, 80 + 32 * i))))
    }
}

/// Bytes of a page, which has them.
fn array<const N: usize>(page: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&page[at..at + N]);
    out
}

/// What a store's bytes are in.
#[derive(Debug)]
enum Holder {
    Mapped(FileMap),
    Memory(Vec<u8>),
}

impl Holder {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// A section of a store; a clone is a reference.
#[derive(Debug, Clone)]
pub struct Section {
    holder: Arc<Holder>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Section {
    fn as_ref(&self) -> &[u8] {
        &self.holder.bytes()[self.range.clone()]
    }
}

/// A `.store` file, opened.
#[derive(Debug)]
pub struct StoreFile {
    path: PathBuf,
    header: Header,
    digests: Digests,
    notes: Notes,
    holder: Arc<Holder>,
    shard: Shard<Section>,
}

impl StoreFile {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// [`DatastoreError::Broken`] if it is no sound store, as far as can be told without reading
    /// all of it.
    pub fn open(path: &Path) -> Result<Self, DatastoreError> {
        let map = FileMap::open(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::InvalidData => broken(path, "is empty".to_owned()),
            _ => DatastoreError::Io { what: "open", path: path.to_owned(), source },
        })?;
        Self::check(path, Holder::Mapped(map))
    }

    /// Checks bytes that are in memory; `path` is for messages.
    ///
    /// # Errors
    /// As [`StoreFile::open`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self, DatastoreError> {
        Self::check(path, Holder::Memory(bytes))
    }

    fn check(path: &Path, holder: Holder) -> Result<Self, DatastoreError> {
        let wrong = |what| broken(path, what);
        let bytes = holder.bytes();
        let (header, digests) = Header::parse(bytes).map_err(wrong)?;
        let sections = header.sections().ok_or_else(|| wrong("is larger than memory".into()))?;
        let end = sections[SECTIONS.len() - 1].end;
        if bytes.len() != end {
            return Err(wrong(format!("has {} bytes, its header says {end}", bytes.len())));
        }
        for i in 0..3 {
            check_digest(bytes, &sections[i], &digests[i], SECTIONS[i]).map_err(wrong)?;
        }
        if sections[0].len() > MAX_NOTES {
            let n = sections[0].len();
            return Err(wrong(format!("has {n} bytes of notes, at most {MAX_NOTES} are read")));
        }
        let notes = serde_json::from_slice(&bytes[sections[0].clone()])
            .map_err(|e| wrong(format!("its notes: {e}")))?;
        check_buckets(&bytes[sections[1].clone()], header.tokens).map_err(wrong)?;
        let holder = Arc::new(holder);
        let [_, buckets, keys, tokens, suffixes] = sections;
        let section = |range| Section { holder: Arc::clone(&holder), range };
        let shard = Shard::new(ShardParts {
            vocab_size: header.vocab_size,
            width: header.width,
            tokens: section(tokens),
            suffixes: section(suffixes),
            buckets: section(buckets),
            keys: section(keys),
            stride: header.stride,
        })
        .map_err(|e| wrong(e.to_string()))?;
        Ok(Self { path: path.to_owned(), header, digests, notes, holder, shard })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which tokenizer made the tokens.
    pub fn tokenizer(&self) -> TokenizerId {
        self.header.tokenizer
    }

    /// Tokens, separators among them.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Documents.
    pub fn documents(&self) -> u64 {
        self.header.documents
    }

    /// Bytes of the file.
    pub fn byte_len(&self) -> usize {
        self.holder.bytes().len()
    }

    /// How it was built.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// What is searched.
    pub fn shard(&self) -> &Shard<Section> {
        &self.shard
    }

    /// The digest of the tokens, which names the file.
    pub(super) fn tokens_digest(&self) -> &[u8; 32] {
        &self.digests[3]
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> usize {
        self.holder.bytes().len()
    }

    /// Reads a range of the file's bytes in ahead of use.
    pub(super) fn populate(&self, range: Range<usize>) {
        if let Holder::Mapped(map) = &*self.holder {
            map.populate(range);
        }
    }

    /// Reads everything: all digests, that each token is in the vocabulary, and that the suffixes
    /// are all there and in order. Takes four bytes of memory a token.
    ///
    /// # Errors
    /// [`DatastoreError::Broken`] says what differs first.
    pub fn verify(&self) -> Result<(), DatastoreError> {
        let wrong = |what| broken(&self.path, what);
        let bytes = self.holder.bytes();
        let sections = self.header.sections().ok_or_else(|| wrong("is too large".to_owned()))?;
        for i in 0..SECTIONS.len() {
            check_digest(bytes, &sections[i], &self.digests[i], SECTIONS[i]).map_err(wrong)?;
        }
        self.check_order().map_err(wrong)
    }

    /// Suffixes are in order if first tokens are, and for equal ones the suffixes behind them.
    fn check_order(&self) -> Result<(), String> {
        let n = self.shard.len();
        let mut rank_of = vec![u32::MAX; n];
        for rank in 0..n {
            let at = self.shard.suffix(rank);
            match rank_of.get_mut(at) {
                Some(seen) if *seen == u32::MAX => *seen = rank as u32,
                _ => return Err(format!("suffix {rank} begins at {at}, twice or behind the end")),
            }
        }
        // Behind the last suffix is the empty one, which comes before all.
        let behind = |at: usize| rank_of.get(at + 1).map_or(0, |&rank| u64::from(rank) + 1);
        let key = |rank: usize| {
            let at = self.shard.suffix(rank);
            (self.shard.token(at), behind(at))
        };
        let mut counts = vec![0u32; self.header.vocab_size as usize + 1];
        for rank in 0..n {
            let (token, _) = key(rank);
            let id = token.unwrap_or(u32::MAX);
            match counts.get_mut(id as usize) {
                Some(count) => *count += 1,
                None => return Err(format!("token {id} is outside the vocabulary")),
            }
            if rank + 1 < n && key(rank) >= key(rank + 1) {
                return Err(format!("suffixes {rank} and {} are out of order", rank + 1));
            }
        }
        self.check_tables(&counts)
    }

    fn check_tables(&self, counts: &[u32]) -> Result<(), String> {
        let parts = self.shard.parts();
        let buckets = buckets(counts);
        if buckets != parts.buckets.as_ref() {
            return Err("its buckets are not those of its suffixes".to_owned());
        }
        let keys = (0..self.shard.len()).step_by(self.header.stride);
        let keys = keys.flat_map(|rank| key_of(&self.shard, self.shard.suffix(rank)));
        if !keys.eq(parts.keys.as_ref().iter().copied()) {
            return Err("its keys are not those of its suffixes".to_owned());
        }
        Ok(())
    }
}

/// Bytes of the bucket table: how many suffixes begin with a lower token than each, and all.
pub(super) fn buckets(counts: &[u32]) -> Vec<u8> {
    let mut below = 0u32;
    let starts = counts.iter().map(|&count| {
        below += count;
        below
    });
    [0].into_iter().chain(starts).flat_map(u32::to_le_bytes).collect()
}

/// Bytes of the sampled key of the suffix at `at`.
fn key_of<B: AsRef<[u8]>>(shard: &Shard<B>, at: usize) -> impl Iterator<Item = u8> {
    sampled_key(move |i| shard.token(at.saturating_add(i)))
}

/// Bytes of the sampled key of a suffix with these tokens.
pub(super) fn sampled_key(token: impl Fn(usize) -> Option<u32>) -> impl Iterator<Item = u8> {
    (0..SAMPLED_TOKENS).flat_map(move |i| token(i).map_or(0, |t| t.wrapping_add(1)).to_le_bytes())
}

fn check_digest(
    bytes: &[u8],
    section: &Range<usize>,
    digest: &[u8; 32],
    name: &str,
) -> Result<(), String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_rayon(&bytes[section.clone()]);
    match hasher.finalize().as_bytes() == digest {
        true => Ok(()),
        false => Err(format!("its {name} are damaged: the digest differs")),
    }
}

/// That the buckets rise from nothing to all.
fn check_buckets(bytes: &[u8], tokens: u64) -> Result<(), String> {
    let words = bytes.chunks_exact(4).map(|word| u32::from_le_bytes(array(word, 0)));
    let mut last = 0;
    for (i, word) in words.enumerate() {
        if word < last || (i == 0 && word != 0) {
            return Err(format!("bucket {i} begins at {word}, the one before at {last}"));
        }
        last = word;
    }
    match u64::from(last) == tokens {
        true => Ok(()),
        false => Err(format!("its buckets hold {last} suffixes, it has {tokens} tokens")),
    }
}

/// What is said may quote the file: it is kept to a line that no terminal obeys.
fn broken(path: &Path, what: String) -> DatastoreError {
    let control = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let line = what.chars().take(MAX_MESSAGE).map(|c| if control(c) { ' ' } else { c });
    DatastoreError::Broken { path: path.to_owned(), what: line.collect() }
}
