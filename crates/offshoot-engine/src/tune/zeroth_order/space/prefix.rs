//! Keys and values of positions that no text has, before every text.
//!
//! Li and Liang 2021, "Prefix-Tuning", section 4.2, <https://arxiv.org/abs/2101.00190>, in MeZO's form
//! (Malladi et al. 2023, <https://arxiv.org/abs/2305.17333>, E.5): the numbers themselves are tuned, and
//! at first they are what the model makes of random tokens.
//! ```text
//! attention(q) over [K_prefix; K], [V_prefix; V]      K_prefix, V_prefix [p, kv heads * head_dim] a layer
//! ```
//! The prefix stands at positions 0 to p - 1 and its keys are rotated by them, so that a text begins at
//! position p. Its shape is that of the heads of keys and values, which are fewer than those of queries
//! in models with groups of heads.
//!
//! Published: OPT-13B by MeZO, 5 positions: SST-2 90.7 and BoolQ 73.1, against 91.4 and 67.6 by all weights
//! (Malladi et al., table 1).
//!
//! Departs from the paper: where the model serves keys and values are rounded to half precision, as those
//! of texts are; they are tuned, and losses are taken, in single precision.

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
pub struct PrefixOptions {
    /// `p`. MeZO's 5.
    pub tokens: usize,
    /// Draws the tokens and the directions.
    #[serde(skip)]
    pub seed: u64,
    /// How directions are drawn.
    #[serde(skip)]
    pub distribution: Distribution,
}

impl Default for PrefixOptions {
    fn default() -> Self {
        Self { tokens: 5, seed: 0, distribution: Distribution::default() }
    }
}

impl VirtualSpace {
    /// A prefix that is what `model` makes of random tokens.
    ///
    /// # Errors
    /// [`Error::Training`] if the options are out of bounds.
    pub fn prefix(
        cpu: &Cpu,
        model: Arc<PackedModel>,
        options: &PrefixOptions,
    ) -> Result<Self, Error> {
        let PrefixOptions { tokens, seed, distribution } = *options;
        let mut before = Before::new(cpu, model, VirtualKind::Prefix, tokens)?;
        let (_, cache) = before.of_random_tokens(seed, "prefix")?;
        let cols = cache.kv_heads() * cache.head_dim();
        let mut tensors: Vec<(TensorSpec, Vec<f32>)> = Vec::new();
        for layer in 0..cache.layers() {
            let spec = |half: &str| TensorSpec {
                name: format!("prefix.layers.{layer}.{half}"),
                rows: tokens,
                cols,
                layer: Some(layer),
                vector: false,
            };
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for position in 0..tokens {
                for head in 0..cache.kv_heads() {
                    let (k, v) = cache.read(layer, head, position);
                    keys.extend(k);
                    values.extend(v);
                }
            }
            tensors.extend([(spec("keys"), keys), (spec("values"), values)]);
        }
        tensors.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let place = |layer: usize, half: &str| {
            let name = format!("prefix.layers.{layer}.{half}");
            tensors.iter().position(|(spec, _)| spec.name == name).unwrap_or_default()
        };
        let layers = (0..cache.layers()).map(|l| (place(l, "keys"), place(l, "values"))).collect();
        let (tensors_of, values) = tensors.into_iter().unzip();
        let layout = Layout { tensors: tensors_of };
        Self::of(cpu, before, (layout, values), layers, (seed, distribution))
    }
}
