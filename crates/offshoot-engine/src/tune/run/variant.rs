//! A variant as a folder: what was learned, and what a base must have to be served with it.
//!
//! ```text
//! adapter_config.json, adapter_model.safetensors   as Python's PEFT saves them, or a whole model
//! medusa_lm_head.safetensors                       draft heads that were trained beside the adapter
//! variant.json                                     the base, its tokenizer, template and stop tokens
//! README.md                                        the model card
//! ```
//! A run's folder has its variant in `variant/`, and either is given to `--variant`. A folder without
//! `variant.json` is an adapter of somebody else's: it is served with what the base has, and nobody
//! can say whether it is of that base.

use std::fs;
use std::path::{Path, PathBuf};

use offshoot_models::medusa::HEADS_FILE;
use offshoot_models::{BaseId, ChatTemplate, Checkpoint, TokenizerId};
use serde::{Deserialize, Serialize};

use super::RunError;
use super::checkpoint::{json, read_json};
use super::files::{output, write_folder};
use crate::Error;
use crate::beside::write_whole;

/// The version of `variant.json`.
pub(crate) const FORMAT: u32 = 1;
const FILE: &str = "variant.json";
/// The variant's folder in a run's.
pub(crate) const FOLDER: &str = "variant";

/// What `variant.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantFile {
    /// The version of the file's form.
    pub format: u32,
    /// The weights that it changes.
    pub base: BaseId,
    /// The tokenizer that it was tuned with.
    pub tokenizer: TokenizerId,
    /// The chat template that it was tuned with.
    pub chat_template: Option<String>,
    /// Where its answers end.
    pub stop_tokens: Vec<u32>,
    /// How it was tuned.
    pub method: String,
    /// The version of offshoot that made it.
    pub offshoot: String,
}

impl VariantFile {
    /// That of a variant of the model of `checkpoint`, whose weights are `base`, tuned by `method`.
    ///
    /// # Errors
    /// If the model has no tokenizer that can be used.
    pub fn of(checkpoint: &Checkpoint, base: BaseId, method: &str) -> Result<Self, Error> {
        Ok(Self {
            format: FORMAT,
            base,
            tokenizer: TokenizerId::of(checkpoint.tokenizer()?),
            chat_template: checkpoint.chat_template().map(str::to_owned),
            stop_tokens: checkpoint.stop_tokens().to_vec(),
            method: method.to_owned(),
            offshoot: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Writes it into `folder`.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        write_whole(&folder.join(FILE), &json(self))
    }
}

/// A variant that was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    folder: PathBuf,
    file: Option<VariantFile>,
}

impl Variant {
    /// Opens the variant in `folder`, that of a run or the variant's own, or an adapter as PEFT
    /// saves it.
    ///
    /// # Errors
    /// [`RunError::Damaged`] if there is none, or it is of another version.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let is_one = |folder: &Path| {
            [FILE, "adapter_config.json"].iter().any(|name| folder.join(name).exists())
        };
        let inner = folder.join(FOLDER);
        let found = [folder, &inner].into_iter().find(|folder| is_one(folder));
        let damaged = |path: &Path, what: &str| -> Error {
            RunError::Damaged { path: path.to_owned(), what: what.to_owned() }.into()
        };
        let Some(found) = found else {
            let what = match super::RunDescription::is_in(folder) {
                true => "the run has made no variant yet: let it go on with offshoot tune --resume",
                false => "no variant here: give a run's folder, or an adapter's",
            };
            return Err(damaged(folder, what));
        };
        let path = found.join(FILE);
        let file = path.exists().then(|| read_json::<VariantFile>(&path)).transpose()?;
        if file.as_ref().is_some_and(|file| file.format != FORMAT) {
            return Err(damaged(&path, "of another version of offshoot"));
        }
        Ok(Self { folder: found.to_owned(), file })
    }

    /// Where its weights are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it is a whole model and no adapter.
    pub fn is_whole(&self) -> bool {
        !self.folder.join("adapter_config.json").exists()
    }

    /// Whether draft heads lie beside it.
    pub fn has_heads(&self) -> bool {
        self.folder.join(HEADS_FILE).exists()
    }

    /// What it says of itself.
    pub fn file(&self) -> Option<&VariantFile> {
        self.file.as_ref()
    }

    /// Refuses a model that it was not made of. `base` is asked only if the variant names one.
    ///
    /// # Errors
    /// [`RunError::OtherBase`], and those of `base`.
    pub(crate) fn check(
        &self,
        tokenizer: TokenizerId,
        base: impl FnOnce() -> Result<BaseId, Error>,
    ) -> Result<(), Error> {
        let Some(file) = &self.file else { return Ok(()) };
        let other = |expected: String, found: String| -> Error {
            RunError::OtherBase { folder: self.folder.clone(), expected, found }.into()
        };
        let base = base()?;
        if base != file.base {
            return Err(other(file.base.short(), base.short()));
        }
        if tokenizer != file.tokenizer {
            let with = |id: TokenizerId| format!("{} with tokenizer {}", base.short(), id.short());
            return Err(other(with(file.tokenizer), with(tokenizer)));
        }
        Ok(())
    }

    /// Its chat template, for a model whose tokens of begin and end are these texts.
    ///
    /// # Errors
    /// If it is no template.
    pub(crate) fn template(
        &self,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<Option<ChatTemplate>, Error> {
        let source = self.file.as_ref().and_then(|file| file.chat_template.as_deref());
        Ok(source.map(|source| ChatTemplate::new(source, bos, eos)).transpose()?)
    }
}

/// Puts a copy of the variant in `from` in the place of `to`: whoever edits the one leaves the
/// other, which a checkpoint vouches for, as it is.
///
/// # Errors
/// [`Error::Output`].
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    write_folder(to, |folder| {
        for file in super::files::files_below(from)? {
            let (old, new) = (from.join(&file), folder.join(&file));
            if let Some(parent) = new.parent() {
                fs::create_dir_all(parent).map_err(output(parent))?;
            }
            fs::copy(&old, &new).map_err(output(&new))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::description::tests::description;
    use super::*;

    #[test]
    fn a_run_and_its_variant_are_opened_alike_and_an_adapter_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join(FOLDER);
        fs::create_dir(&inner).unwrap();
        let told = Variant::open(dir.path()).unwrap_err().to_string();
        assert!(told.contains("no variant here"), "{told}");
        fs::write(inner.join("adapter_config.json"), "{}").unwrap();
        let stranger = Variant::open(dir.path()).unwrap();
        assert!(stranger.file().is_none() && !stranger.is_whole());
        let file = description(Default::default()).variant;
        file.write(&inner).unwrap();
        let variant = Variant::open(dir.path()).unwrap();
        assert_eq!(variant, Variant::open(&inner).unwrap());
        assert_eq!(variant.file(), Some(&file));
        let base = || Ok(BaseId::from_bytes([1; 32]));
        variant.check(TokenizerId::from_bytes([2; 32]), base).unwrap();
        let other = || Ok(BaseId::from_bytes([3; 32]));
        let told = variant.check(file.tokenizer, other).unwrap_err().to_string();
        assert!(told.contains("010101010101, and this is 030303030303"), "{told}");
        let told = variant.check(TokenizerId::from_bytes([4; 32]), base).unwrap_err().to_string();
        assert!(told.contains("tokenizer 040404040404"), "{told}");
        VariantFile { format: 2, ..file }.write(&inner).unwrap();
        assert!(Variant::open(&inner).unwrap_err().to_string().contains("another version"));
    }
}
