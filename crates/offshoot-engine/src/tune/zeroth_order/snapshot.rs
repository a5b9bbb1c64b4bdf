//! The tuned tensors as a file, and back to the bit.

use std::io::Write;
use std::path::Path;

use offshoot_kernels::FileMap;
use offshoot_methods::tune::TensorSpec;

use super::space::{Space, float_of, read_in_parts};
use crate::Error;
use crate::beside::Output;
use crate::tune::numbers::{self, of_bytes, to_bytes};

/// The beginning of a file of the tensors of `space`, in the layout's order.
fn header(space: &dyn Space) -> Vec<u8> {
    let specs = space.layout().tensors.iter();
    let entry =
        |spec: &TensorSpec| (spec.name.clone(), vec![spec.rows, spec.cols], float_of(space, spec));
    numbers::header(specs.map(entry), false)
}

/// Writes all tensors of `space` to `path`, a safetensors file, in the floats that they are stored as, some
/// rows at a time: beside the place that it means, then moved there; to what is no file, as it is.
///
/// # Errors
/// [`Error::Output`] if the file cannot be written.
pub fn write(path: &Path, space: &dyn Space) -> Result<(), Error> {
    let output = |source| Error::Output { path: path.to_owned(), source };
    let mut out = Output::to(path).map_err(output)?;
    out.write_all(&header(space)).map_err(output)?;
    let mut bytes = Vec::new();
    for (tensor, spec) in space.layout().tensors.iter().enumerate() {
        let store = float_of(space, spec);
        read_in_parts(space, tensor, &mut |values| {
            to_bytes(values, store, &mut bytes);
            out.write_all(&bytes).map_err(output)
        })?;
    }
    out.finish().map_err(output)
}

/// Takes the tensors that [`write`] wrote up into `space`. Nothing is changed unless the file has them
/// all, in these shapes.
pub(super) fn read(path: &Path, space: &mut dyn Space) -> Result<(), Error> {
    let io = |source| offshoot_models::Error::Io { path: path.to_owned(), source };
    let wrong = |what: &str| Error::Training(format!("{}: {what}", path.display()));
    let map = FileMap::open(path).map_err(io)?;
    let header = header(space);
    let specs = space.layout().tensors.iter();
    let len = |spec: &TensorSpec| float_of(space, spec).bytes() * spec.rows * spec.cols;
    let data: usize = specs.map(len).sum();
    match map.split_at_checked(header.len()) {
        Some((found, numbers)) if found == header && numbers.len() == data => {
            let start = header.len();
            let mut at = 0;
            for tensor in 0..space.layout().tensors.len() {
                let spec = &space.layout().tensors[tensor];
                let store = float_of(space, spec);
                let bytes = &numbers[at..at + store.bytes() * spec.rows * spec.cols];
                let values = of_bytes(bytes, store);
                map.release(start + at..start + at + bytes.len());
                space.write(tensor, &values)?;
                at += bytes.len();
            }
            Ok(())
        }
        _ => Err(wrong("not the tensors that are tuned here, or damaged")),
    }
}
