//! Comma- and tab-separated values (RFC 4180), with a header. All values are texts.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use csv::{ByteRecord, ReaderBuilder};
use serde_json::Value;

use super::{ROW_BYTES, Rows, Source, fault};
use crate::tune::data::error::Shown;
use crate::tune::data::{DataError, Row};

/// Ends with an error where a row takes too many bytes, as one does whose quote is never closed.
struct Bounded {
    reader: BufReader<File>,
    seen: Rc<Seen>,
}

/// What was seen of the file's bytes.
#[derive(Debug)]
struct Seen {
    /// Bytes that the row may still take.
    left: Cell<usize>,
    /// Whether the first line ends with a carriage return and a line feed; none before that is known.
    crlf: Cell<Option<bool>>,
    /// The last byte.
    last: Cell<u8>,
    /// Whether there is none behind it.
    ended: Cell<bool>,
}

impl Read for Bounded {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(out)?;
        if self.seen.crlf.get().is_none()
            && let Some(at) = out[..n].iter().position(|&b| b == b'\n')
        {
            self.seen.crlf.set(Some(at > 0 && out[at - 1] == b'\r'));
        }
        self.seen.ended.set(n == 0);
        self.seen.last.set(out[..n].last().copied().unwrap_or(self.seen.last.get()));
        match self.seen.left.get().checked_sub(n) {
            Some(left) => self.seen.left.set(left),
            None => {
                let what =
                    format!("a row of more than {} MB: is a quote left open?", ROW_BYTES >> 20);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        Ok(n)
    }
}

pub(super) fn rows(source: Source, delimiter: u8) -> Result<Rows, DataError> {
    let seen = Rc::new(Seen {
        left: Cell::new(ROW_BYTES),
        crlf: Cell::new(None),
        last: Cell::new(0),
        ended: Cell::new(false),
    });
    let bounded = Bounded { reader: source.open()?, seen: Rc::clone(&seen) };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(bounded);
    let header = reader.byte_headers().map_err(|e| wrong(&source, 1, e))?.clone();
    let names = names(&source, &header)?;
    let mut record = ByteRecord::new();
    let mut done = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if done {
            return None;
        }
        seen.left.set(ROW_BYTES);
        let read = reader.read_byte_record(&mut record);
        // Where lines end with two characters, the second one is left to the next row.
        let unended = seen.ended.get() && seen.last.get() != b'\n';
        let in_line = unended || seen.crlf.get() == Some(true);
        let line = line(&record, reader.position().line().saturating_sub(u64::from(!in_line)));
        match read {
            Ok(false) => None,
            Ok(true) => Some(row(&source, line, &names, &record)),
            Err(e) => {
                let error = wrong(&source, line, e);
                done = !matches!(error, DataError::Fault(_));
                Some(Err(error))
            }
        }
    })))
}

/// The line on which `record` begins if it ends on line `last`. The library's is that on which it
/// began to look for it, before blank lines and what is left of the line before.
fn line(record: &ByteRecord, last: u64) -> u64 {
    let own = record.as_slice().iter().filter(|&&b| b == b'\n').count() as u64;
    last.saturating_sub(own)
}

fn names(source: &Source, header: &ByteRecord) -> Result<Vec<String>, DataError> {
    let mut names: Vec<String> = Vec::with_capacity(header.len());
    for name in header {
        let name = std::str::from_utf8(name).map(str::trim);
        let name = name.map_err(|_| fault(source.line(1), "the header is not UTF-8"))?;
        if names.iter().any(|other| other == name) {
            let what = format!("two columns of the header are named {}", Shown(name));
            return Err(source.wrong(what));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn row(
    source: &Source,
    line: u64,
    names: &[String],
    record: &ByteRecord,
) -> Result<Row, DataError> {
    let place = source.line(line);
    let mut fields = serde_json::Map::new();
    for (name, value) in names.iter().zip(record) {
        let value = std::str::from_utf8(value).map_err(|e| {
            let what = format!("byte {} of the value is not UTF-8", e.valid_up_to() + 1);
            let field = Some(name.clone());
            crate::tune::data::Fault { place: place.clone(), field, what }
        })?;
        fields.insert(name.clone(), Value::from(value));
    }
    Ok(Row { place, fields })
}

fn wrong(source: &Source, line: u64, error: csv::Error) -> DataError {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => source.io(error),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let what = format!("{len} values, but the header has {expected_len}");
            fault(source.line(line), what)
        }
        other => source.wrong(format!("{other:?}")),
    }
}
