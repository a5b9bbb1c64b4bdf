//! What is written to a file or a folder: a model, or a variant of it that needs no base.

use std::path::Path;

use offshoot_models::{BaseId, Checkpoint, LoraAdapter, TokenizerId};

use crate::Error;
use crate::tune::run::Variant;

/// A model to be written, and what is added to its matrices.
pub(crate) struct Source {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) adapter: Option<LoraAdapter>,
}

impl Source {
    /// The model at `path`, or of it the variant in the folder `variant`, which may be a whole model.
    ///
    /// # Errors
    /// If one of them cannot be read, the variant is of other weights or does not fit, or it was tuned
    /// with another chat template or other stop tokens than the model has: those would be lost.
    pub(crate) fn open(path: &Path, variant: Option<&Path>) -> Result<Self, Error> {
        let base = Checkpoint::open(path)?;
        let Some(folder) = variant else { return Ok(Self { checkpoint: base, adapter: None }) };
        let variant = Variant::open(folder)?;
        let tokenizer = TokenizerId::of(base.tokenizer()?);
        variant.check(tokenizer, || Ok(BaseId::of(&base)?))?;
        let source = match variant.is_whole() {
            true => Self { checkpoint: Checkpoint::open(variant.folder())?, adapter: None },
            false => {
                let adapter = LoraAdapter::open(variant.folder(), base.config())?;
                Self { checkpoint: base, adapter: Some(adapter) }
            }
        };
        let Some(file) = variant.file() else { return Ok(source) };
        let written = &source.checkpoint;
        let differs = match () {
            () if file.chat_template.as_deref() != written.chat_template() => "chat template",
            () if file.stop_tokens != written.stop_tokens() => "list of stop tokens",
            () => return Ok(source),
        };
        let what = format!(
            "variant {}: another {differs} than that of {}, which would be written; take the model \
             that it was tuned from",
            folder.display(),
            written.path().display()
        );
        Err(offshoot_models::Error::Export(what).into())
    }
}
