//! The file of an unfinished pull, which any source can continue.

use super::layout::{create_dir, write_whole};
use super::{Progress, Sha256Digest, StoreError};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Where the bytes so far of `file` are.
pub(super) fn path_of(staging: &Path, file: &str) -> PathBuf {
    staging.join(format!("{file}.partial"))
}

/// Beside the bytes so far of `file`, what tells which file they belong to.
pub(super) fn identity_of(staging: &Path, file: &str) -> PathBuf {
    staging.join(format!("{file}.partial.json"))
}

/// What older versions, which knew models of one file alone, called [`identity_of`] that.
const OLDER_IDENTITY: &str = "partial.json";

/// What is promised of a file before it is fetched.
#[derive(Debug, Clone, Default)]
pub(super) struct Promise {
    pub(super) size: Option<u64>,
    pub(super) sha256: Option<Sha256Digest>,
}

/// Which file the bytes so far belong to: its digest, or else the server's name for its version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    sha256: Option<Sha256Digest>,
    etag: Option<String>,
}

/// A file under construction: always a prefix of the promised one, or empty.
pub(super) struct Partial {
    path: PathBuf,
    identity_path: PathBuf,
    identity: Identity,
    file: File,
    len: u64,
    forgotten: u64,
}

impl Partial {
    /// Opens or creates the partial file of `file_name` in `staging`.
    ///
    /// Bytes of an earlier pull are kept if they are known to belong to the promised file, also
    /// where an older version pulled them; [`Partial::forgotten`] says how many were not.
    pub(super) fn open(
        staging: &Path,
        file_name: &str,
        promise: &Promise,
    ) -> Result<Self, StoreError> {
        create_dir(staging)?;
        let path = path_of(staging, file_name);
        let finished = staging.join(file_name);
        if finished.is_file() && !path.exists() {
            // A pull that was stopped between its last two renames.
            fs::rename(&finished, &path).map_err(|e| StoreError::io("reopen", &path, e))?;
        }
        let mut options = OpenOptions::new();
        options.create(true).read(true).write(true).truncate(false);
        let mut file = options.open(&path).map_err(|e| StoreError::io("open", &path, e))?;
        let len = file.seek(SeekFrom::End(0)).map_err(|e| StoreError::io("open", &path, e))?;
        let identity_path = identity_of(staging, file_name);
        let older = staging.join(OLDER_IDENTITY);
        if len > 0 && older.is_file() && !identity_path.exists() {
            fs::rename(&older, &identity_path).map_err(|e| StoreError::io("reopen", &older, e))?;
        }
        let identity = fs::read(&identity_path).ok();
        let identity: Identity =
            identity.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
        let mut partial = Self { path, identity_path, identity, file, len, forgotten: 0 };
        partial.keep_only_if_of(promise)?;
        partial.forgotten = len - partial.len;
        Ok(partial)
    }

