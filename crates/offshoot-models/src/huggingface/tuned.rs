//! The weights of a dense model as the one file of weights of a folder.

use std::io::Write;

use candle_core::DType;
use serde_json::{Map, Value, json};

use super::canonical;
use crate::written::ExportError;
use crate::{DenseModel, Error, Family};

/// Writes all weights of `model` in single precision, as `model.safetensors` has them.
///
/// # Errors
/// [`ExportError::Model`] if a tensor cannot be read from its device, [`ExportError::Output`] if the
/// output takes no more.
pub fn write_weights(model: &DenseModel, out: &mut dyn Write) -> Result<(), ExportError> {
    let tensors = tensors(model);
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut at = 0;
    for (name, parts) in &tensors {
        let mut shape = model.tensor(&parts[0])?.dims().to_vec();
        for part in &parts[1..] {
            shape[0] += model.tensor(part)?.dims()[0];
        }
        let end = at + 4 * shape.iter().product::<usize>();
        let place = json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, end] });
        header.insert(name.clone(), place);
        at = end;
    }
    let mut text = Value::from(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    out.write_all(&(text.len() as u64).to_le_bytes())?;
    out.write_all(&text)?;
    for part in tensors.iter().flat_map(|(_, parts)| parts) {
        let shift = canonical::shift(model.config().family, part);
        let bytes: Vec<u8> =
            numbers(model, part)?.iter().flat_map(|x| (x - shift).to_le_bytes()).collect();
        out.write_all(&bytes)?;
    }
    Ok(())
}

fn numbers(model: &DenseModel, name: &str) -> Result<Vec<f32>, Error> {
    Ok(model.tensor(name)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}

/// The tensors under the names of folders, each with the canonical tensors that it is made of.
fn tensors(model: &DenseModel) -> Vec<(String, Vec<String>)> {
    let mut tensors = Vec::new();
    for name in model.names() {
        match canonical::fused(name).filter(|_| model.config().family == Family::Phi3) {
            None => tensors.push((name.to_owned(), vec![name.to_owned()])),
            Some((whole, [first, rest @ ..])) if name.contains(*first) => {
                let room = name.split(*first).next().unwrap_or_default();
                let rest = rest.iter().map(|part| name.replace(*first, part));
                let parts = [name.to_owned()].into_iter().chain(rest).collect();
                tensors.push((format!("{room}{whole}.weight"), parts));
            }
            Some(_) => {}
        }
    }
    tensors
}
