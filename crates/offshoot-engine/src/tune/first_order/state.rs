//! The state of a run as files, and back.
//!
//! ```text
//! first_order.json        the version, how the model is tuned, and the base
//! first_order.safetensors weights/{name}, state/{number}/{name}; in single precision
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, safetensors};
use offshoot_kernels::FloatStore;
use serde::{Deserialize, Serialize};

use super::options::FirstOrderOptions;
use super::{FirstOrder, change, tensors};
use crate::Error;
use crate::beside::Partial;
use crate::error::one_line;
use crate::tune::numbers::{PART, header, to_bytes};

const HEAD: &str = "first_order.json";
const NUMBERS: &str = "first_order.safetensors";
const VERSION: u32 = 1;
/// Longest head that is read.
const HEAD_MAX: u64 = 1 << 24;

/// What a state belongs to.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: u32,
    /// Identity of the base's weights.
    base: String,
    options: FirstOrderOptions,
}

/// Runs `write` on a file beside `folder/name`, then moves it there.
pub(super) fn written(
    folder: &Path,
    name: &str,
    write: impl FnOnce(&mut File, &Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let place = folder.join(name);
    let output = |source: io::Error| Error::Output { path: folder.join(name), source };
    let (partial, mut file) = Partial::file(&place).map_err(output)?;
    write(&mut file, partial.path())?;
    file.sync_all().map_err(output)?;
    partial.move_to(&place).map_err(output)
}

/// Writes `bytes` as a file of `folder`.
pub(super) fn write_bytes(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let output = |source: io::Error| Error::Output { path: folder.join(name), source };
    written(folder, name, |file, _| file.write_all(bytes).map_err(output))
}

impl FirstOrder {
    fn head(&self) -> Result<Head, Error> {
        let base = self.base_id()?.to_string();
        Ok(Head { version: VERSION, base, options: self.options.clone() })
    }

    pub(super) fn write_state(&self, folder: &Path) -> Result<(), Error> {
        let output = |source: io::Error| Error::Output { path: folder.join(NUMBERS), source };
        let all = || self.tuning.variables().iter().zip(&self.state);
        let entries = all().flat_map(|((name, variable), state)| {
            let kept = (0..state.len()).map(move |number| format!("state/{number}/{name}"));
            let names = std::iter::once(format!("weights/{name}")).chain(kept);
            names.map(|name| (name, variable.dims().to_vec(), FloatStore::F32))
        });
        written(folder, NUMBERS, |file, _| {
            file.write_all(&header(entries, false)).map_err(output)?;
            let mut bytes = Vec::new();
            let mut add = |values: &[f32]| {
                to_bytes(values, FloatStore::F32, &mut bytes);
                file.write_all(&bytes).map_err(output)
            };
            for ((_, variable), state) in all() {
                let weights = variable.as_detached_tensor().flatten_all().map_err(tensors)?;
                for first in (0..weights.elem_count()).step_by(PART) {
                    let count = PART.min(weights.elem_count() - first);
                    add(&super::read(&weights.narrow(0, first, count).map_err(tensors)?)?)?;
                }
                state.iter().flat_map(|kept| kept.chunks(PART)).try_for_each(&mut add)?;
            }
            Ok(())
        })?;
        let head = serde_json::to_vec_pretty(&self.head()?);
        let head = head.map_err(|e| Error::Training(format!("{HEAD}: {e}")))?;
        write_bytes(folder, HEAD, &head)
    }

    /// Reads all before anything is changed.
    pub(super) fn read_state(&mut self, folder: &Path) -> Result<(), Error> {
        let head: Head = read_head(&folder.join(HEAD))?;
        let own = self.head()?;
        if head != own {
            let what = match (head.version == VERSION, head.base == own.base) {
                (false, _) => "is of another version of offshoot",
                (_, false) => "belongs to another base",
                _ => "belongs to a run with other options",
            };
            return Err(Error::Training(format!("{}: {what}", folder.join(HEAD).display())));
        }
        let path = folder.join(NUMBERS);
        let wrong = |what: String| Error::Training(format!("{}: {what}", path.display()));
        let found = safetensors::load(&path, &Device::Cpu);
        let found = found.map_err(|e| wrong(one_line(&e)))?;
        let take = |name: String, dims: &[usize]| {
            let tensor = found.get(&name);
            let tensor = tensor.filter(|t| t.dims() == dims && t.dtype() == DType::F32);
            let tensor = tensor.ok_or_else(|| {
                wrong(format!("tensor {name}: missing, or not of shape {dims:?} in f32"))
            })?;
            super::read(tensor)
        };
        let (mut weights, mut states) = (Vec::new(), Vec::new());
        for ((name, variable), state) in self.tuning.variables().iter().zip(&self.state) {
            weights.push(take(format!("weights/{name}"), variable.dims())?);
            let numbers = 0..state.len();
            let kept = numbers.map(|n| take(format!("state/{n}/{name}"), variable.dims()));
            states.push(kept.collect::<Result<Vec<_>, Error>>()?);
        }
        for ((_, variable), weights) in self.tuning.variables().iter().zip(weights) {
            change(variable, |numbers| numbers.copy_from_slice(&weights))?;
        }
        self.state = states;
        Ok(())
    }
}

fn read_head(path: &PathBuf) -> Result<Head, Error> {
    let wrong = |what: String| Error::Training(format!("{}: {what}", path.display()));
    let length = fs::metadata(path).map_err(|e| wrong(e.to_string()))?.len();
    if length > HEAD_MAX {
        return Err(wrong(format!("longer than {HEAD_MAX} bytes")));
    }
    let bytes = fs::read(path).map_err(|e| wrong(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| wrong(one_line(&e)))
}
