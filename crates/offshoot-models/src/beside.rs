//! Files and folders that are made beside their place and moved there when they are complete.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

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
/// What another system left half made is taken for abandoned after this long.
const FOREIGN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Ends the name of a folder that makes room. It may be the only one there is, so that it is never
/// taken for abandoned.
const ASIDE: &str = ".aside";

/// The place that `path` means, which ends in a name and no slash: a link stands for what it leads
/// to, there already or not, as where a shell writes to it.
///
/// # Errors
/// If the path does not end in a name, a link cannot be read, or there are too many; if what is
/// there is written to as it is ([`Output`]), so that nothing can take its place.
pub fn place(path: &Path) -> io::Result<PathBuf> {
    match target(path)? {
        Target::Place(place) => Ok(place),
        Target::Stream(_) => Err(io::Error::other("not a regular file or folder")),
    }
}

/// Where what is written to a path goes.
enum Target {
    /// To this place, which has no link: a file or folder that may be replaced, or nothing yet.
    Place(PathBuf),
    /// To what this path opens, as it is.
    Stream(PathBuf),
}

fn target(path: &Path) -> io::Result<Target> {
    if fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return Ok(Target::Stream(path.to_owned()));
    }
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        // The system shows it as a link to the file, which the file would not be after a move.
        if open_file(&path).is_some() {
            return Ok(Target::Stream(path));
        }
        // With a slash behind it, a link would be taken for the folder that it leads to.
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            let what = "does not end in a name; give the output one";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        let named = parent.join(name);
        match fs::symlink_metadata(&named) {
            Ok(metadata) if metadata.is_symlink() => {}
            _ => return Ok(Target::Place(named)),
        }
        path = parent.join(fs::read_link(&named)?);
    }
    Err(io::Error::other("too many links"))
}

/// The number of the file that this process has open and `path` names.
fn open_file(path: &Path) -> Option<usize> {
    const STANDARD: [&str; 3] = ["/dev/stdin", "/dev/stdout", "/dev/stderr"];
    const FOLDERS: [&str; 2] = ["/dev/fd", "/proc/self/fd"];
    if !cfg!(unix) {
        return None;
    }
    STANDARD.iter().position(|name| path == Path::new(name)).or_else(|| {
        let number = FOLDERS.iter().find_map(|folder| path.strip_prefix(folder).ok())?;
        number.to_str()?.parse().ok()
    })
}

/// Opens what `path` names to write to it as it is. What goes to standard output goes behind what
/// went there before, and before what will; to another file that this process has open, to its end.
fn stream(path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        match open_file(path) {
            Some(1) => {
                io::stdout().flush()?;
                return io::stdout().as_fd().try_clone_to_owned().map(File::from);
            }
            Some(2) => return io::stderr().as_fd().try_clone_to_owned().map(File::from),
            Some(_) => return File::options().append(true).open(path),
            None => {}
        }
    }
    File::options().write(true).open(path)
}

/// What is written to a path, a part at a time. It is made beside the place that the path means
/// ([`place`]) and moved there when it is complete; until then what was there is, and a link stays
/// one. What is no file, as a device or a pipe, takes the bytes as they come, and so does a file
/// that this process has open, as `/dev/stdout` or `/dev/fd/3`.
#[derive(Debug)]
pub struct Output {
    file: File,
    /// None where there is nothing to be moved.
    beside: Option<(Partial, PathBuf)>,
}

impl Output {
    /// Begins to write to `path`.
    ///
    /// # Errors
    /// If it cannot be opened, or is a folder.
    pub fn to(path: &Path) -> io::Result<Self> {
        match target(path)? {
            Target::Stream(path) => Ok(Self { file: stream(&path)?, beside: None }),
            Target::Place(place) if place.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Target::Place(place) => {
                let (partial, file) = Partial::file(&place)?;
                Ok(Self { file, beside: Some((partial, place)) })
            }
        }
    }

