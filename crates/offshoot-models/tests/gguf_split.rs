//! A model in several GGUF files is the model in one, and parts that are not of one model are refused.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::path::{Path, PathBuf};

use offshoot_kernels::{BlockType, Cpu, Isa};
use offshoot_models::gguf::{Export, ExportOptions, join, parse};
use offshoot_models::{BaseId, Checkpoint, Recipe};
use proptest::prelude::*;

mod support;
use support::assert_one_line;
use support::parts::{joined, parts, split};
use support::tiny::{HEAD_DIM, Tiny};

fn name(number: usize, count: usize) -> String {
    format!("tiny-{:05}-of-{count:05}.gguf", number + 1)
}

/// A folder with the parts, under the names that their places give them.
fn save(parts: &[Tiny]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (number, part) in parts.iter().enumerate() {
        std::fs::write(dir.path().join(name(number, parts.len())), part.bytes()).unwrap();
    }
    dir
}

fn whole(tiny: &Tiny) -> Checkpoint {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, tiny.bytes()).unwrap();
    Checkpoint::open(&path).unwrap()
}

/// A model whose rotary factors are in a tensor, which the reader looks into.
fn tiny() -> Tiny {
    let mut tiny = Tiny::llama();
    tiny.vector("rope_freqs.weight", HEAD_DIM / 2);
    tiny
}

#[test]
fn any_part_opens_the_model_that_one_file_has() {
    let expected = whole(&tiny());
    for (count, first_is_empty) in [(2, false), (3, true), (5, false)] {
        let dir = save(&parts(&tiny(), count, first_is_empty));
        let paths: Vec<PathBuf> = (0..count).map(|n| dir.path().join(name(n, count))).collect();
        for path in &paths {
            let split = Checkpoint::open(path).unwrap();
            assert_eq!((split.path(), split.files()), (&**path, &paths[..]));
            assert_eq!((split.config(), split.name()), (expected.config(), expected.name()));
            assert_eq!(split.tokenizer().unwrap(), expected.tokenizer().unwrap());
            assert_eq!(split.chat_template(), expected.chat_template());
            assert_eq!(split.stop_tokens(), expected.stop_tokens());
            assert!(split.unused().is_empty());
            assert_eq!(BaseId::of(&split).unwrap(), BaseId::of(&expected).unwrap());
            for (ours, theirs) in split.tensors().zip(expected.tensors()) {
                assert_eq!((ours.name, ours.block), (theirs.name, theirs.block));
                assert_eq!(ours.bytes(), theirs.bytes(), "{}", ours.name);
            }
        }
    }
}

#[test]
fn what_is_written_of_parts_is_what_is_written_of_one_file() {
    let written = |checkpoint: &Checkpoint| {
        let options = ExportOptions { recipe: Recipe::F16, requantize: true, name: None };
        let mut bytes = Vec::new();
        let export = Export::new(checkpoint, &options).unwrap();
        export.write(&Cpu::new(Isa::best(), 1), &mut bytes, &mut |_| true).unwrap();
        bytes
    };
    let dir = save(&parts(&tiny(), 3, true));
    let split = Checkpoint::open(&dir.path().join(name(1, 3))).unwrap();
    assert!(written(&split) == written(&whole(&tiny())));
}

#[test]
fn a_file_that_calls_itself_the_only_part_is_whole() {
    let mut tiny = tiny();
    tiny.set("split.count", 1u16);
    tiny.set("split.no", 0u16);
    assert_eq!(whole(&tiny).files().len(), 1);
}

/// What is said when the parts are opened by the one of number `given`.
fn refusal(parts: &[Tiny], given: usize) -> String {
    refusal_in(save(parts).path(), given, parts.len())
}

fn refusal_in(dir: &Path, given: usize, count: usize) -> String {
    let error = Checkpoint::open(&dir.join(name(given, count))).unwrap_err();
    assert_one_line(&error, "parts");
    error.to_string()
}

#[test]
fn a_part_that_is_not_there_is_named() {
    let dir = save(&parts(&tiny(), 3, false));
    std::fs::remove_file(dir.path().join(name(1, 3))).unwrap();
    for given in [0, 2] {
        let error = refusal_in(dir.path(), given, 3);
        assert!(error.contains("tiny-00002-of-00003.gguf: missing, part 2 of the mo"), "{error}");
    }
    std::fs::create_dir(dir.path().join(name(1, 3))).unwrap();
    let error = refusal_in(dir.path(), 0, 3);
    assert!(error.contains("tiny-00002-of-00003.gguf: not a regular file"), "{error}");
}

