//! Models in folders: what is remembered of them is remembered of all their files.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

#[path = "../../offshoot-models/tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::time::{Duration, SystemTime};

use offshoot_engine::{LoadOptions, MemoryNeed, Model};
use offshoot_models::{BaseId, Checkpoint};
use support::hostile_folders::smallest;

fn load(folder: &Path, cache: Option<&Path>) -> Model {
    let cache = cache.map(Path::to_owned);
    let options = LoadOptions { threads: 1, cache, ..LoadOptions::default() };
    Model::load(folder, &options).unwrap().0
}

/// Lets all files be old enough for their digests to be remembered.
fn settle(folder: &Path) {
    let then = SystemTime::now() - Duration::from_secs(60);
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = std::fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
        file.set_modified(then).unwrap();
    }
}

#[test]
fn packed_weights_and_base_id_are_kept_by_the_bytes_of_all_files() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut folder = smallest(false);
    folder.save_shards(dir.path(), 3);
    settle(dir.path());
    let expected = |folder: &Path| BaseId::of(&Checkpoint::open(folder).unwrap()).unwrap();
    for again in [false, true] {
        let model = load(dir.path(), Some(cache.path()));
        assert_eq!(model.packed().unwrap().from_cache(), again);
        assert_eq!(model.base_id().unwrap(), expected(dir.path()));
        assert_eq!(model.file_digest().unwrap(), load(dir.path(), None).file_digest().unwrap());
        assert_eq!(load(dir.path(), None).base_id().unwrap(), expected(dir.path()));
    }
    // One weight of the last file, whose name and size stay.
    let weight = folder.tensors.get_mut("model.layers.0.self_attn.v_proj.weight").unwrap();
    weight.bytes[0] ^= 1;
    let before = load(dir.path(), Some(cache.path()));
    let (id, digest) = (before.base_id().unwrap(), before.digest().copied());
    drop(before);
    folder.save_shards(dir.path(), 3);
    let after = load(dir.path(), Some(cache.path()));
    assert!(!after.packed().unwrap().from_cache());
    assert_ne!(after.digest().copied(), digest);
    assert_ne!(after.base_id().unwrap(), id);
    assert_eq!(after.base_id().unwrap(), expected(dir.path()));
}

#[test]
fn a_folder_in_one_file_takes_the_memory_of_one_in_several() {
    let (one, three) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    smallest(true).save(one.path());
    smallest(true).save_shards(three.path(), 3);
    let need = |folder: &Path| MemoryNeed::of(&Checkpoint::open(folder).unwrap());
    assert_eq!(need(one.path()), need(three.path()));
    assert!(need(one.path()).weights > 0);
}
