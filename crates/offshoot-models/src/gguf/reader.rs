//! Bytes of a file into checked keys and tensor ranges.

use std::collections::BTreeMap;
use std::ops::Range;

use offshoot_kernels::BlockType;

use super::cursor::Cursor;
use super::value::Value;
use super::{
    DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_DIMS, MAX_KEY_BYTES, MAX_NAME_BYTES, MAX_RECORDS,
    Shown, malformed,
};
use crate::Error;

/// A parsed file, or several that are one model ([`join`](super::join)): the keys and where the
/// tensors lie, all borrowed from the files' bytes.
#[derive(Debug)]
pub struct Gguf<'a> {
    pub(super) files: Vec<&'a [u8]>,
    version: u32,
    alignment: usize,
    pub(super) metadata: BTreeMap<&'a str, Value<'a>>,
    pub(super) tensors: BTreeMap<&'a str, GgufTensor>,
}

/// A tensor as the file declares it.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufTensor {
    /// Shape with the contiguous axis last, `[out, in]` for a matrix: the reverse of the file's.
    pub shape: Vec<usize>,
    /// Format of the blocks, which run along the last axis.
    pub block: BlockType,
    /// The tensor's bytes within the file.
    pub range: Range<usize>,
    /// Which of the model's files holds it.
    pub file: usize,
}

/// Reads the header, keys and tensor records of a file and checks all of them.
///
/// # Errors
/// [`Error::Gguf`] with the field, what stands there, and what was expected, on one line. Time is
/// linear in the size of the part before the tensors' bytes, and memory is bounded by the number of
/// keys and tensors, at most 65,536 each.
pub fn parse(bytes: &[u8]) -> Result<Gguf<'_>, Error> {
    let mut cursor = Cursor::new(bytes);
    let (version, tensor_count, key_count) = read_header(&mut cursor)?;
    let metadata = read_metadata(&mut cursor, key_count)?;
    let alignment = alignment(&metadata)?;
    let records = read_records(&mut cursor, tensor_count)?;
    let data = cursor.position().next_multiple_of(alignment);
    let tensors = place(records, data, alignment, bytes.len())?;
    Ok(Gguf { files: vec![bytes], version, alignment, metadata, tensors })
}

impl<'a> Gguf<'a> {
    /// The format's version, 2 or 3; of several files that of the first.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of the tensors' bytes; of several files that of the first.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// All keys, sorted.
    pub fn metadata(&self) -> impl Iterator<Item = (&'a str, &Value<'a>)> {
        self.metadata.iter().map(|(key, value)| (*key, value))
    }

    /// All tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&'a str, &GgufTensor)> {
        self.tensors.iter().map(|(name, tensor)| (*name, tensor))
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.get(name)
    }

    /// The stored bytes of a tensor of this file.
    pub fn data(&self, tensor: &GgufTensor) -> &'a [u8] {
        &self.files[tensor.file][tensor.range.clone()]
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.metadata.get(key)
    }

    /// The value of `key` as a number of at least zero, whichever integer type holds it.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, Error> {
        self.typed(key, "an integer of 0 or more", |value| {
            value.as_integer().and_then(|n| u64::try_from(n).ok())
        })
    }

    /// The value of `key` as a floating-point number, of either width.
    pub fn float(&self, key: &str) -> Result<Option<f64>, Error> {
        self.typed(key, "a floating-point number", |value| match value {
            Value::F32(v) => Some(f64::from(*v)),
            Value::F64(v) => Some(*v),
            _ => None,
        })
    }

    /// The value of `key` as yes or no.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        self.typed(key, "a bool", |value| match value {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// The value of `key` as text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        self.typed(key, "a string", |value| match value {
            Value::String(v) => Some(v.as_ref()),
            _ => None,
        })
    }

    /// The value of `key` through `read`, or an error that says `expected`.
    pub(super) fn typed<'s, T>(
        &'s self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'s Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| {
            let found = match value {
                Value::Array(array) => {
                    format!("an array of {} {}", array.len(), array.kind().name())
                }
                Value::String(text) => format!("the string {}", Shown(text)),
                other => format!("{other:?}"),
            };
            malformed(format_args!("key {}: {found}, expected {expected}", Shown(key)))
        })
    }
}

