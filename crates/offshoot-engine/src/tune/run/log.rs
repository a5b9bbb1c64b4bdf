//! A run's log: `log.jsonl`, one object a line, from which all else that is shown of a run is made.
//!
//! A line is written when what it tells is over, with one call, so a process that is killed leaves
//! at most a torn last line. A run that goes on from a checkpoint cuts the log where that
//! checkpoint was made, and its steps come again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::RunError;
use super::files::output;
use crate::Error;
use crate::error::one_line;

/// One line. Numbers that are none, such as a loss that overflowed, are `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum LogLine {
    /// The first line.
    Start(StartLine),
    /// A step was made.
    Step(StepLine),
    /// The held-out examples were scored.
    Eval(EvalLine),
    /// The run goes on from a checkpoint.
    Resume {
        /// Steps made until then.
        step: u64,
        /// When, in seconds since 1970.
        unix_s: f64,
    },
    /// The run is over.
    End {
        /// Steps made.
        step: u64,
        /// Why it ended.
        reason: EndReason,
        /// When, in seconds since 1970.
        unix_s: f64,
    },
}

impl LogLine {
    /// What it says of the run, if it is the first line.
    pub fn start(&self) -> Option<&StartLine> {
        if let Self::Start(line) = self { Some(line) } else { None }
    }

    /// The step that it tells of.
    pub fn step(&self) -> Option<&StepLine> {
        if let Self::Step(line) = self { Some(line) } else { None }
    }

    /// The evaluation that it tells of.
    pub fn eval(&self) -> Option<&EvalLine> {
        if let Self::Eval(line) = self { Some(line) } else { None }
    }
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// All steps were made.
    Done,
    /// The metric did not get better for as many evaluations as patience lasts.
    EarlyStop,
    /// The held-out loss was twice the best three times in a row.
    Diverged,
}

impl EndReason {
    /// For people.
    pub fn told(self) -> &'static str {
        match self {
            Self::Done => "all steps are made",
            Self::EarlyStop => "the held-out metric got no better",
            Self::Diverged => "the held-out loss was twice the best, three times in a row",
        }
    }
}

/// What a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartLine {
    /// The version of offshoot.
    pub version: String,
    /// Which weights are tuned.
    pub base: String,
    /// The digest of the examples that are trained on.
    pub data: String,
    /// How many they are.
    pub examples: usize,
    /// How many are held out.
    pub held_out: usize,
    /// Steps to make.
    pub steps: u64,
    /// All settings.
    pub config: serde_json::Value,
    /// When, in seconds since 1970.
    pub unix_s: f64,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// Steps made, with this one.
    pub step: u64,
    /// Epochs gone by then.
    pub epoch: f64,
    /// The loss.
    pub loss: Option<f64>,
    /// The learning rate.
    pub rate: f64,
    /// Tokens of the batch.
    pub tokens: usize,
    /// Tokens of the run so far.
    pub tokens_total: u64,
    /// Tokens for each second of the step.
    pub tokens_per_s: Option<f64>,
    /// Seconds that the step took.
    pub seconds: f64,
    /// Seconds of the run so far, those before a pause too.
    pub elapsed_s: f64,
    /// Most memory that the process had so far, in bytes.
    pub peak_rss_bytes: Option<u64>,
    /// What the method tells beside that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, Option<f64>>,
}

/// How the held-out examples fared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalLine {
    /// Steps made by then.
    pub step: u64,
    /// What was measured, by name; `loss` among them.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// Whether it is the best so far.
    pub best: bool,
    /// Seconds that it took.
    pub seconds: f64,
    /// Seconds of the run so far.
    pub elapsed_s: f64,
}

/// `x`, if it is a number.
pub(crate) fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// A log that is written.
#[derive(Debug)]
pub(crate) struct RunLog {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl RunLog {
    /// Opens the log at `path` behind its first `keep` bytes; what is after them is cut off, and a
    /// line that is not whole.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn open(path: &Path, keep: u64) -> Result<Self, Error> {
        let open = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.create(true).truncate(false).read(true).write(true).open(path)?;
            let mut kept = Vec::new();
            (&mut file).take(keep).read_to_end(&mut kept)?;
            let bytes = kept.iter().rposition(|&b| b == b'\n').map_or(0, |at| at as u64 + 1);
            file.set_len(bytes)?;
            file.seek(SeekFrom::Start(bytes))?;
            Ok((file, bytes))
        };
        let (file, bytes) = open().map_err(output(path))?;
        Ok(Self { path: path.to_owned(), file, bytes })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn add(&mut self, line: &LogLine) -> Result<(), Error> {
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        self.file.write_all(&text).map_err(output(&self.path))?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Waits until all lines are on the disk; gives their bytes.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn sync(&self) -> Result<u64, Error> {
        self.file.sync_all().map_err(output(&self.path))?;
        Ok(self.bytes)
    }
}

/// Reads the log at `path`. A torn last line, of a run that was killed, is left out.
///
/// # Errors
/// [`crate::Error::Output`] if it cannot be read; [`RunError::Damaged`] if a line is none.
pub fn read_log(path: &Path) -> Result<Vec<LogLine>, Error> {
    let bytes = fs::read(path).map_err(output(path))?;
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let lines = bytes[..whole].split(|&b| b == b'\n').filter(|line| !line.is_empty());
    let line = |(at, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|e| {
            let what = format!("line {}: {}", at + 1, one_line(&e));
            RunError::Damaged { path: path.to_owned(), what }.into()
        })
    };
    lines.enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resume(step: u64) -> LogLine {
        LogLine::Resume { step, unix_s: 0.5 }
    }

    #[test]
    fn a_log_goes_on_where_it_was_cut_and_a_torn_line_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = RunLog::open(&path, 0).unwrap();
        log.add(&resume(1)).unwrap();
        let keep = log.sync().unwrap();
        log.add(&resume(2)).unwrap();
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"ev").unwrap();
        assert_eq!(read_log(&path).unwrap(), [resume(1), resume(2)]);
        let mut log = RunLog::open(&path, keep).unwrap();
        log.add(&resume(3)).unwrap();
        assert_eq!(read_log(&path).unwrap(), [resume(1), resume(3)]);
        // Behind a loss of power the file may be shorter than it was said to be.
        let len = log.sync().unwrap();
        log.file.set_len(len - 3).unwrap();
        RunLog::open(&path, len).unwrap().add(&resume(4)).unwrap();
        assert_eq!(read_log(&path).unwrap(), [resume(1), resume(4)]);
    }

    #[test]
    fn a_loss_that_is_no_number_is_null_and_a_bad_line_is_told_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let metrics = BTreeMap::from([("loss".to_owned(), finite(f64::NAN))]);
        let line = EvalLine { step: 1, metrics, best: false, seconds: 1.0, elapsed_s: 2.0 };
        RunLog::open(&path, 0).unwrap().add(&LogLine::Eval(line.clone())).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("\"loss\":null"));
        assert_eq!(read_log(&path).unwrap(), [LogLine::Eval(line)]);
        fs::write(&path, "{\"event\":\"resume\",\"step\":1,\"unix_s\":0}\nnonsense\n").unwrap();
        let told = read_log(&path).unwrap_err().to_string();
        assert!(told.contains("log.jsonl: line 2: "), "{told}");
    }
}
