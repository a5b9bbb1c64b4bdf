//! What can go wrong while a model is loaded or runs.

use thiserror::Error;

use crate::store::StoreError;

/// A model cannot be loaded, or cannot answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The model itself, its file or a step of it.
    #[error(transparent)]
    Model(#[from] offshoot_models::Error),
    /// Sampling or stop strings.
    #[error(transparent)]
    Method(#[from] offshoot_methods::Error),
    /// The model store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens, the context {context}: shorten the prompt or raise \
         --ctx-size"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// There is nothing to continue.
    #[error("the prompt is empty and the model has no begin-of-text token: give it some text")]
    EmptyPrompt,
    /// The conversation spells out control tokens and has every character that could stand for one
    /// while the chat template runs.
    #[error("the conversation has all characters of the last private plane: remove some of them")]
    NoPrivateCharacterLeft,
    /// A context cannot be as long as asked.
    #[error("a context of {asked} tokens: expected 1 to {limit}")]
    Context {
        /// Tokens asked for.
        asked: usize,
        /// The longest that can be had.
        limit: usize,
    },
}
