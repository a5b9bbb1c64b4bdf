//! Checkpoints: all that a run needs to go on, in folders that are whole or not there.
//!
//! ```text
//! checkpoints/step-00000120/
//!   trainer/        what the trainer saved
//!   variant/        what was learned, as it is served; of the best alone
//!   progress.json   how far the run is
//!   manifest.json   every other file with its size and BLAKE3, written last
//! ```
//! A folder is filled under another name, brought to the disk and renamed. One whose files are not
//! those of its manifest is passed over when a run goes on.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::RunError;
use super::files::{files_below, output, remove_folder, write_folder};
use crate::Error;
use crate::beside::write_whole;
use crate::error::one_line;
use crate::store::hash;

/// The version of the folder's form.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
const PROGRESS: &str = "progress.json";
const PREFIX: &str = "step-";

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    /// Steps made.
    pub(crate) step: u64,
    /// Tokens run.
    pub(crate) tokens: u64,
    /// Seconds that it took.
    pub(crate) elapsed_s: f64,
    /// Steps in a row whose loss was no number.
    pub(crate) not_finite: u32,
    /// The best evaluation so far.
    pub(crate) best: Option<Best>,
    /// Evaluations since then.
    pub(crate) evals_since_best: u32,
    /// The least held-out loss so far.
    pub(crate) least_loss: Option<f64>,
    /// Evaluations in a row with twice that.
    pub(crate) diverging: u32,
    /// Whether the evaluation after the last step was stopped before its end, so that it has still to
    /// be made.
    #[serde(default)]
    pub(crate) owes_evaluation: bool,
    /// Bytes of the log by then.
    pub(crate) log_bytes: u64,
}

/// The best evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Best {
    /// Steps made by then.
    pub(crate) step: u64,
    /// Its metric.
    pub(crate) value: f64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format: u32,
    offshoot: String,
    /// The digest of the run's description: checkpoints of another run are no use.
    run: String,
    files: Vec<FileEntry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    path: PathBuf,
    bytes: u64,
    blake3: String,
}

/// The checkpoints of a run.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    folder: PathBuf,
    run: String,
}

impl Checkpoints {
    /// Those in `folder`, of the run whose description has the digest `run`.
    pub(crate) fn of(folder: PathBuf, run: String) -> Self {
        Self { folder, run }
    }

    /// The folder of the checkpoint after `step` steps.
    pub(crate) fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step:08}"))
    }

    /// Steps of the checkpoints, ascending.
    fn steps(&self) -> Vec<u64> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let step = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let digits = name.to_str()?.strip_prefix(PREFIX)?;
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        let mut steps: Vec<u64> = entries.filter_map(step).collect();
        steps.sort_unstable();
        steps
    }

    /// Writes the checkpoint of `progress`; `fill` puts the other files into the folder it is
    /// given.
    ///
    /// # Errors
    /// Those of `fill`, and [`Error::Output`]: earlier ones are then as they were.
    pub(crate) fn write(
        &self,
        progress: &Progress,
        fill: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        fs::create_dir_all(&self.folder).map_err(output(&self.folder))?;
        write_folder(&self.path(progress.step), |folder| {
            fill(folder)?;
            write_whole(&folder.join(PROGRESS), &json(progress))?;
            let manifest = Manifest {
                format: FORMAT,
                offshoot: env!("CARGO_PKG_VERSION").to_owned(),
                run: self.run.clone(),
                files: entries(folder)?,
            };
            write_whole(&folder.join(MANIFEST), &json(&manifest))
        })
    }

    /// The newest checkpoint that is whole, and why newer ones are not.
    pub(crate) fn newest(&self) -> (Option<Progress>, Vec<String>) {
        let mut passed_over = Vec::new();
        for step in self.steps().into_iter().rev() {
            match self.check(step) {
                Ok(progress) => return (Some(progress), passed_over),
                Err(error) => passed_over.push(error.to_string()),
            }
        }
        (None, passed_over)
    }

    /// Reads the checkpoint after `step` steps, all of whose files must be as they were written.
    ///
    /// # Errors
    /// [`RunError::Damaged`], [`Error::Output`].
    pub(crate) fn check(&self, step: u64) -> Result<Progress, Error> {
        let folder = self.path(step);
        let path = folder.join(MANIFEST);
        let manifest: Manifest = read_json(&path)?;
        let damaged = |path: PathBuf, what: &str| -> Error {
            RunError::Damaged { path, what: what.to_owned() }.into()
        };
        if manifest.format != FORMAT {
            return Err(damaged(path, "of another version of offshoot"));
        }
        if manifest.run != self.run {
            return Err(damaged(path, "of another run"));
        }
        for entry in &manifest.files {
            let file = folder.join(&entry.path);
            let size = fs::metadata(&file).map_err(output(&file))?.len();
            if size != entry.bytes {
                let what = format!("{size} bytes, expected {}", entry.bytes);
                return Err(damaged(file, &what));
            }
            let digest = hash(&file).map_err(output(&file))?;
            if blake3::Hash::from_bytes(digest).to_hex().as_str() != entry.blake3 {
                return Err(damaged(file, "not what was written"));
            }
        }
        // Its files are those of the manifest, this one among them.
        let progress: Progress = read_json(&folder.join(PROGRESS))?;
        if progress.step != step || !manifest.files.iter().any(|f| f.path == Path::new(PROGRESS)) {
            return Err(damaged(folder.join(PROGRESS), "of another step"));
        }
        Ok(progress)
    }

    /// Removes all but the newest `keep` and that of step `best`, and what is left of unfinished
    /// ones.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn prune(&self, keep: usize, best: Option<u64>) -> Result<(), Error> {
        let steps = self.steps();
        let mut old = steps.iter().rev().skip(keep).filter(|&&step| Some(step) != best);
        old.try_for_each(|&step| remove_folder(&self.path(step)))
    }

    /// Removes what is newer than `step`, which is damaged, and what unfinished writes left.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn clear_behind(&self, step: u64) -> Result<(), Error> {
        for newer in self.steps().into_iter().filter(|&s| s > step) {
            remove_folder(&self.path(newer))?;
        }
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!(".{PREFIX}")) {
                fs::remove_dir_all(entry.path()).map_err(output(&entry.path()))?;
            }
        }
        Ok(())
    }
}

