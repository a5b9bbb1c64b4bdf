//! What the store's tests stand on: a store in a temporary folder and a model to pull into it.

use offshoot_engine::store::{
    Catalogue, EntryState, Event, HttpLimits, ModelRef, Progress, ProxyChoice, PullPolicy, Quiet,
    ResolvedModel, Sha256Digest, Store, StoreConfig, StoreError, Token,
};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

pub(crate) const FILE: &str = "tiny.gguf";
pub(crate) const FILE_REF: &str = "hf:org/repo/tiny.gguf";

/// Bytes of no particular pattern, so that a misplaced range shows.
pub(crate) fn model_bytes(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}

/// A store in a temporary folder, looking at one endpoint and at no package client.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: StoreConfig,
}

impl Bench {
    pub(crate) fn new(endpoint: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig {
            hub_endpoint: endpoint.to_owned(),
            hub_token: None,
            hub_cache: Some(dir.path().join("hub")),
            proxy: ProxyChoice::Direct,
            package_clients: Vec::new(),
            limits: HttpLimits {
                connect: Duration::from_secs(5),
                response: Duration::from_secs(5),
                idle: Duration::from_secs(5),
                retries: 3,
                first_pause: Duration::from_millis(1),
                longest_pause: Duration::from_secs(2),
            },
            ..StoreConfig::at(dir.path())
        };
        Self { dir, config }
    }

    pub(crate) fn with_token(mut self) -> Self {
        self.config.hub_token = Token::new("hf_test");
        self
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.config.clone()).unwrap()
    }

    /// A store whose catalogue has the one model `tiny`, which is `bytes`, with these sources.
    pub(crate) fn store_of(&self, bytes: &[u8], sources: &str) -> Store {
        let json = format!(
            r#"{{"models":[{{"name":"tiny","title":"Tiny","licence":"MIT","file":"{FILE}",
            "size":{},"sha256":"{}","sources":[{sources}]}}]}}"#,
            bytes.len(),
            sha256(bytes)
        );
        Store::with_catalogue(self.config.clone(), Catalogue::parse(&json).unwrap())
    }

    /// `tiny` from the hub alone.
    pub(crate) fn hub_store_of(&self, bytes: &[u8]) -> Store {
        self.store_of(bytes, HUB_SOURCE)
    }

    /// Where an unfinished pull of `tiny` keeps its bytes.
    pub(crate) fn partial(&self) -> std::path::PathBuf {
        self.dir.path().join("models/.partial/tiny").join(format!("{FILE}.partial"))
    }

    /// Fails if a model file is at its final place.
    pub(crate) fn assert_nothing_ready(&self, store: &Store) {
        for entry in store.list().unwrap() {
            assert!(matches!(entry.state, EntryState::Partial { .. }), "{entry:?}");
        }
    }
}

pub(crate) const HUB_SOURCE: &str =
    r#"{"hub":{"repo":"org/repo","file":"tiny.gguf","revision":"main"}}"#;

/// A tree listing of `org/repo` with `files` as large files.
pub(crate) fn tree(files: &[(&str, &[u8])]) -> Vec<u8> {
    let one = |(path, bytes): &(&str, &[u8])| {
        let (size, oid) = (bytes.len(), sha256(bytes));
        format!(
            r#"{{"type":"file","path":"{path}","size":{size},"oid":"0",
            "lfs":{{"oid":"{oid}","size":{size},"pointerSize":1}}}}"#
        )
    };
    let files: Vec<String> = files.iter().map(one).collect();
    format!(r#"[{{"type":"directory","path":"d","oid":"0"}},{}]"#, files.join(",")).into_bytes()
}

pub(crate) fn resolve(store: &Store, name: &str) -> Result<ResolvedModel, StoreError> {
    store.resolve(&name.parse::<ModelRef>()?, PullPolicy::Allow, &Quiet)
}

pub(crate) fn assert_holds(path: &Path, bytes: &[u8]) {
    assert!(std::fs::read(path).unwrap() == bytes, "{} holds other bytes", path.display());
}

/// Keeps the debug form of every event, and stops once `stop_at` bytes are there.
#[derive(Default)]
pub(crate) struct Recorder {
    pub(crate) events: Mutex<Vec<String>>,
    pub(crate) stop_at: Option<u64>,
    stopped: std::sync::atomic::AtomicBool,
}

impl Recorder {
    pub(crate) fn stopping_at(bytes: u64) -> Self {
        Self { stop_at: Some(bytes), ..Self::default() }
    }

    pub(crate) fn saw(&self, what: &str) -> bool {
        self.events.lock().unwrap().iter().any(|e| e.contains(what))
    }
}

impl Progress for Recorder {
    fn event(&self, event: &Event<'_>) {
        self.events.lock().unwrap().push(format!("{event:?}"));
        if let (Event::Bytes { done, .. }, Some(stop_at)) = (event, self.stop_at)
            && *done >= stop_at
        {
            self.stopped.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }

    fn cancelled(&self) -> bool {
        self.stopped.load(std::sync::atomic::Ordering::SeqCst)
    }
}
