//! What several tests of this crate share: small models, hostile files and templates.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(dead_code)] // each test takes what it needs

pub(crate) mod byte_level;
pub(crate) mod folder;
pub(crate) mod hostile;
pub(crate) mod hostile_folders;
pub(crate) mod templates;
pub(crate) mod tiny;
pub(crate) mod tokenizer_files;

/// Walks everything that a file's bytes give, as a program that trusts the reader would: every
/// array element, every tensor's byte and weight.
pub(crate) fn walk(bytes: &[u8]) -> Result<offshoot_models::Contents, offshoot_models::Error> {
    let gguf = offshoot_models::gguf::parse(bytes)?;
    for (_, value) in gguf.metadata() {
        if let offshoot_models::gguf::Value::Array(array) = value {
            assert_eq!(array.values().count(), array.len());
            assert_eq!(array.integers().map_or(array.len(), Iterator::count), array.len());
            assert_eq!(array.strings().map_or(array.len(), Iterator::count), array.len());
        }
    }
    for (name, tensor) in gguf.tensors() {
        let weights: usize = tensor.shape.iter().product();
        let mut out = vec![0.0; weights];
        let dequantized = tensor.block.dequantize(gguf.data(tensor), &mut out);
        dequantized.unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let contents = gguf.contents()?;
    for (name, info) in &contents.tensors {
        let data = &bytes[info.range.clone()];
        assert!(data.len() >= info.shape.iter().product::<usize>() / 8, "{name}");
    }
    assert!(contents.stop_tokens.iter().all(|id| (*id as usize) < contents.config.vocab_size));
    Ok(contents)
}

/// Checks that an error says something, briefly, on one line.
pub(crate) fn assert_one_line(error: &offshoot_models::Error, about: &str) {
    let text = error.to_string();
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "{about}: {text:?}");
    assert!((10..700).contains(&text.len()), "{about}: {text:?}");
}
