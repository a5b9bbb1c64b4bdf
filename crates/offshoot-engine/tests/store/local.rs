//! What is on this machine already: paths, the store's own folders, and the hub's cache.

use crate::bench::*;
use crate::server::{Answer, Server};
use offshoot_engine::store::{EntryState, Network, Origin, PullPolicy, Quiet, StoreError};
use std::fs;
use std::path::PathBuf;

fn serving(bytes: &[u8]) -> Server {
    let body = bytes.to_vec();
    Server::start(move |request, _| Answer::ranged(request, &body))
}

#[test]
fn a_path_resolves_to_itself_or_says_what_is_there() {
    let bench = Bench::new("http://127.0.0.1:9");
    let file = bench.dir.path().join("my-model.gguf");
    fs::write(&file, "x").unwrap();
    let found = resolve(&bench.store(), file.to_str().unwrap()).unwrap();
    assert_eq!((found.name.as_str(), found.origin), ("my-model", Origin::File));
    let part = bench.dir.path().join("my-model-00001-of-00002.gguf");
    fs::write(&part, "x").unwrap();
    let found = resolve(&bench.store(), part.to_str().unwrap()).unwrap();
    assert_eq!((found.name.as_str(), &found.path), ("my-model", &part));
    let folder = bench.dir.path().to_str().unwrap();
    let error = resolve(&bench.store(), folder).unwrap_err();
    assert!(
        error.to_string().contains("is neither a file nor a folder with a config.json"),
        "{error}"
    );
    let error = resolve(&bench.store(), "./absent.gguf").unwrap_err();
    assert!(matches!(error, StoreError::NoSuchFile { .. }), "{error}");
    let error = bench.store().pull(&file.to_str().unwrap().parse().unwrap(), &Quiet).unwrap_err();
    assert!(error.to_string().contains("it is a path"), "{error}");
}

#[test]
fn a_folder_with_a_configuration_is_a_model_of_its_name() {
    let bench = Bench::new("http://127.0.0.1:9");
    let folder = bench.dir.path().join("My-Model.v2");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), "{}").unwrap();
    for path in [folder.clone(), folder.join("."), folder.join("../My-Model.v2")] {
        let found = resolve(&bench.store(), path.to_str().unwrap()).unwrap();
        assert_eq!((found.name.as_str(), found.path), ("My-Model.v2", path));
        assert_eq!((found.origin, found.sha256), (Origin::File, None));
    }
}

#[test]
fn an_unknown_name_suggests_the_nearest_and_lists_all() {
    let bench = Bench::new("http://127.0.0.1:9");
    let error = resolve(&bench.store(), "smolm2").unwrap_err().to_string();
    assert!(error.contains("did you mean `smollm2`?"), "{error}");
    assert!(error.contains("qwen2.5-coder"), "{error}");
    let error = resolve(&bench.store(), "zzz").unwrap_err().to_string();
    assert!(!error.contains("did you mean"), "{error}");
}

#[test]
fn a_pulled_model_is_listed_shown_found_offline_and_removed() {
    let bytes = model_bytes(1000);
    let hub = serving(&bytes);
    let bench = Bench::new(&hub.url());
    let store = bench.hub_store_of(&bytes);
    assert!(store.list().unwrap().is_empty());
    let found = resolve(&store, "Tiny").unwrap();
    assert_eq!(found.licence.as_deref(), Some("MIT"));
    let entries = store.list().unwrap();
    assert_eq!(entries, [store.show("tiny").unwrap()]);
    let EntryState::Ready { path, manifest } = &entries[0].state else { panic!("{entries:?}") };
    assert_eq!((path, manifest.size, manifest.sha256), (&found.path, 1000, sha256(&bytes)));
    assert!(manifest.pulled_unix_s > 1_700_000_000);
    let error = store.remove("tinny").unwrap_err().to_string();
    assert!(error.contains("did you mean `tiny`?"), "{error}");
    let again = store.resolve(&"tiny".parse().unwrap(), PullPolicy::Offline, &Quiet).unwrap();
    assert_eq!(again, found);
    assert_eq!(hub.seen().len(), 1);
    store.remove("tiny").unwrap();
    assert!(store.list().unwrap().is_empty());
    assert!(!found.path.exists());
    let error = store.remove("tiny").unwrap_err();
    assert!(matches!(error, StoreError::NotInstalled { .. }), "{error}");
    assert!(matches!(store.show("tiny").unwrap_err(), StoreError::NotInstalled { .. }));
}

#[test]
fn a_damaged_model_is_shown_as_such_and_pulled_again() {
    let bytes = model_bytes(1000);
    let hub = serving(&bytes);
    let bench = Bench::new(&hub.url());
    let store = bench.hub_store_of(&bytes);
    let path = resolve(&store, "tiny").unwrap().path;
    fs::write(&path, &bytes[..999]).unwrap();
    let EntryState::Damaged { why } = store.show("tiny").unwrap().state else { panic!("ready") };
    assert!(why.contains("999 bytes, not 1000"), "{why}");
    assert_holds(&resolve(&store, "tiny").unwrap().path, &bytes);
}

