//! Numbers on their way into safetensors files, some at a time.
//!
//! A file is eight bytes with the length of its header, the header in JSON, and the tensors, one behind the
//! other (<https://github.com/huggingface/safetensors#format>).

use offshoot_kernels::FloatStore;
use serde_json::{Map, Value, json};

/// Numbers that are held at a time, unless a row has more: a megabyte.
pub(super) const PART: usize = 1 << 18;

/// The beginning of a file of these tensors, by names, shapes and floats, up to their numbers; with
/// PyTorch's mark if `marked`.
pub(super) fn header(
    tensors: impl IntoIterator<Item = (String, Vec<usize>, FloatStore)>,
    marked: bool,
) -> Vec<u8> {
    let (mut entries, mut end) = (Map::new(), 0);
    for (name, shape, store) in tensors {
        let start = end;
        end += store.bytes() * shape.iter().product::<usize>();
        let dtype = store.block().name();
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
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

/// Numbers as they stand in files, the lowest byte first, in the place of what `bytes` held. Those to be
/// stored as bfloat16 are such already.
pub(super) fn to_bytes(values: &[f32], store: FloatStore, bytes: &mut Vec<u8>) {
    bytes.clear();
    match store {
        FloatStore::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
        FloatStore::Bf16 => {
            let high = values.iter().map(|x| (x.to_bits() >> 16) as u16);
            bytes.extend(high.flat_map(u16::to_le_bytes));
        }
    }
}

/// The numbers that [`to_bytes`] wrote.
pub(super) fn of_bytes(bytes: &[u8], store: FloatStore) -> Vec<f32> {
    let number = |bytes: &[u8]| match *bytes {
        [a, b] => f32::from_le_bytes([0, 0, a, b]),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        _ => f32::NAN,
    };
    bytes.chunks_exact(store.bytes()).map(number).collect()
}