/// Version, number of tensors, number of keys.
fn read_header(cursor: &mut Cursor<'_>) -> Result<(u32, u64, u64), Error> {
    let magic = cursor.take(4, format_args!("magic"))?;
    if magic != MAGIC {
        return Err(malformed(format_args!(
            "magic: \"{}\", expected \"GGUF\"",
            magic.escape_ascii()
        )));
    }
    let version = cursor.u32(format_args!("version"))?;
    check_version(version)?;
    let tensors = cursor.u64(format_args!("number of tensors"))?;
    let keys = cursor.u64(format_args!("number of keys"))?;
    // A record has a name of at least one byte with its length, a count and one dimension, a type
    // and an offset; a key has one byte with its length, a type and a value of at least one byte.
    check_count("tensors", tensors, 8 + 1 + 4 + 8 + 4 + 8, cursor.remaining())?;
    check_count("keys", keys, 8 + 1 + 4 + 1, cursor.remaining())?;
    Ok((version, tensors, keys))
}

fn check_version(version: u32) -> Result<(), Error> {
    match version {
        2 | 3 => Ok(()),
        1 => Err(malformed(
            "version: 1, whose lengths have 32 bits; expected 2 or 3 (convert the model again)",
        )),
        v if (1..=3).contains(&v.swap_bytes()) => Err(malformed(format_args!(
            "version: {} in big-endian order; only little-endian files are read",
            v.swap_bytes()
        ))),
        other => Err(malformed(format_args!("version: {other}, expected 2 or 3"))),
    }
}

fn check_count(what: &str, count: u64, min_bytes: usize, remaining: usize) -> Result<(), Error> {
    let most = MAX_RECORDS.min((remaining / min_bytes) as u64);
    if count > most {
        return Err(malformed(format_args!(
            "number of {what}: {count}, expected at most {most} with {remaining} bytes to follow"
        )));
    }
    Ok(())
}

fn read_metadata<'a>(
    cursor: &mut Cursor<'a>,
    count: u64,
) -> Result<BTreeMap<&'a str, Value<'a>>, Error> {
    let mut metadata = BTreeMap::new();
    for i in 0..count {
        let key = cursor.string(format_args!("key {i}"))?;
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(malformed(format_args!(
                "key {i}: {} bytes long, expected 1 to {MAX_KEY_BYTES}",
                key.len()
            )));
        }
        let shown = Shown(key);
        let kind = cursor.kind(format_args!("key {shown}"))?;
        let value = cursor.value(kind, 0, format_args!("key {shown}"))?;
        if metadata.insert(key, value).is_some() {
            return Err(malformed(format_args!("key {shown}: given twice")));
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<&str, Value<'_>>) -> Result<usize, Error> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    value
        .as_integer()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| n.is_power_of_two() && *n <= MAX_ALIGNMENT)
        .ok_or_else(|| {
            let found = match value.as_integer() {
                Some(n) => n.to_string(),
                None => format!("a value of type {}", value.kind().name()),
            };
            malformed(format_args!(
                "key \"general.alignment\": {found}, expected a power of two up to {MAX_ALIGNMENT}"
            ))
        })
}

/// A tensor's record, its size known and its place not yet checked.
struct Record<'a> {
    name: &'a str,
    shape: Vec<usize>,
    block: BlockType,
    bytes: u64,
    offset: u64,
}

fn read_records<'a>(cursor: &mut Cursor<'a>, count: u64) -> Result<Vec<Record<'a>>, Error> {
    (0..count).map(|i| read_record(cursor, i)).collect()
}

fn read_record<'a>(cursor: &mut Cursor<'a>, i: u64) -> Result<Record<'a>, Error> {
    let name = cursor.string(format_args!("name of tensor {i}"))?;
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(malformed(format_args!(
            "name of tensor {i}: {} bytes long, expected 1 to {MAX_NAME_BYTES}",
            name.len()
        )));
    }
    let shown = Shown(name);
    let dims = cursor.u32(format_args!("tensor {shown}: number of dimensions"))?;
    if dims == 0 || dims as usize > MAX_DIMS {
        return Err(malformed(format_args!(
            "tensor {shown}: {dims} dimensions, expected 1 to {MAX_DIMS}"
        )));
    }
    let mut shape = Vec::with_capacity(MAX_DIMS);
    for axis in 0..dims {
        shape.push(cursor.u64(format_args!("tensor {shown}: dimension {axis}"))?);
    }
    shape.reverse();
    let id = cursor.u32(format_args!("tensor {shown}: type"))?;
    let offset = cursor.u64(format_args!("tensor {shown}: offset"))?;
    let block = block_type(name, id)?;
    let (shape, bytes) = sized(name, &shape, block)?;
    Ok(Record { name, shape, block, bytes, offset })
}

