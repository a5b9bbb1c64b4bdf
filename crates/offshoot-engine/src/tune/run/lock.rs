//! One run a folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::RunError;
use super::files::output;
use crate::Error;

/// Holds a run's folder until dropped, or until the process ends in whatever way.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl RunLock {
    /// Takes `folder`, which exists.
    ///
    /// # Errors
    /// [`RunError::Locked`] if another process has it.
    pub(crate) fn take(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("lock");
        let open =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = open.map_err(output(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let who = holder.trim().parse::<u32>();
                let who = who.map_or_else(|_| String::new(), |pid| format!(" (process {pid})"));
                return Err(RunError::Locked { folder: folder.to_owned(), who }.into());
            }
            Err(TryLockError::Error(source)) => return Err(Error::Output { path, source }),
        }
        // Only for the message of who comes too late.
        let _ = file.set_len(0).and_then(|()| file.rewind());
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_one_runs_until_its_lock_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let held = RunLock::take(dir.path()).unwrap();
        let told = RunLock::take(dir.path()).unwrap_err().to_string();
        assert!(told.contains(&format!("(process {})", std::process::id())), "{told}");
        drop(held);
        RunLock::take(dir.path()).unwrap();
    }
}
