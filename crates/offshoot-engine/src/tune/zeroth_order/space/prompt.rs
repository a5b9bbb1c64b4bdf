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

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{Cpu, Distribution, KvCache};
use offshoot_methods::tune::{Layout, SpaceChoice, SpaceKind, TensorSpec};
use offshoot_models::{Hooks, PackedModel, VirtualKind};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::around::Around;
use super::before::Before;
use super::parameters::Parameters;
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

/// A model and a prompt.
#[derive(Debug)]
pub struct PromptSpace {
    cpu: Cpu,
    before: Before,
    parameters: Parameters,
}

impl PromptSpace {
    /// A prompt of the embeddings of random tokens.
    ///
    /// # Errors
    /// [`Error::Training`] if the options are out of bounds.
    pub fn new(cpu: &Cpu, model: Arc<PackedModel>, options: &PromptOptions) -> Result<Self, Error> {
        let PromptOptions { tokens, seed, distribution } = *options;
        let mut before = Before::new(cpu, model, VirtualKind::Prompt, tokens)?;
        let (numbers, _) = before.of_random_tokens(seed, "prompt")?;
        let cols = before.model.config().hidden_size;
        let (name, rows) = ("prompt".to_owned(), tokens);
        let spec = TensorSpec { name, rows, cols, layer: None, vector: false };
        let layout = Layout { tensors: vec![spec] };
        let parameters = Parameters::new(layout, vec![numbers], seed, distribution)?;
        Ok(Self { cpu: cpu.clone(), before, parameters })
    }
}

impl Around for PromptSpace {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    fn kind(&self) -> SpaceKind {
        SpaceKind::Prompt
    }

    fn choice(&self) -> SpaceChoice {
        let options = json!({ "tokens": self.before.tokens });
        SpaceChoice { name: "prompt".to_owned(), options }
    }

    fn model(&self) -> &PackedModel {
        &self.before.model
    }

    fn stand(&mut self, points: Vec<Vec<Vec<f32>>>) -> Result<(), Error> {
        self.before.stand(points.into_iter().flatten().collect())
    }

    fn with_hooks(
        &mut self,
        run: &mut dyn FnMut(&PackedModel, &mut dyn Hooks) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.before.with_hooks(run)
    }

    fn positions_before(&self) -> usize {
        self.before.tokens
    }

    fn begin_cache(&self, probe: usize, cache: &mut KvCache) -> Result<(), Error> {
        self.before.begin(probe, cache)
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        self.before.write(self.parameters.values().concat(), folder)
    }
}
