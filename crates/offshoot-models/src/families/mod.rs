//! One architecture a file: what it asks of a checkpoint, and its forward pass.

mod gemma3;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;

use crate::architecture::{Blueprint, Executor};
use crate::{Family, ModelConfig};
pub use gemma3::Gemma3;
pub use llama::Llama;
pub use mistral::Mistral;
pub use phi3::Phi3;
pub use qwen2::Qwen2;
pub use qwen3::Qwen3;

/// An architecture of any family, with the places of its parts.
#[derive(Debug, Clone)]
pub enum Architecture {
    /// See [`Family::Gemma3`].
    Gemma3(Gemma3),
    /// See [`Family::Llama`].
    Llama(Llama),
    /// See [`Family::Mistral`].
    Mistral(Mistral),
    /// See [`Family::Phi3`].
    Phi3(Phi3),
    /// See [`Family::Qwen2`].
    Qwen2(Qwen2),
    /// See [`Family::Qwen3`].
    Qwen3(Qwen3),
}

impl Architecture {
    /// The architecture that `config` describes, and all it asks for.
    pub fn new(config: &ModelConfig) -> (Self, Blueprint) {
        let mut blueprint = Blueprint::default();
        let architecture = match config.family {
            Family::Gemma3 => Architecture::Gemma3(Gemma3::new(config, &mut blueprint)),
            Family::Llama => Architecture::Llama(Llama::new(config, &mut blueprint)),
            Family::Mistral => Architecture::Mistral(Mistral::new(config, &mut blueprint)),
            Family::Phi3 => Architecture::Phi3(Phi3::new(config, &mut blueprint)),
            Family::Qwen2 => Architecture::Qwen2(Qwen2::new(config, &mut blueprint)),
            Family::Qwen3 => Architecture::Qwen3(Qwen3::new(config, &mut blueprint)),
        };
        (architecture, blueprint)
    }

    /// Runs one step.
    pub fn forward<E: Executor>(&self, e: &mut E) -> Result<(), E::Error> {
        match self {
            Architecture::Gemma3(model) => model.forward(e),
            Architecture::Llama(model) => model.forward(e),
            Architecture::Mistral(model) => model.forward(e),
            Architecture::Phi3(model) => model.forward(e),
            Architecture::Qwen2(model) => model.forward(e),
            Architecture::Qwen3(model) => model.forward(e),
        }
    }
}
