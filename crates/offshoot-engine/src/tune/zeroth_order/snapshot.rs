//! The tuned tensors as a file, and back to the bit.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use offshoot_kernels::FileMap;

use super::space::{Space, read_in_parts};
use crate::Error;
use crate::tune::numbers::{self, to_bytes};

/// The beginning of a file of the tensors of `space`, in the layout's order.
fn header(space: &dyn Space) -> Vec<u8> {
    let specs = space.layout().tensors.iter();
    numbers::header(specs.map(|spec| (spec.name.clone(), vec![spec.rows, spec.cols])), false)
}

/// Writes all tensors of `space` to `path`, a safetensors file, some rows at a time: beside its place, then
/// moved into it.
///
/// # Errors
/// [`Error::Output`] if the file cannot be written.
pub fn write(path: &Path, space: &dyn Space) -> Result<(), Error> {
    let output = |source| Error::Output { path: path.to_owned(), source };
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let create = || {
        let mut out = File::create(&partial)?;
        out.write_all(&header(space))?;
        Ok(out)
    };
    let fill = |mut out: File| -> Result<(), Error> {
        let mut bytes = Vec::new();
        for tensor in 0..space.layout().tensors.len() {
            read_in_parts(space, tensor, &mut |values| {
                to_bytes(values, &mut bytes);
                out.write_all(&bytes).map_err(output)
            })?;
        }
        out.sync_all().map_err(output)?;
        std::fs::rename(&partial, path).map_err(output)
    };
    let written = create().map_err(output).and_then(fill);
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// Takes the tensors that [`write`] wrote up into `space`. Nothing is changed unless the file has them
/// all, in these shapes.
pub(super) fn read(path: &Path, space: &mut dyn Space) -> Result<(), Error> {
    let io = |source| offshoot_models::Error::Io { path: path.to_owned(), source };
    let wrong = |what: &str| Error::Training(format!("{}: {what}", path.display()));
    let map = FileMap::open(path).map_err(io)?;
    let header = header(space);
    let specs = space.layout().tensors.iter();
    let data: usize = specs.map(|spec| 4 * spec.rows * spec.cols).sum();
    match map.split_at_checked(header.len()) {
        Some((found, numbers)) if found == header && numbers.len() == data => {
            let start = header.len();
            let mut at = 0;
            for tensor in 0..space.layout().tensors.len() {
                let spec = &space.layout().tensors[tensor];
                let bytes = &numbers[at..at + 4 * spec.rows * spec.cols];
                let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                let values: Vec<f32> = bytes.chunks_exact(4).map(number).collect();
                map.release(start + at..start + at + bytes.len());
                space.write(tensor, &values)?;
                at += bytes.len();
            }
            Ok(())
        }
        _ => Err(wrong("not the tensors that are tuned here, or damaged")),
    }
}
