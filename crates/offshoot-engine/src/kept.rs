//! Files that are kept because they will be used again, and can be made anew: a folder of them
//! within a limit.
//!
//! When a file was changed last says when it was used last, as [`touch`] sees to; those that were
//! not for the longest time make room. Who reads one has a lock of it ([`hold`]), and it stays as
//! long.

use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::beside::remove_abandoned;

/// What such files are told by. Others in their folder are not ours to count or to remove.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// Ends their names, behind a dot.
    pub(crate) ending: &'static str,
    /// Begins them, whatever their version.
    pub(crate) magic: &'static [u8],
}

/// A file: when it was used last, its bytes, where it is.
type Used = (SystemTime, u64, PathBuf);

impl Kind {
    fn is_named(self, path: &Path) -> bool {
        path.extension().is_some_and(|ending| ending == self.ending)
    }

    fn begins(self, path: &Path) -> bool {
        let mut begin = vec![0; self.magic.len()];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
        read.is_ok() && begin == self.magic
    }

    /// Those in `folder`.
    fn files(self, folder: &Path) -> Vec<Used> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let named = entries.filter(|entry| self.is_named(&entry.path()));
        let used = named.filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        });
        used.filter(|(.., path)| self.begins(path)).collect()
    }

    /// Bytes of those in `folder`.
    pub(crate) fn bytes(self, folder: &Path) -> u64 {
        self.files(folder).iter().map(|(_, bytes, _)| bytes).sum()
    }

    /// Removes files from `folder`, those that were used longest ago first, until those that are
    /// left have at most `most` bytes, the files `keep` aside, which stay; and what programs that
    /// were killed left half made. What somebody holds or cannot be removed stays too.
    pub(crate) fn trim(self, folder: &Path, keep: &[&Path], most: u64) {
        remove_abandoned(folder, |place| self.is_named(Path::new(place)));
        let mut files = self.files(folder);
        files.retain(|(.., path)| !keep.contains(&path.as_path()));
        files.sort();
        let mut total: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if total <= most {
                break;
            }
            if remove(&path) {
                total -= bytes;
            }
        }
    }
}

/// Removes the file at `path` unless somebody holds it; whether it is gone.
fn remove(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    // Elsewhere the system keeps what is open. Where no lock can be had, who reads what is removed
    // goes on reading it.
    match cfg!(unix).then(|| file.try_lock()) {
        Some(Err(TryLockError::WouldBlock)) => false,
        _ => fs::remove_file(path).is_ok(),
    }
}

/// The file at `path`, which stays where it is until this is dropped. None if it cannot be opened.
pub(crate) fn hold(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    if cfg!(unix) {
        // Without a lock it can be read as well.
        let _ = file.try_lock_shared();
    }
    Some(file)
}

/// Says that the file at `path` is used now, so that others go before it. That it cannot be said is
/// no failure.
pub(crate) fn touch(path: &Path) {
    let file = File::options().append(true).open(path);
    let _ = file.and_then(|file| file.set_modified(SystemTime::now()));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KIND: Kind = Kind { ending: "pack", magic: b"OFF" };

    /// A folder of files of 100 bytes of the kind, each with the seconds since it was used.
    fn folder(files: &[(&str, u64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, age_s) in files {
            let mut bytes = b"OFFS".to_vec();
            bytes.resize(100, 0);
            fs::write(dir.path().join(name), bytes).unwrap();
            let file = File::options().append(true).open(dir.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(*age_s)).unwrap();
        }
        dir
    }

    fn left(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_used_longest_ago_goes_and_nothing_that_is_not_ours() {
        let dir = folder(&[("b.pack", 300), ("a.pack", 200), ("c.pack", 100), ("d.other", 900)]);
        fs::write(dir.path().join("e.pack"), [7; 900]).unwrap();
        fs::create_dir(dir.path().join("f.pack")).unwrap();
        assert_eq!(KIND.bytes(dir.path()), 300);
        KIND.trim(dir.path(), &[], 300);
        assert_eq!(left(&dir).len(), 6);
        KIND.trim(dir.path(), &[], 299);
        assert_eq!(left(&dir), ["a.pack", "c.pack", "d.other", "e.pack", "f.pack"]);
        touch(&dir.path().join("a.pack"));
        KIND.trim(dir.path(), &[], 100);
        assert_eq!(left(&dir), ["a.pack", "d.other", "e.pack", "f.pack"]);
        KIND.trim(dir.path(), &[], 0);
        assert_eq!(left(&dir), ["d.other", "e.pack", "f.pack"]);
        assert_eq!(KIND.bytes(&dir.path().join("absent")), 0);
        KIND.trim(&dir.path().join("absent"), &[], 0);
    }

    #[test]
    fn what_is_kept_stays_and_takes_no_room_of_the_others() {
        let dir = folder(&[("own.pack", 900), ("a.pack", 200), ("b.pack", 100)]);
        let own = dir.path().join("own.pack");
        KIND.trim(dir.path(), &[&own], 200);
        assert_eq!(left(&dir), ["a.pack", "b.pack", "own.pack"]);
        KIND.trim(dir.path(), &[&own], 100);
        assert_eq!(left(&dir), ["b.pack", "own.pack"]);
        KIND.trim(dir.path(), &[&own], 0);
        assert_eq!(left(&dir), ["own.pack"]);
    }

    #[cfg(unix)]
    #[test]
    fn what_somebody_holds_stays_until_it_is_dropped() {
        let dir = folder(&[("a.pack", 300), ("b.pack", 200), ("c.pack", 100)]);
        let held = [hold(&dir.path().join("a.pack")), hold(&dir.path().join("a.pack"))];
        KIND.trim(dir.path(), &[], 200);
        assert_eq!(left(&dir), ["a.pack", "c.pack"], "the next one goes instead");
        KIND.trim(dir.path(), &[], 0);
        assert_eq!(left(&dir), ["a.pack"]);
        drop(held);
        KIND.trim(dir.path(), &[], 0);
        assert!(left(&dir).is_empty());
        assert!(hold(&dir.path().join("a.pack")).is_none());
    }
}
