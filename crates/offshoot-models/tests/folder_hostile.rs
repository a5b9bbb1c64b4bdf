//! Every hostile folder ends in one line of error that names the file, without panic.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod support;

use std::path::Path;

use offshoot_models::{Checkpoint, Error};
use proptest::prelude::*;
use safetensors::SafeTensors;
use support::assert_one_line;
use support::folder::Sections;
use support::hostile_folders::{self, FAMILIES, of_family, smallest, smallest_of_pieces, sound};

/// As often as the reader of JSON lets nothing nest.
const REPEATS: usize = 100_000;

#[test]
fn every_hostile_folder_ends_in_the_error_that_names_its_lie() {
    for case in hostile_folders::all(REPEATS) {
        let error = match case.sections.walk() {
            Ok(_) => panic!("{}: opened", case.name),
            Err(error) => error,
        };
        assert_one_line(&error, case.name);
        let text = error.to_string();
        assert!(text.contains(case.error), "{}: {text}", case.name);
        let Error::File { path, .. } = &error else { panic!("{}: {text}", case.name) };
        let known = |name: &str| ["json", "safetensors", "jinja"].iter().any(|e| name.ends_with(e));
        assert!(path.to_str().is_some_and(known), "{}: {text}", case.name);
    }
}

#[test]
fn hostile_folders_have_names_of_their_own() {
    let mut names: Vec<_> = hostile_folders::all(1).iter().map(|case| case.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[test]
fn sound_folders_open_and_their_sections_come_apart_as_they_were() {
    for (name, sections) in sound() {
        let contents = sections.walk().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(contents.tokenizer.is_ok() && contents.chat_template.is_some(), "{name}");
        assert_eq!(contents.stop_tokens, [0], "{name}");
        let again = Sections::split(&sections.join()).unwrap();
        assert_eq!(again.walk().unwrap(), contents, "{name}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_loaded_as_a_gguf_files_are() {
    let mut folder = smallest(false);
    let norm = folder.tensors.get_mut("model.norm.weight").unwrap();
    norm.bytes[..4].copy_from_slice(&[0xff, 0x7f, 0x00, 0x7c]);
    folder.sections().walk().unwrap();
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    for family in FAMILIES {
        cut_anywhere(&of_family(family).sections());
    }
    cut_anywhere(&smallest(true).sections());
}

fn cut_anywhere(sections: &Sections) {
    for cut in 0..sections.weights[0].1.len() {
        let mut cut_off = sections.clone();
        cut_off.weights[0].1.truncate(cut);
        assert_one_line(&cut_off.walk().unwrap_err(), &format!("weights cut at {cut}"));
    }
    for cut in 0..sections.config.len() {
        let config = sections.config[..cut].to_vec();
        let error = Sections { config, ..sections.clone() }.walk().unwrap_err();
        assert_one_line(&error, &format!("configuration cut at {cut}"));
    }
}

/// A folder on disk, its weights in two files.
fn saved() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    smallest(false).save_shards(dir.path(), 2);
    dir
}

fn refusal(folder: &Path) -> String {
    let error = Checkpoint::open(folder).unwrap_err();
    assert_one_line(&error, "a folder");
    error.to_string()
}

const SHARD: &str = "model-00002-of-00002.safetensors";

#[test]
fn the_error_of_an_opened_folder_begins_with_its_path() {
    let dir = saved();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let error = refusal(dir.path());
    let path = dir.path().join("config.json");
    assert_eq!(error, format!("{}: architectures: missing", path.display()));
}

#[test]
fn files_that_are_not_there_are_named() {
    let dir = saved();
    std::fs::remove_file(dir.path().join(SHARD)).unwrap();
    let error = refusal(dir.path());
    assert!(error.ends_with("00002.safetensors: missing, model.safetensors.index.json names it"));
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    let error = refusal(dir.path());
    assert!(error.contains("model.safetensors: missing, and there is no model.sa"), "{error}");
    std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
    let error = refusal(dir.path());
    assert!(error.contains("the weights are a torch checkpoint, save them as"), "{error}");
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    let error = refusal(dir.path());
    assert!(error.contains("a folder without config.json; give a GGUF file"), "{error}");
}

#[test]
fn folders_and_empty_files_in_the_place_of_files_are_refused() {
    for name in ["config.json", SHARD, "tokenizer.json", "chat_template.jinja"] {
        let dir = saved();
        let path = dir.path().join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::create_dir(&path).unwrap();
        let error = refusal(dir.path());
        assert!(error.ends_with(&format!("{name}: not a regular file")), "{error}");
    }
    let dir = saved();
    std::fs::write(dir.path().join(SHARD), "").unwrap();
    assert!(refusal(dir.path()).ends_with("the file is empty"));
}

#[cfg(unix)]
#[test]
fn links_stay_in_the_folder_or_lead_to_the_hub_caches_blobs() {
    use std::os::unix::fs::symlink;
    for name in ["config.json", SHARD, "tokenizer.json", "generation_config.json"] {
        let (dir, elsewhere) = (saved(), tempfile::tempdir().unwrap());
        let (path, out) = (dir.path().join(name), elsewhere.path().join(name));
        std::fs::rename(&path, &out).unwrap();
        symlink(&out, &path).unwrap();
        let error = refusal(dir.path());
        assert!(error.contains(&format!("{name}: a link that leads out of the folder")), "{error}");
        std::fs::remove_file(&out).unwrap();
        assert!(matches!(Checkpoint::open(dir.path()).unwrap_err(), Error::Io { .. }));
        // Within the folder a link is as good as the file.
        std::fs::remove_file(&path).unwrap();
        smallest(false).save_shards(dir.path(), 2);
        std::fs::rename(&path, dir.path().join("blob")).unwrap();
        symlink("blob", &path).unwrap();
        Checkpoint::open(dir.path()).unwrap();
    }
    // models--o--r/snapshots/0a/config.json -> ../../blobs/config.json
    let cache = tempfile::tempdir().unwrap();
    let (snapshot, blobs) = (cache.path().join("r/snapshots/0a"), cache.path().join("r/blobs"));
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    smallest(false).save(&blobs);
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        symlink(Path::new("../../blobs").join(name), snapshot.join(name)).unwrap();
    }
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert!(checkpoint.tokenizer().is_ok() && checkpoint.chat_template().is_some());
}

#[test]
fn the_committed_fuzz_corpus_still_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/hf_directory");
    let (mut opened, mut refused) = (0, 0);
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        let read = Sections::split(&std::fs::read(&path).unwrap()).and_then(|it| it.walk());
        match read {
            Ok(_) => opened += 1,
            Err(error) => {
                assert_one_line(&error, &path.display().to_string());
                refused += 1;
            }
        }
    }
    assert!(opened >= 4 && refused >= 100, "{opened} opened, {refused} refused");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_tokenizer_of_pieces_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..4),
    ) {
        let mut folder = smallest_of_pieces();
        let bytes = folder.files.get_mut("tokenizer.json").unwrap();
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                // Another character of the file: much of it stays JSON.
                1 => bytes[at] = bytes[byte as usize % bytes.len()],
                _ => drop(bytes.remove(at)),
            }
        }
        if let Err(error) = folder.sections().walk() {
            assert_one_line(&error, "mutated");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_folder_never_panics(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6),
    ) {
        let sound = sound();
        let mut bytes = sound[which.index(sound.len())].1.join();
        for (at, byte, kind) in changes {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        if let Err(error) = Sections::split(&bytes).and_then(|sections| sections.walk()) {
            assert_one_line(&error, "mutated");
        }
    }

    #[test]
    fn what_is_let_through_is_what_the_safetensors_library_lets_through(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut sections = smallest(false).sections();
        let bytes = &mut sections.weights[0].1;
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte) in changes {
            bytes[at.index(header)] = byte;
        }
        let theirs = SafeTensors::deserialize(bytes).is_ok();
        if sections.walk().is_ok() {
            prop_assert!(theirs);
        }
    }
}
