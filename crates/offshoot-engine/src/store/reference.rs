//! How a user names a model.

use super::{StoreError, hub};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A model as a user names it: a path, a file on the hub, or a short name.
///
/// ```
/// use offshoot_engine::store::ModelRef;
///
/// assert_eq!("smollm2".parse::<ModelRef>()?, ModelRef::Named("smollm2".into()));
/// assert!(matches!("models/a.gguf".parse::<ModelRef>()?, ModelRef::File(_)));
/// assert!(matches!("hf:org/repo/a.gguf@v1".parse::<ModelRef>()?, ModelRef::Hub(_)));
/// # Ok::<(), offshoot_engine::store::StoreError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ModelRef {
    /// A file or folder on this machine: a file that exists, a folder with a `config.json`, or text
    /// with a path separator, or ending `.gguf`.
    File(PathBuf),
    /// A file of a hub repository, written `hf:org/repo[/file][@revision]`.
    Hub(HubRef),
    /// A name from the catalogue.
    Named(String),
}

/// A file of a hub repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubRef {
    /// `org/repo`.
    pub repo: String,
    /// The file's path in the repository; `None` lets offshoot pick the GGUF file.
    pub file: Option<String>,
    /// A branch, tag or commit; `None` is `main`.
    pub revision: Option<String>,
}

impl HubRef {
    /// The revision asked for, `main` unless given.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The same reference with the file filled in.
    pub(super) fn with_file(&self, file: &str) -> Self {
        Self { file: Some(file.to_owned()), ..self.clone() }
    }

    /// The same model by its first part: any part stands for all, and they bear the name of that.
    pub(super) fn of_first_part(&self) -> Self {
        let first = self.file.as_deref().and_then(hub::first_part);
        first.map_or_else(|| self.clone(), |first| self.with_file(&first))
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Hub(hub) => hub.fmt(f),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl FromStr for ModelRef {
    type Err = StoreError;

    /// Sorts the text into the three kinds. Whether a short name is known is the store's to say.
    ///
    /// # Errors
    /// [`StoreError::Reference`] for empty text, a malformed `hf:` reference or a short name with
    /// characters that no name has.
    fn from_str(text: &str) -> Result<Self, StoreError> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("hf:") {
            return parse_hub(rest).map(Self::Hub).map_err(|why| malformed(text, why));
        }
        if text.is_empty() {
            return Err(malformed(text, "it is empty"));
        }
        let looks_like_path = text.contains(['/', '\\'])
            || text.to_ascii_lowercase().ends_with(".gguf")
            || Path::new(text).is_file()
            || super::is_model_folder(Path::new(text));
        if looks_like_path {
            return Ok(Self::File(PathBuf::from(text)));
        }
        if !is_short_name(text) {
            return Err(malformed(text, "a name has only letters, digits, `.`, `-` and `_`"));
        }
        Ok(Self::Named(text.to_owned()))
    }
}

fn malformed(text: &str, why: impl Into<String>) -> StoreError {
    let text = text.chars().take(200).collect();
    StoreError::Reference { text, why: why.into() }
}

fn parse_hub(rest: &str) -> Result<HubRef, String> {
    let (path, revision) = match rest.rsplit_once('@') {
        Some((path, revision)) => (path, Some(revision)),
        None => (rest, None),
    };
    let mut segments = path.splitn(3, '/');
    let (Some(org), Some(repo)) = (segments.next(), segments.next()) else {
        return Err("a hub reference needs both an organisation and a repository".into());
    };
    let repo = format!("{org}/{repo}");
    check_repo(&repo)?;
    let file = segments.next();
    file.map_or(Ok(()), check_repo_file)?;
    revision.map_or(Ok(()), check_revision)?;
    Ok(HubRef { repo, file: file.map(str::to_owned), revision: revision.map(str::to_owned) })
}

/// Letters, digits, `.`, `-`, `_`, beginning with a letter or digit, at most 96 bytes.
pub(super) fn is_short_name(text: &str) -> bool {
    text.len() <= 96
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// `org/repo`, each part a short name.
pub(super) fn check_repo(repo: &str) -> Result<(), String> {
    match repo.split_once('/') {
        Some((org, name)) if is_short_name(org) && is_short_name(name) => Ok(()),
        _ => Err(format!("`{repo}` is not an organisation and a repository (org/repo)")),
    }
}

/// A relative path of plain segments, so that it can be joined to a folder.
pub(super) fn check_repo_file(file: &str) -> Result<(), String> {
    let plain = |segment: &str| {
        !segment.is_empty()
            && !matches!(segment, "." | "..")
            && !segment.contains(['\\', ':', '@'])
            && !segment.chars().any(char::is_control)
    };
    if file.len() <= 200 && file.split('/').all(plain) {
        return Ok(());
    }
    Err(format!("`{file}` is not a file's path inside a repository"))
}

/// A branch, tag, commit or `refs/...` path.
pub(super) fn check_revision(revision: &str) -> Result<(), String> {
    if revision.len() <= 100 && revision.split('/').all(is_short_name) {
        return Ok(());
    }
    Err(format!("`{revision}` is not a branch, tag or commit"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hub(repo: &str, file: Option<&str>, revision: Option<&str>) -> ModelRef {
        ModelRef::Hub(HubRef {
            repo: repo.into(),
            file: file.map(Into::into),
            revision: revision.map(Into::into),
        })
    }

    #[test]
    fn the_three_kinds_are_told_apart() {
        let cases = [
            ("smollm2", ModelRef::Named("smollm2".into())),
            ("qwen2.5-coder", ModelRef::Named("qwen2.5-coder".into())),
            ("a/b", ModelRef::File("a/b".into())),
            ("B.GGUF", ModelRef::File("B.GGUF".into())),
            ("hf:o/r", hub("o/r", None, None)),
            ("hf:o/r@main", hub("o/r", None, Some("main"))),
            ("hf:o/r/f.gguf", hub("o/r", Some("f.gguf"), None)),
            ("hf:o/r/d/f.gguf@refs/pr/1", hub("o/r", Some("d/f.gguf"), Some("refs/pr/1"))),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<ModelRef>().unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn an_existing_file_is_a_path_whatever_its_name() {
        // Tests of a crate run in its own folder, which holds this file.
        assert_eq!("Cargo.toml".parse::<ModelRef>().unwrap(), ModelRef::File("Cargo.toml".into()));
    }

    #[test]
    fn malformed_references_say_why() {
        for text in ["", "  ", "hf:", "hf:repo", "hf:/r", "hf:o/", "hf:o/r/", "hf:o/r/../x"] {
            let error = text.parse::<ModelRef>().unwrap_err();
            assert!(matches!(error, StoreError::Reference { .. }), "{text}: {error}");
        }
        for text in ["hf:o/r@", "hf:o/r@a b", "hf:-o/r", "a b", "na:me", "hf:o/r/a\\b"] {
            assert!(text.parse::<ModelRef>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_and_what_parses_reads_back(text in "(hf:)?[a-c./@:_ -]{0,12}") {
            if let Ok(reference) = text.parse::<ModelRef>() {
                prop_assert_eq!(reference.to_string().parse::<ModelRef>().unwrap(), reference);
            }
        }
    }
}