    fn keep_only_if_of(&mut self, promise: &Promise) -> Result<(), StoreError> {
        let same = match promise.sha256 {
            Some(sha256) => self.identity.sha256 == Some(sha256),
            None => self.identity.etag.is_some(),
        };
        let fits = promise.size.is_none_or(|size| self.len <= size);
        if !same || !fits {
            self.restart()?;
        }
        if promise.sha256.is_some() && self.identity.sha256 != promise.sha256 {
            self.identify(Identity { sha256: promise.sha256, etag: None })?;
        }
        Ok(())
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of an earlier pull that were not kept.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// The server's name for the version that the bytes so far belong to.
    pub(super) fn etag(&self) -> Option<&str> {
        self.identity.etag.as_deref()
    }

    /// True if the promised digest tells which file the bytes so far belong to.
    pub(super) fn is_of_known_digest(&self) -> bool {
        self.identity.sha256.is_some()
    }

    /// Remembers the server's name for the version about to be written.
    pub(super) fn set_etag(&mut self, etag: Option<String>) -> Result<(), StoreError> {
        if self.identity.etag == etag {
            return Ok(());
        }
        self.identify(Identity { etag, ..self.identity.clone() })
    }

    fn identify(&mut self, identity: Identity) -> Result<(), StoreError> {
        let json = serde_json::to_vec(&identity)
            .map_err(|e| StoreError::Config(format!("{}: {e}", self.identity_path.display())))?;
        write_whole(&self.identity_path, &json)?;
        self.identity = identity;
        Ok(())
    }

    /// Adds bytes at the end. After a failure the bytes so far are still a prefix.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all(bytes);
        if let Err(e) = written {
            let error = StoreError::io("write", &self.path, e);
            // Part of `bytes` may be there; if it cannot be cut off, the digest will tell.
            let _ = self.truncate(self.len);
            return Err(error);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Forgets all bytes.
    pub(super) fn restart(&mut self) -> Result<(), StoreError> {
        self.truncate(0)
    }

    /// Forgets the bytes from `len` on.
    pub(super) fn truncate(&mut self, len: u64) -> Result<(), StoreError> {
        let failed = |e| StoreError::io("truncate", &self.path, e);
        if self.file.metadata().map_err(failed)?.len() > len {
            self.file.set_len(len).map_err(failed)?;
        }
        self.file.seek(SeekFrom::Start(len)).map_err(failed)?;
        self.len = self.len.min(len);
        Ok(())
    }

    /// Checks everything written against the promise, by reading it back from the disk.
    ///
    /// # Errors
    /// [`StoreError::Verification`] after deleting the bytes, if they are not the promised ones.
    pub(super) fn verify(
        &mut self,
        what: &str,
        promise: &Promise,
        progress: &dyn Progress,
    ) -> Result<Sha256Digest, StoreError> {
        self.file.sync_all().map_err(|e| StoreError::io("sync", &self.path, e))?;
        let len =
            fs::metadata(&self.path).map_err(|e| StoreError::io("read", &self.path, e))?.len();
        let (expected, got) = match promise.size {
            Some(size) if size != len => (format!("{size} bytes"), format!("{len} bytes")),
            _ => {
                let sha256 = Sha256Digest::of_file(&self.path, progress)?;
                match promise.sha256.filter(|&promised| promised != sha256) {
                    None => return Ok(sha256),
                    Some(promised) => (format!("sha256 {promised}"), format!("sha256 {sha256}")),
                }
            }
        };
        self.restart()?;
        Err(StoreError::Verification { what: what.to_owned(), expected, got })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Quiet;

    fn promise(size: u64, byte: u8) -> Promise {
        Promise { size: Some(size), sha256: Some(Sha256Digest([byte; 32])) }
    }

    #[test]
    fn bytes_are_kept_for_the_same_digest_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut partial = Partial::open(dir.path(), "f", &promise(10, 1)).unwrap();
        partial.append(b"abc").unwrap();
        drop(partial);
        assert_eq!(Partial::open(dir.path(), "f", &promise(10, 1)).unwrap().len(), 3);
        assert_eq!(Partial::open(dir.path(), "f", &promise(10, 2)).unwrap().len(), 0);
        assert_eq!(Partial::open(dir.path(), "f", &promise(10, 1)).unwrap().len(), 0);
    }

    #[test]
    fn without_a_digest_bytes_are_kept_only_under_an_etag() {
        let dir = tempfile::tempdir().unwrap();
        let unknown = Promise::default();
        let mut partial = Partial::open(dir.path(), "f", &unknown).unwrap();
        partial.append(b"abc").unwrap();
        drop(partial);
        let mut partial = Partial::open(dir.path(), "f", &unknown).unwrap();
        assert_eq!(partial.len(), 0);
        partial.set_etag(Some("\"v1\"".into())).unwrap();
        partial.append(b"abc").unwrap();
        drop(partial);
        let partial = Partial::open(dir.path(), "f", &unknown).unwrap();
        assert_eq!((partial.len(), partial.etag()), (3, Some("\"v1\"")));
    }

    #[test]
    fn what_an_older_version_left_is_gone_on_with_or_known_to_be_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let older = dir.path().join(OLDER_IDENTITY);
        for (promised, kept) in [(1, 3), (2, 0)] {
            fs::write(path_of(dir.path(), "f"), "abc").unwrap();
            let _ = fs::remove_file(identity_of(dir.path(), "f"));
            let sha256 = Sha256Digest([1; 32]);
            let identity = serde_json::json!({ "sha256": sha256, "etag": null });
            fs::write(&older, identity.to_string()).unwrap();
            let partial = Partial::open(dir.path(), "f", &promise(10, promised)).unwrap();
            assert_eq!((partial.len(), partial.forgotten()), (kept, 3 - kept));
            assert!(!older.exists());
        }
    }

    #[test]
    fn a_wrong_digest_deletes_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut partial = Partial::open(dir.path(), "f", &promise(3, 0)).unwrap();
        partial.append(b"abc").unwrap();
        let error = partial.verify("m", &promise(3, 0), &Quiet).unwrap_err();
        assert!(matches!(error, StoreError::Verification { .. }), "{error}");
        assert_eq!(fs::metadata(path_of(dir.path(), "f")).unwrap().len(), 0);
    }

    /// `/dev/full` answers every write with ENOSPC, as a full disk does.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("f.partial")).unwrap();
        let mut partial = Partial::open(dir.path(), "f", &Promise::default()).unwrap();
        let error = partial.append(b"abc").unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");
        assert_eq!(partial.len(), 0);
    }
}