/// The files of a folder, as the manifest has them.
fn entries(folder: &Path) -> Result<Vec<FileEntry>, Error> {
    let entry = |path: PathBuf| {
        let full = folder.join(&path);
        let bytes = fs::metadata(&full).map_err(output(&full))?.len();
        let digest = hash(&full).map_err(output(&full))?;
        let blake3 = blake3::Hash::from_bytes(digest).to_hex().to_string();
        Ok(FileEntry { path, bytes, blake3 })
    };
    files_below(folder)?.into_iter().map(entry).collect()
}

/// A value as a file.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).unwrap_or_default()
}

/// Reads a file of at most a megabyte.
///
/// # Errors
/// [`Error::Output`] if it cannot be read, [`RunError::Damaged`] if it is something else.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    use std::io::Read;
    const BYTES_MAX: u64 = 1 << 22;
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(output(path))?;
    file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(output(path))?;
    serde_json::from_slice(&bytes).map_err(|e| {
        let what = format!("not what was written: {}", one_line(&e));
        RunError::Damaged { path: path.to_owned(), what }.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(checkpoints: &Checkpoints, step: u64) {
        let progress = Progress { step, log_bytes: 10 * step, ..Progress::default() };
        let fill = |folder: &Path| {
            let trainer = folder.join("trainer");
            fs::create_dir(&trainer).map_err(output(&trainer))?;
            fs::write(trainer.join("state"), [step as u8; 100]).map_err(output(&trainer))
        };
        checkpoints.write(&progress, fill).unwrap();
    }

    fn newest(checkpoints: &Checkpoints) -> (Option<u64>, usize) {
        let (progress, passed_over) = checkpoints.newest();
        (progress.map(|p| p.step), passed_over.len())
    }

    fn in_folder() -> (tempfile::TempDir, Checkpoints) {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::of(dir.path().join("checkpoints"), "run".to_owned());
        (dir, checkpoints)
    }

    /// Some damage to a checkpoint in a folder.
    type Damage = (&'static str, fn(&Path));

    #[test]
    fn the_newest_that_is_whole_is_found_whatever_befell_the_newer() {
        let damages: [Damage; 5] = [
            ("a bit turned", |f| fs::write(f.join("trainer/state"), [9; 100]).unwrap()),
            ("a file cut", |f| fs::write(f.join("trainer/state"), [2; 99]).unwrap()),
            ("a file gone", |f| fs::remove_file(f.join("trainer/state")).unwrap()),
            ("no manifest", |f| fs::remove_file(f.join(MANIFEST)).unwrap()),
            ("half a manifest", |f| fs::write(f.join(MANIFEST), "{\"format\"").unwrap()),
        ];
        for (what, damage) in damages {
            let (_dir, checkpoints) = in_folder();
            assert_eq!(newest(&checkpoints), (None, 0));
            write(&checkpoints, 1);
            write(&checkpoints, 2);
            assert_eq!(newest(&checkpoints), (Some(2), 0));
            damage(&checkpoints.path(2));
            assert_eq!(newest(&checkpoints), (Some(1), 1), "{what}");
            checkpoints.clear_behind(1).unwrap();
            assert_eq!(newest(&checkpoints), (Some(1), 0), "{what}");
        }
    }

    #[test]
    fn a_checkpoint_of_another_run_is_none() {
        let (_dir, checkpoints) = in_folder();
        write(&checkpoints, 1);
        let other = Checkpoints::of(checkpoints.folder.clone(), "other".to_owned());
        assert_eq!(newest(&other), (None, 1));
    }

    #[test]
    fn the_newest_and_the_best_are_kept() {
        let (_dir, checkpoints) = in_folder();
        (1..=6).for_each(|step| write(&checkpoints, step));
        checkpoints.prune(2, Some(3)).unwrap();
        assert_eq!(checkpoints.steps(), [3, 5, 6]);
    }

    #[test]
    fn a_write_that_fails_leaves_the_earlier_ones() {
        let (_dir, checkpoints) = in_folder();
        write(&checkpoints, 1);
        for step in [1, 2] {
            let progress = Progress { step, ..Progress::default() };
            let failed = checkpoints.write(&progress, |folder| {
                fs::write(folder.join("half"), "x").map_err(output(folder))?;
                Err(Error::Stopped)
            });
            assert!(failed.is_err());
            assert_eq!(newest(&checkpoints), (Some(1), 0));
        }
    }
}
