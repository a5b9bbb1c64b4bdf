//! Models in parts: all of them or nothing, continued where a pull broke.

use crate::bench::*;
use crate::server::{Answer, Request, Server};
use offshoot_engine::store::{EntryState, PullPolicy, Quiet, StoreError};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

const PARTS: [&str; 3] =
    ["q8/m-00001-of-00003.gguf", "q8/m-00002-of-00003.gguf", "q8/m-00003-of-00003.gguf"];
const NAME: &str = "hf:org/repo/q8/m-00001-of-00003.gguf";

fn bytes_of(part: usize) -> Vec<u8> {
    let mut bytes = model_bytes(400_000 + part);
    bytes.rotate_left(1 + part);
    bytes
}

/// What a hub with the three parts answers.
fn answer(request: &Request) -> Answer {
    if request.path.contains("/tree/") {
        let bytes = [0, 1, 2].map(bytes_of);
        let files: Vec<(&str, &[u8])> =
            PARTS.into_iter().zip(bytes.iter().map(Vec::as_slice)).collect();
        return Answer::ok(&tree(&files));
    }
    match PARTS.iter().position(|part| request.path.ends_with(part)) {
        Some(part) => Answer::ranged(request, &bytes_of(part)),
        None => Answer::status(404),
    }
}

fn downloads(hub: &Server) -> Vec<(String, Option<usize>)> {
    let all = hub.seen().into_iter().filter(|request| request.path.contains("/resolve/"));
    all.map(|r| (r.path.rsplit('/').next().unwrap().to_owned(), r.range_start())).collect()
}

#[test]
fn all_parts_are_pulled_whichever_is_named_and_none_twice() {
    for name in ["hf:org/repo", NAME, "hf:org/repo/q8/m-00002-of-00003.gguf"] {
        let hub = Server::start(|request, _| answer(request));
        let bench = Bench::new(&hub.url());
        let seen = Recorder::default();
        let found =
            bench.store().resolve(&name.parse().unwrap(), PullPolicy::Allow, &seen).unwrap();
        assert_eq!((found.name.as_str(), found.sha256), (NAME, None));
        let folder = found.path.parent().unwrap();
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        assert_eq!(files.len(), 4, "three parts and their manifest: {files:?}");
        assert_eq!(found.path, files[0]);
        for (part, path) in files[..3].iter().enumerate() {
            assert!(PARTS[part].ends_with(path.file_name().unwrap().to_str().unwrap()));
            assert_holds(path, &bytes_of(part));
        }
        assert!(seen.saw("Bytes { done: 1200003, total: Some(1200003) }"), "bytes of all parts");
        let EntryState::Ready { manifest, .. } = bench.store().show(NAME).unwrap().state else {
            panic!("not ready");
        };
        assert_eq!((manifest.size, manifest.total_size()), (400_000, 1_200_003));
        assert_eq!(manifest.more[1].sha256, sha256(&bytes_of(2)));
        let before = hub.seen().len();
        for again in ["hf:org/repo", "hf:org/repo/q8/m-00003-of-00003.gguf"] {
            let again = bench.store().resolve(&again.parse().unwrap(), PullPolicy::Offline, &Quiet);
            assert_eq!(again.unwrap(), found);
        }
        assert_eq!((before, hub.seen().len()), (4, 4));
        let last = "hf:org/repo/q8/m-00003-of-00003.gguf";
        let part = if name == "hf:org/repo" { last } else { name };
        assert_eq!(bench.store().show(part).unwrap().name, NAME);
        assert_eq!(bench.store().remove(part).unwrap().name, NAME, "a part stands for the whole");
        assert!(bench.store().list().unwrap().is_empty());
    }
}

#[test]
fn a_pull_that_broke_in_the_second_part_goes_on_there_and_nothing_is_ready_before() {
    let broken = std::sync::Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    let hub = Server::start(move |request, _| {
        let second = request.path.ends_with(PARTS[1]);
        match is_broken.load(Ordering::SeqCst) && second {
            true if request.range_start().is_none() => answer(request).cut_after(150_000),
            true => Answer::status(500),
            false => answer(request),
        }
    });
    let bench = Bench::new(&hub.url());
    let error = resolve(&bench.store(), NAME).unwrap_err();
    assert!(matches!(error, StoreError::Network { .. }), "{error}");
    let EntryState::Partial { bytes } = bench.store().show(NAME).unwrap().state else {
        panic!("not partial");
    };
    assert_eq!(bytes, 400_000 + 150_000);
    broken.store(false, Ordering::SeqCst);
    let before = downloads(&hub).len();
    let found = resolve(&bench.store(), NAME).unwrap();
    let name = |part: usize| PARTS[part].rsplit('/').next().unwrap().to_owned();
    assert_eq!(downloads(&hub)[before..], [(name(1), Some(150_000)), (name(2), None)]);
    for part in 0..3 {
        assert_holds(&found.path.with_file_name(name(part)), &bytes_of(part));
    }
}

#[test]
fn a_part_that_is_missing_or_wrong_leaves_no_model() {
    // Not listed: told before anything is fetched.
    let hub = Server::start(|request, _| match request.path.contains("/tree/") {
        true => Answer::ok(&tree(&[(PARTS[0], &bytes_of(0)), (PARTS[2], &bytes_of(2))])),
        false => answer(request),
    });
    let bench = Bench::new(&hub.url());
    let error = resolve(&bench.store(), NAME).unwrap_err();
    assert!(matches!(error, StoreError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains(PARTS[1]), "{error}");
    assert_eq!(downloads(&hub), []);
    // Listed, but another file is sent.
    let hub = Server::start(|request, _| match request.path.ends_with(PARTS[2]) {
        true => Answer::ranged(request, &[7; 400_002]),
        false => answer(request),
    });
    let bench = Bench::new(&hub.url());
    let error = resolve(&bench.store(), NAME).unwrap_err();
    let StoreError::Verification { what, .. } = &error else { panic!("{error}") };
    assert!(what.contains(PARTS[2]), "{what}");
    bench.assert_nothing_ready(&bench.store());
}

#[test]
fn a_ready_model_that_lost_a_part_is_damaged_and_mended() {
    let hub = Server::start(|request, _| answer(request));
    let bench = Bench::new(&hub.url());
    let path = resolve(&bench.store(), NAME).unwrap().path;
    let last = path.with_file_name("m-00003-of-00003.gguf");
    fs::remove_file(&last).unwrap();
    let EntryState::Damaged { why } = bench.store().show(NAME).unwrap().state else {
        panic!("ready")
    };
    assert!(why.contains("m-00003-of-00003.gguf"), "{why}");
    resolve(&bench.store(), NAME).unwrap();
    assert_holds(&last, &bytes_of(2));
}

#[test]
fn parts_in_the_hubs_cache_are_a_model_if_all_are_there() {
    let bench = Bench::new("http://127.0.0.1:9");
    let repo = bench.dir.path().join("hub/models--org--repo");
    let folder = repo.join("snapshots/c0ffee/q8");
    fs::create_dir_all(&folder).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), "c0ffee").unwrap();
    for part in [0, 2] {
        fs::write(folder.parent().unwrap().join(PARTS[part]), bytes_of(part)).unwrap();
    }
    let find = || bench.store().resolve(&NAME.parse().unwrap(), PullPolicy::Offline, &Quiet);
    assert!(matches!(find().unwrap_err(), StoreError::Offline { .. }));
    fs::write(folder.parent().unwrap().join(PARTS[1]), bytes_of(1)).unwrap();
    assert_eq!(find().unwrap().path, folder.join("m-00001-of-00003.gguf"));
}
