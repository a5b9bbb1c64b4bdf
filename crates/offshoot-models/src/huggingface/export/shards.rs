//! Tensors into safetensors files of a limited size, and the index of several.
//!
//! A file is the header's length in eight bytes, the header in JSON, filled up with spaces to a
//! multiple of eight bytes, then the tensors one behind the other
//! (<https://github.com/huggingface/safetensors#format>).

use std::io::Write;

use offshoot_kernels::{BlockType, Cpu};
use serde_json::{Map, Value, json};

use super::super::{INDEX, WEIGHTS};
use crate::written::{ExportError, Written};

/// The tensors of one file.
#[derive(Debug, Default)]
pub(super) struct Shard<'c> {
    tensors: Vec<(String, Written<'c>)>,
    bytes: u64,
}

/// Deals the tensors out to files in their order; a file takes those that fit into `most` bytes, and
/// one at least.
pub(super) fn cut(tensors: Vec<(String, Written<'_>)>, most: u64) -> Vec<Shard<'_>> {
    let mut shards: Vec<Shard<'_>> = Vec::new();
    for (name, tensor) in tensors {
        let bytes = bytes(&tensor);
        let fits = shards.last().is_some_and(|shard| shard.bytes.saturating_add(bytes) <= most);
        if !fits {
            shards.push(Shard::default());
        }
        if let Some(shard) = shards.last_mut() {
            shard.bytes += bytes;
            shard.tensors.push((name, tensor));
        }
    }
    shards
}

fn bytes(tensor: &Written<'_>) -> u64 {
    let size = if tensor.block() == BlockType::F32 { 4 } else { 2 };
    tensor.weights() * size
}

/// The name of file `number` of `count`, as transformers names them.
pub(super) fn name(number: usize, count: usize) -> String {
    match count {
        1 => WEIGHTS.to_owned(),
        _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
    }
}

/// The index, where there are several files.
pub(super) fn index(shards: &[Shard<'_>]) -> Option<(String, Vec<u8>)> {
    if shards.len() < 2 {
        return None;
    }
    let mut map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        for (tensor, _) in &shard.tensors {
            map.insert(tensor.clone(), name(number, shards.len()).into());
        }
    }
    let total: u64 = shards.iter().map(|shard| shard.bytes).sum();
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    Some((INDEX.to_owned(), super::json(&index)))
}

impl<'c> Shard<'c> {
    pub(super) fn tensors(&self) -> &[(String, Written<'c>)] {
        &self.tensors
    }

    pub(super) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Written<'c>> {
        self.tensors.iter_mut().map(|(_, tensor)| tensor)
    }

    /// Everything before the tensors' bytes.
    fn head(&self) -> Vec<u8> {
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
        let mut at = 0;
        for (name, tensor) in &self.tensors {
            let end = at + bytes(tensor);
            let dtype: Value = tensor.block().name().into();
            let place =
                json!({ "dtype": dtype, "shape": tensor.shape(), "data_offsets": [at, end] });
            header.insert(name.clone(), place);
            at = end;
        }
        let mut text = Value::from(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        [&(text.len() as u64).to_le_bytes(), &text[..]].concat()
    }

    pub(super) fn write(
        &self,
        cpu: &Cpu,
        out: &mut dyn Write,
        more: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ExportError> {
        out.write_all(&self.head())?;
        self.tensors.iter().try_for_each(|(_, tensor)| tensor.write(cpu, out, more))
    }
}
