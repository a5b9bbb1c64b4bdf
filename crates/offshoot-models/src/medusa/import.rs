//! Heads from a torch checkpoint: a zip archive of a pickle and the bytes of its storages.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;

use offshoot_kernels::{BlockType, FileMap};
use zip::{CompressionMethod, ZipArchive};

use super::heads::{HeadMatrix, HeadsFile};
use super::pickle::{PickledTensor, tensors};
use crate::Error;

/// Reads the heads in the torch checkpoint at `path`, or in what [`HeadsFile::open`] reads. Nothing in
/// the checkpoint is run.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::File`] if it holds no heads, or anything but tensors.
pub fn import_heads(path: &Path) -> Result<HeadsFile, Error> {
    if path.is_dir() {
        return HeadsFile::open(path);
    }
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = FileMap::open(path).map_err(io)?;
    if !file.starts_with(b"PK\x03\x04") {
        return HeadsFile::open(path);
    }
    parse_torch(&file).map_err(|e| match e {
        Error::Heads(what) => Error::File { path: path.to_owned(), what },
        other => other,
    })
}

/// As [`import_heads`], from the bytes of a torch checkpoint.
///
/// # Errors
/// [`Error::Heads`].
pub fn parse_torch(bytes: &[u8]) -> Result<HeadsFile, Error> {
    let wrong = |what: String| Error::Heads(format!("torch checkpoint: {what}"));
    let damaged =
        |e: zip::result::ZipError| wrong(format!("damaged: {}", e.to_string().escape_debug()));
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
    let program = {
        let mut names = archive.file_names().filter_map(Result::ok);
        names.find(|name| name.ends_with("/data.pkl")).map(|name| name.into_owned())
    };
    let program = program.ok_or_else(|| wrong("it has no data.pkl".to_owned()))?;
    let folder = program[..program.len() - "data.pkl".len()].to_owned();
    let order = entry(&mut archive, &format!("{folder}byteorder"), bytes.len());
    if order.is_ok_and(|order| order != b"little") {
        return Err(wrong("its bytes are in big-endian order".to_owned()));
    }
    let pickle = entry(&mut archive, &program, bytes.len()).map_err(wrong)?;
    let mut matrices = BTreeMap::new();
    for (name, tensor) in tensors(&pickle).map_err(wrong)? {
        let storage = entry(&mut archive, &format!("{folder}data/{}", tensor.key), bytes.len());
        let matrix = storage.and_then(|storage| matrix(&tensor, &storage)).map_err(|what| {
            let name: String = name.chars().take(60).flat_map(char::escape_debug).collect();
            wrong(format!("tensor {name}: {what}"))
        })?;
        matrices.insert(name, matrix);
    }
    HeadsFile::of_tensors(matrices, None, None)
}

/// The bytes of an entry. Torch stores them as they are, so none is longer than the archive.
fn entry(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    name: &str,
    limit: usize,
) -> Result<Vec<u8>, String> {
    let shown = || name.chars().take(60).flat_map(char::escape_debug).collect::<String>();
    let entry = archive.by_name(name).map_err(|_| format!("it has no {}", shown()))?;
    if entry.compression() != CompressionMethod::Stored || entry.size() > limit as u64 {
        return Err(format!("{} is compressed or longer than the file", shown()));
    }
    let mut bytes = Vec::new();
    entry
        .take(limit as u64)
        .read_to_end(&mut bytes)
        .map_err(|_| format!("{} is damaged", shown()))?;
    Ok(bytes)
}

fn matrix(tensor: &PickledTensor, storage: &[u8]) -> Result<HeadMatrix, String> {
    let (rows, cols) = match tensor.shape[..] {
        [cols] => (1, cols),
        [rows, cols] => (rows, cols),
        _ => return Err("expected 1 or 2 axes".to_owned()),
    };
    let width = match tensor.block {
        BlockType::F32 => 4,
        _ => 2,
    };
    let place = || {
        let start = tensor.offset.checked_mul(width)?;
        let end = rows.checked_mul(cols)?.checked_mul(width)?.checked_add(start)?;
        storage.get(start..end)
    };
    match place() {
        Some(bytes) if !bytes.is_empty() => {
            Ok(HeadMatrix { block: tensor.block, rows, cols, bytes: bytes.to_vec() })
        }
        _ => Err(format!(
            "shape {:?} does not fit a storage of {} bytes",
            tensor.shape,
            storage.len()
        )),
    }
}
