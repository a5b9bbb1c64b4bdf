//! The cache that the hub's own tools keep, read so that nothing is fetched twice.
//!
//! Its layout is that of huggingface_hub's "Understand caching" guide:
//! `models--ORG--REPO/refs/REVISION` holds a commit, `snapshots/COMMIT/FILE` links to a blob.

use super::Sha256Digest;
use std::fs;
use std::path::{Path, PathBuf};

/// A user's hub cache. Nothing in it is ever written or removed.
pub(super) struct HubCache<'a> {
    root: &'a Path,
}

impl<'a> HubCache<'a> {
    pub(super) fn new(root: &'a Path) -> Self {
        Self { root }
    }

    fn repo(&self, repo: &str) -> PathBuf {
        self.root.join(format!("models--{}", repo.replace('/', "--")))
    }

    /// The snapshot of a branch, tag or commit, if it is there.
    pub(super) fn snapshot(&self, repo: &str, revision: &str) -> Option<PathBuf> {
        let folder = self.repo(repo);
        let commit = fs::read_to_string(folder.join("refs").join(revision)).ok();
        let commit = commit.as_deref().map_or(revision, str::trim);
        // A damaged ref must not lead out of the cache.
        let plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
        let snapshot = folder.join("snapshots").join(commit);
        (plain && snapshot.is_dir()).then_some(snapshot)
    }

    /// The file of a revision, if it is there.
    pub(super) fn file(&self, repo: &str, file: &str, revision: &str) -> Option<PathBuf> {
        let path = self.snapshot(repo, revision)?.join(file);
        path.is_file().then_some(path)
    }

    /// The files at the top of a revision's snapshot.
    pub(super) fn files(&self, repo: &str, revision: &str) -> Vec<String> {
        let Some(snapshot) = self.snapshot(repo, revision) else { return Vec::new() };
        let entries = fs::read_dir(snapshot).into_iter().flatten().flatten();
        let files = entries.filter(|e| e.path().is_file());
        files.filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    /// The file in any snapshot that has this size and passes `has_digest`.
    pub(super) fn file_of_digest(
        &self,
        repo: &str,
        file: &str,
        size: u64,
        sha256: Sha256Digest,
        has_digest: impl Fn(&Path, Sha256Digest) -> bool,
    ) -> Option<PathBuf> {
        let snapshots = fs::read_dir(self.repo(repo).join("snapshots")).ok()?;
        let paths = snapshots.flatten().map(|snapshot| snapshot.path().join(file));
        let sized =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == size);
        paths.filter(sized).find(|path| has_digest(path, sha256))
    }
}
