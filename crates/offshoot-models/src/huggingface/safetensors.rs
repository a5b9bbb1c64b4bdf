//! The header of a safetensors file into checked places of its tensors.
//!
//! The format is <https://github.com/huggingface/safetensors#format>: the header's length in eight
//! bytes, the header in JSON, then the tensors' bytes without a hole. The rules are the library's;
//! read here so that an error names the tensor, and that one given twice is seen.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use offshoot_kernels::BlockType;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};

use super::{not_json, wrong};
use crate::Error;
use crate::shown::Shown;

/// Longest header that is read: 1,200 tensors, as a model of 126 layers has, take 130 KB; an adapter of
/// all experts of 94 layers of 128 takes 11 MB.
const HEADER_MAX: u64 = 16 << 20;
/// Most tensors of a file.
const TENSORS_MAX: usize = 1 << 17;
/// Most axes of a tensor.
const AXES_MAX: usize = 4;

/// Where a tensor lies in its file.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) shape: Vec<usize>,
    pub(super) block: BlockType,
    pub(super) range: Range<usize>,
}

/// A tensor as the header states it.
#[derive(Deserialize)]
struct Record {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header: records by name, each name once.
struct Header(BTreeMap<String, Record>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Records;
        impl<'de> Visitor<'de> for Records {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut records = BTreeMap::new();
                let mut metadata: Option<BTreeMap<String, String>> = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if metadata.replace(map.next_value()?).is_some() {
                            return Err(de::Error::duplicate_field("__metadata__"));
                        }
                        continue;
                    }
                    let shown = Shown(&name).to_string();
                    if records.insert(name, map.next_value::<Record>()?).is_some() {
                        return Err(de::Error::custom(format_args!("tensor {shown}: given twice")));
                    }
                    if records.len() > TENSORS_MAX {
                        return Err(de::Error::custom(format_args!(
                            "more than {TENSORS_MAX} tensors"
                        )));
                    }
                }
                Ok(Header(records))
            }
        }
        deserializer.deserialize_map(Records)
    }
}

/// The tensors of `file`, whose bytes are `bytes`.
///
/// # Errors
/// [`Error::File`] if the header is no sound one of these bytes, or a tensor is not of floats.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<BTreeMap<String, Place>, Error> {
    let (header, data) = split(file, bytes)?;
    let header = std::str::from_utf8(header).map_err(|e| {
        wrong(file, format_args!("header: not UTF-8 from byte {} on", e.valid_up_to()))
    })?;
    let header: Header = serde_json::from_str(header).map_err(|e| not_json(file, &e))?;
    let total = (bytes.len() - data) as u64;
    let mut places = BTreeMap::new();
    let mut ends: Vec<(u64, u64, String)> = Vec::with_capacity(header.0.len());
    for (name, record) in header.0 {
        let (start, end) = record.data_offsets;
        let place = place(&record, data, total)
            .map_err(|what| wrong(file, format_args!("tensor {}: {what}", Shown(&name))))?;
        ends.push((start, end, name.clone()));
        places.insert(name, place);
    }
    no_holes(file, ends, total)?;
    Ok(places)
}

/// The header's bytes, and where the tensors' begin.
fn split<'a>(file: &str, bytes: &'a [u8]) -> Result<(&'a [u8], usize), Error> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(wrong(file, format_args!("{} bytes, expected a header", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    let most = HEADER_MAX.min(rest.len() as u64);
    if length > most {
        let what = format!("header: {length} bytes long, expected at most {most}");
        return Err(wrong(file, what));
    }
    // No more than the bytes that are there.
    let length = length as usize;
    let header = &rest[..length];
    if header.first() != Some(&b'{') {
        let found = &header[..header.len().min(8)];
        let what = format!("header: begins with \"{}\", expected {{", found.escape_ascii());
        return Err(wrong(file, what));
    }
    Ok((header, 8 + length))
}

/// The place of a tensor, inside the file and as long as its shape needs.
fn place(record: &Record, data: usize, total: u64) -> Result<Place, String> {
    let (block, size) = match record.dtype.as_str() {
        "F32" => (BlockType::F32, 4),
        "F16" => (BlockType::F16, 2),
        "BF16" => (BlockType::Bf16, 2),
        other => {
            return Err(format!("dtype {} is not read, only F32, F16 and BF16", Shown(other)));
        }
    };
    let axes = record.shape.len();
    if axes == 0 || axes > AXES_MAX {
        return Err(format!("{axes} axes, expected 1 to {AXES_MAX}"));
    }
    let shape = &record.shape;
    let mut weights = 1u64;
    for n in shape {
        weights = weights
            .checked_mul(*n)
            .filter(|w| *w > 0 && *w <= (i64::MAX / 4) as u64)
            .ok_or_else(|| format!("shape {shape:?} has no or too many weights"))?;
    }
    let (start, end) = record.data_offsets;
    if start > end || end > total {
        return Err(format!("bytes {start} to {end}, but the file has {total} of data"));
    }
    if end - start != weights * size {
        return Err(format!(
            "{} bytes, but shape {shape:?} of {block} takes {}",
            end - start,
            weights * size
        ));
    }
    // The file holds that many weights, so all of these are counts of bytes that are there.
    let shape = shape.iter().map(|n| *n as usize).collect();
    Ok(Place { shape, block, range: data + start as usize..data + end as usize })
}

/// Checks that the tensors lie one behind the other, from the first byte to the last.
fn no_holes(file: &str, mut ends: Vec<(u64, u64, String)>, total: u64) -> Result<(), Error> {
    ends.sort_unstable();
    let mut at = 0;
    for (start, end, name) in ends {
        if start != at {
            return Err(wrong(
                file,
                format_args!("tensor {}: begins at byte {start}, expected {at}", Shown(&name)),
            ));
        }
        at = end;
    }
    if at != total {
        let what = format!("the tensors end at byte {at}, the data at byte {total}");
        return Err(wrong(file, what));
    }
    Ok(())
}
