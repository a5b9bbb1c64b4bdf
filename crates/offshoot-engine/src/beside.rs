//! Files and folders that are made beside their place and moved there when they are complete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most links that are followed to a place, as Linux has it.
const LINKS_MAX: usize = 40;
/// Names that are tried for what is not complete.
const NAMES_MAX: usize = 1000;

/// The place that `path` means: a link stands for what it leads to, there already or not, as where a
/// shell writes to it.
///
/// # Errors
/// If a link cannot be read or there are too many.
pub(crate) fn place(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {}
            _ => return Ok(path),
        }
        let target = fs::read_link(&path)?;
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(io::Error::other("too many links"))
}

/// What is not complete; removed when this is dropped, unless it was moved to its place.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
}

impl Partial {
    /// An empty file beside `place`.
    pub(crate) fn file(place: &Path) -> io::Result<(Self, File)> {
        Self::made(place, |path| File::create_new(path))
    }

    /// An empty folder beside `place`.
    pub(crate) fn folder(place: &Path) -> io::Result<Self> {
        Self::made(place, |path| fs::create_dir(path)).map(|(partial, ())| partial)
    }

    /// A free name beside `place`, which no other program or thread has then.
    fn made<T>(place: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(Self, T)> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let mut taken = io::Error::other("no free name");
        for _ in 0..NAMES_MAX {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let mut path = place.as_os_str().to_owned();
            path.push(format!(".{}-{number}.partial", std::process::id()));
            let path = PathBuf::from(path);
            match make(&path) {
                Ok(made) => return Ok((Self { path }, made)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => taken = e,
                Err(e) => return Err(e),
            }
        }
        Err(taken)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves it to its place: over a file that is there, or an empty folder.
    pub(crate) fn move_to(&self, place: &Path) -> io::Result<()> {
        fs::rename(&self.path, place)
    }

    /// Moves a folder to where another folder is, which goes: the other one is moved aside first, so
    /// that a reader sees either or, for the time of a rename, none.
    pub(crate) fn replace(&self, place: &Path) -> io::Result<()> {
        let aside = Self::folder(place)?;
        fs::rename(place, &aside.path)?;
        let moved = fs::rename(&self.path, place);
        if moved.is_err() {
            fs::rename(&aside.path, place)?;
        }
        moved
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What was moved is not here any more.
        let _ = fs::remove_file(&self.path).or_else(|_| fs::remove_dir_all(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_never_shared_and_what_is_not_moved_goes() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out");
        let (one, _) = Partial::file(&place).unwrap();
        let (other, _) = Partial::file(&place).unwrap();
        let folder = Partial::folder(&place).unwrap();
        fs::write(folder.path().join("inner"), "x").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        one.move_to(&place).unwrap();
        drop((one, other, folder));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(left, [place]);
    }

    #[test]
    fn a_folder_takes_anothers_place_or_leaves_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out");
        fs::create_dir(&place).unwrap();
        fs::write(place.join("old"), "x").unwrap();
        let folder = Partial::folder(&place).unwrap();
        fs::write(folder.path().join("new"), "x").unwrap();
        folder.replace(&place).unwrap();
        drop(folder);
        let names = |dir: &Path| -> Vec<_> {
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect()
        };
        assert_eq!((names(&place), names(dir.path())), (vec!["new".into()], vec!["out".into()]));
        let gone = Partial::folder(&place).unwrap();
        fs::remove_dir(gone.path()).unwrap();
        assert!(gone.replace(&place).is_err());
        assert_eq!((names(&place), names(dir.path())), (vec!["new".into()], vec!["out".into()]));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stands_for_what_it_leads_to() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("far")).unwrap();
        symlink("far/target", path("link")).unwrap();
        symlink(path("link"), path("second")).unwrap();
        symlink("loop", path("loop")).unwrap();
        for name in ["link", "second"] {
            assert_eq!(place(&path(name)).unwrap(), path("far/target"), "not there yet");
        }
        fs::write(path("far/target"), "x").unwrap();
        assert_eq!(place(&path("second")).unwrap(), path("far/target"));
        assert_eq!(place(&path("far")).unwrap(), path("far"));
        assert!(place(&path("loop")).is_err());
    }
}
