//! Bytes that lie in a file while they are used: read through a map, changed by position.
//!
//! What is larger than memory is read where it lies: the system brings a page in when it is touched and
//! may drop it again. Changes are written with calls that fail with a reason, so that a full disk is an
//! error and no signal; the system's cache of the file shows them in the map at once.
//!
//! The file has no name, so nobody else opens, truncates or finds it, and however the process ends, it
//! is gone. A disk that cannot be read any more ends the process with a signal, as with any map.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Blocks begin at multiples of this, that of the largest pages, so that no two share a page.
const ALIGN: u64 = 1 << 16;
/// Bytes that are asked for at once: Linux reads no more ahead for one call on a disk of usual settings.
#[cfg(unix)]
const AHEAD: usize = 128 << 10;

/// A file without a name that blocks are made in.
#[derive(Debug)]
pub struct ScratchFile {
    file: Arc<File>,
    folder: PathBuf,
    len: u64,
    moved: Arc<Moved>,
}

/// Bytes of blocks that went between a file and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Read: the whole of a block whenever it is used for the first time since it was
    /// [released](FileBlock::release). What the system still has of it comes from there.
    pub read: u64,
    /// Written.
    pub written: u64,
}

/// The same, as it is counted.
#[derive(Debug, Default)]
struct Moved {
    read: AtomicU64,
    written: AtomicU64,
}

impl ScratchFile {
    /// An empty one on the disk of `folder`, which exists.
    ///
    /// # Errors
    /// If no file can be made there; [`io::ErrorKind::Unsupported`] where a system has no files
    /// without names, or does not show in a map what is written, as OpenBSD.
    pub fn create(folder: &Path) -> io::Result<Self> {
        if cfg!(any(not(unix), target_os = "openbsd")) {
            let what = "weights are kept on disk on Unix systems alone, and not on OpenBSD";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        let mut number = 0u32;
        let (file, path) = loop {
            let path = folder.join(format!(".weights.{}.{number}", std::process::id()));
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => break (file, path),
                // Left by a process of this number that was killed just here.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && number < 100 => number += 1,
                Err(e) => return Err(e),
            }
        };
        std::fs::remove_file(path)?;
        let (file, moved) = (Arc::new(file), Arc::default());
        Ok(Self { file, folder: folder.to_owned(), len: 0, moved })
    }

    /// What was read and written so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            read: self.moved.read.load(Ordering::Relaxed),
            written: self.moved.written.load(Ordering::Relaxed),
        }
    }

    /// The folder on whose disk it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A block of `len` zeros behind those that were made before. It takes room as it is written.
    ///
    /// # Errors
    /// If the file cannot be so long, or cannot be mapped.
    pub fn block(&mut self, len: usize) -> io::Result<FileBlock> {
        let start = self.len.next_multiple_of(ALIGN);
        let end = start.saturating_add(len as u64);
        self.file.set_len(end)?;
        self.len = end;
        // SAFETY: the file has no name and is this process's alone, so it is never truncated, and its
        // bytes change but by `FileBlock::write_at`, whose callers hold no part of the map.
        let map = unsafe { memmap2::MmapOptions::new().offset(start).len(len).map(&*self.file)? };
        let (file, moved) = (Arc::clone(&self.file), Arc::clone(&self.moved));
        Ok(FileBlock { file, start, map, used: AtomicBool::new(false), moved })
    }

    /// Waits until all that was written is on the disk.
    ///
    /// # Errors
    /// If something of it could not be written since this was asked last.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// A range of a [`ScratchFile`].
#[derive(Debug)]
pub struct FileBlock {
    file: Arc<File>,
    start: u64,
    map: memmap2::Mmap,
    /// Whether it was used since it was released.
    used: AtomicBool,
    moved: Arc<Moved>,
}

impl FileBlock {
    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Notes that it is used.
    fn note_use(&self) {
        if !self.used.load(Ordering::Relaxed) && !self.used.swap(true, Ordering::Relaxed) {
            self.moved.read.fetch_add(self.len() as u64, Ordering::Relaxed);
        }
    }

