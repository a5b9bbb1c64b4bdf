//! Multiples of scales in the two files of an adapter, named as PEFT names its own; PEFT itself has none of
//! this kind.
//!
//! ```text
//! adapter_config.json          { "peft_type": "SCALES" }
//! adapter_model.safetensors    base_model.model.{matrix}.scales [rows, groups]
//! ```

use serde_json::json;

use super::fields::Fields;
use super::peft::{CONFIG, WEIGHTS};
use super::peft_virtual::refuse_others;
use super::peft_writer::safetensors;
use super::{safetensors as reader, wrong};
use crate::shown::Shown;
use crate::{Architecture, Error, MatrixFactors, ModelConfig, ScaleFactors};

/// What the configuration calls them.
pub(super) const KIND: &str = "SCALES";
const BEFORE: &str = "base_model.model.";
const BEHIND: &str = ".scales";

/// The factors that `weights` has, for a base of `model`.
pub(super) fn parse(
    fields: Fields<'_>,
    weights: &[u8],
    model: &ModelConfig,
) -> Result<ScaleFactors, Error> {
    refuse_others(fields, &["peft_type", "base_model_name_or_path"])?;
    let blueprint = Architecture::new(model).1;
    let mut factors = ScaleFactors::default();
    for (name, place) in reader::read(WEIGHTS, weights)? {
        let refused =
            |what: String| wrong(WEIGHTS, format_args!("tensor {}: {what}", Shown(&name)));
        let matrix = name.strip_prefix(BEFORE).and_then(|name| name.strip_suffix(BEHIND));
        let linear = matrix.and_then(|matrix| blueprint.linears.iter().find(|l| l.name == matrix));
        let linear = linear.ok_or_else(|| refused("no scales of a matrix of the model".into()))?;
        let (rows, columns) = match place.shape[..] {
            [rows, columns] if rows == linear.rows && columns > 0 => (rows, columns),
            _ => {
                return Err(refused(format!(
                    "shape {:?}, not of {} rows",
                    place.shape, linear.rows
                )));
            }
        };
        let group = linear.cols / columns;
        if group * columns != linear.cols || !group.is_multiple_of(32) {
            let what = format!("{columns} groups of {} columns are not of 32 each", linear.cols);
            return Err(refused(what));
        }
        let mut values = vec![0.0; rows * columns];
        let read = place.block.dequantize(&weights[place.range.clone()], &mut values);
        read.map_err(|e| refused(e.to_string()))?;
        if !values.iter().all(|x| x.is_finite() && *x >= 0.0) {
            return Err(refused("not all finite and at least 0".to_owned()));
        }
        factors.matrices.insert(linear.name.clone(), MatrixFactors { rows, group, values });
    }
    match factors.matrices.is_empty() {
        true => Err(wrong(WEIGHTS, "no tensors")),
        false => Ok(factors),
    }
}

/// The files of a folder with `factors` for a base whose name is `base` if it has one.
pub fn scale_files(factors: &ScaleFactors, base: Option<&str>) -> Vec<(String, Vec<u8>)> {
    let tensors = factors.matrices.iter().map(|(name, MatrixFactors { rows, values, .. })| {
        let shape = vec![*rows, values.len() / rows];
        (format!("{BEFORE}{name}{BEHIND}"), shape, &values[..])
    });
    let config = json!({ "peft_type": KIND, "base_model_name_or_path": base });
    vec![
        (CONFIG.to_owned(), format!("{config:#}\n").into_bytes()),
        (WEIGHTS.to_owned(), safetensors(tensors)),
    ]
}
