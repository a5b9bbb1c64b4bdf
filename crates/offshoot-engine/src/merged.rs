//! What is written to a file or a folder: a model, or a variant of it that needs no base.

use std::path::Path;

use offshoot_models::medusa::HeadsFile;
use offshoot_models::{Adapter, BaseId, Checkpoint, TokenizerId};

use crate::Error;
use crate::model::heads_beside;
use crate::tune::run::{RunDescription, RunError, Variant};

/// A model to be written, and what a variant makes of it.
pub(crate) struct Source {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) adapter: Option<Adapter>,
    /// The draft heads that learned with it.
    pub(crate) heads: Option<HeadsFile>,
}

impl Source {
    fn plain(checkpoint: Checkpoint) -> Self {
        Self { checkpoint, adapter: None, heads: None }
    }

    /// The model at `path`, or of it the variant in the folder `variant`, which may be a whole model.
    ///
    /// # Errors
    /// If one of them cannot be read, the variant is of other weights or does not fit, or it was tuned
    /// with another chat template or other stop tokens than the model has: those would be lost.
    pub(crate) fn open(path: &Path, variant: Option<&Path>) -> Result<Self, Error> {
        let base = Checkpoint::open(path)?;
        let Some(folder) = variant else { return Ok(Self::plain(base)) };
        let variant = Variant::open(folder)?;
        let tokenizer = TokenizerId::of(base.tokenizer()?);
        let checked = variant.check(tokenizer, || Ok(BaseId::of(&base)?));
        checked.map_err(|error| quantised_first(error, path, &variant))?;
        let source = match variant.is_whole() {
            true => Self::plain(Checkpoint::open(variant.folder())?),
            false => {
                let adapter = Adapter::open(variant.folder(), base.config())?;
                let heads = heads_beside(variant.folder())?;
                Self { checkpoint: base, adapter: Some(adapter), heads }
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

/// What to do where `error` says that `variant` is of another base than the model at `path`, and it was
/// tuned over a model that was quantised while it was loaded.
fn quantised_first(error: Error, path: &Path, variant: &Variant) -> Error {
    let run = variant.folder().parent().and_then(|folder| RunDescription::read(folder).ok());
    match (&error, run.and_then(|run| run.config.quantize)) {
        (Error::Run(RunError::OtherBase { .. }), Some(recipe)) => {
            let what = format!(
                "{error}; it was tuned over its base as {recipe}: write that with offshoot quantize {} \
                 --to {recipe} --output FILE.gguf, and export that file",
                path.display()
            );
            offshoot_models::Error::Export(what).into()
        }
        _ => error,
    }
}
