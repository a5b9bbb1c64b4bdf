use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use offshoot_methods::{Retriever, RetrieverOptions};
use offshoot_models::TokenizerId;
use proptest::prelude::*;

use super::suffix_array::tests::Naive;
use super::*;

const TOKENIZER: TokenizerId = TokenizerId::from_bytes([7; 32]);

fn options(folder: &Path, vocab_size: u32, memory: u64) -> BuildOptions {
    BuildOptions {
        folder: folder.to_owned(),
        append: true,
        tokenizer: TOKENIZER,
        vocab_size,
        memory,
        limit: None,
        notes: Notes {
            built_by: "a test".to_owned(),
            sorter: "libsais".to_owned(),
            share: None,
            sources: vec![SourceNote { name: "s".to_owned(), licence: Some("MIT".to_owned()) }],
        },
    }
}

/// Builds a store of `documents`.
fn build(options: BuildOptions, documents: &[Vec<u32>]) -> Result<BuildSummary, DatastoreError> {
    let sorter: &dyn SuffixSorter =
        if options.memory.is_multiple_of(2) { &Libsais } else { &Naive };
    let mut go_on = |_: BuildEvent<'_>| ControlFlow::Continue(());
    let mut builder = Builder::new(options, sorter, &mut go_on)?;
    for document in documents {
        if builder.add(Path::new("d"), document)?.is_break() {
            break;
        }
    }
    builder.finish()
}

fn draft(store: &Datastore, context: &[u32]) -> impl PartialEq + std::fmt::Debug + use<> {
    let mut out = Vec::new();
    let options = RetrieverOptions { probes: usize::MAX, ..RetrieverOptions::default() };
    let found = Retriever::new(options).unwrap().draft(context, store.shards(), 24, &mut out);
    (found, out)
}

fn one_file(documents: &[Vec<u32>], vocab_size: u32) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let summary = build(options(dir.path(), vocab_size, 1 << 30), documents).unwrap();
    let path = summary.files[0].clone();
    (dir, path)
}

/// The smallest memory that a builder obeys: shards of 1024 tokens.
const LITTLE: u64 = 1;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn stores_of_any_width_are_sound_and_the_same_in_parts_and_in_memory(
        documents in prop::collection::vec(prop::collection::vec(0u32..5, 0..300), 1..30),
        vocab_size in prop_oneof![Just(5u32), Just(70_000)],
        end in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        // Ids at the top of the vocabulary, where narrow tokens would be cut.
        let high = |d: &Vec<u32>| d.iter().map(|token| vocab_size - 1 - token).collect();
        let documents: Vec<Vec<u32>> = documents.iter().map(high).collect();
        if documents.iter().all(Vec::is_empty) {
            return Ok(());
        }
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        let one = build(options(&whole, vocab_size, 1 << 30), &documents).unwrap();
        let many = build(options(&parts, vocab_size, LITTLE), &documents).unwrap();
        prop_assert_eq!(one.files.len(), 1);
        let tokens: usize = documents.iter().filter(|d| !d.is_empty()).map(|d| d.len() + 1).sum();
        prop_assert_eq!(one.tokens as usize, tokens);
        prop_assert!(many.tokens as usize <= tokens + 2 * many.files.len());
        let (whole, parts) = (Datastore::open(&whole).unwrap(), Datastore::open(&parts).unwrap());
        for file in whole.files().iter().chain(parts.files()) {
            prop_assert!(file.verify().is_ok(), "{:?}", file.verify());
        }
        let bytes = std::fs::read(whole.files()[0].path()).unwrap();
        let memory = StoreFile::from_bytes(Path::new("m"), bytes).unwrap();
        let memory = Datastore::of(vec![memory]).unwrap();
        let longest = documents.iter().max_by_key(|d| d.len()).unwrap();
        let context = &longest[..end.index(longest.len())];
        prop_assert_eq!(draft(&whole, context), draft(&memory, context));
        if many.files.len() == 1 {
            prop_assert_eq!(draft(&whole, context), draft(&parts, context));
        }
    }
}

#[test]
fn ids_of_four_bytes_are_kept_whole() {
    let (_dir, path) = one_file(&[vec![16_777_300, 84, 16_777_300, 85]], 16_777_301);
    let store = Datastore::open(&path).unwrap();
    assert_eq!(store.shards()[0].find(&[84]).len(), 1);
    assert_eq!(store.shards()[0].find(&[16_777_300, 85]).len(), 1);
    assert!(store.files()[0].verify().is_ok());
}