#[test]
fn parts_in_another_order_are_refused() {
    let mut swapped = parts(&tiny(), 3, false);
    swapped.swap(1, 2);
    let error = refusal(&swapped, 0);
    assert!(error.contains(r#"00002-of-00003.gguf: key "split.no": 2, expected 1 of"#), "{error}");
    let mut twice = parts(&tiny(), 3, false);
    twice[2] = twice[1].clone();
    let error = refusal(&twice, 1);
    assert!(error.contains(r#"00003-of-00003.gguf: key "split.no": 1, expected 2 of"#), "{error}");
}

#[test]
fn parts_of_two_models_are_refused() {
    let mut mixed = parts(&tiny(), 3, false);
    mixed[1].set("split.count", 4u16);
    let error = refusal(&mixed, 0);
    assert!(error.contains(r#"00002-of-00003.gguf: key "split.count": 4, expected 3"#), "{error}");
    let error = refusal(&mixed, 1);
    assert!(error.contains("4, expected 3 by the file's name"), "{error}");

    let mut mixed = parts(&tiny(), 3, false);
    mixed[2].set("split.tensors.count", 99i32);
    let error = refusal(&mixed, 0);
    assert!(error.contains(r#""split.tensors.count": 99, expected the first part's"#), "{error}");

    let mut mixed = parts(&tiny(), 3, false);
    mixed[2].set("general.architecture", "qwen2");
    let error = refusal(&mixed, 0);
    assert!(error.contains(r#"key "general.architecture": not as in the first pa"#), "{error}");
    mixed[2].set("general.architecture", "llama");
    Checkpoint::open(&save(&mixed).path().join(name(0, 3))).unwrap();

    let mut mixed = parts(&tiny(), 3, false);
    mixed[1].keys.clear();
    let error = refusal(&mixed, 0);
    assert!(error.contains(r#"key "split.count": missing, expected 3"#), "{error}");
}

#[test]
fn tensors_are_in_one_part_each_and_none_is_left_out() {
    let mut twice = parts(&tiny(), 3, false);
    twice[2].matrix("token_embd.weight", 12, 32, BlockType::Q8_0);
    twice[1].matrix("token_embd.weight", 12, 32, BlockType::Q8_0);
    let error = refusal(&twice, 0);
    assert!(error.contains(r#"tensor "token_embd.weight": in an earlier part too"#), "{error}");

    let mut fewer = parts(&tiny(), 3, false);
    let total = tiny().tensors.len();
    fewer[1].tensors.pop_first();
    let error = refusal(&fewer, 0);
    let expected =
        format!(r#"key "split.tensors.count": {total}, but the parts have {}"#, total - 1);
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn a_part_under_another_name_is_told_how_parts_are_called() {
    let dir = save(&parts(&tiny(), 2, false));
    let path = dir.path().join("model.gguf");
    std::fs::rename(dir.path().join(name(0, 2)), &path).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("split over 2 files, whose names must end in -00001-of-00002"),
        "{error}"
    );
    let mut many = parts(&tiny(), 2, false);
    many[0].set("split.count", u16::MAX);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name(0, usize::from(u16::MAX))), many[0].bytes()).unwrap();
    let error = refusal_in(dir.path(), 0, usize::from(u16::MAX));
    assert!(error.contains("key \"split.count\": 65535, expected 1024"), "{error}");
}

#[test]
fn an_input_of_the_fuzzer_is_the_parts_that_it_was_made_of() {
    let parts = parts(&Tiny::smallest("llama"), 3, true);
    let bytes = joined(&parts);
    let files = split(&bytes);
    assert!(files.iter().copied().eq(parts.iter().map(Tiny::bytes)));
    let read = files.iter().map(|bytes| parse(bytes)).collect::<Result<Vec<_>, _>>().unwrap();
    join(read).unwrap().contents().unwrap();
    assert_eq!(split(&b"\n==\n".repeat(20)).len(), 8);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn mutated_parts_never_panic(
        which in 0usize..3,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
    ) {
        let smallest = Tiny::smallest("llama");
        let mut files: Vec<Vec<u8>> =
            parts(&smallest, 3, false).iter().map(Tiny::bytes).collect();
        // Behind the keys and records of the last two stand their tensors' bytes alone.
        for (at, byte, kind) in changes {
            let at = at.index(files[which].len().min(2000));
            match kind {
                0 => files[which][at] = byte,
                1 => files[which].insert(at, byte),
                _ => drop(files[which].remove(at)),
            }
        }
        let parsed: Result<Vec<_>, _> = files.iter().map(|bytes| parse(bytes)).collect();
        let read = parsed.and_then(|parts| join(parts).map_err(|(part, error)| {
            assert!(part < 3);
            error
        }));
        if let Err(error) = read.and_then(|whole| whole.contents()) {
            assert_one_line(&error, "mutated");
        }
    }
}
