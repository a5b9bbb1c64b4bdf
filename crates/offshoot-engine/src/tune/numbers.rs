//! Numbers on their way into safetensors files, some at a time.
//!
//! A file is eight bytes with the length of its header, the header in JSON, and the tensors, one behind the
//! other (<https://github.com/huggingface/safetensors#format>).

use serde_json::{Map, Value, json};

/// Numbers that are held at a time, unless a row has more: a megabyte.
pub(super) const PART: usize = 1 << 18;

/// The beginning of a file of these tensors in single precision, by names and shapes, up to their numbers;
/// with PyTorch's mark if `marked`.
pub(super) fn header(
    tensors: impl IntoIterator<Item = (String, Vec<usize>)>,
    marked: bool,
) -> Vec<u8> {
    let (mut entries, mut end) = (Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        entries.insert(name, entry);
    }
    if marked {
        entries.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

/// Numbers as they stand in files, the lowest byte first, in the place of what `bytes` held.
pub(super) fn to_bytes(values: &[f32], bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
}
