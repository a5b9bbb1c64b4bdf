//! A read-only memory map of a file, behind a safe surface.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

/// Bytes of a page at least.
const PAGE: usize = 4096;

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
            let page = page_size();
            let start = range.start.next_multiple_of(page);
            let end = range.end.min(self.map.len()) / page * page;
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

    /// Reads `range` in and maps it, so that later reads of it wait for nothing. Takes as long as the
    /// file's reading does; no more than a hint where memory is short.
    ///
    /// Advice to read ahead would not do: Linux heeds it for the first few megabytes of a range.
    pub fn populate(&self, range: Range<usize>) {
        let start = range.start.min(self.map.len()) / PAGE * PAGE;
        let end = range.end.min(self.map.len());
        if start < end && !self.populate_at_once(start..end) {
            for at in (start..end).step_by(PAGE) {
                std::hint::black_box(self.map[at]);
            }
        }
    }

    /// Whether the system has a call for it. Where that fails for want of memory, so would reading.
    #[cfg(target_os = "linux")]
    fn populate_at_once(&self, range: Range<usize>) -> bool {
        // SAFETY: the range lies inside the map, and the call reads pages in, no more.
        let failed = unsafe {
            libc::madvise(
                self.map.as_ptr().add(range.start).cast_mut().cast(),
                range.len(),
                libc::MADV_POPULATE_READ,
            )
        };
        failed == 0 || io::Error::last_os_error().kind() != io::ErrorKind::InvalidInput
    }

    #[cfg(not(target_os = "linux"))]
    fn populate_at_once(&self, _: Range<usize>) -> bool {
        false
    }
}

/// Bytes of a page here: 4096, or 16 or 64 kilobytes on some Arm systems.
#[cfg(unix)]
fn page_size() -> usize {
    // SAFETY: asks for a number and touches no memory.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).map_or(PAGE, |bytes| bytes.max(1))
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
        map.populate(0..usize::MAX);
        map.populate(39_999..40_000);
        map.populate(50_000..60_000);
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
