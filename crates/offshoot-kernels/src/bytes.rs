//! Bytes that many owners share: a part of a buffer, or of a mapped file.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::{Buffer, FileMap};

#[derive(Debug, Clone)]
enum Store {
    Buffer(Arc<Buffer<u8>>),
    Map(Arc<FileMap>),
}

/// A read-only range of a shared buffer or mapped file; a clone is a reference.
#[derive(Debug, Clone)]
pub struct SharedBytes {
    store: Store,
    range: Range<usize>,
}

impl SharedBytes {
    /// The part `range` of `self`, or `None` if it does not lie inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        Some(Self { store: self.store.clone(), range: start + range.start..start + range.end })
    }
}

impl From<Buffer<u8>> for SharedBytes {
    fn from(buffer: Buffer<u8>) -> Self {
        let range = 0..buffer.len();
        Self { store: Store::Buffer(Arc::new(buffer)), range }
    }
}

impl From<FileMap> for SharedBytes {
    fn from(map: FileMap) -> Self {
        let range = 0..map.len();
        Self { store: Store::Map(Arc::new(map)), range }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.store {
            Store::Buffer(buffer) => &buffer[self.range.clone()],
            Store::Map(map) => &map[self.range.clone()],
        }
    }
}
