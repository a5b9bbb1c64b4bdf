//! Hostile catalogues end in one line of error, without panic and without much memory.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "support/catalogues.rs"]
mod catalogues;

use std::path::Path;

use catalogues::{SOUND, assert_one_line, hostile, run};

#[test]
fn every_hostile_catalogue_ends_in_the_error_that_names_its_lie() {
    run(SOUND).unwrap();
    let mut wrong = Vec::new();
    for case in hostile(100_000) {
        let said = match run(&case.json) {
            Ok(_) => "it was read".to_owned(),
            Err(error) => {
                assert_one_line(&error, case.name);
                error.to_string()
            }
        };
        if !said.contains(case.error) {
            wrong.push(format!("{}: {said:.200}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_committed_fuzz_corpus_still_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/catalogue");
    let (mut read, mut refused) = (0, 0);
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let Ok(json) = String::from_utf8(std::fs::read(&path).unwrap()) else { continue };
        match run(&json) {
            Ok(_) => read += 1,
            Err(error) => {
                assert_one_line(&error, &path.display().to_string());
                refused += 1;
            }
        }
    }
    assert!(read >= 2 && refused >= 40, "{read} read, {refused} refused");
}
