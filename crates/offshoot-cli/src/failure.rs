//! What ends a command early, and the exit code that says so.

use std::io::Write;
use std::path::PathBuf;

use offshoot_engine::datastore::DatastoreError;
use offshoot_engine::store::{StoreError, StoreErrorKind};
use offshoot_engine::tune::run::RunError;
use offshoot_engine::tune::{DataError, ExchangeError};
use offshoot_methods::tune::TrajectoryError;

use crate::interrupt;

/// Exit code of a wrong command line or setting.
pub(crate) const USAGE: u8 = 2;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Data(String),
    #[error(transparent)]
    Engine(#[from] offshoot_engine::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the two differ")]
    Different,
    #[error("interrupted")]
    Interrupted,
    #[error("the reader of the output went away")]
    BrokenPipe,
    #[error("standard output: {0}")]
    Output(std::io::Error),
}

impl From<offshoot_models::Error> for Failure {
    fn from(error: offshoot_models::Error) -> Self {
        Failure::Engine(error.into())
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Failure::Engine(error.into())
    }
}

impl From<DatastoreError> for Failure {
    fn from(error: DatastoreError) -> Self {
        Failure::Engine(error.into())
    }
}

impl Failure {
    /// The code that the program's help explains.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Failure::Usage(_) => USAGE,
            Failure::Data(_) => 3,
            Failure::Engine(error) => engine_code(error),
            Failure::Store(error) => store_code(error),
            Failure::Interrupted => interrupt::CODE,
            Failure::BrokenPipe => 0,
            Failure::File { .. } | Failure::Output(_) | Failure::Different => 1,
        }
    }
}

fn engine_code(error: &offshoot_engine::Error) -> u8 {
    use offshoot_engine::Error;
    match error {
        // A file that can be read and holds nothing is a broken model.
        Error::Model(offshoot_models::Error::Io { source, .. })
            if source.kind() != std::io::ErrorKind::InvalidData =>
        {
            1
        }
        Error::Model(offshoot_models::Error::Template(_)) => 3,
        Error::Model(offshoot_models::Error::Recipe(_) | offshoot_models::Error::Export(_)) => {
            USAGE
        }
        // Weights that are no numbers show when they are used.
        Error::Model(_) | Error::NotFinite => 4,
        Error::Method(offshoot_methods::Error::Logit { .. }) => 4,
        Error::Method(_) | Error::Context { .. } => USAGE,
        Error::OnlyPacked | Error::OnlyDense | Error::OnlyExact { .. } => USAGE,
        Error::DrafterMissing { .. } => USAGE,
        Error::Store(error) => store_code(error),
        Error::Datastore(error) => datastore_code(error),
        Error::Data(error) => data_code(error),
        Error::PromptTooLong { .. } | Error::EmptyPrompt | Error::Prompts(_) => 3,
        Error::Training(_) => USAGE,
        Error::Exchange(error) => exchange_code(error),
        Error::Run(error) => run_code(error),
        // What was asked of sound files: steps that they do not have, weights that are none.
        Error::Trajectory(
            TrajectoryError::Range { .. } | TrajectoryError::Weight(_) | TrajectoryError::Nothing,
        ) => USAGE,
        Error::Trajectory(_) | Error::TrajectoryFile { .. } => 4,
        Error::OtherBase { .. } => USAGE,
        Error::Stopped => interrupt::CODE,
        Error::Memory { .. } => 5,
        _ => 1,
    }
}

fn exchange_code(error: &ExchangeError) -> u8 {
    match error {
        ExchangeError::Differs { .. } | ExchangeError::Unshared { .. } => USAGE,
        _ => 1,
    }
}

fn run_code(error: &RunError) -> u8 {
    match error {
        RunError::NoExamples { .. } => 3,
        RunError::Damaged { .. } | RunError::OtherBase { .. } => 4,
        RunError::Memory { .. } => 5,
        RunError::Locked { .. } | RunError::NotFinite { .. } => 1,
        _ => USAGE,
    }
}

fn data_code(error: &DataError) -> u8 {
    match error {
        DataError::Task { .. } => USAGE,
        DataError::Io { .. } | DataError::Tokens { .. } => 1,
        DataError::NoEnd => 4,
        _ => 3,
    }
}

fn datastore_code(error: &DatastoreError) -> u8 {
    match error {
        DatastoreError::Exists { .. } => USAGE,
        DatastoreError::Source { .. } | DatastoreError::NoTokens => 3,
        DatastoreError::Broken { .. } | DatastoreError::Tokenizer { .. } => 4,
        DatastoreError::Sort { .. } => 5,
        DatastoreError::Interrupted => interrupt::CODE,
        _ => 1,
    }
}

fn store_code(error: &StoreError) -> u8 {
    match error.kind() {
        StoreErrorKind::Usage => USAGE,
        // As wrong as a name that the catalogue does not have.
        _ if matches!(error, StoreError::NotInstalled { .. }) => USAGE,
        StoreErrorKind::Verification => 4,
        StoreErrorKind::Cancelled => interrupt::CODE,
        _ => 1,
    }
}

/// Writes to standard output at once.
pub(crate) fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
        _ => Failure::Output(e),
    })
}

/// Writes a line to standard error. Who closed it does not want to hear, and is no reason to stop.
pub(crate) fn note(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Writes a line to standard output.
pub(crate) fn say(line: impl std::fmt::Display) -> Result<(), Failure> {
    write_out(format!("{line}\n").as_bytes())
}

/// Writes JSON to standard output.
pub(crate) fn say_json(value: &serde_json::Value) -> Result<(), Failure> {
    say(format_args!("{value:#}"))
}
