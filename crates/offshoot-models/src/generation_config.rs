//! The end tokens that `generation_config.json`, beside a model file or in a model's folder, adds.
//!
//! Repositories keep that file from the model that theirs was made from, and it may name ends that
//! the GGUF keys do not: several at once, as Llama 3's chat models have.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::{Error, TokenKind};

pub(crate) const NAME: &str = "generation_config.json";
/// Longest file that is read; published ones have some hundred bytes.
pub(crate) const BYTES_MAX: usize = 1 << 20;

/// The one field that is looked at; the others are settings of sampling, which callers choose.
#[derive(Deserialize)]
struct GenerationConfig {
    #[serde(default)]
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "eos_token_id: expected an id or a list of ids")]
enum Ids {
    One(u64),
    Several(Vec<u64>),
}

/// The ids that the file beside `model` names as ends; none if there is no such file.
///
/// Ids that are no control tokens by `kinds` are passed over: in a folder of several models the file
/// may be another's.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read and [`Error::File`] if it does not say ids.
pub(crate) fn end_ids(model: &Path, kinds: &[TokenKind]) -> Result<Vec<u32>, Error> {
    let path = model.with_file_name(NAME);
    let io = |source| Error::Io { path: path.clone(), source };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io(e)),
    };
    let mut bytes = Vec::new();
    file.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    parse(&bytes, kinds).map_err(|what| Error::File { path, what })
}

/// The control tokens that a file of these bytes names as ends, or what is wrong with it.
pub(crate) fn parse(bytes: &[u8], kinds: &[TokenKind]) -> Result<Vec<u32>, String> {
    if bytes.len() > BYTES_MAX {
        return Err(format!("more than {BYTES_MAX} bytes"));
    }
    let config: GenerationConfig = serde_json::from_slice(bytes)
        .map_err(|e| format!("{}; mend or remove it", e.to_string().escape_debug()))?;
    let ids = match config.eos_token_id {
        None => Vec::new(),
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Several(ids)) => ids,
    };
    let is_control = |id: &u32| kinds.get(*id as usize) == Some(&TokenKind::Control);
    Ok(ids.into_iter().filter_map(|id| u32::try_from(id).ok()).filter(is_control).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &[u8]) -> Result<Vec<u32>, String> {
        use TokenKind::{Control, Normal};
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), json).unwrap();
        let kinds = [Control, Normal, Control, Control];
        end_ids(&dir.path().join("model.gguf"), &kinds).map_err(|e| e.to_string())
    }

    #[test]
    fn one_end_several_and_none_are_read() {
        assert_eq!(read(br#"{"eos_token_id": 2, "top_p": 0.9}"#), Ok(vec![2]));
        assert_eq!(read(br#"{"eos_token_id": [3, 0]}"#), Ok(vec![3, 0]));
        assert_eq!(read(br#"{"eos_token_id": null}"#), Ok(vec![]));
        assert_eq!(read(b"{}"), Ok(vec![]));
        let dir = tempfile::tempdir().unwrap();
        assert!(end_ids(&dir.path().join("model.gguf"), &[]).unwrap().is_empty());
    }

    #[test]
    fn ids_of_another_models_vocabulary_are_passed_over() {
        assert_eq!(read(br#"{"eos_token_id": [1, 2, 4, 18446744073709551615]}"#), Ok(vec![2]));
    }

    #[test]
    fn what_says_no_ids_is_an_error_of_one_line() {
        let long = [b"[".repeat(2 << 20), b"]".repeat(2 << 20)].concat();
        let deep = b"[".repeat(100_000);
        for json in [b"".as_slice(), b"{", br#"{"eos_token_id": "\n"}"#, b"\xff\n", &long, &deep] {
            let error = read(json).unwrap_err();
            assert!(error.contains(NAME) && !error.contains('\n'), "{error}");
        }
    }
}
