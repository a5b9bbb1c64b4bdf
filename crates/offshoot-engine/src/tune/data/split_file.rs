//! A data file in two: rows to train on and rows to measure on.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::error::DataError;
use super::read::rows;
use super::split::{Split, SplitSizes, split};
use crate::beside::Output;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitReport {
    /// By class, the rows of the file; one without a name where no field says it.
    pub classes: BTreeMap<String, u64>,
    /// Rows to train on.
    pub train: usize,
    /// Rows to measure on.
    pub held_out: usize,
}

/// Writes the rows of the file at `path` as JSON lines to `train` and `held_out`, in the file's order,
/// so that each class, the value of field `by`, is held out equally often. The same seed gives the
/// same rows. Both files are moved to their places when both are complete.
///
/// # Errors
/// If a row is wrong or has no class, or a class has too few rows.
pub fn split_file(
    path: &Path,
    by: Option<&str>,
    sizes: SplitSizes,
    seed: u64,
    (train, held_out): (&Path, &Path),
) -> Result<SplitReport, DataError> {
    let real = |path: &Path| place(path).map_err(DataError::io(path));
    if real(train)? == real(held_out)? {
        return Err(DataError::file(train, "both files would be this one: name two"));
    }
    if let Some(own) = [train, held_out].into_iter().find(|p| real(p).ok() == real(path).ok()) {
        return Err(DataError::file(own, "the file to split would be written over: name another"));
    }
    let mut names = Vec::new();
    for row in rows(path)? {
        let row = row?;
        names.push(by.map_or(Ok(String::new()), |by| row.shown(by))?);
    }
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    names.iter().for_each(|name| *counts.entry(name.clone()).or_default() += 1);
    // By the order of their names, so that the order of rows does not matter for it.
    let numbers: HashMap<&str, usize> =
        counts.keys().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let classes: Vec<usize> = names.iter().map(|name| numbers[name.as_str()]).collect();
    let Split { train: trained, held_out: held } =
        split(&classes, sizes, seed).map_err(|what| {
            let known: Vec<String> =
                counts.iter().map(|(name, n)| format!("{name:?}: {n}")).collect();
            DataError::file(path, format!("{what}; rows of each class: {}", known.join(", ")))
        })?;
    let (mut to_train, mut to_held) = (Lines::new(train)?, Lines::new(held_out)?);
    let (mut next_train, mut next_held) = (trained.iter().peekable(), held.iter().peekable());
    for (i, row) in rows(path)?.enumerate() {
        let row = row?;
        if next_train.next_if_eq(&&i).is_some() {
            to_train.add(&row.fields)?;
        } else if next_held.next_if_eq(&&i).is_some() {
            to_held.add(&row.fields)?;
        }
    }
    to_train.complete()?;
    to_held.complete()?;
    to_train.finish()?;
    to_held.finish()?;
    Ok(SplitReport { classes: counts, train: trained.len(), held_out: held.len() })
}

/// Where `path` is, whether or not there is a file, so that two names of one place are the same.
fn place(path: &Path) -> io::Result<PathBuf> {
    if let Ok(real) = path.canonicalize() {
        return Ok(real);
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(folder.canonicalize()?.join(path.file_name().unwrap_or_default()))
}

/// A file of JSON lines in the making.
struct Lines {
    place: PathBuf,
    file: BufWriter<Output>,
}

impl Lines {
    fn new(place: &Path) -> Result<Self, DataError> {
        let file = Output::to(place).map_err(DataError::io(place))?;
        Ok(Self { place: place.to_owned(), file: BufWriter::new(file) })
    }

    fn add(
        &mut self,
        fields: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<(), DataError> {
        let written = serde_json::to_writer(&mut self.file, fields).map_err(io::Error::from);
        written.and_then(|()| self.file.write_all(b"\n")).map_err(DataError::io(&self.place))
    }

    fn complete(&mut self) -> Result<(), DataError> {
        self.file.flush().map_err(DataError::io(&self.place))
    }

    fn finish(self) -> Result<(), DataError> {
        let written = self.file.into_inner().map_err(io::IntoInnerError::into_error);
        written.and_then(Output::finish).map_err(DataError::io(&self.place))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn classes_are_held_out_equally_and_every_row_is_somewhere_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let lines: Vec<String> = (0..50).map(|i| format!("{i},{}", u8::from(i % 5 == 0))).collect();
        fs::write(at("x.csv"), format!("text,label\n{}\n", lines.join("\n"))).unwrap();
        let sizes = SplitSizes { held_out: 4, train: None };
        let run = |seed, by| {
            let to = (at("train.jsonl"), at("held.jsonl"));
            split_file(&at("x.csv"), by, sizes, seed, (&to.0, &to.1)).map(|report| {
                let text = |path| fs::read_to_string(path).unwrap();
                (report, text(to.0), text(to.1))
            })
        };
        let (report, train, held) = run(1, Some("label")).unwrap();
        assert_eq!((report.train, report.held_out, report.classes["1"]), (42, 8, 10));
        assert_eq!(held.matches("\"label\":\"1\"").count(), 4);
        let mut all: Vec<String> = train.lines().chain(held.lines()).map(str::to_owned).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 50);
        assert_eq!(run(1, Some("label")).unwrap().1, train);
        assert_ne!(run(2, Some("label")).unwrap().1, train);
        assert_eq!(run(1, None).unwrap().0.held_out, 4);
        let told = run(1, Some("kind")).unwrap_err().to_string();
        assert!(told.contains("x.csv:2:kind: the field is missing"), "{told}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_class_of_too_few_rows_is_told_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        fs::write(&path, "{\"l\": 0}\n{\"l\": 1}\n{\"l\": 1}\n").unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let sizes = SplitSizes { held_out: 1, train: None };
        let told = split_file(&path, Some("l"), sizes, 1, (&a, &b)).unwrap_err().to_string();
        assert!(told.ends_with("rows of each class: \"0\": 1, \"1\": 2"), "{told}");
        assert!(!a.exists() && !b.exists());
    }
}