    /// All is written: moves it to its place. What is dropped before that leaves nothing there.
    ///
    /// # Errors
    /// Those of the file system; what was there before then still is.
    pub fn finish(self) -> io::Result<()> {
        match &self.beside {
            Some((partial, place)) => settle(&self.file, partial, place),
            None => Ok(()),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes `bytes` to `path` as [`Output`] does.
///
/// # Errors
/// Those of the file system.
pub fn write_to(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut output = Output::to(path)?;
    output.write_all(bytes)?;
    output.finish()
}

/// Writes `bytes` beside `path` and moves them there: a reader sees the old file or the new one,
/// also behind a loss of power.
///
/// # Errors
/// Those of the file system; what was at `path` is then still there.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (partial, mut file) = Partial::file(path)?;
    file.write_all(bytes)?;
    settle(&file, &partial, path)
}

/// Moves `partial`, which is `file`, to `place`, all of it brought to the disk.
fn settle(file: &File, partial: &Partial, place: &Path) -> io::Result<()> {
    file.sync_all()?;
    partial.move_to(place)?;
    // Elsewhere a folder cannot be opened as a file.
    match place.parent().filter(|parent| cfg!(unix) && !parent.as_os_str().is_empty()) {
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
            path.push(format!("{OURS}{}-{}-{number}{ending}", system(), std::process::id()));
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
/// On a disk that machines share another one's locks may not be seen, so that what one of them
/// left, or this one before it was started anew, has to be older than a day. That it cannot be
/// removed is no failure: names are never shared.
pub fn remove_abandoned(folder: &Path, meant: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Some((place, of)) = name.to_str().and_then(place_of) else { continue };
        if meant(place)
            && (of == system() || is_old(&entry))
            && let Locked::Ours(Some(_lock)) = Locked::of(&path)
        {
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
    }
}

/// The name of the place beside which [`Partial`] gives the name `partial`, and the system that
/// gave it.
fn place_of(partial: &str) -> Option<(&str, &str)> {
    let (place, ids) = partial.strip_suffix(PARTIAL)?.rsplit_once(OURS)?;
    let (system, numbers) = ids.split_once('-')?;
    let (process, number) = numbers.split_once('-')?;
    let all = |text: &str, is: fn(&u8) -> bool| !text.is_empty() && text.as_bytes().iter().all(is);
    let digits = |text: &str| all(text, u8::is_ascii_digit);
    let ours = all(system, u8::is_ascii_hexdigit) && digits(process) && digits(number);
    ours.then_some((place, system))
}

/// What tells this system, from one start of the machine to the next, from others: all of its
/// programs see each other's locks. Where nobody knows, it is like no other, not even itself.
fn system() -> &'static str {
    static SYSTEM: OnceLock<String> = OnceLock::new();
    SYSTEM.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let id: String = id.chars().filter(char::is_ascii_hexdigit).take(12).collect();
        if id.is_empty() { format!("0{:x}", std::process::id()) } else { id }
    })
}

/// Whether nothing was written to it for a day.
fn is_old(entry: &fs::DirEntry) -> bool {
    let changed = entry.metadata().and_then(|metadata| metadata.modified());
    let age = changed.ok().and_then(|changed| changed.elapsed().ok());
    age.is_some_and(|age| age > FOREIGN_AFTER)
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
        let left = |numbers: &str| format!("out.json.offshoot-{}-{numbers}.partial", system());
        let others = [
            "out.json.partial".to_owned(),
            "out.json.2026-11.partial".to_owned(),
            left("1-x"),
            left("1"),
            left("1-2").replacen("out", "other", 1),
        ];
        for name in others.iter().chain(&[left("1-2"), left("4194304-0")]) {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::create_dir(dir.path().join(left("1-3"))).unwrap();
        fs::write(dir.path().join(left("1-3")).join("inner"), "x").unwrap();
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
    fn what_another_system_has_in_the_making_is_left_alone_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a", "b", "c"].map(|name| format!("{name}.offshoot-0123456789ab-7-0.partial"));
        for (name, hours) in names.iter().zip([0, 23, 25]) {
            let file = File::create(dir.path().join(name)).unwrap();
            let then = std::time::SystemTime::now() - Duration::from_secs(3600 * hours);
            file.set_modified(then).unwrap();
        }
        remove_abandoned(dir.path(), |_| true);
        let there = names.map(|name| dir.path().join(name).exists());
        assert_eq!(there, [true, true, false]);
        assert_eq!(place_of("x.offshoot-0a-7-0.partial"), Some(("x", "0a")));
        assert_ne!(system(), "0123456789ab");
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
        write_to(&path("second"), b"whole").unwrap();
        assert_eq!(fs::read_to_string(path("far/target")).unwrap(), "whole");
        assert!(fs::symlink_metadata(path("second")).unwrap().is_symlink());
        let error = write_to(&path("far"), b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn what_is_not_finished_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("out");
        write_to(&place, b"old").unwrap();
        let mut output = Output::to(&place).unwrap();
        output.write_all(b"half").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        drop(output);
        assert_eq!(fs::read_to_string(&place).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn devices_and_open_files_take_bytes_as_they_come() {
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::{FileTypeExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        symlink("/dev/null", path("nothing")).unwrap();
        for null in [PathBuf::from("/dev/null"), path("nothing")] {
            write_to(&null, b"x").unwrap();
            assert!(fs::metadata(&null).unwrap().file_type().is_char_device());
            assert!(place(&null).is_err(), "it cannot be replaced");
        }
        let mut open = File::create(path("open")).unwrap();
        open.write_all(b"before ").unwrap();
        let named = PathBuf::from(format!("/dev/fd/{}", open.as_raw_fd()));
        symlink(&named, path("link")).unwrap();
        for named in [&named, &path("link")] {
            write_to(named, b"and behind ").unwrap();
            assert!(place(named).is_err(), "it cannot be replaced");
        }
        assert_eq!(fs::read_to_string(path("open")).unwrap(), "before and behind and behind ");
        assert_eq!(open.metadata().unwrap().len(), 29, "it is the same file");
    }

    #[cfg(unix)]
    #[test]
    fn names_of_open_files_are_told_from_others() {
        for (name, number) in [
            ("/dev/stdout", Some(1)),
            ("/dev//stderr", Some(2)),
            ("/dev/stdin", Some(0)),
            ("/dev/fd/3", Some(3)),
            ("/proc/self/fd/12", Some(12)),
            ("/dev/fd", None),
            ("/dev/fd/x", None),
            ("/dev/null", None),
            ("dev/stdout", None),
            ("/dev/fdx/3", None),
        ] {
            assert_eq!(open_file(Path::new(name)), number, "{name}");
        }
    }
}
