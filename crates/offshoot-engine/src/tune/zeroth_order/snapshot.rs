//! The tuned tensors as a file, and back to the bit.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use offshoot_kernels::FileMap;
use serde_json::{Map, Value, json};

use super::space::Space;
use crate::Error;

/// Bytes of a header at most.
const HEADER_MAX: usize = 1 << 24;

/// The header of a file of the tensors of `space`, in the layout's order.
fn header(space: &dyn Space) -> (Vec<u8>, usize) {
    let (mut entries, mut end) = (Map::new(), 0usize);
    for spec in &space.layout().tensors {
        let start = end;
        end += 4 * spec.rows * spec.cols;
        let shape = [spec.rows, spec.cols];
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        entries.insert(spec.name.clone(), entry);
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    (header, end)
}

/// Writes all tensors of `space` to `path`, a safetensors file, a tensor at a time: beside its place, then
/// moved into it.
///
/// # Errors
/// [`Error::Output`] if the file cannot be written.
pub fn write(path: &Path, space: &dyn Space) -> Result<(), Error> {
    let output = |source| Error::Output { path: path.to_owned(), source };
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let (header, _) = header(space);
    let create = || {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        Ok(out)
    };
    let fill = |mut out: BufWriter<File>| -> Result<(), Error> {
        let mut values = Vec::new();
        for (tensor, spec) in space.layout().tensors.iter().enumerate() {
            values.resize(spec.rows * spec.cols, 0.0f32);
            space.read(tensor, &mut values)?;
            for value in &values {
                out.write_all(&value.to_le_bytes()).map_err(output)?;
            }
        }
        let file = out.into_inner().map_err(|e| output(e.into_error()))?;
        file.sync_all().map_err(output)?;
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
    let (header, data) = header(space);
    let (length, rest) = map.split_at_checked(8).ok_or_else(|| wrong("cut short"))?;
    let length = u64::from_le_bytes(length.try_into().map_err(|_| wrong("cut short"))?);
    let length = usize::try_from(length).ok().filter(|n| *n <= HEADER_MAX.max(header.len()));
    let found = length.and_then(|length| rest.split_at_checked(length));
    match found {
        Some((found, numbers)) if found == header && numbers.len() == data => {
            let mut at = 0;
            for tensor in 0..space.layout().tensors.len() {
                let spec = &space.layout().tensors[tensor];
                let bytes = &numbers[at..at + 4 * spec.rows * spec.cols];
                at += bytes.len();
                let number = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                let values: Vec<f32> = bytes.chunks_exact(4).map(number).collect();
                space.write(tensor, &values)?;
            }
            Ok(())
        }
        _ => Err(wrong("not the tensors that are tuned here, or damaged")),
    }
}
