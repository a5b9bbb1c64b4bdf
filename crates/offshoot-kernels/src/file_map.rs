//! A read-only memory map of a file, behind a safe surface.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

/// A whole file, mapped read-only and shared.
///
/// The bytes are paged in on first touch and may be dropped again by [`FileMap::release`]; reading a
/// released range pages it in once more. As with any map, a file that another program truncates
/// while it is mapped makes reads past the new end fail with a signal; model files are written once
/// and moved into place, so offshoot never does that to itself.
#[derive(Debug)]
pub struct FileMap {
    map: memmap2::Mmap,
}

impl FileMap {
    /// Maps the file at `path`. An empty file is an error of kind `InvalidData`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if metadata.len() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"));
        }
        // SAFETY: the map is private and read-only, and this process never writes to a file that it
        // has mapped: every file offshoot writes is a new one, moved into place when complete.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map })
    }

    /// Tells the system that `range` is not needed soon, so that its pages leave this process.
    ///
    /// Only whole pages inside the range are released. A hint: errors are ignored, contents stay.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            const PAGE: usize = 4096;
            let start = range.start.next_multiple_of(PAGE);
            let end = range.end.min(self.map.len()) / PAGE * PAGE;
            if start < end {
                // SAFETY: the range lies inside the map, and dropping clean pages of a read-only
                // file map changes no byte: they are read again from the file when touched.
                unsafe {
                    libc::madvise(
                        self.map.as_ptr().add(start).cast_mut().cast(),
                        end - start,
                        libc::MADV_DONTNEED,
                    );
                }
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Asks the system to read `range` in ahead of use. A hint: errors are ignored.
    pub fn will_need(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            let start = range.start.min(self.map.len()) / 4096 * 4096;
            let end = range.end.min(self.map.len());
            if start < end {
                // SAFETY: the range lies inside the map, and the advice reads pages in, no more.
                unsafe {
                    libc::madvise(
                        self.map.as_ptr().add(start).cast_mut().cast(),
                        end - start,
                        libc::MADV_WILLNEED,
                    );
                }
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl Deref for FileMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..40_000u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = FileMap::open(&path).unwrap();
        map.will_need(0..map.len());
        assert_eq!(&map[..], &bytes[..]);
        map.release(1..usize::MAX);
        assert_eq!(&map[..], &bytes[..]);
    }

    #[test]
    fn an_empty_file_and_a_folder_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(FileMap::open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(FileMap::open(dir.path()).is_err());
    }
}