#[test]
fn several_shards_give_what_one_gives_where_no_document_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let documents: Vec<Vec<u32>> =
        (0..9).map(|d| (0..200u32).map(|i| (i * i + d) % 7).collect()).collect();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    build(options(&whole, 7, 1 << 30), &documents).unwrap();
    for document in documents.chunks(2) {
        build(options(&parts, 7, 1 << 30), document).unwrap();
    }
    let (whole, parts) = (Datastore::open(&whole).unwrap(), Datastore::open(&parts).unwrap());
    assert_eq!(parts.files().len(), 5);
    assert_eq!(parts.tokens(), whole.tokens());
    for end in 0..200 {
        assert_eq!(draft(&whole, &documents[3][..end]), draft(&parts, &documents[3][..end]));
    }
}

#[test]
fn a_store_that_is_read_in_ahead_is_searched_as_before_and_may_be_dropped_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let documents: Vec<Vec<u32>> =
        (0..30).map(|d| (0..100_000u32).map(|i| (i % 997 * i + d) % 251).collect()).collect();
    build(options(dir.path(), 256, 1 << 30), &documents).unwrap();
    let store = Arc::new(Datastore::open(dir.path()).unwrap());
    let pieces: Vec<_> = store.pieces().collect();
    assert!(pieces.len() > 1, "{pieces:?}");
    assert_eq!(pieces.iter().map(|(_, range)| range.len() as u64).sum::<u64>(), store.bytes());
    let before = draft(&store, &documents[7][..50]);
    store.populate();
    store.populate_beside();
    assert_eq!(draft(&store, &documents[7][..50]), before);
    let weak = Arc::downgrade(&store);
    drop(store);
    while weak.strong_count() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn building_again_keeps_what_is_there_and_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let documents = vec![vec![1, 2, 3, 1, 2], vec![2, 2]];
    let first = build(options(dir.path(), 9, 1 << 20), &documents).unwrap();
    let bytes = std::fs::read(&first.files[0]).unwrap();
    assert_eq!(build(options(dir.path(), 9, 1 << 20), &documents).unwrap(), first);
    std::fs::write(&first.files[0], &bytes[..99]).unwrap();
    assert_eq!(build(options(dir.path(), 9, 1 << 20), &documents).unwrap(), first);
    assert_eq!(std::fs::read(&first.files[0]).unwrap(), bytes, "a damaged one is written anew");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    let new = BuildOptions { append: false, ..options(dir.path(), 9, 1 << 20) };
    assert!(matches!(build(new, &documents), Err(DatastoreError::Exists { .. })));
}

#[test]
fn a_limit_ends_building_exactly_and_no_text_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let limited = BuildOptions { limit: Some(8), ..options(dir.path(), 9, 1 << 20) };
    let summary = build(limited, &[vec![1; 4], vec![2; 40], vec![3; 4]]).unwrap();
    assert_eq!((summary.tokens, summary.documents), (8, 2));
    let none = build(options(dir.path(), 9, 1 << 20), &[vec![]]);
    assert!(matches!(none, Err(DatastoreError::NoTokens)));
    let outside = build(options(dir.path(), 9, 1 << 20), &[vec![9]]).unwrap_err().to_string();
    assert!(outside.contains("token 9 is outside the vocabulary of 9"), "{outside}");
}

#[test]
fn documents_that_share_thirteen_tokens_with_an_excluded_text_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut go_on = |_: BuildEvent<'_>| ControlFlow::Continue(());
    let mut builder = Builder::new(options(dir.path(), 99, 1 << 20), &Libsais, &mut go_on).unwrap();
    builder.exclude(&(0..20).collect::<Vec<u32>>());
    let d = Path::new("d");
    let _ = builder.add(d, &[&[50], &(3..16).collect::<Vec<u32>>()[..], &[50]].concat()).unwrap();
    let _ = builder.add(d, &[&[50], &(3..15).collect::<Vec<u32>>()[..], &[50]].concat()).unwrap();
    let summary = builder.finish().unwrap();
    assert_eq!((summary.excluded, summary.documents), (1, 1));
}

#[test]
fn a_request_to_stop_ends_building() {
    let dir = tempfile::tempdir().unwrap();
    let mut stop = |_: BuildEvent<'_>| ControlFlow::Break(());
    let mut builder = Builder::new(options(dir.path(), 9, 1 << 20), &Libsais, &mut stop).unwrap();
    assert!(matches!(builder.add(Path::new("d"), &[1]), Err(DatastoreError::Interrupted)));
}

#[test]
fn a_store_of_another_tokenizer_is_refused() {
    let (dir, path) = one_file(&[vec![1, 2, 3]], 9);
    let store = Datastore::open(dir.path()).unwrap();
    assert!(store.require_tokenizer(TOKENIZER).is_ok());
    let other = TokenizerId::from_bytes([8; 32]);
    let error = store.require_tokenizer(other).unwrap_err().to_string();
    assert!(error.contains("070707070707") && error.contains("080808080808"), "{error}");
    let own = BuildOptions { tokenizer: other, ..options(dir.path(), 9, 1 << 20) };
    build(own, &[vec![4, 4]]).unwrap();
    assert!(matches!(Datastore::open(dir.path()), Err(DatastoreError::Tokenizer { .. })));
    assert!(Datastore::open(&path).is_ok());
}

