//! Bytes that many owners share: a part of a buffer, or a block of a file.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::{Buffer, FileBlock};

/// A range of a shared buffer or file, read-only as long as it is shared; a clone is a reference.
#[derive(Debug, Clone)]
pub struct SharedBytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Debug, Clone)]
enum Owner {
    Memory(Arc<Buffer<u8>>),
    File(Arc<FileBlock>),
}

impl SharedBytes {
    /// The part `range` of `self`, or `None` if it does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        let range = start + range.start..start + range.end;
        Some(Self { owner: self.owner.clone(), range })
    }

    /// The bytes to be written, if nobody else has a part of the buffer.
    pub(crate) fn get_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.owner {
            Owner::Memory(buffer) => Arc::get_mut(buffer)?.get_mut(self.range.clone()),
            Owner::File(_) => None,
        }
    }

    /// The block of a file that these bytes are, if they are one.
    pub(crate) fn block(&self) -> Option<&FileBlock> {
        match &self.owner {
            Owner::File(block) if self.range == (0..block.len()) => Some(block),
            _ => None,
        }
    }

    /// The same, to be written, if nobody else has a part of it.
    pub(crate) fn block_mut(&mut self) -> Option<&mut FileBlock> {
        match &mut self.owner {
            Owner::File(block) if self.range == (0..block.len()) => Arc::get_mut(block),
            _ => None,
        }
    }
}

impl From<Buffer<u8>> for SharedBytes {
    fn from(buffer: Buffer<u8>) -> Self {
        let range = 0..buffer.len();
        Self { owner: Owner::Memory(Arc::new(buffer)), range }
    }
}

impl From<FileBlock> for SharedBytes {
    fn from(block: FileBlock) -> Self {
        let range = 0..block.len();
        Self { owner: Owner::File(Arc::new(block)), range }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.owner {
            Owner::Memory(buffer) => &buffer[self.range.clone()],
            Owner::File(block) => &block[self.range.clone()],
        }
    }
}