    /// Lets the block's pages leave this process; the bytes stay. A hint: errors are ignored.
    pub fn release(&self) {
        self.used.store(false, Ordering::Relaxed);
        #[cfg(unix)]
        {
            // SAFETY: the map is a shared one of a file, whose pages are read from it again when touched,
            // and nothing was written through the map.
            let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// Tells the system that all of the block is needed soon, so that it is read while other things are
    /// done. A hint: errors are ignored.
    pub fn read_ahead(&self) {
        self.note_use();
        #[cfg(unix)]
        for at in (0..self.map.len()).step_by(AHEAD) {
            let len = AHEAD.min(self.map.len() - at);
            let _ = self.map.advise_range(memmap2::Advice::WillNeed, at, len);
        }
    }

    /// Reads the words from byte `at` on.
    pub(crate) fn read_at(&self, at: usize, out: &mut [u32]) -> io::Result<()> {
        self.note_use();
        // SAFETY: an integer may have any bits, and bytes need no alignment.
        let (_, bytes, _) = unsafe { out.align_to_mut::<u8>() };
        read_exact_at(&self.file, bytes, self.place(at, bytes.len()))
    }

    /// Writes words from byte `at` on.
    ///
    /// # Safety
    /// Nobody holds a part of the block's bytes, and no other call writes these.
    pub(crate) unsafe fn write_at(&self, at: usize, values: &[u32]) -> io::Result<()> {
        // SAFETY: bytes may have any bits and need no alignment.
        let (_, bytes, _) = unsafe { values.align_to::<u8>() };
        let place = self.place(at, bytes.len());
        self.moved.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        write_all_at(&self.file, bytes, place)
    }

    /// Where in the file byte `at` stands, `len` bytes from which on are the block's.
    fn place(&self, at: usize, len: usize) -> u64 {
        assert!(at.saturating_add(len) <= self.map.len(), "a part of the block");
        self.start + at as u64
    }
}

impl Deref for FileBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.note_use();
        &self.map
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, at)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, at)
}

#[cfg(not(unix))]
fn read_exact_at(_: &File, _: &mut [u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(unix))]
fn write_all_at(_: &File, _: &[u8], _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_in_every_way_and_again_after_its_pages_went() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = ScratchFile::create(dir.path()).unwrap();
        let blocks = [file.block(70_000).unwrap(), file.block(40_000).unwrap()];
        assert!(blocks.iter().all(|block| block.iter().all(|byte| *byte == 0)));
        for (i, block) in blocks.iter().enumerate() {
            let values: Vec<u32> = (0..5000).map(|k| k * (i as u32 + 1)).collect();
            // SAFETY: nothing of the blocks is in use.
            unsafe { block.write_at(8, &values).unwrap() };
            file.sync().unwrap();
            for _ in 0..2 {
                let word = |b: &[u8]| u32::from_le_bytes(b.try_into().unwrap());
                let mapped: Vec<u32> = block[8..8 + 20_000].chunks(4).map(word).collect();
                assert_eq!(mapped, values);
                let mut read = vec![0; 5000];
                block.read_at(8, &mut read).unwrap();
                assert_eq!(read, values);
                block.release();
                block.read_ahead();
                block.read_ahead();
            }
            assert_eq!(&block[..8], &[0; 8]);
        }
        // Each was used, released twice and used again; those that were never used are not read.
        assert!(file.block(1000).is_ok());
        assert_eq!(file.traffic(), Traffic { read: 3 * 110_000, written: 40_000 });
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
        assert!(ScratchFile::create(&dir.path().join("nowhere")).is_err());
    }

    #[test]
    fn no_other_block_is_read_or_written_by_way_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = ScratchFile::create(dir.path()).unwrap();
        let blocks = [file.block(8).unwrap(), file.block(8).unwrap()];
        let read = |at: usize| {
            let read = || blocks[0].read_at(at, &mut [Default::default(); 2]);
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        };
        let write = |at: usize| {
            // SAFETY: nothing of the blocks is in use.
            let write = || unsafe { blocks[0].write_at(at, &[Default::default(); 2]) };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(write))
        };
        assert!(matches!((read(0), write(0)), (Ok(Ok(())), Ok(Ok(())))));
        for at in [4, 8, ALIGN as usize, usize::MAX] {
            assert!(read(at).is_err() && write(at).is_err(), "{at}");
        }
    }
}