#[test]
fn a_pull_stopped_between_its_last_renames_is_finished_without_fetching() {
    let bytes = model_bytes(1000);
    let hub = serving(&bytes);
    let bench = Bench::new(&hub.url());
    let store = bench.hub_store_of(&bytes);
    let path = resolve(&store, "tiny").unwrap().path;
    // Back to where the file and its manifest are complete but their folder is not in place.
    let staging = bench.partial().parent().unwrap().to_owned();
    fs::rename(path.parent().unwrap(), &staging).unwrap();
    let identity = format!(r#"{{"sha256":"{}","etag":null}}"#, sha256(&bytes));
    fs::write(staging.join(format!("{FILE}.partial.json")), identity).unwrap();
    bench.assert_nothing_ready(&store);
    assert_holds(&resolve(&store, "tiny").unwrap().path, &bytes);
    assert_eq!(hub.seen().len(), 1);
}

#[test]
fn offline_means_no_request_and_says_where_it_looked() {
    let hub = serving(b"abc");
    let mut bench = Bench::new(&hub.url());
    let store = bench.hub_store_of(b"abc");
    for name in ["tiny", "hf:org/repo", FILE_REF] {
        let error = store.resolve(&name.parse().unwrap(), PullPolicy::Offline, &Quiet).unwrap_err();
        let StoreError::Offline { looked, .. } = &error else { panic!("{error}") };
        assert_eq!(looked, &[bench.dir.path().join("models"), bench.dir.path().join("hub")]);
    }
    bench.config.network = Network::Off;
    let error = resolve(&bench.hub_store_of(b"abc"), "tiny").unwrap_err();
    assert!(matches!(error, StoreError::Offline { .. }), "{error}");
    assert!(hub.seen().is_empty());
}

/// Puts a file into the bench's hub cache as the hub's own tools would.
fn cache(bench: &Bench, file: &str, bytes: &[u8]) -> PathBuf {
    let repo = bench.dir.path().join("hub/models--org--repo");
    let snapshot = repo.join("snapshots/c0ffee");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), "c0ffee").unwrap();
    fs::write(snapshot.join(file), bytes).unwrap();
    snapshot.join(file)
}

#[test]
fn a_file_in_the_hub_cache_is_used_and_not_touched() {
    let bytes = model_bytes(1000);
    let hub = serving(&bytes);
    let bench = Bench::new(&hub.url());
    let cached = cache(&bench, FILE, &bytes);
    let store = bench.hub_store_of(&bytes);
    for name in ["tiny", FILE_REF, "hf:org/repo", "hf:org/repo/tiny.gguf@c0ffee"] {
        let name = name.parse().unwrap();
        let found = store.resolve(&name, PullPolicy::Offline, &Quiet).unwrap();
        assert_eq!((&found.path, found.origin), (&cached, Origin::HubCache), "{name}");
    }
    let other = "hf:org/repo/tiny.gguf@v2".parse().unwrap();
    assert!(store.resolve(&other, PullPolicy::Offline, &Quiet).is_err());
    assert!(matches!(store.remove("tiny"), Err(StoreError::NotInstalled { .. })));
    assert_holds(&cached, &bytes);
    assert!(hub.seen().is_empty());
}

#[test]
fn a_repository_without_gguf_files_is_its_snapshot_once_that_is_whole() {
    let bench = Bench::new("http://127.0.0.1:9");
    let repo = "hf:org/repo".parse().unwrap();
    let resolve = || bench.store().resolve(&repo, PullPolicy::Offline, &Quiet);
    cache(&bench, "config.json", b"{}");
    assert!(resolve().is_err());
    let weights = cache(&bench, "model.safetensors.index.json", b"{}");
    let found = resolve().unwrap();
    assert_eq!((found.path.as_path(), found.origin), (weights.parent().unwrap(), Origin::HubCache));
    assert_eq!(found.name, "hf:org/repo");
    // A GGUF file goes before it.
    let file = cache(&bench, FILE, b"abc");
    assert_eq!(resolve().unwrap().path, file);
}

#[test]
fn a_cached_file_that_is_not_the_catalogues_is_passed_over() {
    let bytes = model_bytes(1000);
    let hub = serving(&bytes);
    let bench = Bench::new(&hub.url());
    cache(&bench, FILE, &vec![0; 1000]);
    let found = resolve(&bench.hub_store_of(&bytes), "tiny").unwrap();
    assert_eq!(found.origin, Origin::Store);
    assert_holds(&found.path, &bytes);
}

#[test]
fn a_hub_cache_ref_cannot_lead_out_of_the_cache() {
    let bench = Bench::new("http://127.0.0.1:9");
    cache(&bench, FILE, b"abc");
    let outside = bench.dir.path().join("hub/models--org--repo/outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join(FILE), "out").unwrap();
    let refs = bench.dir.path().join("hub/models--org--repo/refs/main");
    fs::write(refs, "../outside").unwrap();
    let name = FILE_REF.parse().unwrap();
    assert!(bench.store().resolve(&name, PullPolicy::Offline, &Quiet).is_err());
}
