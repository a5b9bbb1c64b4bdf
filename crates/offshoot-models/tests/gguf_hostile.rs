//! Every hostile file ends in one line of error, without panic and without much memory.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::path::Path;

use offshoot_models::Checkpoint;
use proptest::prelude::*;

mod support;
use support::tiny::{FAMILIES, Tiny};
use support::{assert_one_line, hostile, walk};

#[test]
fn every_hostile_file_ends_in_the_error_that_names_its_lie() {
    for case in hostile::all() {
        let error = match walk(&case.bytes) {
            Ok(_) => panic!("{}: opened", case.name),
            Err(error) => error,
        };
        assert_one_line(&error, case.name);
        let text = error.to_string();
        assert!(text.contains(case.error), "{}: {text}", case.name);
    }
}

#[test]
fn hostile_files_have_names_of_their_own() {
    let mut names: Vec<_> = hostile::all().iter().map(|case| case.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for tiny in [Tiny::llama(), Tiny::qwen2()] {
        let bytes = tiny.bytes();
        let parsed = offshoot_models::gguf::parse(&bytes).unwrap();
        let ends = parsed.tensors().map(|(_, tensor)| tensor.range.end);
        let data = parsed.tensors().map(|(_, tensor)| tensor.range.start).min().unwrap();
        let end = ends.max().unwrap();
        for cut in (0..data).chain((data..end).step_by(101)) {
            let error = walk(&bytes[..cut]).expect_err("cut");
            assert_one_line(&error, &format!("cut at {cut}"));
        }
        walk(&bytes[..end]).expect("whole but for the last padding");
    }
}

#[test]
fn the_error_of_an_opened_file_begins_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for case in hostile::all().iter().filter(|case| case.bytes.starts_with(b"GGUF")) {
        std::fs::write(&path, &case.bytes).unwrap();
        let error = Checkpoint::open(&path).unwrap_err();
        assert_one_line(&error, case.name);
        let text = error.to_string();
        assert!(text.starts_with(path.to_str().unwrap()), "{text}");
        assert!(text.contains(case.error), "{text}");
        assert_eq!(Checkpoint::open_gguf(&path).unwrap_err().to_string(), text);
    }
}

#[test]
fn the_committed_fuzz_corpus_still_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gguf");
    let mut opened = 0;
    let mut refused = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        match walk(&std::fs::read(&path).unwrap()) {
            Ok(_) => opened += 1,
            Err(error) => {
                assert_one_line(&error, &path.display().to_string());
                refused += 1;
            }
        }
    }
    assert!(opened >= 2 && refused >= 50, "{opened} opened, {refused} refused");
}

/// A change to a file's bytes.
#[derive(Debug, Clone)]
enum Mutation {
    Byte(u8),
    Word(u32),
    Long(u64),
    Insert(Vec<u8>),
    Remove(usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let edge = prop_oneof![
        Just(0u64),
        Just(1),
        Just(u64::MAX),
        Just(1 << 63),
        Just(1 << 32),
        Just(i64::MAX as u64),
        0u64..4096,
        any::<u64>(),
    ];
    prop_oneof![
        any::<u8>().prop_map(Mutation::Byte),
        any::<u32>().prop_map(Mutation::Word),
        (0u32..64).prop_map(Mutation::Word),
        edge.prop_map(Mutation::Long),
        prop::collection::vec(any::<u8>(), 1..16).prop_map(Mutation::Insert),
        (1usize..64).prop_map(Mutation::Remove),
    ]
}

fn mutate(bytes: &mut Vec<u8>, at: usize, mutation: &Mutation) {
    let overwrite = |bytes: &mut Vec<u8>, new: &[u8]| {
        let end = bytes.len().min(at + new.len());
        bytes[at..end].copy_from_slice(&new[..end - at]);
    };
    match mutation {
        Mutation::Byte(n) => bytes[at] = *n,
        Mutation::Word(n) => overwrite(bytes, &n.to_le_bytes()),
        Mutation::Long(n) => overwrite(bytes, &n.to_le_bytes()),
        Mutation::Insert(new) => drop(bytes.splice(at..at, new.iter().copied())),
        Mutation::Remove(n) => drop(bytes.drain(at..bytes.len().min(at + n))),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_file_never_panics(
        which in 0..=FAMILIES.len(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), mutation()), 1..6),
    ) {
        let mut bytes = match FAMILIES.get(which) {
            None => support::pieces::smallest().bytes(),
            Some(family) => Tiny::smallest(family).bytes(),
        };
        // The part before the tensors' bytes is what can be hostile.
        let head = bytes.len() - offshoot_models::gguf::parse(&bytes).unwrap().tensors()
            .map(|(_, tensor)| tensor.range.len()).sum::<usize>();
        for (at, mutation) in &mutations {
            let at = at.index(head.min(bytes.len()));
            mutate(&mut bytes, at, mutation);
        }
        if let Err(error) = walk(&bytes) {
            assert_one_line(&error, "mutated");
        }
    }

    #[test]
    fn noise_after_the_magic_never_panics(noise in prop::collection::vec(any::<u8>(), 0..512)) {
        for version in [2u8, 3] {
            let bytes = [b"GGUF".as_slice(), &[version, 0, 0, 0], &noise].concat();
            if let Err(error) = walk(&bytes) {
                assert_one_line(&error, "noise");
            }
        }
    }
}
