//! A model's own answers as a datastore: what it said once it says again.
//!
//! REST (He et al. 2023, section 3.1, <https://arxiv.org/abs/2311.08252>) drafts from text that others
//! wrote. Answers that the model wrote to train its heads are text of exactly its own kind, cost
//! nothing more, and a store of a few hundred thousand tokens is a few megabytes.

use std::ops::ControlFlow;
use std::path::Path;

use super::distill::Distilled;
use crate::datastore::{
    BuildEvent, BuildOptions, BuildSummary, Builder, DatastoreError, Libsais, Notes, SourceNote,
    SuffixSorter,
};
use crate::{Control, Model};

/// Bytes that building uses at most, enough for forty million tokens.
const MEMORY: u64 = 1 << 29;

impl Distilled {
    /// Writes the answers into the folder of a new datastore, a document each. `built_by` names the
    /// program; `progress` may end the building.
    ///
    /// # Errors
    /// [`DatastoreError::Exists`] if there is a store already; what writing gives.
    pub fn store(
        &self,
        model: &Model,
        folder: &Path,
        built_by: &str,
        mut progress: impl FnMut() -> Control,
    ) -> Result<BuildSummary, DatastoreError> {
        let options = BuildOptions {
            folder: folder.to_owned(),
            append: false,
            tokenizer: model.tokenizer_id(),
            vocab_size: u32::try_from(model.config().vocab_size).unwrap_or(u32::MAX),
            memory: MEMORY,
            limit: None,
            notes: Notes {
                built_by: built_by.to_owned(),
                sorter: Libsais.name().to_owned(),
                share: None,
                sources: vec![SourceNote {
                    name: "the model's own answers".to_owned(),
                    licence: None,
                }],
            },
        };
        let mut on_event = |_: BuildEvent<'_>| match progress() {
            Control::Continue => ControlFlow::Continue(()),
            Control::Stop => ControlFlow::Break(()),
        };
        let mut builder = Builder::new(options, &Libsais, &mut on_event)?;
        for answer in self.answers() {
            // There is no limit to break for.
            let _ = builder.add(folder, &answer.tokens)?;
        }
        builder.finish()
    }
}
