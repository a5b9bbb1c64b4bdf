//! Rows of files: JSON lines, JSON, CSV, Parquet.
//!
//! Rows are read one after the other, so that memory holds one of them (of a Parquet file, one page
//! of each column), however large the file is. A JSON object of columns alone is read whole, up to
//! a limit, since its rows are spread over all of it.

mod csv;
mod json;
mod lines;
mod parquet;
mod squad;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use super::error::{Count, DataError, Fault, Place};
use super::row::Row;
use crate::error::one_line;

/// Bytes of a row at most; the longest of published sets have a few megabytes.
const ROW_BYTES: usize = 64 << 20;

/// The rows of a file, in order. Behind a [`DataError::Fault`] further rows may follow; any other
/// error is the last.
pub type Rows = Box<dyn Iterator<Item = Result<Row, DataError>>>;

/// How a file keeps its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// A JSON object on each line.
    JsonLines,
    /// A list of objects, or an object of lists.
    Json,
    /// Comma-separated values with a header.
    Csv,
    /// Tab-separated values with a header.
    Tsv,
    /// Apache Parquet.
    Parquet,
}

impl Container {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::JsonLines => "JSON lines",
            Self::Json => "JSON",
            Self::Csv => "CSV",
            Self::Tsv => "TSV",
            Self::Parquet => "Parquet",
        }
    }

    /// What the file at `path` is, by the end of its name, else by its first bytes.
    ///
    /// # Errors
    /// If it cannot be read, or neither tells.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        let begin = beginning(path)?;
        if begin.starts_with(b"PAR1") {
            return Ok(Self::Parquet);
        }
        let name = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        match name.as_deref() {
            Some("jsonl" | "ndjson") => return Ok(Self::JsonLines),
            Some("csv") => return Ok(Self::Csv),
            Some("tsv") => return Ok(Self::Tsv),
            Some("parquet") => {
                return Err(DataError::file(path, "does not begin as a Parquet file does"));
            }
            _ => {}
        }
        let text = begin.strip_prefix(BOM).unwrap_or(&begin);
        match text.iter().find(|b| !b.is_ascii_whitespace()) {
            Some(b'[') => Ok(Self::Json),
            Some(b'{') if name.as_deref() == Some("json") => Ok(Self::Json),
            Some(b'{') => Ok(Self::JsonLines),
            _ => Err(DataError::file(
                path,
                "neither its name nor its first bytes say what it is; name it .jsonl, .json, .csv, \
                 .tsv or .parquet",
            )),
        }
    }
}

/// What some programs write before UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

fn beginning(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut begin = Vec::new();
    let file = File::open(path).map_err(DataError::io(path))?;
    file.take(4096).read_to_end(&mut begin).map_err(DataError::io(path))?;
    if begin.is_empty() {
        return Err(DataError::file(path, "the file is empty"));
    }
    Ok(begin)
}

/// Opens the file at `path`.
///
/// # Errors
/// If it cannot be read, or nothing tells what it is.
pub fn rows(path: &Path) -> Result<Rows, DataError> {
    let source = Source { file: Arc::from(path), path: path.to_owned() };
    match Container::of(path)? {
        Container::JsonLines => Ok(Box::new(lines::Lines::new(source.open()?, source))),
        Container::Json => json::rows(source),
        Container::Csv => csv::rows(source, b','),
        Container::Tsv => csv::rows(source, b'\t'),
        Container::Parquet => parquet::rows(source),
    }
}

/// A file that rows come from.
#[derive(Debug, Clone)]
struct Source {
    file: Arc<Path>,
    path: std::path::PathBuf,
}

impl Source {
    /// The file's bytes without what may stand before UTF-8.
    fn open(&self) -> Result<BufReader<File>, DataError> {
        let file = File::open(&self.path).map_err(DataError::io(&self.path))?;
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let begin = reader.fill_buf().map_err(DataError::io(&self.path))?;
        if begin.starts_with(BOM) {
            reader.consume(BOM.len());
        }
        Ok(reader)
    }

    fn line(&self, number: u64) -> Place {
        Place { file: Arc::clone(&self.file), count: Count::Line, number }
    }

    fn row(&self, number: u64) -> Place {
        Place { file: Arc::clone(&self.file), count: Count::Row, number }
    }

    fn io(&self, source: std::io::Error) -> DataError {
        DataError::Io { path: self.path.clone(), source }
    }

    fn wrong(&self, what: impl ToString) -> DataError {
        DataError::file(&self.path, what)
    }
}

fn fault(place: Place, what: impl ToString) -> DataError {
    Fault { place, field: None, what: what.to_string() }.into()
}

/// Parses an object. `from` is the line that `bytes` begin on.
fn object(source: &Source, from: u64, bytes: &[u8]) -> Result<Row, DataError> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let line = from + before.iter().filter(|&&b| b == b'\n').count() as u64;
        let begin = before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let at = e.valid_up_to() - begin + 1;
        fault(source.line(line), format!("byte {at} of the line is not UTF-8: save it as UTF-8"))
    })?;
    let wrong = |e: serde_json::Error| {
        let line = from + (e.line().max(1) - 1) as u64;
        fault(source.line(line), format!("is no JSON: {}", json_reason(&e)))
    };
    match serde_json::from_str(text).map_err(wrong)? {
        serde_json::Value::Object(fields) => Ok(Row { place: source.line(from), fields }),
        other => {
            let what = format!("expected an object, got {}", super::row::kind(&other));
            Err(fault(source.line(from), what))
        }
    }
}

/// The parser's words with the column alone, since it counts lines from where it began.
fn json_reason(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("{} at column {}", one_line(&what), e.column())
}

#[cfg(test)]
mod tests;
