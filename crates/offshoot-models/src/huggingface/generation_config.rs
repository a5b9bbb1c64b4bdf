//! `generation_config.json`, beside a model file or in a model's folder: how the model's makers
//! would have its answers made, and the ids at which these end.
//!
//! Repositories keep that file from the model that theirs was made from, and it may name ends that
//! the GGUF keys do not: several at once, as Llama 3's chat models have. Fields that are not looked
//! at, such as those of beam search, are passed over.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::fields::Fields;
use super::{not_json, wrong};
use crate::generation_defaults::{Bounds, PENALTY, SHARE, TEMPERATURE};
use crate::gguf::PartName;
use crate::shown::Shown;
use crate::{Error, GenerationDefaults, TokenKind};

pub(super) const NAME: &str = "generation_config.json";
/// Longest file that is read; published ones have some hundred bytes.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct GenerationConfig {
    /// Ids at which an answer ends, of whatever vocabulary.
    ends: Vec<u64>,
    /// How answers are made.
    pub(crate) defaults: GenerationDefaults,
}

impl GenerationConfig {
    /// The ends that are control tokens by `kinds`. Others are passed over: in a folder of several
    /// models the file may be another's.
    pub(crate) fn ends(&self, kinds: &[TokenKind]) -> Vec<u32> {
        let is_control = |id: &u32| kinds.get(*id as usize) == Some(&TokenKind::Control);
        let ids = self.ends.iter().filter_map(|id| u32::try_from(*id).ok());
        ids.filter(is_control).collect()
    }
}

impl GenerationConfig {
    /// The ends of a model of `tokens` tokens whose own file it is.
    pub(crate) fn own_ends(&self, tokens: usize) -> impl Iterator<Item = u32> {
        let ids = self.ends.iter().filter_map(|id| u32::try_from(*id).ok());
        ids.filter(move |id| (*id as usize) < tokens)
    }
}

/// The file beside the GGUF file at `model`, whose own keys say that answers end at `ends`; a
/// folder without one says nothing.
///
/// In a folder with other GGUF models it may be another's, and is passed over unless one of the
/// ends that it names is one of `ends`.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::File`] as [`parse`], both if it can be of no
/// other model.
pub(crate) fn beside(model: &Path, ends: &[u32]) -> Result<GenerationConfig, Error> {
    let read = read(&model.with_file_name(NAME));
    if is_alone(model) {
        return read;
    }
    let is_own = |id: &u64| ends.iter().any(|end| u64::from(*end) == *id);
    Ok(read.ok().filter(|told| told.ends.iter().any(is_own)).unwrap_or_default())
}

/// Whether the folder of the GGUF file at `model` has no other one, but the parts of the same
/// model.
fn is_alone(model: &Path) -> bool {
    let folder = model.parent().filter(|folder| !folder.as_os_str().is_empty());
    let entries = std::fs::read_dir(folder.unwrap_or(Path::new("."))).into_iter().flatten();
    let names: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
    let whole = |name: &OsStr| {
        let part = name.to_str().and_then(PartName::parse)?;
        Some((part.stem.to_owned(), part.count))
    };
    let own = model.file_name().unwrap_or_default();
    let is_gguf = |name: &OsStr| {
        Path::new(name).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
    };
    let is_other =
        |name: &OsStr| name != own && (whole(name).is_none() || whole(name) != whole(own));
    !names.iter().any(|name| is_gguf(name) && is_other(name))
}

/// What the file at `path` says; nothing if there is none.
fn read(path: &Path) -> Result<GenerationConfig, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Ok(GenerationConfig::default());
        }
        Err(e) => return Err(io(e)),
    };
    let mut bytes = Vec::new();
    file.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    parse(&bytes).map_err(|error| match error {
        Error::File { what, .. } => Error::File { path: path.to_owned(), what },
        other => other,
    })
}

/// What a file of these bytes says.
///
/// # Errors
/// [`Error::File`] with the file's name and the field.
pub(super) fn parse(bytes: &[u8]) -> Result<GenerationConfig, Error> {
    if bytes.len() > BYTES_MAX {
        return Err(wrong(NAME, format_args!("more than {BYTES_MAX} bytes")));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|e| not_json(NAME, &e))?;
    let fields = Fields::whole(NAME, &value)?;
    let number = |name: &str, bounds: &Bounds| {
        let Some(number) = fields.number(name)? else { return Ok(None) };
        let bound = || fields.error(name, format_args!("{number}, expected {}", bounds.2));
        bounds.hold(number).map(Some).ok_or_else(bound)
    };
    let mut defaults = GenerationDefaults {
        temperature: number("temperature", &TEMPERATURE)?,
        top_k: top_k(fields)?,
        top_p: number("top_p", &SHARE)?,
        min_p: number("min_p", &SHARE)?,
        repetition_penalty: number("repetition_penalty", &PENALTY)?,
        // transformers looks at the whole text.
        penalty_window: fields.get("repetition_penalty").map(|_| u32::MAX),
        max_new_tokens: fields.size("max_new_tokens")?,
    };
    if defaults.max_new_tokens == Some(0) {
        return Err(fields.error("max_new_tokens", "0, expected 1 or more"));
    }
    if fields.flag("do_sample")? == Some(false) {
        defaults.temperature = Some(0.0);
    }
    Ok(GenerationConfig { ends: ends(fields)?, defaults })
}

