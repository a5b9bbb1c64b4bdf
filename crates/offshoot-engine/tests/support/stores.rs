//! Datastores that lie, in a short form.
//!
//! Most of a small store is the zeros that fill its pages, and no change of its bytes passes digests
//! but by making them anew. The short form leaves out both: a byte of flags, the first 80 bytes of
//! the header, then the sections one behind the other. What is missing of them is zeros.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(dead_code)] // each test takes what it needs

use std::ops::{ControlFlow, Range};
use std::path::Path;

use offshoot_engine::datastore::{
    BuildEvent, BuildOptions, Builder, DatastoreError, Libsais, Notes, Section, SourceNote,
    StoreFile,
};
use offshoot_methods::{DraftNode, Retriever, RetrieverOptions, Shard};
use offshoot_models::TokenizerId;

const PAGE: usize = 4096;
/// Bytes of the header before its digests.
const FIELDS: usize = 80;
const SECTIONS: usize = 5;
/// Bytes of a file that is laid out in full; a longer one ends behind its header.
const MAX_BYTES: u64 = 1 << 17;
/// Flag: the rest is the file as it is. Flags 0 to 4: the digest of that section is left out.
const AS_IT_IS: u8 = 1 << 7;
const HEADER_DIGEST_WRONG: u8 = 1 << 5;
/// Flag: the file ends a byte early.
const CUT: u8 = 1 << 6;
/// Texts up to this length are searched by looking at everything, too.
const SCANNED: usize = 300;

/// A store in its short form and a part of the error that it must end in; none if it is sound.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) short: Vec<u8>,
    pub(crate) error: Option<&'static str>,
}

/// The file that a short form stands for.
pub(crate) fn expand(short: &[u8]) -> Vec<u8> {
    let Some((&flags, rest)) = short.split_first() else { return Vec::new() };
    if flags & AS_IT_IS != 0 {
        return rest.to_vec();
    }
    let (fields, mut rest) = rest.split_at(rest.len().min(FIELDS));
    let mut file = vec![0; PAGE];
    file[..fields.len()].copy_from_slice(fields);
    let lengths = section_lengths(&file);
    let total = lengths.iter().fold(0, |sum: u64, &length| sum.saturating_add(length));
    if total <= MAX_BYTES {
        for (i, &length) in lengths.iter().enumerate() {
            let (bytes, behind) = rest.split_at(rest.len().min(length as usize));
            let start = file.len().next_multiple_of(PAGE);
            file.resize(start, 0);
            file.extend_from_slice(bytes);
            file.resize(start + length as usize, 0);
            if flags & (1 << i) == 0 {
                let digest = blake3::hash(&file[start..]);
                file[FIELDS + 32 * i..][..32].copy_from_slice(digest.as_bytes());
            }
            rest = behind;
        }
    }
    if flags & HEADER_DIGEST_WRONG == 0 {
        let digest = blake3::hash(&file[..PAGE - 32]);
        file[PAGE - 32..PAGE].copy_from_slice(digest.as_bytes());
    }
    if flags & CUT != 0 {
        file.pop();
    }
    file
}

/// How long the sections are after the header that `file` begins with.
fn section_lengths(file: &[u8]) -> [u64; SECTIONS] {
    let u32_at = |at: usize| u64::from(u32::from_le_bytes(file[at..at + 4].try_into().unwrap()));
    let u64_at = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap());
    let (width, vocab_size, stride, tokens) = (u32_at(12), u32_at(48), u32_at(52), u64_at(56));
    [
        u64_at(72),
        4 * (vocab_size + 2),
        tokens.div_ceil(stride.max(1)).saturating_mul(32),
        tokens.saturating_mul(width),
        tokens.saturating_mul(4),
    ]
}

/// Opens what `short` stands for, drafts from it and verifies it, and checks what callers rely on.
pub(crate) fn walk(short: &[u8]) -> Result<StoreFile, DatastoreError> {
    let file = StoreFile::from_bytes(Path::new("x.store"), expand(short))?;
    let shard = file.shard();
    let text: Vec<u32> = (0..shard.len().min(SCANNED)).filter_map(|at| shard.token(at)).collect();
    let mut contexts = vec![vec![], vec![0, 1, 2, 3], vec![shard.vocab_size(), u32::MAX, 0, 1]];
    for end in [1, text.len() / 3, text.len() / 2, text.len()] {
        contexts.push(text[..end.min(text.len())].to_vec());
    }
    for context in &contexts {
        draft(shard, context);
    }
    file.verify()?;
    if shard.len() <= SCANNED {
        let queries = contexts.iter().flat_map(|c| [&c[..], &c[c.len().saturating_sub(3)..]]);
        for query in queries.filter(|q| !q.is_empty()) {
            let inside = query.iter().all(|&token| token < shard.vocab_size());
            let stand = text.windows(query.len()).filter(|w| *w == query).count();
            assert_eq!(shard.find(query).len(), if inside { stand } else { 0 }, "{query:?}");
        }
    }
    Ok(file)
}

