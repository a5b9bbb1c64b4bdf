//! Embeddings before every text that are no token's.
//!
//! Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2,
//! <https://arxiv.org/abs/2104.08691>:
//! ```text
//! h_0 = [P; embed(tokens)]        P [p, hidden_size]
//! ```
//! The prompt stands at positions 0 to p - 1. At first it is the embeddings of random tokens (the paper's
//! "sampled vocabulary", section 3.2). What the model makes of it depends on no text, so it runs once for
//! each point of a step, and all texts go on from its keys and values.
//!
//! Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning",
//! <https://arxiv.org/abs/2402.11592>, tune 10 positions with eps 1e-2 to 1e-4 and rates 1e-3 to 1e-6
//! (appendix C), and find prompts the weakest of four spaces without gradients: OPT-1.3B on SST-2 84.4,
//! against 90.8 by all weights, 90.1 by LoRA and 91.4 by prefixes (table 2).

use std::sync::Arc;

use offshoot_kernels::{Cpu, Distribution};
use offshoot_methods::tune::{Layout, TensorSpec};
use offshoot_models::{PackedModel, VirtualKind};
use serde::{Deserialize, Serialize};

use super::before::{Before, VirtualSpace};
use crate::Error;

/// What stands before texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromptOptions {
    /// `p`. The benchmark's 10.
    pub tokens: usize,
    /// Draws the tokens and the directions.
    #[serde(skip)]
    pub seed: u64,
    /// How directions are drawn.
    #[serde(skip)]
    pub distribution: Distribution,
}

impl Default for PromptOptions {
    fn default() -> Self {
        Self { tokens: 10, seed: 0, distribution: Distribution::default() }
    }
}

impl VirtualSpace {
    /// A prompt of the embeddings of random tokens.
    ///
    /// # Errors
    /// [`Error::Training`] if the options are out of bounds.
    pub fn prompt(
        cpu: &Cpu,
        model: Arc<PackedModel>,
        options: &PromptOptions,
    ) -> Result<Self, Error> {
        let PromptOptions { tokens, seed, distribution } = *options;
        let mut before = Before::new(cpu, model, VirtualKind::Prompt, tokens)?;
        let (numbers, _) = before.of_random_tokens(seed, "prompt")?;
        let cols = before.model.config().hidden_size;
        let (name, rows) = ("prompt".to_owned(), tokens);
        let spec = TensorSpec { name, rows, cols, layer: None, vector: false };
        let layout = Layout { tensors: vec![spec] };
        Self::of(cpu, before, (layout, vec![numbers]), Vec::new(), (seed, distribution))
    }
}
