//! From files to examples: what a check tells, and what training reads.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use super::error::{DataError, Fault, Place};
use super::format::{Format, Rename, rename};
use super::read::{Container, Rows, rows};
use super::record::Record;
use super::render::{Length, Rendered, Renderer, Unrendered};
use super::report::{FileReport, Report};
use super::row::Row;
use super::task::Task;
use super::tokens::{Key, TOKENS, TokenFile, TokenWriter};
use crate::kept::touch;
use crate::store::hash;
use crate::tune::Example;
use crate::{Control, Error};

/// Rows whose fields tell the format of a file.
const TELLING: usize = 20;
/// Progress is told every so many rows.
const TOLD: u64 = 256;

/// How files are read.
#[derive(Debug, Clone, Default)]
pub struct DataOptions {
    /// What rows mean; none to find out.
    pub format: Option<Format>,
    /// The task that makes prompts of the rows.
    pub task: Option<Task>,
    /// Fields that are read under other names.
    pub renames: Vec<Rename>,
    /// How long examples may be.
    pub length: Length,
}

/// Something that is found while files are read.
#[derive(Debug)]
pub enum DataEvent<'a> {
    /// What a file is.
    Detected(&'a FileReport),
    /// A row that cannot be used.
    Fault(&'a Fault),
    /// A row that is too long.
    Overlong {
        /// The row.
        place: &'a Place,
        /// Whether nothing of it is left.
        dropped: bool,
    },
    /// So many rows are read.
    Rows(u64),
}

/// Is told of events, and may stop the reading.
pub type OnData<'a> = &'a mut dyn FnMut(DataEvent<'_>) -> Control;

/// A row with what it became.
#[derive(Debug)]
pub struct RenderedRow {
    /// The row.
    pub row: Row,
    /// Its examples.
    pub rendered: Rendered,
}

/// Reads `paths` and tells every fault of theirs.
///
/// # Errors
/// [`Error::Data`] if a file as a whole cannot be used, [`Error::Stopped`]; a row that is wrong is
/// told as an event.
pub fn check(
    paths: &[PathBuf],
    renderer: &Renderer,
    options: &DataOptions,
    on: OnData<'_>,
) -> Result<Report, Error> {
    walk(paths, renderer, options, &mut |_| Ok(()), on)
}

/// Row `number` of the file at `path`, counted from 1, and what it becomes.
///
/// # Errors
/// [`Error::Data`] if there is no such row, or it is wrong.
pub fn show(
    path: &Path,
    number: u64,
    renderer: &Renderer,
    options: &DataOptions,
) -> Result<(FileReport, RenderedRow), Error> {
    let mut file = Opened::new(path, options)?;
    let row = nth(&mut file.rows, path, number)?;
    let rendered = file.meaning.examples(&row, renderer, options)?;
    Ok((file.report, rendered))
}

/// Row `number` of `rows`, those of the file at `path`, counted from 1. Rows that are wrong count;
/// behind an error that is of no row nothing is read, so that nobody knows how many there are.
fn nth(rows: &mut Rows, path: &Path, number: u64) -> Result<Row, DataError> {
    let mut there = 0;
    for row in rows {
        match row {
            Err(error) if !matches!(error, DataError::Fault(_)) => return Err(error),
            row => {
                there += 1;
                if there == number {
                    return row;
                }
            }
        }
    }
    Err(DataError::file(path, format!("there is no row {number}: it has 1 to {there}")))
}

/// Examples that are ready to train on.
#[derive(Debug)]
pub struct Prepared {
    /// The file.
    pub path: PathBuf,
    /// What is in it.
    pub file: TokenFile,
    /// Whether it had been made before.
    pub reused: bool,
}

/// Makes the examples of `paths` once and keeps them in a file in `folder`, whose name says what
/// they are made of: the bytes of the data, the tokenizer, the chat template and the options. They
/// are taken from there where they have been made before.
///
/// # Errors
/// As [`check`]; [`DataError::Faults`] if any row is wrong.
pub fn prepare(
    paths: &[PathBuf],
    renderer: &Renderer,
    options: &DataOptions,
    folder: &Path,
    on: OnData<'_>,
) -> Result<Prepared, Error> {
    let key = key_of(paths, renderer, options)?;
    let name: String = key[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(format!("{name}.{}", TOKENS.ending));
    if let Some(file) = TokenFile::open(&path).ok().filter(|file| file.key() == key) {
        touch(&path);
        file.report().files.iter().for_each(|file| _ = on(DataEvent::Detected(file)));
        return Ok(Prepared { path, file, reused: true });
    }
    let mut writer = TokenWriter::new(&path)?;
    let sink = &mut |example: &Example| Ok(writer.add(example)?);
    let report = sound(paths, renderer, options, sink, on)?;
    writer.finish(&key, &report)?;
    Ok(Prepared { file: TokenFile::open(&path)?, path, reused: false })
}

/// Removes prepared examples from `folder`, those that were used longest ago first, until those
/// that are left have at most `most` bytes, the files `keep` aside, which stay however large they
/// are; and what runs that were killed left half made.
///
/// What another run has open or cannot be removed stays, too.
pub fn trim_prepared(folder: &Path, keep: &[&Path], most: u64) {
    TOKENS.trim(folder, keep, most);
}

/// Bytes of the prepared examples in `folder`.
pub fn prepared_bytes(folder: &Path) -> u64 {
    TOKENS.bytes(folder)
}

/// The examples of `paths` in memory, for sets that are gone through once.
///
/// # Errors
/// As [`prepare`].
pub fn examples(
    paths: &[PathBuf],
    renderer: &Renderer,
    options: &DataOptions,
    on: OnData<'_>,
) -> Result<(Vec<Example>, Report), Error> {
    let mut examples = Vec::new();
    let sink = &mut |example: &Example| {
        examples.push(example.clone());
        Ok(())
    };
    let report = sound(paths, renderer, options, sink, on)?;
    Ok((examples, report))
}

/// As [`walk`], of files that have examples and no fault.
fn sound(
    paths: &[PathBuf],
    renderer: &Renderer,
    options: &DataOptions,
    sink: &mut dyn FnMut(&Example) -> Result<(), Error>,
    on: OnData<'_>,
) -> Result<Report, Error> {
    let mut first = None;
    let report = walk(paths, renderer, options, sink, &mut |event| {
        if let DataEvent::Fault(fault) = &event
            && first.is_none()
        {
            first = Some((*fault).clone());
        }
        on(event)
    })?;
    if let Some(first) = first {
        return Err(DataError::Faults { first, count: report.faults }.into());
    }
    if report.examples == 0 {
        let what = match report.dropped {
            0 => "there are no rows".to_owned(),
            n => format!("all of its {n} rows are too long: raise --max-length"),
        };
        return Err(DataError::file(paths.first().map_or(Path::new(""), |p| p), what).into());
    }
    Ok(report)
}

/// Rises whenever the same rows become other tokens.
const KEY: &str = "offshoot 2026 prepared examples v2";

fn key_of(paths: &[PathBuf], renderer: &Renderer, options: &DataOptions) -> Result<Key, Error> {
    let mut bytes = Vec::new();
    for path in paths {
        bytes.extend(hash(path).map_err(DataError::io(path))?);
        // The ending says how the bytes are read.
        let ending = path.extension().unwrap_or_default().to_string_lossy();
        bytes.extend(ending.bytes().chain([0]));
    }
    bytes.extend(renderer.tokenizer_id().as_bytes());
    bytes.extend(renderer.template_id().map_or([0; 32], |id| *id.as_bytes()));
    let renames: Vec<_> = options.renames.iter().map(|r| (&r.name, &r.field)).collect();
    let format = options.format.map(Format::name);
    let told = serde_json::json!([renderer.end(), format, options.task, renames, options.length]);
    bytes.extend(told.to_string().bytes());
    Ok(blake3::derive_key(KEY, &bytes))
}

/// What rows of a file mean.
enum Meaning<'o> {
    Task(&'o Task),
    Format(Format),
}

impl Meaning<'_> {
    fn name(&self) -> String {
        match self {
            Self::Task(task) => format!("task {}", task.name()),
            Self::Format(format) => format.name().to_owned(),
        }
    }

    fn record(&self, row: &Row) -> Result<Record, Fault> {
        match self {
            Self::Task(task) => task.parse_row(row),
            Self::Format(format) => format.parse(row),
        }
    }

    fn examples(
        &self,
        row: &Row,
        renderer: &Renderer,
        options: &DataOptions,
    ) -> Result<RenderedRow, Error> {
        let record = self.record(row).map_err(DataError::from)?;
        match renderer.examples(&record, options.length) {
            Ok(rendered) => Ok(RenderedRow { row: row.clone(), rendered }),
            Err(Unrendered::Model(error)) => Err(error),
            Err(Unrendered::Row(field, what)) => {
                let fault =
                    Fault { place: row.place.clone(), field: field.map(str::to_owned), what };
                Err(DataError::from(fault).into())
            }
        }
    }
}

/// A file whose format is known, at its first row.
struct Opened<'o> {
    rows: Rows,
    meaning: Meaning<'o>,
    report: FileReport,
}

impl<'o> Opened<'o> {
    fn new(path: &Path, options: &'o DataOptions) -> Result<Self, DataError> {
        let container = Container::of(path)?;
        let renames = options.renames.clone();
        let mut rows = rows(path)?.map(move |row| {
            row.map(|mut row| {
                rename(&mut row, &renames);
                row
            })
        });
        let mut first = Vec::new();
        while first.len() < TELLING
            && let Some(row) = rows.next()
        {
            let fatal = !matches!(row, Ok(_) | Err(DataError::Fault(_)));
            first.push(row);
            if fatal {
                break;
            }
        }
        let sound = first.iter().filter_map(|row| row.as_ref().ok());
        let fields = sound.flat_map(|row| &row.fields).filter(|(_, value)| !value.is_null());
        let mut fields: Vec<&str> = fields.map(|(name, _)| name.as_str()).collect();
        let mut seen = HashSet::new();
        fields.retain(|name| seen.insert(*name));
        let meaning = match (&options.task, options.format) {
            (Some(task), _) => Meaning::Task(task),
            (None, Some(format)) => Meaning::Format(format),
            // The rows themselves say what is wrong with them.
            (None, None) if fields.is_empty() && !first.is_empty() => {
                let wrong = first.into_iter().find_map(Result::err);
                return Err(wrong.unwrap_or_else(|| DataError::file(path, "its rows are empty")));
            }
            (None, None) if first.is_empty() => return Err(DataError::file(path, "has no rows")),
            (None, None) => {
                let format = Format::detect(&fields);
                Meaning::Format(format.map_err(|what| DataError::file(path, what))?)
            }
        };
        let unused = match &meaning {
            Meaning::Format(format) => unused(*format, &fields),
            Meaning::Task(_) => Vec::new(),
        };
        let report = FileReport {
            path: path.display().to_string(),
            container: container.name().to_owned(),
            format: meaning.name(),
            unused,
            rows: 0,
        };
        Ok(Self { rows: Box::new(first.into_iter().chain(rows)), meaning, report })
    }
}

/// Fields beside those that the format must and may have.
fn unused(format: Format, fields: &[&str]) -> Vec<String> {
    let may: &[&str] = match format {
        Format::Alpaca => &["input", "system", "history"],
        Format::ShareGpt => &["system", "tools"],
        Format::Messages => &["tools"],
        Format::Preference => &["prompt", "chosen_reward", "rejected_reward", "tools"],
        Format::Text | Format::Completion | Format::Choices | Format::Answers => &[],
    };
    let known: BTreeSet<&str> = format.fields().iter().chain(may).copied().collect();
    fields.iter().filter(|name| !known.contains(*name)).map(|name| (*name).to_owned()).collect()
}

/// Reads all files; `sink` gets the examples in order.
fn walk(
    paths: &[PathBuf],
    renderer: &Renderer,
    options: &DataOptions,
    sink: &mut dyn FnMut(&Example) -> Result<(), Error>,
    on: OnData<'_>,
) -> Result<Report, Error> {
    let mut report = Report::default();
    let mut seen = HashSet::new();
    for path in paths {
        let mut file = Opened::new(path, options)?;
        proceed(on(DataEvent::Detected(&file.report)))?;
        for row in file.rows.by_ref() {
            report.rows += 1;
            file.report.rows += 1;
            if report.rows % TOLD == 0 {
                proceed(on(DataEvent::Rows(report.rows)))?;
            }
            let rendered = row
                .map_err(Error::from)
                .and_then(|row| file.meaning.examples(&row, renderer, options));
            match rendered {
                Ok(row) => {
                    count(&mut report, &row.rendered, &mut seen);
                    let dropped = row.rendered.examples.is_empty();
                    if row.rendered.cut || dropped {
                        proceed(on(DataEvent::Overlong { place: &row.row.place, dropped }))?;
                    }
                    row.rendered.examples.iter().try_for_each(&mut *sink)?;
                }
                Err(Error::Data(DataError::Fault(fault))) => {
                    report.faults += 1;
                    proceed(on(DataEvent::Fault(&fault)))?;
                }
                Err(error) => return Err(error),
            }
        }
        report.files.push(file.report);
    }
    proceed(on(DataEvent::Rows(report.rows)))?;
    Ok(report)
}

fn proceed(control: Control) -> Result<(), Error> {
    match control {
        Control::Continue => Ok(()),
        Control::Stop => Err(Error::Stopped),
    }
}

/// Counts what a row became. Rows are told apart by 64 bits of a hash: eight bytes a row, and one
/// in a million million wrong among a million.
fn count(report: &mut Report, rendered: &Rendered, seen: &mut HashSet<u64>) {
    report.cut += u64::from(rendered.cut);
    report.dropped += u64::from(rendered.examples.is_empty());
    report.split += u64::from(rendered.examples.len() > 1);
    rendered.examples.iter().for_each(|example| report.count(example));
    if !rendered.examples.is_empty() {
        let mut words = Vec::new();
        rendered.examples.iter().for_each(|e| super::tokens::put_example(&mut words, e));
        let hash = *blake3::hash(&words).as_bytes();
        let first = hash[..8].try_into().map_or(0, u64::from_le_bytes);
        report.duplicates += u64::from(!seen.insert(first));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tune::data::error::{Count, Place};

    #[test]
    fn a_row_that_is_not_there_is_told_with_the_rows_there_are_or_with_what_ended_them() {
        let path = Path::new("x.parquet");
        let place = |number| Place { file: Arc::from(path), count: Count::Row, number };
        let sound = |number| Ok(Row { place: place(number), fields: serde_json::Map::new() });
        let fault = Fault { place: place(2), field: None, what: "no row".to_owned() };
        let rows = |behind: Option<DataError>| -> Rows {
            let wrong = Err(DataError::from(fault.clone()));
            Box::new([sound(1), wrong, sound(3)].into_iter().chain(behind.map(Err)))
        };
        let told = |number, behind| match nth(&mut rows(behind), path, number) {
            Ok(row) => row.place.to_string(),
            Err(error) => error.to_string(),
        };
        for is_broken in [false, true] {
            let behind = || is_broken.then(|| DataError::file(path, "row 4: broken"));
            assert_eq!(told(1, behind()), "x.parquet:row 1");
            assert_eq!(told(2, behind()), "x.parquet:row 2: no row");
            assert_eq!(told(3, behind()), "x.parquet:row 3");
            for number in [4, 9] {
                let none = format!("x.parquet: there is no row {number}: it has 1 to 3");
                let said = if is_broken { "x.parquet: row 4: broken" } else { none.as_str() };
                assert_eq!(told(number, behind()), said);
            }
        }
    }
}
