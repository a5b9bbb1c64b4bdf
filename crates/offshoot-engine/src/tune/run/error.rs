//! What can go wrong with a run beside its steps.

use std::path::PathBuf;

use thiserror::Error;

/// A run cannot be set up, or cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The configuration says something that cannot be.
    #[error("{place}{what}")]
    Config {
        /// Where it stands: a file with its line and a colon, or nothing for a flag.
        place: String,
        /// Which field, and what is wrong with it.
        what: String,
    },
    /// Nothing to learn from.
    #[error("{what}: give --data with at least {least} example{}", if *least == 1 { "" } else { "s" })]
    NoExamples {
        /// What is empty.
        what: &'static str,
        /// How many there must be.
        least: usize,
    },
    /// A run is going on in the folder.
    #[error("{}: another run works here{who}: wait for it, or give another --output", folder.display())]
    Locked {
        /// The run's folder.
        folder: PathBuf,
        /// Its process, where the lock says so.
        who: String,
    },
    /// A new run is to begin where one is already.
    #[error(
        "{}: there is a run already: continue it with --resume {}, or give another --output",
        folder.display(), folder.display()
    )]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// The folder of a new run has files in it that a run would write over.
    #[error("{}: {name:?} is there, of no run: take another folder, or move it away", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// The file or folder in it.
        name: String,
    },
    /// There is nothing to go on with.
    #[error("{}: {what}", folder.display())]
    NothingToResume {
        /// The folder.
        folder: PathBuf,
        /// Why.
        what: String,
    },
    /// The run began otherwise.
    #[error(
        "{}: the run began with other settings ({}): leave them as they were, or begin another run",
        folder.display(), differences.join("; ")
    )]
    Differs {
        /// The run's folder.
        folder: PathBuf,
        /// One for each field, with both values.
        differences: Vec<String>,
    },
    /// A file of a run is damaged, or of another version.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The loss left all bounds.
    #[error(
        "step {step}: the loss was no finite number {times} times in a row: lower --learning-rate, or \
         look at the data; the last checkpoint is kept"
    )]
    NotFinite {
        /// The last of them.
        step: u64,
        /// How many.
        times: u32,
    },
    /// A variant is asked of a model that it does not belong to.
    #[error(
        "variant {}: it was made of the model {expected}, and this is {found}: run it on the model \
         that it was tuned from (--adapter FOLDER asks no questions)",
        folder.display()
    )]
    OtherBase {
        /// The variant's folder.
        folder: PathBuf,
        /// The short id of its base.
        expected: String,
        /// That of the model.
        found: String,
    },
    /// Training takes more memory than there is.
    #[error(
        "tuning takes about {} MB ({} MB of weights) and {} MB are free: {hint}",
        need / 1_000_000, weights / 1_000_000, available / 1_000_000
    )]
    Memory {
        /// Bytes in all.
        need: u64,
        /// Bytes of the weights among them.
        weights: u64,
        /// Bytes that may be taken.
        available: u64,
        /// The flag that mends it.
        hint: String,
    },
}
