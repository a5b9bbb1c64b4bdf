//! Files and folders that are made beside their place and moved there when they are complete.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most links that are followed to a place, as Linux has it.
const LINKS_MAX: usize = 40;
/// Names that are tried for what is not complete.
const NAMES_MAX: usize = 1000;
/// Stands in the names of what is not complete between the place's own and numbers.
const OURS: &str = ".offshoot-";
/// What a folder says that cannot be brought to the disk by itself.
const NO_SYNC: [io::ErrorKind; 3] =
    [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported, io::ErrorKind::PermissionDenied];
/// Ends the names of what is not complete.
const PARTIAL: &str = ".partial";
/// Ends the name of a folder that makes room. It may be the only one there is, so that it is never
/// taken for abandoned.
const ASIDE: &str = ".aside";

/// The place that `path` means, which ends in a name and no slash: a link stands for what it leads
/// to, there already or not, as where a shell writes to it.
///
/// # Errors
/// If the path does not end in a name, a link cannot be read, or there are too many.
pub fn place(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        // With a slash behind it, a link would be taken for the folder that it leads to.
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            let what = "does not end in a name; give the output one";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        let named = parent.join(name);
        match fs::symlink_metadata(&named) {
            Ok(metadata) if metadata.is_symlink() => {}
            _ => return Ok(named),
        }
        path = parent.join(fs::read_link(&named)?);
    }
    Err(io::Error::other("too many links"))
}

/// Writes `bytes` beside `path` and moves them there: a reader sees the old file or the new one,
/// also behind a loss of power.
///
/// # Errors
/// Those of the file system; what was at `path` is then still there.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (partial, mut file) = Partial::file(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    partial.move_to(path)?;
    // Elsewhere a folder cannot be opened as a file.
    match path.parent().filter(|parent| cfg!(unix) && !parent.as_os_str().is_empty()) {
        Some(parent) => match File::open(parent).and_then(|folder| folder.sync_all()) {
            // Some file systems have no such thing, and some folders are not to be read: it is in place.
            Err(e) if NO_SYNC.contains(&e.kind()) => Ok(()),
            other => other,
        },
        None => Ok(()),
    }
}

/// What is not complete; removed when this is dropped, unless it was moved to its place. Where that
/// could not be done, as after a kill, the next one that is made beside the same place removes it:
/// whoever fills one holds a lock of it.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    /// Held, not used; none where it cannot be had. Where folders cannot be opened, they have none.
    _lock: Option<File>,
}

impl Partial {
    /// An empty file beside `place`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn file(place: &Path) -> io::Result<(Self, File)> {
        Self::made(place, PARTIAL, |path| File::create_new(path))
    }

    /// An empty folder beside `place`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn folder(place: &Path) -> io::Result<Self> {
        Self::made(place, PARTIAL, |path| fs::create_dir(path)).map(|(partial, ())| partial)
    }

    /// A free name beside `place`, which no other program or thread has then.
    fn made<T>(
        place: &Path,
        ending: &str,
        make: impl Fn(&Path) -> io::Result<T>,
    ) -> io::Result<(Self, T)> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        if let Some(name) = place.file_name().and_then(|name| name.to_str()) {
            let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty());
            remove_abandoned(parent.unwrap_or(Path::new(".")), |of| of == name);
        }
        let mut taken = io::Error::other("no free name");
        for _ in 0..NAMES_MAX {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let mut path = place.as_os_str().to_owned();
            path.push(format!("{OURS}{}-{number}{ending}", std::process::id()));
            let path = PathBuf::from(path);
            match make(&path) {
                Ok(made) => match Locked::of(&path) {
                    Locked::Ours(lock) if path.exists() => {
                        return Ok((Self { path, _lock: lock }, made));
                    }
                    // Another one took it for abandoned, in the moment before it was locked.
                    _ => {}
                },
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => taken = e,
                Err(e) => return Err(e),
            }
        }
        Err(taken)
    }

    /// Where it is filled.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves it to its place: over a file that is there, or an empty folder.
    ///
    /// # Errors
    /// If it cannot be moved; it is still where it was then.
    pub fn move_to(&self, place: &Path) -> io::Result<()> {
        fs::rename(&self.path, place)
    }

    /// Moves a folder to where another folder is, which goes: the other one is moved aside first,
    /// so that a reader sees either or, for the time of a rename, none.
    ///
    /// # Errors
    /// If a folder cannot be moved; they say where the other one is if it is not at `place`.
    pub fn replace(&self, place: &Path) -> io::Result<()> {
        let (aside, ()) = Self::made(place, ASIDE, |path| fs::create_dir(path))?;
        fs::rename(place, &aside.path)?;
        fs::rename(&self.path, place).map_err(|error| aside.put_back(place, error))
    }

    /// Moves back to `place` what was moved aside, and where that fails leaves it where it is;
    /// gives what to say of `error`, for which it was done.
    fn put_back(mut self, place: &Path, error: io::Error) -> io::Error {
        let Err(back) = fs::rename(&self.path, place) else { return error };
        let kept = std::mem::take(&mut self.path);
        let what = format!(
            "{error}; what was there is kept as {}, as it could not be moved back: {back}",
            kept.display()
        );
        io::Error::new(error.kind(), what)
    }
}

