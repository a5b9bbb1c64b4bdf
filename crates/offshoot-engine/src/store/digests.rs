//! Digests of files, remembered so that a large file is read once.

use super::layout::write_whole;
use super::sha256::{parse_hex32, write_hex};
use super::{Progress, Sha256Digest, StoreError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Files remembered before those that are gone are forgotten.
const MANY_FILES: usize = 512;
/// The coarsest clock of a common file system, FAT's: a file changed this recently could change
/// again without its time of change telling.
const RACY: Duration = Duration::from_secs(2);

/// Digests by absolute path, size, time of change and the identity they stand for.
///
/// An identity is a name such as `blake3` for the file itself, or a caller's own for something
/// derived from it. The memory is one small JSON file; if that is damaged or cannot be written,
/// digests are computed again and nothing else changes.
#[derive(Debug)]
pub struct FileDigests {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Known {
    files: BTreeMap<String, FileRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileRecord {
    size: u64,
    mtime_ns: u64,
    digests: BTreeMap<String, String>,
}

/// A file's state as far as the system tells it.
struct Stamp {
    path: String,
    size: u64,
    mtime_ns: u64,
    settled: bool,
}

impl FileDigests {
    /// Opens the memory at `path`; a missing or damaged file is an empty memory.
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned(), known: Mutex::new(read(path)) }
    }

    /// The digest called `identity` of the file at `path`, from memory or else from `compute`.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be examined; whatever `compute` fails with.
    pub fn digest_of<E: From<StoreError>>(
        &self,
        path: &Path,
        identity: &str,
        compute: impl FnOnce(&Path) -> Result<[u8; 32], E>,
    ) -> Result<[u8; 32], E> {
        let before = stamp(path)?;
        if let Some(digest) = before.as_ref().and_then(|s| self.recall(s, identity)) {
            return Ok(digest);
        }
        let digest = compute(path)?;
        if let (Some(before), Some(after)) = (before, stamp(path)?)
            && after.settled
            && (before.size, before.mtime_ns) == (after.size, after.mtime_ns)
        {
            self.remember(after, identity, digest);
        }
        Ok(digest)
    }

    /// The BLAKE3 digest of the whole file at `path`.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file cannot be read.
    pub fn blake3_of(&self, path: &Path) -> Result<[u8; 32], StoreError> {
        self.digest_of(path, "blake3", |path| {
            hash(path).map_err(|e| StoreError::io("read", path, e))
        })
    }

    /// One digest of several files in this order, made of their BLAKE3 digests; that of one file is
    /// its own.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a file cannot be read.
    pub fn blake3_of_all(&self, paths: &[PathBuf]) -> Result<[u8; 32], StoreError> {
        let digests = paths.iter().map(|path| self.blake3_of(path));
        Ok(joined(&digests.collect::<Result<Vec<_>, _>>()?))
    }

    /// The SHA-256 of the whole file at `path`.
    pub(super) fn sha256_of(
        &self,
        path: &Path,
        progress: &dyn Progress,
    ) -> Result<Sha256Digest, StoreError> {
        let compute = |path: &Path| Sha256Digest::of_file(path, progress).map(|digest| digest.0);
        self.digest_of(path, "sha256", compute).map(Sha256Digest)
    }

    fn recall(&self, stamp: &Stamp, identity: &str) -> Option<[u8; 32]> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let record = known.files.get(&stamp.path)?;
        let current = record.size == stamp.size && record.mtime_ns == stamp.mtime_ns;
        parse_hex32(record.digests.get(identity).filter(|_| current)?)
    }

    /// Adds a digest to what is in the file now, so that other processes' digests stay.
    fn remember(&self, stamp: Stamp, identity: &str, digest: [u8; 32]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = std::mem::take(&mut known.files);
        known.files = read(&self.path).files;
        for (path, record) in ours {
            known.files.entry(path).or_insert(record);
        }
        if known.files.len() > MANY_FILES {
            known.files.retain(|path, _| Path::new(path).exists());
        }
        known.add(stamp, identity, digest);
        // A memory that cannot be written is no reason to fail.
        if let Ok(json) = serde_json::to_vec_pretty(&*known) {
            let folder = self.path.parent().unwrap_or(Path::new("."));
            let _ = fs::create_dir_all(folder).is_ok() && write_whole(&self.path, &json).is_ok();
        }
    }
}

impl Known {
    fn add(&mut self, stamp: Stamp, identity: &str, digest: [u8; 32]) {
        let fresh =
            || FileRecord { size: stamp.size, mtime_ns: stamp.mtime_ns, digests: BTreeMap::new() };
        let record = self.files.entry(stamp.path).or_insert_with(fresh);
        if (record.size, record.mtime_ns) != (stamp.size, stamp.mtime_ns) {
            *record = fresh();
        }
        let mut hex = String::with_capacity(64);
        // Writing to a string cannot fail.
        let _ = write_hex(&digest, &mut hex);
        record.digests.insert(identity.to_owned(), hex);
    }
}

/// The BLAKE3 digest of the file at `path`, read whole.
pub(crate) fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut fs::File::open(path)?, &mut hasher)?;
    Ok(*hasher.finalize().as_bytes())
}

/// The digest that stands for files of these digests, in this order. That of one file is its own.
pub(crate) fn joined(digests: &[[u8; 32]]) -> [u8; 32] {
    match digests {
        [one] => *one,
        several => blake3::derive_key("offshoot 2026 files digest v1", &several.concat()),
    }
}

