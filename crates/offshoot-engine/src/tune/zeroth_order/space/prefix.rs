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
//! Departs from the paper: keys and values are rounded to half precision where they are used, as those
//! of texts are; what is tuned is in single precision.

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{Cpu, Distribution, Forming, KvCache, Philox, Purpose, tensor_id};
use offshoot_methods::tune::{Layout, Probe, SpaceChoice, SpaceKind, TensorSpec, Update};
use offshoot_models::{
    Hooks, LinearId, LogitRows, NoHooks, PackedExecutor, PackedModel, Segment, VariantId, chain,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::variant::{Tensor, safetensors, write_file};
use super::Space;
use super::parameters::Parameters;
use crate::Error;

/// Points that stand beside the weights at once.
const LANES: usize = 32;
/// Longest prefix.
const TOKENS_MAX: usize = 1 << 12;

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

/// A model and a prefix.
#[derive(Debug)]
pub struct PrefixSpace {
    cpu: Cpu,
    model: Arc<PackedModel>,
    tokens: usize,
    parameters: Parameters,
    /// Of each layer, where its keys and values are among the parameters.
    layers: Vec<(usize, usize)>,
    /// The parameters at each point.
    points: Vec<Vec<Vec<f32>>>,
    hooks: FloatInputs,
}

/// Keeps products from rounding their inputs, whatever the weights' format.
#[derive(Debug)]
struct FloatInputs;

impl Hooks for FloatInputs {
    fn forming(&self, _: LinearId) -> Option<Forming<'_>> {
        Some(Forming::default())
    }
}

