//! Weights in one file or in several with an index.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};

use super::safetensors::{self, Place};
use super::{INDEX, WEIGHTS, not_json, wrong};
use crate::Error;
use crate::shown::Shown;

/// Longest index that is read; one of 94 layers of 128 experts has some 4 MB.
pub(super) const INDEX_MAX: usize = 16 << 20;
/// Most files of a model; the largest published ones have some 200.
pub(super) const FILES_MAX: usize = 1024;
/// Longest name of such a file.
const NAME_MAX: usize = 100;

/// A tensor with the number of its file.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) file: usize,
    pub(super) place: Place,
}

/// The index; the total of bytes that it may also state is not used.
#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// The file of each tensor, each tensor once.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Files;
        impl<'de> Visitor<'de> for Files {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors' files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut files = BTreeMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    let shown = Shown(&tensor).to_string();
                    if files.insert(tensor, file).is_some() {
                        return Err(de::Error::custom(format_args!(
                            "weight_map: tensor {shown} is given twice"
                        )));
                    }
                }
                Ok(WeightMap(files))
            }
        }
        deserializer.deserialize_map(Files)
    }
}

/// The names of a model's safetensors files, sorted: those that `index` names, or the one that is
/// there without an index. Each is a plain name, which can be joined to a folder.
///
/// # Errors
/// [`Error::File`] if the index is damaged, names no file, too many, or one elsewhere.
pub fn weight_files(index: Option<&[u8]>) -> Result<Vec<String>, Error> {
    let Some(index) = index else { return Ok(vec![WEIGHTS.to_owned()]) };
    files_of(INDEX, read_index(INDEX, index)?.into_values())
}

/// The `names` that the index called `index` gives files, sorted, each once.
///
/// # Errors
/// As [`weight_files`].
pub(super) fn files_of(
    index: &str,
    names: impl Iterator<Item = String>,
) -> Result<Vec<String>, Error> {
    let mut files: Vec<String> = names.collect();
    files.sort_unstable();
    files.dedup();
    if files.is_empty() || files.len() > FILES_MAX {
        let what = format!("weight_map: {} files, expected 1 to {FILES_MAX}", files.len());
        return Err(wrong(index, what));
    }
    match files.iter().find(|name| !is_plain(name)) {
        Some(name) => Err(wrong(
            index,
            format_args!(
                "weight_map: {} is no name of a .safetensors file beside the index",
                Shown(name)
            ),
        )),
        None => Ok(files),
    }
}

/// Whether `name` is that of a safetensors file and nothing else: no folder, nothing hidden, no
/// character that a file system or a terminal takes otherwise.
fn is_plain(name: &str) -> bool {
    name.len() <= NAME_MAX
        && name.ends_with(".safetensors")
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// The file of each tensor, as the index called `name` says.
pub(super) fn read_index(name: &str, bytes: &[u8]) -> Result<BTreeMap<String, String>, Error> {
    if bytes.len() > INDEX_MAX {
        return Err(wrong(name, format_args!("more than {INDEX_MAX} bytes")));
    }
    let index: Index = serde_json::from_slice(bytes).map_err(|e| not_json(name, &e))?;
    Ok(index.weight_map.0)
}

/// All tensors of `files`, which are those of [`weight_files`], held against the index.
///
/// # Errors
/// [`Error::File`] if a header is damaged, or files and index do not agree on where a tensor is.
pub(super) fn read(
    index: Option<&[u8]>,
    files: &[(String, &[u8])],
) -> Result<BTreeMap<String, Stored>, Error> {
    let mut listed = index.map(|index| read_index(INDEX, index)).transpose()?;
    let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
    for (number, (file, bytes)) in files.iter().enumerate() {
        for (name, place) in safetensors::read(file, bytes)? {
            let home = listed.as_mut().map(|listed| listed.remove(&name));
            match home {
                None => {}
                Some(Some(home)) if home == *file => {}
                Some(home) => return Err(misplaced(file, &name, home, &stored, files)),
            }
            stored.insert(name, Stored { file: number, place });
        }
    }
    match listed.and_then(|listed| listed.into_iter().next()) {
        Some((name, home)) => {
            Err(wrong(&home, format_args!("tensor {}: missing, {INDEX} says", Shown(&name))))
        }
        None => Ok(stored),
    }
}

/// The error of a tensor that is in `file`, where the index does not place it.
fn misplaced(
    file: &str,
    name: &str,
    home: Option<String>,
    stored: &BTreeMap<String, Stored>,
    files: &[(String, &[u8])],
) -> Error {
    let seen = stored.get(name).map(|stored| files[stored.file].0.as_str());
    let tensor = Shown(name);
    match home.as_deref().or(seen) {
        Some(home) => wrong(file, format_args!("tensor {tensor}: {INDEX} places it in {home}")),
        None => wrong(file, format_args!("tensor {tensor}: {INDEX} does not list it")),
    }
}
