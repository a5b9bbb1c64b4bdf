//! Writes tensors as safetensors files, and what was learned in the form in which it is served.
//!
//! A file is eight bytes with the length of its header, the header in JSON, and the tensors in the order
//! of their names (<https://github.com/huggingface/safetensors#format>). An adapter is the two files
//! that PEFT reads (<https://huggingface.co/docs/peft/developer_guides/checkpoint>).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::Cpu;
use offshoot_models::huggingface::{FolderExport, FolderOptions};
use offshoot_models::{ExportError, Family, LoraAdapter, PackedModel, Recipe};
use serde_json::{Map, Value, json};

use super::space::{FullSpace, Space, read_in_parts};
use crate::Error;
use crate::tune::numbers::{header, to_bytes};

/// Bytes of weights in one file of a folder.
const SHARD_BYTES: u64 = 5_000_000_000;

/// A tensor to be written: its name, shape and numbers.
pub(super) struct Tensor<'a> {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: &'a [f32],
}

/// Writes `bytes` to `path`: beside it first, then moved into place.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let output = |source| Error::Output { path: path.to_owned(), source };
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written.map_err(output)
}

/// Tensors in ascending order of their names as the bytes of a safetensors file.
pub(super) fn safetensors(tensors: &[Tensor<'_>]) -> Vec<u8> {
    let entries = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone()));
    let mut bytes = header(entries, true);
    for number in tensors.iter().flat_map(|tensor| tensor.values) {
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

/// Writes `adapter`, whose matrices have one rank and one scale, as PEFT does.
pub(super) fn write_adapter(
    folder: &Path,
    adapter: &LoraAdapter,
    model: &PackedModel,
) -> Result<(), Error> {
    if model.config().family == Family::Phi3 {
        let what = "adapters of Phi-3 are not written, as its folders keep several matrices in one: \
                    the trajectory holds what was learned";
        return Err(Error::Training(what.to_owned()));
    }
    let mut tensors = Vec::new();
    for (name, low) in &adapter.matrices {
        let cols = low.a.len() / low.rank;
        for (half, shape, values) in [
            ("lora_A", vec![low.rank, cols], &low.a),
            ("lora_B", vec![low.b.len() / low.rank, low.rank], &low.b),
        ] {
            let name = format!("base_model.model.{name}.{half}.weight");
            tensors.push(Tensor { name, shape, values });
        }
    }
    let first = adapter.matrices.values().next();
    let (rank, scale) = first.map_or((1, 1.0), |low| (low.rank, low.scale));
    let mut targets: Vec<&str> =
        adapter.matrices.keys().filter_map(|name| name.rsplit('.').next()).collect();
    targets.sort_unstable();
    targets.dedup();
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "r": rank,
        "lora_alpha": scale * rank as f32,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "use_rslora": false,
        "inference_mode": true,
    });
    write_file(&folder.join("adapter_model.safetensors"), &safetensors(&tensors))?;
    write_file(&folder.join("adapter_config.json"), format!("{config:#}\n").as_bytes())
}

/// Writes the whole model of `space`, its weights in single precision, as a folder.
pub(super) fn write_model(folder: &Path, cpu: &Cpu, space: &FullSpace) -> Result<(), Error> {
    let checkpoint = Arc::clone(space.model().checkpoint());
    let options = FolderOptions { floats: Recipe::F32, shard_bytes: SHARD_BYTES };
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
        let elements = spec.rows * spec.cols;
        let place = files.iter_mut().find_map(|(places, file)| {
            let (start, end) = *places.get(&spec.name)?;
            (end - start == 4 * elements as u64).then_some((file, start))
        });
        let Some((file, start)) = place else {
            return Err(Error::Training(format!(
                "tensor {} is kept with others in a folder of this family, which tuned weights \
                 are not written to",
                spec.name
            )));
        };
        let is_norm = spec.rows == 1 && spec.name.ends_with("norm.weight");
        let less = if is_norm { less } else { 0.0 };
        file.seek(SeekFrom::Start(start)).map_err(output)?;
        read_in_parts(space, tensor, &mut |values| {
            values.iter_mut().for_each(|x| *x -= less);
            to_bytes(values, &mut bytes);
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