impl PrefixSpace {
    /// A prefix that is what `model` makes of random tokens.
    ///
    /// # Errors
    /// [`Error::Training`] if the options are out of bounds.
    pub fn new(cpu: &Cpu, model: Arc<PackedModel>, options: &PrefixOptions) -> Result<Self, Error> {
        let PrefixOptions { tokens, seed, distribution } = *options;
        if !(1..=TOKENS_MAX).contains(&tokens) {
            let what = format!("prefix: {tokens} tokens, expected 1 to {TOKENS_MAX}");
            return Err(Error::Training(what));
        }
        let cache = of_random_tokens(cpu, &model, options)?;
        let cols = cache.kv_heads() * cache.head_dim();
        let mut tensors: Vec<(TensorSpec, Vec<f32>)> = Vec::new();
        for layer in 0..cache.layers() {
            let spec = |half: &str| TensorSpec {
                name: format!("prefix.layers.{layer}.{half}"),
                rows: tokens,
                cols,
                layer: Some(layer),
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
        let parameters = Parameters::new(layout, values, seed, distribution)?;
        let (cpu, points) = (cpu.clone(), Vec::new());
        Ok(Self { cpu, model, tokens, parameters, layers, points, hooks: FloatInputs })
    }
}

/// What the model keeps of random tokens.
fn of_random_tokens(
    cpu: &Cpu,
    model: &PackedModel,
    options: &PrefixOptions,
) -> Result<KvCache, Error> {
    let n = options.tokens;
    let vocab = model.config().vocab_size as u64;
    let draw = |at: usize| {
        let purpose = (Purpose::Initial as u32) << 24;
        let counter = [(at / 4) as u32, tensor_id("prefix"), 0, purpose];
        let word = Philox::block(Philox::key(options.seed), counter)[at % 4];
        ((u64::from(word) * vocab) >> 32) as u32
    };
    let tokens: Vec<u32> = (0..n).map(draw).collect();
    let mut cache = model.new_cache(n);
    let segment = Segment {
        cache: &mut cache,
        tokens: &tokens,
        parents: &chain(n),
        positions: &(0..n as u32).collect::<Vec<_>>(),
        rope: model.config().rope_for(n),
        variant: VariantId::default(),
        logits: LogitRows::None,
    };
    let mut executor = PackedExecutor::new(cpu.clone(), model.config());
    executor.step(model, &mut [segment], &mut NoHooks)?;
    cache.commit_chain(n);
    Ok(cache)
}

impl Space for PrefixSpace {
    fn layout(&self) -> &Layout {
        self.parameters.layout()
    }

    fn seed(&self) -> u64 {
        self.parameters.entries.seed()
    }

    fn distribution(&self) -> Distribution {
        self.parameters.entries.distribution()
    }

    fn draw_from(&mut self, seed: u64, distribution: Distribution) {
        self.parameters.entries.draw_from(seed, distribution);
    }

    fn kind(&self) -> SpaceKind {
        SpaceKind::Prefix
    }

    fn choice(&self) -> SpaceChoice {
        let options = json!({ "tokens": self.tokens });
        SpaceChoice { name: "prefix".to_owned(), options }
    }

    fn model(&self) -> &PackedModel {
        &self.model
    }

    fn read_rows(&self, tensor: usize, first: usize, out: &mut [f32]) -> Result<(), Error> {
        self.parameters.read_rows(tensor, first, out)
    }

    fn write(&mut self, tensor: usize, values: &[f32]) -> Result<(), Error> {
        self.parameters.write(tensor, values)
    }

    fn apply(&mut self, update: &Update) -> Result<(), Error> {
        self.parameters.apply(&self.cpu, update)
    }

    fn lanes(&self) -> usize {
        LANES
    }

    fn stand_at(&mut self, probes: &[Probe]) -> Result<(), Error> {
        self.points.clear();
        for probe in probes {
            self.points.push(self.parameters.at(&self.cpu, probe)?);
        }
        Ok(())
    }

    fn with_hooks(
        &mut self,
        run: &mut dyn FnMut(&PackedModel, &mut dyn Hooks) -> Result<(), Error>,
    ) -> Result<(), Error> {
        run(&self.model, &mut self.hooks)
    }

    fn positions_before(&self) -> usize {
        self.tokens
    }

    fn begin_cache(&self, probe: usize, cache: &mut KvCache) -> Result<(), Error> {
        let point = self.points.get(probe);
        let point = point.ok_or_else(|| Error::Training(format!("no point {probe} stands")))?;
        let cols = cache.kv_heads() * cache.head_dim();
        for position in 0..self.tokens {
            let row = |tensor: usize| &point[tensor][position * cols..(position + 1) * cols];
            let keys: Vec<f32> = self.layers.iter().flat_map(|l| row(l.0)).copied().collect();
            let values: Vec<f32> = self.layers.iter().flat_map(|l| row(l.1)).copied().collect();
            cache.push(&keys, &values);
        }
        Ok(())
    }

    /// Writes PEFT's two files of a prefix: `prompt_embeddings` is `[p, layers * 2 * kv heads *
    /// head_dim]`, of each layer its keys before its values.
    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        let config = self.model.config();
        let cols = config.num_key_value_heads * config.head_dim;
        let mut values = Vec::new();
        for position in 0..self.tokens {
            for &(k, v) in &self.layers {
                for tensor in [k, v] {
                    let row = position * cols..(position + 1) * cols;
                    values.extend_from_slice(&self.parameters.values()[tensor][row]);
                }
            }
        }
        let shape = vec![self.tokens, self.layers.len() * 2 * cols];
        let tensor = Tensor { name: "prompt_embeddings".to_owned(), shape, values: &values };
        let config = json!({
            "peft_type": "PREFIX_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": null,
            "num_virtual_tokens": self.tokens,
            "num_layers": self.layers.len(),
            "num_attention_heads": config.num_key_value_heads,
            "token_dim": cols,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": cols,
            "prefix_projection": false,
            "inference_mode": true,
        });
        write_file(&folder.join("adapter_model.safetensors"), &safetensors(&[tensor]))?;
        write_file(&folder.join("adapter_config.json"), format!("{config:#}\n").as_bytes())
    }
}
