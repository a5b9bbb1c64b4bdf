//! What several tests of this crate share: small models, hostile files and templates.
#![allow(clippy::unwrap_used)] // a panic is how a test fails
#![allow(dead_code)] // each test takes what it needs

pub(crate) mod byte_level;
pub(crate) mod folder;
pub(crate) mod hostile;
pub(crate) mod hostile_folders;
pub(crate) mod parts;
pub(crate) mod pieces;
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
    if let Ok(spec) = &contents.tokenizer {
        use_tokenizer(spec);
    }
    Ok(contents)
}

/// Builds a stranger's tokenizer and uses it, as a program would that trusts the reader.
pub(crate) fn use_tokenizer(spec: &offshoot_models::TokenizerSpec) {
    use offshoot_models::{Controls, Detokenizer, Special, Tokenizer};
    let tokenizer = match Tokenizer::new(spec) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return assert_one_line(&error, "tokenizer"),
    };
    let mut text = " ab  <s>\n a</s>é\u{2581}\u{1F600}<|im_end|> 12".to_owned();
    spec.tokens.iter().take(8).for_each(|token| text.extend(token.chars().take(20)));
    for special in [Special::Parse, Special::Text] {
        let ids = tokenizer.encode(&text, special).unwrap();
        let mut detokenizer = Detokenizer::new(&tokenizer, Controls::Keep);
        let mut pushed = String::new();
        ids.iter().for_each(|id| pushed.push_str(detokenizer.push(*id)));
        pushed += &detokenizer.finish();
        assert_eq!(pushed, tokenizer.decode(&ids, Controls::Keep));
    }
    assert!(!tokenizer.cut_at_controls(&text).is_empty());
}

/// Checks that an error says something, briefly, on one line.
pub(crate) fn assert_one_line(error: &offshoot_models::Error, about: &str) {
    let text = error.to_string();
    assert!(!text.contains(['\n', '\r', '\u{1b}']), "{about}: {text:?}");
    assert!((10..700).contains(&text.len()), "{about}: {text:?}");
}
