//! The store's folders: what a ready model looks like, and what an unfinished one does.
//!
//! ```text
//! models/
//!   smollm2/                      a ready model: the folder appears whole, by one rename
//!     SmolLM2-135M-Instruct.Q4_1.gguf
//!     manifest.json
//!   .partial/smollm2/             an unfinished one, which the next pull continues
//!   .locks/smollm2.lock           held while a model is pulled or removed
//! ```
//! A process killed at any point leaves a model absent, unfinished or ready, never half ready.

use super::{Event, Progress, Sha256Digest, StoreError, partial};
use crate::beside::replace_file;
use crate::error::one_line;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

const MANIFEST: &str = "manifest.json";

/// What the store remembers of a model it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The name it is resolved by.
    pub name: String,
    /// The file's name in the model's folder.
    pub file: String,
    /// The file's size in bytes.
    pub size: u64,
    /// The file's SHA-256, computed when it was pulled.
    pub sha256: Sha256Digest,
    /// Where it came from.
    pub source: String,
    /// The licence of the weights, if known.
    pub licence: Option<String>,
    /// When it was pulled, in seconds since 1970.
    pub pulled_unix_s: u64,
    /// The further files of a model in parts, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<FurtherFile>,
}

/// A file of a model in parts that is not the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FurtherFile {
    /// The file's name in the model's folder.
    pub file: String,
    /// The file's size in bytes.
    pub size: u64,
    /// The file's SHA-256, computed when it was pulled.
    pub sha256: Sha256Digest,
}

impl Manifest {
    /// Bytes of all files.
    pub fn total_size(&self) -> u64 {
        self.files().map(|(_, size)| size).sum()
    }

    /// Name and size of each file.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        let more = self.more.iter().map(|further| (further.file.as_str(), further.size));
        std::iter::once((self.file.as_str(), self.size)).chain(more)
    }
}

/// A model's folder in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name it is resolved by.
    pub name: String,
    /// What is there.
    pub state: EntryState,
}

/// What the store holds under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryState {
    /// A ready model.
    Ready {
        /// The model file.
        path: PathBuf,
        /// What the store remembers of it.
        manifest: Manifest,
    },
    /// A pull that did not finish; the next one continues it.
    Partial {
        /// Bytes there so far.
        bytes: u64,
    },
    /// A folder that is not a ready model; pulling again replaces it.
    Damaged {
        /// What is wrong.
        why: String,
    },
}

/// Holds a model's lock until dropped.
pub(super) struct Lock {
    _file: File,
}

/// The folders of one store.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.root.join(folder_of(name))
    }

    /// The folder of an unfinished pull, created.
    pub(super) fn staging(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.root.join(".partial").join(folder_of(name));
        create_dir(&path)?;
        Ok(path)
    }

    /// Takes a model's lock, waiting for any other holder.
    pub(super) fn lock(&self, name: &str, progress: &dyn Progress) -> Result<Lock, StoreError> {
        let folder = self.root.join(".locks");
        create_dir(&folder)?;
        let path = folder.join(format!("{}.lock", folder_of(name)));
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.map_err(|e| StoreError::io("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => return Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => progress.event(&Event::Waiting { name }),
            Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", &path, e)),
        }
        file.lock().map_err(|e| StoreError::io("lock", &path, e))?;
        Ok(Lock { _file: file })
    }

    /// What stands under `name`; `None` if nothing does.
    pub(super) fn entry(&self, name: &str) -> Option<Entry> {
        let folder = self.folder(name);
        let state = if folder.is_dir() {
            match read_manifest(&folder, name) {
                Ok(manifest) => EntryState::Ready { path: folder.join(&manifest.file), manifest },
                Err(why) => EntryState::Damaged { why },
            }
        } else {
            let staging = self.root.join(".partial").join(folder_of(name));
            EntryState::Partial { bytes: Some(partial_bytes(&staging)).filter(|&n| n > 0)? }
        };
        Some(Entry { name: name.to_owned(), state })
    }

    /// The ready model of this name.
    pub(super) fn ready(&self, name: &str) -> Option<(PathBuf, Manifest)> {
        match self.entry(name)?.state {
            EntryState::Ready { path, manifest } => Some((path, manifest)),
            _ => None,
        }
    }

    /// Every model, ready or not, by name.
    pub(super) fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut names = folder_names(&self.root)?;
        names.extend(folder_names(&self.root.join(".partial"))?);
        names.sort();
        names.dedup();
        Ok(names.iter().filter_map(|name| self.entry(name)).collect())
    }

    /// Makes the verified files in `staging` the ready model of `manifest.name`.
    pub(super) fn install(
        &self,
        staging: &Path,
        manifest: &Manifest,
    ) -> Result<PathBuf, StoreError> {
        let json = serde_json::to_vec_pretty(manifest)
            .map_err(|e| StoreError::Config(format!("manifest of {}: {e}", manifest.name)))?;
        write_whole(&staging.join(MANIFEST), &json)?;
        for (file, _) in manifest.files() {
            rename(&partial::path_of(staging, file), &staging.join(file))?;
        }
        sync_dir(staging);
        let folder = self.folder(&manifest.name);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|e| StoreError::io("replace", &folder, e))?;
        }
        rename(staging, &folder)?;
        sync_dir(&self.root);
        // Of no use any more, and harmless if it stays.
        for (file, _) in manifest.files() {
            let _ = fs::remove_file(partial::identity_of(&folder, file));
        }
        Ok(folder.join(&manifest.file))
    }

    /// Removes a model and whatever an unfinished pull of it left. The lock must be held.
    pub(super) fn remove(&self, name: &str) -> Result<(), StoreError> {
        let partials = self.root.join(".partial");
        create_dir(&partials)?;
        let folder = self.folder(name);
        // A folder name never begins with `~`, so this takes no model's place.
        let doomed = partials.join(format!("~{}", folder_of(name)));
        remove_tree(&doomed)?;
        if folder.exists() {
            rename(&folder, &doomed)?;
            remove_tree(&doomed)?;
        }
        remove_tree(&partials.join(folder_of(name)))
    }
}

