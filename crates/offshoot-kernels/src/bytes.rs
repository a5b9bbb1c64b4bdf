//! Bytes that many owners share: a part of a buffer.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::Buffer;

/// A range of a shared buffer, read-only as long as it is shared; a clone is a reference.
#[derive(Debug, Clone)]
pub struct SharedBytes {
    buffer: Arc<Buffer<u8>>,
    range: Range<usize>,
}

impl SharedBytes {
    /// The part `range` of `self`, or `None` if it does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        let range = start + range.start..start + range.end;
        Some(Self { buffer: Arc::clone(&self.buffer), range })
    }

    /// The bytes to be written, if nobody else has a part of the buffer.
    pub(crate) fn get_mut(&mut self) -> Option<&mut [u8]> {
        Arc::get_mut(&mut self.buffer)?.get_mut(self.range.clone())
    }
}

impl From<Buffer<u8>> for SharedBytes {
    fn from(buffer: Buffer<u8>) -> Self {
        let range = 0..buffer.len();
        Self { buffer: Arc::new(buffer), range }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}
