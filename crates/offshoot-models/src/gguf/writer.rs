//! Keys and tensors into a file that every GGUF reader takes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use offshoot_kernels::BlockType;

use super::cursor::Cursor;
use super::value::{Value, encode_string};
use super::{
    DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MAX_DIMS, MAX_KEY_BYTES, MAX_NAME_BYTES, Shown,
    malformed, reader,
};
use crate::Error;

/// Builds a version 3 file: first every key and tensor is declared, then [`Writer::write`] streams
/// the file out and asks for each tensor's bytes in turn, so that no more than one need be held.
///
/// What [`super::parse`] would refuse is refused here, when it is declared. Keys are written in
/// sorted order and tensors in the order of declaration, so equal declarations give equal files.
///
/// ```
/// use offshoot_kernels::BlockType;
/// use offshoot_models::gguf::{Writer, parse};
///
/// let mut writer = Writer::new();
/// writer.key("general.architecture", "llama")?.tensor("output_norm.weight", &[2], BlockType::F32)?;
/// let mut file = Vec::new();
/// writer.write(&mut file, |_name, out| out.write_all(&[0; 8]))?;
/// assert_eq!(parse(&file)?.text("general.architecture")?, Some("llama"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Writer {
    alignment: usize,
    /// Each key's kind and value as the file holds them.
    keys: BTreeMap<String, Vec<u8>>,
    tensors: Vec<Declared>,
}

#[derive(Debug, Clone)]
struct Declared {
    name: String,
    shape: Vec<u64>,
    block: BlockType,
    bytes: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A file with nothing in it, aligned to 32 bytes.
    pub fn new() -> Self {
        Self { alignment: DEFAULT_ALIGNMENT, keys: BTreeMap::new(), tensors: Vec::new() }
    }

    /// Sets the alignment of the tensors' bytes, a power of two up to 2^20, and the key that says so.
    pub fn alignment(&mut self, alignment: u32) -> Result<&mut Self, Error> {
        let fits = usize::try_from(alignment).ok().filter(|&n| n <= MAX_ALIGNMENT);
        self.alignment = fits.filter(|n| n.is_power_of_two()).ok_or_else(|| {
            malformed(format_args!(
                "alignment {alignment}, expected a power of two up to {MAX_ALIGNMENT}"
            ))
        })?;
        self.keys.insert("general.alignment".to_owned(), encoded(&Value::U32(alignment)));
        Ok(self)
    }