fn read(path: &Path) -> Known {
    let json = fs::read(path).ok();
    json.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

/// The file's state; `None` if it cannot be written as a key.
fn stamp(path: &Path) -> Result<Option<Stamp>, StoreError> {
    let failed = |e| StoreError::io("examine", path, e);
    let metadata = fs::metadata(path).map_err(failed)?;
    let absolute = std::path::absolute(path).map_err(failed)?;
    let modified = metadata.modified().map_err(failed)?;
    let since_1970 = modified.duration_since(UNIX_EPOCH).ok();
    let mtime_ns = since_1970.and_then(|d| u64::try_from(d.as_nanos()).ok());
    let (Some(mtime_ns), Some(path)) = (mtime_ns, absolute.to_str()) else { return Ok(None) };
    let age = SystemTime::now().duration_since(modified);
    let settled = age.is_ok_and(|age| age > RACY);
    Ok(Some(Stamp { path: path.to_owned(), size: metadata.len(), mtime_ns, settled }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Case {
        dir: tempfile::TempDir,
        computed: Cell<u32>,
    }

    impl Case {
        /// A file last changed a minute ago.
        fn new() -> Self {
            let case = Self { dir: tempfile::tempdir().unwrap(), computed: Cell::new(0) };
            case.write("abc", 60);
            case
        }

        fn file(&self) -> PathBuf {
            self.dir.path().join("f")
        }

        fn memory(&self) -> PathBuf {
            self.dir.path().join("cache/digests.json")
        }

        fn write(&self, text: &str, age_s: u64) {
            fs::write(self.file(), text).unwrap();
            let then = SystemTime::now() - Duration::from_secs(age_s);
            fs::File::options().write(true).open(self.file()).unwrap().set_modified(then).unwrap();
        }

        fn digest(&self, digests: &FileDigests, identity: &str) -> [u8; 32] {
            digests
                .digest_of(&self.file(), identity, |path| {
                    self.computed.set(self.computed.get() + 1);
                    Ok::<_, StoreError>(*blake3::hash(&fs::read(path).unwrap()).as_bytes())
                })
                .unwrap()
        }
    }

    #[test]
    fn a_digest_is_computed_once_per_identity_and_outlives_the_process() {
        let case = Case::new();
        for _ in 0..3 {
            let digests = FileDigests::open(&case.memory());
            case.digest(&digests, "a");
            assert_eq!(case.digest(&digests, "b"), *blake3::hash(b"abc").as_bytes());
        }
        assert_eq!(case.computed.get(), 2);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let case = Case::new();
        let digests = FileDigests::open(&case.memory());
        case.digest(&digests, "a");
        case.write("abd", 30);
        assert_eq!(case.digest(&digests, "a"), *blake3::hash(b"abd").as_bytes());
        case.write("abcd", 30);
        assert_eq!(case.digest(&digests, "a"), *blake3::hash(b"abcd").as_bytes());
    }

    #[test]
    fn a_file_changed_just_now_is_not_trusted_to_stay() {
        let case = Case::new();
        case.write("abc", 0);
        let digests = FileDigests::open(&case.memory());
        case.digest(&digests, "a");
        case.digest(&digests, "a");
        assert_eq!(case.computed.get(), 2);
    }

    #[test]
    fn several_files_have_a_digest_of_all_and_one_has_its_own() {
        let case = Case::new();
        let other = case.dir.path().join("g");
        fs::write(&other, "xyz").unwrap();
        let digests = FileDigests::open(&case.memory());
        let of = |paths: &[&Path]| {
            let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
            digests.blake3_of_all(&paths).unwrap()
        };
        let file = case.file();
        assert_eq!(of(&[&file]), *blake3::hash(b"abc").as_bytes());
        let both = of(&[&file, &other]);
        assert_ne!(both, of(&[&other, &file]));
        case.write("abd", 30);
        assert_ne!(both, of(&[&file, &other]));
    }

    #[test]
    fn a_damaged_memory_is_ignored_and_rewritten() {
        let case = Case::new();
        fs::create_dir_all(case.memory().parent().unwrap()).unwrap();
        for damage in ["", "{", "[1]", r#"{"files":{"x":1}}"#, "\u{0}"] {
            fs::write(case.memory(), damage).unwrap();
            case.computed.set(0);
            case.digest(&FileDigests::open(&case.memory()), "a");
            case.digest(&FileDigests::open(&case.memory()), "a");
            assert_eq!(case.computed.get(), 1, "after {damage:?}");
        }
    }

    #[test]
    fn two_memories_of_one_file_keep_each_others_digests() {
        let case = Case::new();
        let (one, two) = (FileDigests::open(&case.memory()), FileDigests::open(&case.memory()));
        case.digest(&one, "a");
        case.digest(&two, "b");
        let later = FileDigests::open(&case.memory());
        case.digest(&later, "a");
        case.digest(&later, "b");
        assert_eq!(case.computed.get(), 2);
    }

    #[test]
    fn an_unwritable_memory_is_no_failure() {
        let case = Case::new();
        let digests = FileDigests::open(&case.file().join("digests.json"));
        assert_eq!(case.digest(&digests, "a"), *blake3::hash(b"abc").as_bytes());
        assert_eq!(digests.blake3_of(&case.file()).unwrap(), *blake3::hash(b"abc").as_bytes());
    }
}
