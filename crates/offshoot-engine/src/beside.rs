//! Files that are replaced whole, with the engine's error.

use std::path::Path;

pub(crate) use offshoot_models::beside::{Partial, place, remove_abandoned, replace_file};

use crate::Error;

/// As [`replace_file`].
///
/// # Errors
/// [`Error::Output`]; what was at `path` is then still there.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace_file(path, bytes).map_err(|source| Error::Output { path: path.to_owned(), source })
}