    /// Declares a key and its value; [`Writer::alignment`] is the way to `general.alignment`.
    pub fn key<'v>(&mut self, key: &str, value: impl Into<Value<'v>>) -> Result<&mut Self, Error> {
        let shown = Shown(key);
        if key.is_empty() || key.len() > MAX_KEY_BYTES || key == "general.alignment" {
            return Err(malformed(format_args!("key {shown}: cannot be set")));
        }
        let value = value.into();
        let bytes = encoded(&value);
        // The reader is the judge of nesting and lengths.
        Cursor::new(&bytes[4..]).value(value.kind(), 0, format_args!("key {shown}"))?;
        if self.keys.insert(key.to_owned(), bytes).is_some() {
            return Err(malformed(format_args!("key {shown}: given twice")));
        }
        Ok(self)
    }

    /// Declares a tensor of `shape`, contiguous axis last (`[out, in]` for a matrix), in blocks of
    /// `block` along that axis.
    pub fn tensor(
        &mut self,
        name: &str,
        shape: &[usize],
        block: BlockType,
    ) -> Result<&mut Self, Error> {
        let shown = Shown(name);
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(malformed(format_args!(
                "tensor {shown}: a name of {} bytes, expected 1 to {MAX_NAME_BYTES}",
                name.len()
            )));
        }
        if shape.is_empty() || shape.len() > MAX_DIMS {
            return Err(malformed(format_args!(
                "tensor {shown}: {} dimensions, expected 1 to {MAX_DIMS}",
                shape.len()
            )));
        }
        if self.tensors.iter().any(|tensor| tensor.name == name) {
            return Err(malformed(format_args!("tensor {shown}: given twice")));
        }
        let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
        let (_, bytes) = reader::sized(name, &shape, block)?;
        self.tensors.push(Declared { name: name.to_owned(), shape, block, bytes });
        Ok(self)
    }

    /// Writes the file to `out`; `data` is called once a tensor, in order of declaration, with its
    /// name and the place to write its bytes to.
    ///
    /// # Errors
    /// Those of `out` and `data`, and `InvalidInput` naming a tensor for which `data` wrote another
    /// number of bytes than its shape takes.
    pub fn write(
        &self,
        out: &mut dyn Write,
        mut data: impl FnMut(&str, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let head = self.head();
        out.write_all(&head)?;
        self.pad(out, head.len() as u64)?;
        for tensor in &self.tensors {
            let mut counted = Counted { out: &mut *out, bytes: 0 };
            data(&tensor.name, &mut counted)?;
            if counted.bytes != tensor.bytes {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "tensor {}: {} bytes written, expected {}",
                        Shown(&tensor.name),
                        counted.bytes,
                        tensor.bytes
                    ),
                ));
            }
            self.pad(out, tensor.bytes)?;
        }
        Ok(())
    }

    /// Everything before the tensors' bytes, not padded.
    fn head(&self) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend(3u32.to_le_bytes());
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            encode_string(key, &mut head);
            head.extend_from_slice(value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            encode_string(&tensor.name, &mut head);
            head.extend((tensor.shape.len() as u32).to_le_bytes());
            for n in tensor.shape.iter().rev() {
                head.extend(n.to_le_bytes());
            }
            head.extend(tensor.block.ggml_id().to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset += tensor.bytes.next_multiple_of(self.alignment as u64);
        }
        head
    }

    /// Fills up after `written` bytes to the next multiple of the alignment.
    fn pad(&self, out: &mut dyn Write, written: u64) -> io::Result<()> {
        let missing = written.next_multiple_of(self.alignment as u64) - written;
        io::copy(&mut io::Read::take(io::repeat(0), missing), out).map(drop)
    }
}

/// A value's kind and the value, as a file holds them.
fn encoded(value: &Value<'_>) -> Vec<u8> {
    let mut bytes = value.kind().id().to_le_bytes().to_vec();
    value.encode(&mut bytes);
    bytes
}

/// Counts what passes through.
struct Counted<'w> {
    out: &'w mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_reader_would_refuse_is_refused_when_declared() {
        let mut writer = Writer::new();
        assert!(writer.alignment(0).is_err());
        assert!(writer.alignment(48).is_err());
        assert!(writer.key("", 1u32).is_err());
        assert!(writer.key("general.alignment", 64u32).is_err());
        assert!(writer.tensor("t", &[], BlockType::F32).is_err());
        assert!(writer.tensor("t", &[4, 31], BlockType::Q4_0).is_err());
        assert!(writer.tensor("t", &[1 << 33, 1 << 33], BlockType::F32).is_err());
        assert!(writer.tensor(&"t".repeat(65), &[1], BlockType::F32).is_err());
        writer.key("k", 1u32).unwrap().tensor("t", &[1], BlockType::F32).unwrap();
        assert!(writer.key("k", 2u32).is_err());
        assert!(writer.tensor("t", &[1], BlockType::F32).is_err());
    }

    #[test]
    fn a_wrong_number_of_bytes_is_an_error_that_names_the_tensor() {
        let mut writer = Writer::new();
        writer.tensor("t", &[3], BlockType::F32).unwrap();
        let error = writer.write(&mut Vec::new(), |_, out| out.write_all(&[0; 11])).unwrap_err();
        assert_eq!(error.to_string(), "tensor \"t\": 11 bytes written, expected 12");
    }
}