fn block_type(name: &str, id: u32) -> Result<BlockType, Error> {
    BlockType::from_ggml_id(id).ok_or_else(|| {
        let known = unread_type(id).map_or_else(|| id.to_string(), |n| format!("{n} ({id})"));
        let read: Vec<_> = BlockType::ALL.iter().map(|block| block.name()).collect();
        malformed(format_args!(
            "tensor {}: type {known} is not read, only {}",
            Shown(name),
            read.join(", ")
        ))
    })
}

/// Names of types that files may have and offshoot does not read.
fn unread_type(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return None,
    })
}

/// The shape in `usize` and the bytes that `shape` takes in blocks of `block`.
///
/// The number of weights, times four for their `f32`, must fit in an `i64` and a `usize` too, so
/// that no later product over a shape can wrap.
pub(super) fn sized(
    name: &str,
    shape: &[u64],
    block: BlockType,
) -> Result<(Vec<usize>, u64), Error> {
    let shown = Shown(name);
    let mut weights = 1u64;
    for &n in shape {
        weights = weights
            .checked_mul(n)
            .filter(|&w| w > 0 && w <= (i64::MAX / 4) as u64)
            .ok_or_else(|| {
                malformed(format_args!(
                    "tensor {shown}: shape {shape:?} has no or too many weights"
                ))
            })?;
    }
    let cols = shape.last().copied().unwrap_or(1);
    let row_bytes =
        usize::try_from(cols).ok().and_then(|cols| block.row_bytes(cols)).ok_or_else(|| {
            malformed(format_args!(
                "tensor {shown}: rows of {cols} are no multiple of {block}'s block of {}",
                block.block_len()
            ))
        })?;
    let too_big = || malformed(format_args!("tensor {shown}: shape {shape:?} is too big"));
    let bytes = (row_bytes as u64).checked_mul(weights / cols).ok_or_else(too_big)?;
    usize::try_from(weights.saturating_mul(4)).map_err(|_| too_big())?;
    let shape: Result<_, Error> =
        shape.iter().map(|&n| usize::try_from(n).map_err(|_| too_big())).collect();
    Ok((shape?, bytes))
}

/// Turns offsets into ranges of the file: aligned, inside, apart, and under names given once.
fn place<'a>(
    records: Vec<Record<'a>>,
    data: usize,
    alignment: usize,
    file_len: usize,
) -> Result<BTreeMap<&'a str, GgufTensor>, Error> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::with_capacity(records.len());
    for record in records {
        let range = range_of(&record, data, alignment, file_len)?;
        ranges.push((range.start, range.end, record.name));
        let tensor = GgufTensor { shape: record.shape, block: record.block, range, file: 0 };
        if tensors.insert(record.name, tensor).is_some() {
            return Err(malformed(format_args!("tensor {}: given twice", Shown(record.name))));
        }
    }
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        if let [(_, end, name), (start, _, next)] = pair
            && end > start
        {
            return Err(malformed(format_args!(
                "tensor {}: begins at byte {start}, inside tensor {}, which ends at byte {end}",
                Shown(next),
                Shown(name)
            )));
        }
    }
    Ok(tensors)
}

fn range_of(
    record: &Record<'_>,
    data: usize,
    alignment: usize,
    file_len: usize,
) -> Result<Range<usize>, Error> {
    let shown = Shown(record.name);
    if !record.offset.is_multiple_of(alignment as u64) {
        return Err(malformed(format_args!(
            "tensor {shown}: offset {}, expected a multiple of {alignment}",
            record.offset
        )));
    }
    let start = (data as u64).checked_add(record.offset);
    let end = start.and_then(|start| start.checked_add(record.bytes));
    match (start, end) {
        // Both fit in `usize` because the file's length does.
        (Some(start), Some(end)) if end <= file_len as u64 => Ok(start as usize..end as usize),
        _ => Err(malformed(format_args!(
            "tensor {shown}: {} bytes at offset {} of the data at byte {data}, but the file has \
             {file_len}",
            record.bytes, record.offset
        ))),
    }
}
