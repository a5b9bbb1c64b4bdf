//! What is wrong with a data file, and where.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

/// How rows of a file are counted, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// By the line of the file on which the row begins.
    Line,
    /// By rows, where the file has no lines.
    Row,
}

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// How its rows are counted.
    pub count: Count,
    /// The number of the line or row.
    pub number: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = if self.count == Count::Row { "row " } else { "" };
        write!(f, "{}:{row}{}", self.file.display().to_string().escape_debug(), self.number)
    }
}

/// A row that cannot be used. Shown as `file:line:field: what`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Fault {
    /// The row.
    pub place: Place,
    /// The field of it, as a path such as `messages[1].role`; none where the row itself is meant.
    pub field: Option<String>,
    /// What is wrong, and what to do.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{}:{}: {}", self.place, field.escape_debug(), self.what),
            None => write!(f, "{}: {}", self.place, self.what),
        }
    }
}

/// Data cannot be read, or cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A row is wrong; those behind it may be read.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// A file as a whole is wrong.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Rows are wrong, and the run needs all of them.
    #[error("{first}{}", others(*count))]
    Faults {
        /// The first of them.
        first: Fault,
        /// How many there are.
        count: u64,
    },
    /// A task is wrong.
    #[error("task {name}: {what}")]
    Task {
        /// Its name or file.
        name: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A file of tokens is broken or not the one that was asked for.
    #[error("{}: {what}; remove it, and it is made anew", path.display())]
    Tokens {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The model does not say how its texts end.
    #[error("the model names no token that ends a text, so what it learns would never stop")]
    NoEnd,
}

fn others(count: u64) -> String {
    match count {
        0 | 1 => String::new(),
        n => format!("; {} more rows are wrong, see `offshoot data check`", n - 1),
    }
}

impl DataError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn file(path: &Path, what: impl ToString) -> Self {
        Self::File { path: path.to_owned(), what: what.to_string() }
    }
}

/// Shows a string of a file: quoted, on one line, and short.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARS: usize = 60;
        let cut = self.0.char_indices().nth(CHARS).map_or(self.0.len(), |(at, _)| at);
        let rest = if cut < self.0.len() { "..." } else { "" };
        write!(f, "{:?}{rest}", &self.0[..cut])
    }
}
