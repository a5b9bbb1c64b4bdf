//! Files that are replaced whole, with the engine's error.

use std::io;
use std::path::Path;

pub(crate) use offshoot_models::beside::{Output, Partial, place, remove_abandoned, replace_file};

use crate::Error;

/// As [`replace_file`].
///
/// # Errors
/// [`Error::Output`]; what was at `path` is then still there.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace_file(path, bytes).map_err(not_written(path))
}

/// As [`write_to`](offshoot_models::beside::write_to), for what who asks for it names a place.
///
/// # Errors
/// [`Error::Output`].
pub(crate) fn write_to(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    offshoot_models::beside::write_to(path, bytes).map_err(not_written(path))
}

fn not_written(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Output { path, source }
}
