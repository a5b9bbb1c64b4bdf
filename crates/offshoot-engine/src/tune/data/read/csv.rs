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
    left: Rc<Cell<usize>>,
}

impl Read for Bounded {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(out)?;
        match self.left.get().checked_sub(n) {
            Some(left) => self.left.set(left),
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
    let left = Rc::new(Cell::new(ROW_BYTES));
    let bounded = Bounded { reader: source.open()?, left: Rc::clone(&left) };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(bounded);
    let header = reader.byte_headers().map_err(|e| wrong(&source, e))?.clone();
    let names = names(&source, &header)?;
    let mut record = ByteRecord::new();
    let mut done = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if done {
            return None;
        }
        left.set(ROW_BYTES);
        match reader.read_byte_record(&mut record) {
            Ok(false) => None,
            Ok(true) => Some(row(&source, &names, &record)),
            Err(e) => {
                let error = wrong(&source, e);
                done = !matches!(error, DataError::Fault(_));
                Some(Err(error))
            }
        }
    })))
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

fn row(source: &Source, names: &[String], record: &ByteRecord) -> Result<Row, DataError> {
    let place = source.line(record.position().map_or(0, csv::Position::line));
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

fn wrong(source: &Source, error: csv::Error) -> DataError {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => source.io(error),
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let what = format!("{len} values, but the header has {expected_len}");
            fault(source.line(pos.map_or(0, |pos| pos.line())), what)
        }
        other => source.wrong(format!("{other:?}")),
    }
}