/// Drafts behind `context` with usual and with extreme options, from one shard and from two.
fn draft(shard: &Shard<Section>, context: &[u32]) {
    let usual = RetrieverOptions::default();
    let extreme = RetrieverOptions {
        longest: 256,
        shortest: 1,
        depth: 40,
        alpha: 0.0,
        levels: 8,
        least: 0.0,
        probes: 4096,
    };
    let shards = [shard.clone(), shard.clone()];
    let (mut nodes, mut again) = (Vec::new(), Vec::new());
    for (options, max_nodes) in [(usual, 16), (extreme, 64)] {
        let mut retriever = Retriever::new(options).unwrap();
        for count in [1, 2] {
            let shards = &shards[..count];
            let found = retriever.draft(context, shards, max_nodes, &mut nodes);
            assert!(nodes.len() <= if found.is_some() { max_nodes } else { 0 });
            check_nodes(&nodes, shard.vocab_size());
            assert_eq!(retriever.draft(context, shards, max_nodes, &mut again), found);
            assert_eq!(nodes, again, "the same at each call");
        }
    }
}

fn check_nodes(nodes: &[DraftNode], vocab_size: u32) {
    for (i, node) in nodes.iter().enumerate() {
        assert!(node.token < vocab_size, "{node:?}");
        assert!((0.0..=1.0).contains(&node.probability), "{node:?}");
        let before = node.parent.map_or(0, |parent| {
            assert!(parent < i, "{node:?}");
            nodes[parent].depth
        });
        assert_eq!(node.depth, before + 1, "{node:?}");
    }
}

/// Checks that an error says something, briefly, on one line.
pub(crate) fn assert_one_line(error: &DatastoreError, about: &str) {
    let text = error.to_string();
    assert!(text.starts_with("x.store: "), "{about}: {text:?}");
    assert!(!text.contains(['\n', '\r', '\u{1b}', '\u{2028}']), "{about}: {text:?}");
    assert!((20..1300).contains(&text.len()), "{about}: {text:?}");
}

/// The short form of a store of `documents`, built in `folder`.
pub(crate) fn built(folder: &Path, vocab_size: u32, documents: &[&[u32]]) -> Vec<u8> {
    let options = BuildOptions {
        folder: folder.to_owned(),
        append: true,
        tokenizer: TokenizerId::from_bytes([7; 32]),
        vocab_size,
        memory: 1 << 20,
        limit: None,
        notes: Notes {
            built_by: "a test".to_owned(),
            sorter: "libsais".to_owned(),
            share: None,
            sources: vec![SourceNote { name: "s".to_owned(), licence: Some("MIT".to_owned()) }],
        },
    };
    let mut go_on = |_: BuildEvent<'_>| ControlFlow::Continue(());
    let mut builder = Builder::new(options, &Libsais, &mut go_on).unwrap();
    for document in documents {
        let _ = builder.add(Path::new("d"), document).unwrap();
    }
    let summary = builder.finish().unwrap();
    let file = std::fs::read(&summary.files[0]).unwrap();
    let mut short = [&[0], &file[..FIELDS]].concat();
    let mut start = PAGE;
    for length in section_lengths(&file) {
        let end = start + length as usize;
        short.extend_from_slice(&file[start..end]);
        start = end.next_multiple_of(PAGE);
    }
    assert_eq!(expand(&short), file, "the layout is not what it was");
    short
}

/// A short form to be changed.
#[derive(Clone)]
struct Draft(Vec<u8>);

impl Draft {
    fn flag(mut self, flag: u8) -> Self {
        self.0[0] |= flag;
        self
    }

    /// Puts `bytes` at this place of the header.
    fn field(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[1 + at..][..bytes.len()].copy_from_slice(bytes);
        self
    }

    fn range(&self, section: usize) -> Range<usize> {
        let lengths = section_lengths(&self.0[1..]);
        let start = 1 + FIELDS + lengths[..section].iter().sum::<u64>() as usize;
        start..start + lengths[section] as usize
    }

    /// Puts `bytes` at this place of a section.
    fn put(mut self, section: usize, at: usize, bytes: &[u8]) -> Self {
        let start = self.range(section).start + at;
        self.0[start..][..bytes.len()].copy_from_slice(bytes);
        self
    }

    fn notes(self, json: &str) -> Self {
        let range = self.range(0);
        let mut with = self.field(72, &(json.len() as u64).to_le_bytes());
        with.0.splice(range, json.bytes());
        with
    }
}

