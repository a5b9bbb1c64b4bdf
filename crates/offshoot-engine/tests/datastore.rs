//! Hostile datastores end in one line of error, without panic and without much memory.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/stores.rs"]
mod stores;

use std::path::Path;

use stores::{all, assert_one_line, walk};

#[test]
fn every_hostile_store_ends_in_the_error_that_names_its_lie() {
    let folder = tempfile::tempdir().unwrap();
    let mut wrong = Vec::new();
    for case in all(folder.path()) {
        let said = walk(&case.short).map(drop).map_err(|error| {
            assert_one_line(&error, case.name);
            error.to_string()
        });
        let as_expected = match (&said, case.error) {
            (Ok(()), None) => true,
            (Err(said), Some(error)) => said.contains(error),
            _ => false,
        };
        if !as_expected {
            wrong.push(format!("{}: {said:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_committed_fuzz_corpus_still_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/store");
    let (mut read, mut refused) = (0, 0);
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        match walk(&std::fs::read(&path).unwrap()) {
            Ok(_) => read += 1,
            Err(error) => {
                assert_one_line(&error, &path.display().to_string());
                refused += 1;
            }
        }
    }
    assert!(read >= 3 && refused >= 30, "{read} read, {refused} refused");
}