/// How many tokens are kept; some files write -1 for all.
fn top_k(fields: Fields<'_>) -> Result<Option<u32>, Error> {
    let name = "top_k";
    if fields.get(name).and_then(Value::as_i64) == Some(-1) {
        return Ok(Some(0));
    }
    let Some(most) = fields.size(name)? else { return Ok(None) };
    let fits = u32::try_from(most);
    fits.map(Some).map_err(|_| fields.error(name, format_args!("{most} is too big")))
}

/// One id or a list of them.
fn ends(fields: Fields<'_>) -> Result<Vec<u64>, Error> {
    let name = "eos_token_id";
    let id = |value: &Value| {
        value.as_u64().ok_or_else(|| {
            let found = value.to_string();
            fields.error(name, format_args!("{}, expected an id or a list of ids", Shown(&found)))
        })
    };
    match fields.get(name) {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &[u8]) -> Result<GenerationConfig, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), json).unwrap();
        beside(&dir.path().join("model.gguf"), &[]).map_err(|e| e.to_string())
    }

    fn ends(json: &[u8]) -> Vec<u32> {
        use TokenKind::{Control, Normal};
        read(json).unwrap().ends(&[Control, Normal, Control, Control])
    }

    #[test]
    fn one_end_several_and_none_are_read() {
        assert_eq!(ends(br#"{"eos_token_id": 2, "top_p": 0.9}"#), [2]);
        assert_eq!(ends(br#"{"eos_token_id": [3, 0]}"#), [3, 0]);
        assert!(ends(br#"{"eos_token_id": null}"#).is_empty() && ends(b"{}").is_empty());
        let dir = tempfile::tempdir().unwrap();
        let none = beside(&dir.path().join("model.gguf"), &[]).unwrap();
        assert_eq!(none, GenerationConfig::default());
    }

    #[test]
    fn ids_of_another_models_vocabulary_are_passed_over() {
        assert_eq!(ends(br#"{"eos_token_id": [1, 2, 4, 18446744073709551615]}"#), [2]);
    }

    #[test]
    fn settings_of_sampling_are_read_and_the_rest_is_passed_over() {
        // As Qwen2.5-Instruct has it, and what others add.
        let json = br#"{"do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20,
            "repetition_penalty": 1.1, "min_p": 0, "max_new_tokens": 2048, "num_beams": 4,
            "transformers_version": "4.37.0"}"#;
        let expected = GenerationDefaults {
            temperature: Some(0.7),
            top_k: Some(20),
            top_p: Some(0.8),
            min_p: Some(0.0),
            repetition_penalty: Some(1.1),
            penalty_window: Some(u32::MAX),
            max_new_tokens: Some(2048),
        };
        assert_eq!(read(json).unwrap().defaults, expected);
        let greedy = read(br#"{"do_sample": false, "temperature": 0.7}"#).unwrap().defaults;
        assert_eq!((greedy.temperature, greedy.top_k), (Some(0.0), None));
        let all = read(br#"{"top_k": -1, "temperature": null}"#).unwrap().defaults;
        assert_eq!((all.top_k, all.temperature), (Some(0), None));
    }

    #[test]
    fn what_a_file_leaves_open_is_taken_from_another() {
        let some = |temperature, top_k| GenerationDefaults {
            temperature,
            top_k,
            ..GenerationDefaults::default()
        };
        assert_eq!(some(Some(0.5), None).or(some(Some(1.0), Some(7))), some(Some(0.5), Some(7)));
    }

    #[test]
    fn a_setting_of_another_kind_or_out_of_bounds_is_named() {
        for (field, value) in [
            ("temperature", "\"hot\\n\""),
            ("temperature", "-0.1"),
            ("temperature", "1e300"),
            ("top_p", "1.1"),
            ("top_p", "-1"),
            ("min_p", "2"),
            ("min_p", "[]"),
            ("top_k", "0.5"),
            ("top_k", "-2"),
            ("top_k", "99999999999"),
            ("repetition_penalty", "0"),
            ("do_sample", "\"yes\""),
            ("max_new_tokens", "0"),
            ("max_new_tokens", "-1"),
            ("eos_token_id", "[1, \"a\"]"),
            ("eos_token_id", "-1"),
        ] {
            let error = read(format!("{{\"{field}\": {value}}}").as_bytes()).unwrap_err();
            assert!(error.contains(&format!("{NAME}: {field}: ")), "{value}: {error}");
            assert!(!error.contains('\n') && error.contains("expected") || value.len() > 8);
        }
    }

    #[test]
    fn what_is_no_object_is_an_error_of_one_line() {
        let long = [b"[".repeat(2 << 20), b"]".repeat(2 << 20)].concat();
        let deep = b"[".repeat(100_000);
        for json in [b"".as_slice(), b"{", br#"{"eos_token_id": "\n"}"#, b"\xff\n", &long, &deep] {
            let error = read(json).unwrap_err();
            assert!(error.contains(NAME) && !error.contains('\n'), "{error}");
        }
    }
}