/// Who has the lock of a file or folder.
enum Locked {
    /// We do, or nobody can.
    Ours(Option<File>),
    Another,
}

impl Locked {
    fn of(path: &Path) -> Self {
        // Elsewhere a lock keeps those who have the file open from writing to it.
        if !cfg!(unix) {
            return Self::Ours(None);
        }
        let Ok(file) = File::open(path) else { return Self::Ours(None) };
        match file.try_lock() {
            Ok(()) => Self::Ours(Some(file)),
            Err(TryLockError::WouldBlock) => Self::Another,
            Err(TryLockError::Error(_)) => Self::Ours(None),
        }
    }
}

/// Removes what programs that are gone left in `folder`, beside the places whose names are `meant`.
/// That it cannot be removed is no failure: names are never shared.
pub fn remove_abandoned(folder: &Path, meant: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_str().and_then(place_of).is_some_and(&meant)
            && let Locked::Ours(Some(_lock)) = Locked::of(&path)
        {
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
}

/// The name of the place beside which [`Partial`] gives the name `partial`.
fn place_of(partial: &str) -> Option<&str> {
    let (place, numbers) = partial.strip_suffix(PARTIAL)?.rsplit_once(OURS)?;
    let (process, number) = numbers.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(process) && digits(number)).then_some(place)
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What is kept has no path here.
        if self.path.as_os_str().is_empty() {
            return;
        }
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
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out.json");
        for text in ["one", "two"] {
            replace_file(&place, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&place).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace_file(&dir.path().join("absent/out.json"), b"x").is_err());
    }

    #[test]
    fn what_a_killed_program_left_goes_with_the_next_write_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out.json");
        let others = [
            "out.json.partial",
            "out.json.2026-11.partial",
            "out.json.offshoot-1-x.partial",
            "other.json.offshoot-1-2.partial",
        ];
        for name in others
            .iter()
            .chain(&["out.json.offshoot-1-2.partial", "out.json.offshoot-4194304-0.partial"])
        {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::create_dir(dir.path().join("out.json.offshoot-1-3.partial")).unwrap();
        fs::write(dir.path().join("out.json.offshoot-1-3.partial/inner"), "x").unwrap();
        let (held, _) = Partial::file(&place).unwrap();
        replace_file(&place, b"whole").unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        left.retain(|path| !others.iter().any(|name| path.ends_with(name)));
        left.sort();
        let mut expected = [held.path().to_owned(), place.clone()];
        expected.sort();
        assert_eq!(left, expected, "what is being filled stays");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2 + others.len());
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

    #[test]
    fn what_cannot_be_moved_back_is_kept_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out");
        let aside = Partial::folder(&place).unwrap();
        fs::write(aside.path().join("old"), "x").unwrap();
        fs::create_dir(&place).unwrap();
        fs::write(place.join("another's"), "x").unwrap();
        let kept = aside.path().to_owned();
        let error = aside.put_back(&place, io::Error::other("no luck")).to_string();
        assert!(error.starts_with("no luck; "), "{error}");
        assert!(error.contains(kept.to_str().unwrap()), "{error}");
        assert!(kept.join("old").is_file() && place.join("another's").is_file());
    }

    #[test]
    fn a_place_ends_in_a_name_and_no_slash() {
        for path in ["no/out", "no/out/", "no/out//", "no/out/."] {
            assert_eq!(place(Path::new(path)).unwrap().as_os_str(), "no/out", "{path}");
        }
        assert_eq!(place(Path::new("out/")).unwrap().as_os_str(), "out");
        for path in ["", ".", "..", "no/..", "/", "./"] {
            let error = place(Path::new(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
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
            assert_eq!(place(&path(name).join("")).unwrap(), path("far/target"), "with a slash");
        }
        fs::write(path("far/target"), "x").unwrap();
        assert_eq!(place(&path("second")).unwrap(), path("far/target"));
        assert_eq!(place(&path("far")).unwrap(), path("far"));
        assert!(place(&path("loop")).is_err());
    }
}