#[test]
fn every_cut_and_every_flipped_byte_is_told_in_one_line() {
    let (_dir, path) = one_file(&[(0..40).map(|i| i % 5).collect(), vec![1, 2]], 5);
    let sound = std::fs::read(&path).unwrap();
    let check = |bytes: Vec<u8>, what: String| {
        let told = match StoreFile::from_bytes(Path::new("x.store"), bytes) {
            Err(error) => error,
            Ok(file) => {
                let store = Datastore::of(vec![file]).unwrap();
                let _ = draft(&store, &[0, 1, 2, 3]); // ends, whatever stands there
                match store.files()[0].verify() {
                    Err(error) => error,
                    Ok(()) => panic!("{what} passes"),
                }
            }
        };
        let told = told.to_string();
        assert!(told.starts_with("x.store: ") && !told.contains('\n'), "{told:?}");
    };
    let cuts = (0..sound.len()).step_by(997).chain([sound.len() - 1]);
    cuts.for_each(|n| check(sound[..n].to_vec(), format!("a cut to {n}")));
    check([&sound[..], &[0]].concat(), "a byte more".to_owned());
    let sections = [0..4096, 4096..4096 + 60, 8192..8220, 12288..12320, 16384..16420, 20480..20600];
    for at in sections.into_iter().flatten().step_by(3) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x41;
        check(bytes, format!("byte {at}"));
    }
    assert!(StoreFile::open(&path).unwrap().verify().is_ok());
}

#[test]
fn a_folder_without_stores_and_an_empty_file_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let error = Datastore::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("no .store file"), "{error}");
    let path = dir.path().join("a.store");
    std::fs::write(&path, b"").unwrap();
    assert!(Datastore::open(&path).unwrap_err().to_string().contains("is empty"));
    let absent = Datastore::open(&dir.path().join("b.store")).unwrap_err();
    assert!(matches!(absent, DatastoreError::Io { .. }), "{absent}");
}

/// A file as the reference implementation writes it.
fn reference(chunks: &[Vec<u32>], bits: TokenBits) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in chunks {
        let tokens: Vec<u8> = match bits {
            TokenBits::Sixteen => chunk.iter().flat_map(|&t| (t as u16).to_le_bytes()).collect(),
            TokenBits::ThirtyTwo => chunk.iter().flat_map(|t| t.to_le_bytes()).collect(),
        };
        let mut text: Vec<i32> = chunk.iter().map(|&t| t as i32).collect();
        out.extend((tokens.len() as u32).to_le_bytes());
        out.extend(tokens);
        out.extend((4 * chunk.len() as u32).to_le_bytes());
        out.extend(Naive.sort(&mut text).unwrap().into_iter().flat_map(u32::to_le_bytes));
    }
    out
}

fn import(
    folder: &Path,
    bytes: &[u8],
    bits: TokenBits,
    separator: Option<u32>,
) -> Result<BuildSummary, DatastoreError> {
    let path = folder.join("datastore.idx");
    std::fs::write(&path, bytes).unwrap();
    let mut go_on = |_: BuildEvent<'_>| ControlFlow::Continue(());
    let options = options(&folder.join("out"), 70_000, 1 << 20);
    let mut builder = Builder::new(options, &Libsais, &mut go_on)?;
    let _ = import_reference(&path, bits, separator, &mut builder)?;
    builder.finish()
}

#[test]
fn a_reference_store_is_imported_with_its_documents() {
    let chunks = [vec![1, 5, 6, 7, 1, 5, 6], vec![1, 65_000, 3]];
    for bits in [TokenBits::Sixteen, TokenBits::ThirtyTwo] {
        let dir = tempfile::tempdir().unwrap();
        let summary = import(dir.path(), &reference(&chunks, bits), bits, Some(1)).unwrap();
        assert_eq!(summary.documents, 3);
        let store = Datastore::open(&dir.path().join("out")).unwrap();
        let shard = &store.shards()[0];
        let text: Vec<u32> = (0..shard.len()).map(|at| shard.token(at).unwrap()).collect();
        assert_eq!(text, [5, 6, 7, 70_000, 5, 6, 70_000, 65_000, 3, 70_000]);
        assert!(store.files()[0].verify().is_ok());
    }
}

#[test]
fn a_broken_reference_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sound = reference(&[vec![1, 5, 6, 7], vec![2, 3]], TokenBits::Sixteen);
    for cut in (1..sound.len()).filter(|&n| n != 32) {
        let error = import(dir.path(), &sound[..cut], TokenBits::Sixteen, None).unwrap_err();
        assert!(matches!(error, DatastoreError::Source { .. }), "{cut}: {error}");
    }
    let error = import(dir.path(), &sound, TokenBits::ThirtyTwo, None).unwrap_err().to_string();
    assert!(error.contains("width"), "{error}");
}