/// The folder of a model: its name with `/` as `+`, `:` as `=`, and all but plain characters
/// percent-encoded, so that names and folders correspond one to one.
fn folder_of(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for (i, byte) in name.bytes().enumerate() {
        match byte {
            b'/' => out.push('+'),
            b':' => out.push('='),
            b'.' if i == 0 => out.push_str("%2E"),
            b if b.is_ascii_alphanumeric() || b"._-@".contains(&b) => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// The name whose folder this is; `None` for a folder no name maps to.
fn name_of(folder: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(folder.len());
    let mut rest = folder.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b'/',
            b'=' => b':',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            b => b,
        });
    }
    String::from_utf8(bytes).ok().filter(|name| folder_of(name) == folder)
}

fn folder_names(folder: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::io("list", folder, e)),
    };
    let names = entries.flatten().filter(|e| e.path().is_dir());
    Ok(names.filter_map(|e| name_of(e.file_name().to_str()?)).collect())
}

fn read_manifest(folder: &Path, name: &str) -> Result<Manifest, String> {
    let json = fs::read(folder.join(MANIFEST)).map_err(|e| format!("{MANIFEST}: {e}"))?;
    let manifest: Manifest =
        serde_json::from_slice(&json).map_err(|e| format!("{MANIFEST}: {}", one_line(&e)))?;
    if manifest.name != name {
        return Err(format!("{MANIFEST} is that of {:?}", manifest.name));
    }
    for (file, expected) in manifest.files() {
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(format!("{MANIFEST} names the file {file:?}"));
        }
        match fs::metadata(folder.join(file)).map(|m| m.len()) {
            Ok(size) if size == expected => {}
            Ok(size) => return Err(format!("{file:?} has {size} bytes, not {expected}")),
            Err(e) => return Err(format!("{file:?}: {e}")),
        }
    }
    Ok(manifest)
}

/// Bytes of unfinished files in a folder, which may be absent.
fn partial_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let partials = entries.filter(|e| e.path().extension().is_some_and(|e| e == "partial"));
    partials.filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum()
}

/// Writes a small file so that a reader sees the old bytes or the new ones, never a mixture.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    replace_file(path, bytes).map_err(|e| StoreError::io("write", path, e))
}

pub(super) fn create_dir(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(|e| StoreError::io("create", path, e))
}

pub(super) fn remove_tree(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path, e))
        }
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::rename(from, to).map_err(|e| StoreError::io("move into place", to, e))
}

/// Makes renames in a folder durable, where the system lets a folder be synced.
fn sync_dir(folder: &Path) {
    if let Ok(dir) = File::open(folder) {
        let _ = dir.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn names_and_folders_correspond_one_to_one(name in "[a-z.+/%@~:= ]{1,12}") {
            let folder = folder_of(&name);
            prop_assert!(!folder.starts_with('.') && !folder.starts_with('~'));
            prop_assert!(!folder.contains('/'));
            prop_assert_eq!(name_of(&folder), Some(name));
        }
    }

    #[test]
    fn a_manifest_that_does_not_fit_its_folder_is_damage_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let folder = dir.path().join("m");
        fs::create_dir(&folder).unwrap();
        let why = |layout: &Layout| match layout.entry("m").unwrap().state {
            EntryState::Damaged { why } => why,
            other => panic!("{other:?}"),
        };
        assert!(why(&layout).contains("manifest.json"));
        let mut manifest = Manifest {
            name: "m".into(),
            file: "m.gguf".into(),
            size: 3,
            sha256: Sha256Digest([0; 32]),
            source: "test".into(),
            licence: None,
            pulled_unix_s: 0,
            more: Vec::new(),
        };
        let save = |m: &Manifest| {
            fs::write(folder.join(MANIFEST), serde_json::to_vec(m).unwrap()).unwrap();
        };
        save(&manifest);
        assert!(why(&layout).contains("m.gguf"));
        fs::write(folder.join("m.gguf"), "ab").unwrap();
        assert!(why(&layout).contains("2 bytes, not 3"));
        fs::write(folder.join("m.gguf"), "abc").unwrap();
        assert!(layout.ready("m").is_some());
        manifest.file = "../m.gguf".into();
        save(&manifest);
        assert!(why(&layout).contains("names the file"));
        manifest.name = "other".into();
        save(&manifest);
        assert!(why(&layout).contains("that of \"other\""));
    }
}
