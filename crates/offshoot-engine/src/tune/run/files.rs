//! Folders that are there whole or not at all, also behind a loss of power.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::Error;

/// Makes an error of writing `path`.
pub(crate) fn output(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    |source| Error::Output { path, source }
}

/// Waits until the names in `folder` are on the disk.
///
/// # Errors
/// [`Error::Output`].
pub(crate) fn sync_folder(folder: &Path) -> Result<(), Error> {
    // Elsewhere a folder cannot be opened as a file.
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(output(folder))?;
    }
    Ok(())
}

/// All files below `folder`, as paths from it, in ascending order.
///
/// # Errors
/// [`Error::Output`] if a folder cannot be read.
pub(crate) fn files_below(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        let here = folder.join(&below);
        for entry in fs::read_dir(&here).map_err(output(&here))? {
            let entry = entry.map_err(output(&here))?;
            let path = below.join(entry.file_name());
            match entry.file_type().map_err(output(&here))?.is_dir() {
                true => open.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Fills a folder beside `place` by `fill`, waits until all of it is on the disk and moves it to
/// `place`; one that is there is replaced.
///
/// # Errors
/// Those of `fill` and [`Error::Output`]; what was at `place` is then still there, and what was
/// filled is gone.
pub(crate) fn write_folder(
    place: &Path,
    fill: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let parent = place.parent().unwrap_or(Path::new("."));
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (new, old) = (parent.join(format!(".{name}.new")), parent.join(format!(".{name}.old")));
    remove_folder(&new)?;
    let filled = fs::create_dir_all(&new).map_err(output(&new)).and_then(|()| {
        fill(&new)?;
        for file in files_below(&new)? {
            let path = new.join(file);
            File::open(&path).and_then(|f| f.sync_all()).map_err(output(&path))?;
            sync_folder(path.parent().unwrap_or(&new))?;
        }
        sync_folder(&new)
    });
    if let Err(error) = filled {
        let _ = fs::remove_dir_all(&new);
        return Err(error);
    }
    if place.exists() {
        remove_folder(&old)?;
        fs::rename(place, &old).map_err(output(place))?;
    }
    fs::rename(&new, place).map_err(output(place))?;
    sync_folder(parent)?;
    remove_folder(&old)
}

/// Removes `folder` if it is there. It is renamed before, so that half of it never looks like a
/// whole.
///
/// # Errors
/// [`Error::Output`].
pub(crate) fn remove_folder(folder: &Path) -> Result<(), Error> {
    if !folder.exists() {
        return Ok(());
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let gone = folder.with_file_name(format!(".{}.gone", name.trim_start_matches('.')));
    if gone.exists() {
        fs::remove_dir_all(&gone).map_err(output(&gone))?;
    }
    fs::rename(folder, &gone).map_err(output(folder))?;
    fs::remove_dir_all(&gone).map_err(output(&gone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a");
        let fill = |text: &'static str| {
            move |folder: &Path| fs::write(folder.join("x"), text).map_err(output(folder))
        };
        write_folder(&place, fill("one")).unwrap();
        write_folder(&place, fill("two")).unwrap();
        let failed = write_folder(&place, |folder| {
            fs::write(folder.join("x"), "thr").map_err(output(folder))?;
            Err(Error::Stopped)
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(place.join("x")).unwrap(), "two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn files_are_listed_through_all_folders_in_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("b/c")).unwrap();
        for name in ["z", "b/c/y", "b/x", "a"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let found = files_below(dir.path()).unwrap();
        let names: Vec<_> = found.iter().map(|p| p.to_str().unwrap()).collect();
        assert_eq!(names, ["a", "b/c/y", "b/x", "z"]);
    }
}
