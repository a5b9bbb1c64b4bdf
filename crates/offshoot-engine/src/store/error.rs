//! What can go wrong between a model's name and its file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A model cannot be named, found, fetched, verified, kept or removed.
///
/// Every message says what failed, where, and what to do about it. [`StoreError::kind`] sorts the
/// variants into the few cases a caller treats differently.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A reference to a model does not parse.
    #[error(
        "`{text}` does not name a model: {why}; give a path to a .gguf file or a model's folder, \
         `hf:org/repo` or `hf:org/repo/file.gguf` (with `@revision` if you like), or a name from \
         the catalogue"
    )]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A short name is neither in the catalogue nor in the store.
    #[error(
        "there is no model `{name}`; {}known names: {}",
        nearest_hint(nearest.as_deref()), known.join(", ")
    )]
    UnknownName {
        /// What was given.
        name: String,
        /// The closest known name, if one is close.
        nearest: Option<String>,
        /// Every known name.
        known: Vec<String>,
    },
    /// A model was named by a path, and there is no usable file there.
    #[error("{}: {why}; check the path of the model", path.display())]
    NoSuchFile {
        /// The path.
        path: PathBuf,
        /// What stands there instead.
        why: String,
    },
    /// The network may not be used and the model is not on this machine.
    #[error(
        "{name} is not on this machine and the network is switched off; looked in {}; pull it \
         once with the network on: leave out --offline, unset OFFSHOOT_OFFLINE and HF_HUB_OFFLINE",
        paths(looked)
    )]
    Offline {
        /// The model.
        name: String,
        /// The folders searched.
        looked: Vec<PathBuf>,
    },
    /// The store holds nothing of this name.
    #[error(
        "{name} is not in the store at {}; {}`offshoot list` shows what is",
        store.display(), nearest_hint(nearest.as_deref())
    )]
    NotInstalled {
        /// The model.
        name: String,
        /// The closest name in the store, if one is close.
        nearest: Option<String>,
        /// The folder of models.
        store: PathBuf,
    },
    /// A server says that the repository, revision or file does not exist.
    #[error("{what} was not found at {url}; check the spelling, and set HF_TOKEN if it is private")]
    NotFound {
        /// What was asked for.
        what: String,
        /// Where.
        url: String,
    },
    /// A server refuses access.
    #[error("{url} refuses access to {what} (HTTP {status}); {hint}")]
    Denied {
        /// What was asked for.
        what: String,
        /// Where.
        url: String,
        /// The status, 401 or 403.
        status: u16,
        /// What to do.
        hint: String,
    },
    /// A server asks for a longer pause than this client is willing to make.
    #[error("{url} asks to wait{}; try again later", wait_hint(*retry_after_s))]
    RateLimited {
        /// Where.
        url: String,
        /// The pause the server asks for, in seconds, if it names one.
        retry_after_s: Option<u64>,
    },
    /// A connection could not be made, broke, or carried something that is not the protocol.
    #[error("{url}: {why}; check the network (and HTTPS_PROXY, HF_ENDPOINT, SSL_CERT_FILE)")]
    Network {
        /// Where.
        url: String,
        /// The last failure seen.
        why: String,
    },
    /// The bytes received are not the bytes that were promised. They have been deleted.
    #[error(
        "{what} is not the promised file: expected {expected}, got {got}; what was downloaded has \
         been deleted, so pull again, and if it happens twice the source itself is wrong"
    )]
    Verification {
        /// The model or the part of it.
        what: String,
        /// The promised size or digest.
        expected: String,
        /// The size or digest found.
        got: String,
    },
    /// There is no room for the file.
    #[error(
        "no space left for {}{}; free some, or set OFFSHOOT_HOME to a folder on another disk; \
         the next pull continues from what is kept",
        path.display(), needed_hint(*needed)
    )]
    DiskFull {
        /// The file being written.
        path: PathBuf,
        /// Bytes still to come, if known.
        needed: Option<u64>,
    },
    /// No Python package client was found.
    #[error(
        "no Python package client answers (tried {}); install Python 3 with pip, or pull from \
         another source",
        tried.join(", ")
    )]
    NoPackageClient {
        /// The commands tried.
        tried: Vec<String>,
    },
    /// The Python package client failed, or brought something unexpected.
    #[error("`{command}` failed: {why}; run it by hand to see more")]
    PackageClient {
        /// The command.
        command: String,
        /// Its last lines, or what is wrong with its result.
        why: String,
    },
    /// A hub repository holds no file that can be picked without asking.
    #[error("{repo}: {why}{}", choices_hint(repo, choices))]
    Choice {
        /// The repository.
        repo: String,
        /// Why none was picked.
        why: String,
        /// The files to choose from.
        choices: Vec<String>,
    },
    /// Every source of a model failed.
    #[error("could not get {name} from any of its sources:{}", failure_lines(failures))]
    Sources {
        /// The model.
        name: String,
        /// Each source with what went wrong there.
        failures: Vec<(String, StoreError)>,
    },
    /// The caller's [`Progress`](super::Progress) asked to stop.
    #[error("stopped; the next pull continues from what is kept")]
    Cancelled,
    /// A file of the store is damaged.
    #[error("{}: {why}; remove the model and pull it again", path.display())]
    Damaged {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The catalogue does not parse.
    #[error("catalogue of models: {0}")]
    Catalogue(String),
    /// The environment gives no usable place for the store, or a malformed setting.
    #[error("{0}")]
    Config(String),
    /// The system refuses a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The cases of [`StoreError`] that callers tell apart, for exit codes and HTTP statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The request itself is wrong: a malformed or unknown name, an ambiguous one, a bad setting.
    Usage,
    /// The network is switched off and the model is not here.
    Offline,
    /// The file, the repository or the installed model does not exist.
    NotFound,
    /// Access is refused.
    Denied,
    /// The network or a server failed.
    Network,
    /// The bytes are not the promised ones, or the store is damaged.
    Verification,
    /// The disk is full.
    DiskFull,
    /// There is no package client, or it failed.
    PackageClient,
    /// The caller stopped the work.
    Cancelled,
    /// The system refused a file operation.
    Io,
}

