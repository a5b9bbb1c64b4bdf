//! JSON lines.

use std::io::BufRead;

use super::{ROW_BYTES, Source, fault, object};
use crate::tune::data::{DataError, Row};

/// Objects, one a line. Blank lines are passed over.
pub(super) struct Lines<R> {
    reader: R,
    source: Source,
    line: u64,
    bytes: Vec<u8>,
    done: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R, source: Source) -> Self {
        Self { reader, source, line: 0, bytes: Vec::new(), done: false }
    }

    /// Reads a line without its end into `bytes`, no more of it than a row may have. Whether there
    /// was one, and whether all of it was read.
    fn read_line(&mut self) -> std::io::Result<Option<bool>> {
        self.bytes.clear();
        let (mut any, mut whole) = (false, true);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(any.then_some(whole));
            }
            any = true;
            let end = buffer.iter().position(|&b| b == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            whole &= self.bytes.len() + part.len() <= ROW_BYTES;
            if whole {
                self.bytes.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() {
                return Ok(Some(whole));
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.done {
            self.line += 1;
            match self.read_line() {
                Err(error) => {
                    self.done = true;
                    return Some(Err(self.source.io(error)));
                }
                Ok(None) => self.done = true,
                Ok(Some(false)) => {
                    let what = format!("the line has more than {} MB", ROW_BYTES >> 20);
                    return Some(Err(fault(self.source.line(self.line), what)));
                }
                Ok(Some(true)) if self.bytes.iter().all(u8::is_ascii_whitespace) => {}
                Ok(Some(true)) => return Some(object(&self.source, self.line, &self.bytes)),
            }
        }
        None
    }
}
