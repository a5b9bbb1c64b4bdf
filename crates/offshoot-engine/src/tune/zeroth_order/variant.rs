//! Writes tensors as safetensors files, and what was learned in the form in which it is served.
//!
//! A file is eight bytes with the length of its header, the header in JSON, and the tensors in the order
//! of their names (<https://github.com/huggingface/safetensors#format>). An adapter is the two files
//! that PEFT reads (<https://huggingface.co/docs/peft/developer_guides/checkpoint>).

use std::fs::File;
use std::io::Write;
use std::path::Path;

use offshoot_models::{Family, LoraAdapter, PackedModel};
use serde_json::{Map, Value, json};

use crate::Error;

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
    let (mut header, mut end) = (Map::new(), 0);
    for Tensor { name, shape, values } in tensors {
        let start = end;
        end += 4 * values.len();
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
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
        let what = "adapters of Phi-3, whose folders keep several matrices in one, are not written: \
                    take --space full";
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
