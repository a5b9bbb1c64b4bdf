//! One family a file: its paper, and what sets it apart. Llama's kin share a forward pass,
//! `decoder.rs`; Gemma 3 has its own.

mod decoder;
mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;

use crate::architecture::{Blueprint, Executor};
use crate::{Family, ModelConfig};
pub use decoder::Decoder;
pub use gemma3::Gemma3;

/// An architecture of any family, with the places of its parts.
#[derive(Debug, Clone)]
pub enum Architecture {
    /// The form of [`Family::Llama`] and its kin.
    Decoder(Decoder),
    /// See [`Family::Gemma3`].
    Gemma3(Gemma3),
}

impl Architecture {
    /// The architecture that `config` describes, and all it asks for.
    pub fn new(config: &ModelConfig) -> (Self, Blueprint) {
        let mut blueprint = Blueprint::default();
        let form = match config.family {
            Family::Gemma3 => {
                let model = Gemma3::new(config, &mut blueprint);
                return (Architecture::Gemma3(model), blueprint);
            }
            Family::Llama => llama::form(config),
            Family::Mistral => mistral::form(),
            Family::Phi3 => phi3::form(),
            Family::Qwen2 => qwen2::form(),
            Family::Qwen3 => qwen3::form(config),
            Family::Qwen3Moe => qwen3_moe::form(config),
        };
        (Architecture::Decoder(Decoder::new(config, form, &mut blueprint)), blueprint)
    }

    /// Runs one step.
    pub fn forward<E: Executor>(&self, e: &mut E) -> Result<(), E::Error> {
        self.begin(e)?;
        (0..self.blocks()).try_for_each(|layer| self.block(layer, e))?;
        self.end(e)
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        match self {
            Architecture::Decoder(model) => model.blocks(),
            Architecture::Gemma3(model) => model.blocks(),
        }
    }

    /// Runs what comes before the blocks: the embedding.
    pub fn begin<E: Executor>(&self, e: &mut E) -> Result<(), E::Error> {
        match self {
            Architecture::Decoder(model) => model.begin(e),
            Architecture::Gemma3(model) => model.begin(e),
        }
    }

    /// Runs block `layer`, below [`Architecture::blocks`], which reads the residual stream alone and
    /// leaves it for the next.
    pub fn block<E: Executor>(&self, layer: usize, e: &mut E) -> Result<(), E::Error> {
        match self {
            Architecture::Decoder(model) => model.block(layer, e),
            Architecture::Gemma3(model) => model.block(layer, e),
        }
    }

    /// Runs what comes behind the blocks: the last norm and the output head.
    pub fn end<E: Executor>(&self, e: &mut E) -> Result<(), E::Error> {
        match self {
            Architecture::Decoder(model) => model.end(e),
            Architecture::Gemma3(model) => model.end(e),
        }
    }
}
