//! Writes what was learned in the form in which it is served.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{Cpu, FloatStore};
use offshoot_models::huggingface::{
    FolderExport, FolderOptions, PeftOptions, adapter_files, joined_tensor,
};
use offshoot_models::{ExportError, Family, LoraAdapter, PackedModel, Recipe};
use serde_json::{Map, Value};

use super::space::{FullSpace, Space, float_of, read_in_parts};
use crate::Error;
use crate::beside::write_whole;
use crate::tune::numbers::to_bytes;

/// Bytes of weights in one file of a folder.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Writes `adapter` as PEFT does.
pub(super) fn write_adapter(
    folder: &Path,
    adapter: &LoraAdapter,
    model: &PackedModel,
) -> Result<(), Error> {
    let base_model = model.checkpoint().name().map(str::to_owned);
    let options = PeftOptions { base_model, ..PeftOptions::default() };
    for (name, bytes) in adapter_files(adapter, model.config(), &options)? {
        write_whole(&folder.join(name), &bytes)?;
    }
    Ok(())
}

/// Writes the whole model of `space`, its weights in the floats that they are stored as, as a folder.
pub(super) fn write_model(folder: &Path, cpu: &Cpu, space: &FullSpace) -> Result<(), Error> {
    let checkpoint = Arc::clone(space.model().checkpoint());
    let floats = match space.store() {
        FloatStore::F32 => Recipe::F32,
        FloatStore::Bf16 => Recipe::Bf16,
    };
    let options = FolderOptions { floats, single_vectors: true, shard_bytes: SHARD_BYTES };
    let export = FolderExport::new(&checkpoint, &options)?;
    let output = |source| Error::Output { path: folder.to_owned(), source };
    let mut weights = Vec::new();
    let mut create = |name: &str| {
        let path = folder.join(name);
        if name.ends_with(".safetensors") {
            weights.push(path.clone());
        }
        Ok(Box::new(BufWriter::with_capacity(1 << 20, File::create(path)?)) as Box<dyn Write>)
    };
    export.write(cpu, &mut create, &mut |_| true).map_err(|error| match error {
        ExportError::Model(error) => Error::Model(error),
        ExportError::Output(source) => output(source),
        ExportError::Stopped => Error::Stopped,
    })?;
    let mut files = Vec::with_capacity(weights.len());
    for path in &weights {
        let file = File::options().read(true).write(true).open(path).map_err(output)?;
        files.push((places(&file).map_err(output)?, file));
    }
    let mut bytes = Vec::new();
    // Gemma's norms are stored less the 1 that they are used with.
    let less = if checkpoint.config().family == Family::Gemma3 { 1.0 } else { 0.0 };
    for (tensor, spec) in space.layout().tensors.iter().enumerate() {
        let store = float_of(space, spec);
        let bytes_len = (store.bytes() * spec.rows * spec.cols) as u64;
        // Some folders keep it in one with others, behind their rows.
        let (stored, before) = joined_tensor(&spec.name, checkpoint.config().family)
            .unwrap_or_else(|| (spec.name.clone(), Vec::new()));
        let mut first = 0;
        for other in &before {
            first += (store.bytes() * checkpoint.require(other)?.len()) as u64;
        }
        let place = files.iter_mut().find_map(|(places, file)| {
            let (start, end) = *places.get(&stored)?;
            (end - start >= first + bytes_len).then_some((file, start + first))
        });
        let Some((file, start)) = place else {
            let what = format!("the folder that was written has no tensor {stored:?}");
            return Err(Error::Training(what));
        };
        let is_norm = spec.vector && spec.name.ends_with("norm.weight");
        let less = if is_norm { less } else { 0.0 };
        file.seek(SeekFrom::Start(start)).map_err(output)?;
        read_in_parts(space, tensor, &mut |values| {
            values.iter_mut().for_each(|x| *x -= less);
            to_bytes(values, store, &mut bytes);
            file.write_all(&bytes).map_err(output)
        })?;
    }
    files.iter().try_for_each(|(_, file)| file.sync_all().map_err(output))
}

/// Where the bytes of each tensor of a safetensors file of ours begin and end in the file.
fn places(mut file: &File) -> std::io::Result<BTreeMap<String, (u64, u64)>> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let header: Map<String, Value> = serde_json::from_slice(&header)?;
    let place = |(name, entry): (String, Value)| {
        let offsets = entry.get("data_offsets")?.as_array()?.clone();
        let at = |i: usize| Some(8 + length + offsets.get(i)?.as_u64()?);
        Some((name, (at(0)?, at(1)?)))
    };
    Ok(header.into_iter().filter_map(place).collect())
}