/// Sound stores and such as must be refused.
pub(crate) fn all(folder: &Path) -> Vec<Case> {
    const NOTES: &str = r#""built_by":"b","sorter":"s","share":null"#;
    let text: Vec<u32> = (0..60).map(|i| (i * i + i / 7) % 5).collect();
    let sound = Draft(built(folder, 5, &[&text, &[1, 2], &[3; 9]]));
    let wide = built(&folder.join("wide"), 70, &[&[65, 66, 65, 66, 67], &[65, 66, 67]]);
    let empty = sound.clone().field(56, &[0; 8]).put(1, 0, &[0; 28]);
    let s = || sound.clone();
    let word = |n: u32| n.to_le_bytes();
    let cases = [
        ("sound", s(), None),
        ("sound-wide", Draft(wide), None),
        ("sound-empty", empty, None),
        ("empty", Draft(Vec::new()), Some("begins with")),
        ("cut-in-header", Draft([&[AS_IT_IS], &s().0[1..90]].concat()), Some("is cut off")),
        ("cut", s().flag(CUT), Some("its header says")),
        ("magic", s().field(0, b"OFFSTOR\x1b"), Some("begins with")),
        ("version-2", s().field(8, &word(2)), Some("is of version 2")),
        ("width-5", s().field(12, &word(5)), Some("has 5 bytes a token")),
        ("width-0", s().field(12, &word(0)), Some("has 0 bytes a token")),
        ("stride-0", s().field(52, &word(0)), Some("the shard's stride")),
        ("sizes-2-32", sizes(s(), u32::MAX.into()), Some("its header says")),
        ("sizes-2-64", sizes(s(), u64::MAX), Some("is larger than memory")),
        ("notes-2-64", s().field(72, &[255; 8]), Some("is larger than memory")),
        ("vocabulary-top", s().field(48, &word(u32::MAX)), Some("its header says")),
        ("header-digest", s().flag(HEADER_DIGEST_WRONG), Some("its header is damaged")),
        ("notes-digest", s().flag(1), Some("its notes are damaged")),
        ("buckets-digest", s().flag(2), Some("its buckets are damaged")),
        ("keys-digest", s().flag(4), Some("its keys are damaged")),
        ("tokens-digest", s().flag(8), Some("its tokens are damaged")),
        ("suffixes-digest", s().flag(16), Some("its suffixes are damaged")),
        ("notes-not-json", s().notes("{"), Some("its notes: ")),
        ("notes-deep", s().notes(&"[".repeat(2000)), Some("its notes: ")),
        ("notes-lines", s().notes(r#"{"a\n\u001b[2Jb":1}"#), Some("unknown field")),
        ("notes-long", s().notes(&format!(r#"{{"{}":1}}"#, "n".repeat(2000))), Some("unknown")),
        ("notes-more", s().notes(&format!("{{{NOTES},\"sources\":[]}}[]")), Some("trailing")),
        ("bucket-falls", s().put(1, 8, &word(0)), Some("the one before at")),
        ("bucket-first", s().put(1, 0, &word(1)), Some("bucket 0 begins at 1")),
        ("buckets-short", s().put(1, 24, &word(73)), Some("its buckets hold 73 suffixes")),
        ("bucket-moved", s().put(1, 4, &word(1)), Some("its buckets are not those")),
        ("key-other", s().put(2, 4, &word(9)), Some("its keys are not those")),
        ("token-above", s().put(3, 0, &[255, 255]), Some("token 65535 is outside")),
        ("tokens-above", s().put(3, 0, &[255; 148]), Some("token 65535 is outside")),
        ("token-other", s().put(3, 0, &[4, 0]), Some("are out of order")),
        ("suffix-outside", s().put(4, 40, &word(74)), Some("suffix 10 begins at 74")),
        ("suffixes-outside", s().put(4, 0, &[255; 296]), Some("suffix 0 begins at 4294967295")),
        ("suffixes-zero", s().put(4, 0, &[0; 296]), Some("suffix 1 begins at 0, twice")),
        ("suffixes-in-order-of-text", unsorted(s()), Some("are out of order")),
    ];
    cases.map(|(name, draft, error)| Case { name, short: draft.0, error }).into()
}

/// All that can be counted is this many, in a vocabulary of as many.
fn sizes(sound: Draft, n: u64) -> Draft {
    let vocab_size = (u32::MAX - 2).to_le_bytes();
    sound.field(48, &vocab_size).field(52, &1u32.to_le_bytes()).field(56, &n.to_le_bytes())
}

fn unsorted(sound: Draft) -> Draft {
    let tokens = sound.range(4).len() as u32 / 4;
    let suffixes: Vec<u8> = (0..tokens).flat_map(u32::to_le_bytes).collect();
    sound.put(4, 0, &suffixes)
}