impl StoreError {
    /// The case this error belongs to; for [`StoreError::Sources`], that of the last source tried.
    pub fn kind(&self) -> StoreErrorKind {
        use StoreErrorKind as K;
        match self {
            Self::Reference { .. }
            | Self::UnknownName { .. }
            | Self::Choice { .. }
            | Self::Catalogue(_)
            | Self::Config(_) => K::Usage,
            Self::Offline { .. } => K::Offline,
            Self::NoSuchFile { .. } | Self::NotInstalled { .. } | Self::NotFound { .. } => {
                K::NotFound
            }
            Self::Denied { .. } => K::Denied,
            Self::RateLimited { .. } | Self::Network { .. } => K::Network,
            Self::Verification { .. } | Self::Damaged { .. } => K::Verification,
            Self::DiskFull { .. } => K::DiskFull,
            Self::NoPackageClient { .. } | Self::PackageClient { .. } => K::PackageClient,
            Self::Sources { failures, .. } => {
                failures.last().map_or(K::Network, |(_, error)| error.kind())
            }
            Self::Cancelled => K::Cancelled,
            Self::Io { .. } => K::Io,
        }
    }

    /// True for failures that another source cannot mend.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::DiskFull { .. } | Self::Cancelled | Self::Io { .. })
    }

    /// An I/O failure, told apart from a full disk.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            // A file that may not grow any more is helped by another disk as well.
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Self::DiskFull { path: path.to_owned(), needed: None },
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }
}

fn nearest_hint(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |name| format!("did you mean `{name}`? "))
}

fn wait_hint(seconds: Option<u64>) -> String {
    seconds.map_or(String::new(), |s| format!(" {s} s before the next request"))
}

fn needed_hint(needed: Option<u64>) -> String {
    needed.map_or(String::new(), |bytes| format!(" ({bytes} bytes are still to come)"))
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" and ")
}

fn choices_hint(repo: &str, choices: &[String]) -> String {
    match choices.first() {
        None => String::new(),
        Some(first) => {
            format!("; name one, as in hf:{repo}/{first}; choices: {}", choices.join(", "))
        }
    }
}

fn failure_lines(failures: &[(String, StoreError)]) -> impl fmt::Display {
    failures.iter().map(|(source, error)| format!("\n  {source}: {error}")).collect::<String>()
}
