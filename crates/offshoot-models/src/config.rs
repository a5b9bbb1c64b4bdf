//! The shape of a model, in Hugging Face's terms.

use std::num::NonZeroUsize;

use offshoot_kernels::RopeTable;

use crate::{Error, RopeId};

/// An architecture that offshoot runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// The text models of Gemma 3.
    Gemma3,
    /// Llama 1, 2, 3.x and what shares its form: SmolLM2, TinyLlama.
    Llama,
    /// Mistral: Llama's form, with or without a window.
    Mistral,
    /// Phi-3 and 3.5 mini, Phi-4 mini: Llama's form, stored otherwise.
    Phi3,
    /// Qwen2 and Qwen2.5: Llama's form with biases on q, k and v.
    Qwen2,
    /// Qwen3 without experts: norms of each head of queries and keys.
    Qwen3,
    /// Qwen3 with experts.
    Qwen3Moe,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 7] = [
        Family::Gemma3,
        Family::Llama,
        Family::Mistral,
        Family::Phi3,
        Family::Qwen2,
        Family::Qwen3,
        Family::Qwen3Moe,
    ];

    /// The `model_type` of `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Gemma3 => "gemma3_text",
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Phi3 => "phi3",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Qwen3Moe => "qwen3_moe",
        }
    }
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Frequencies as trained.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// The divisor, above zero.
        factor: f64,
    },
    /// Frequency `i` divided by `factors[i]`, `rotary_dim / 2` of them.
    ///
    /// Llama 3.1's scaling comes to this: GGUF stores the factors (`rope_freqs.weight`), and
    /// `config.json`'s parameters give them by formula. So does YaRN's, by formula in both.
    Factors(Vec<f32>),
    /// LongRoPE: one set of such factors for texts up to the `trained` context and one for longer ones.
    Long {
        /// For texts that stay within the trained context.
        short: Vec<f32>,
        /// For those that may pass it.
        long: Vec<f32>,
        /// The trained context, in tokens.
        trained: usize,
    },
}

/// Attention that reaches no further back than a window, and where a model has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingWindow {
    /// How many positions a row sees, itself the last of them.
    pub size: NonZeroUsize,
    /// For each layer whether it is limited so; the others see everything.
    pub layers: Vec<bool>,
}

/// Layers of experts, of which a router chooses a few for each row. Field names are those of
/// `config.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Experts {
    /// How many such a layer has.
    pub num_experts: usize,
    /// How many of them a row goes through.
    pub num_experts_per_tok: usize,
    /// Width of one.
    pub moe_intermediate_size: usize,
    /// Whether the shares of those that a row goes through are made to sum to 1.
    pub norm_topk_prob: bool,
    /// For each layer whether it has experts; the others have one gated feed-forward part.
    pub layers: Vec<bool>,
}

/// Most experts of a model, those of all layers together; the largest published ones have some 25,000.
const EXPERTS_MAX: usize = 1 << 16;

impl Experts {
    fn validate(&self, layers: usize) -> Result<(), Error> {
        for (name, value, limit) in [
            ("num_experts", self.num_experts, 4096),
            ("num_experts_per_tok", self.num_experts_per_tok, self.num_experts),
            ("moe_intermediate_size", self.moe_intermediate_size, SIZE_MAX),
        ] {
            if value == 0 || value > limit {
                return Err(Error::Config(format!("{name} is {value}, expected 1 to {limit}")));
            }
        }
        if self.layers.len() != layers {
            return Err(Error::Config(format!(
                "experts: of {} layers, expected {layers}",
                self.layers.len()
            )));
        }
        let all = self.num_experts * self.layers.iter().filter(|has| **has).count();
        if all > EXPERTS_MAX {
            return Err(Error::Config(format!(
                "num_experts is {}, of all layers {all}, expected at most {EXPERTS_MAX}",
                self.num_experts
            )));
        }
        Ok(())
    }
}

/// Widths and numbers of tokens at most.
const SIZE_MAX: usize = 1 << 24;

/// Sizes and constants of a model. Field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// How many elements of a head of queries and keys are rotated, the first of it: all, but for
    /// some of Phi-3.
    pub rotary_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Trained context length, in tokens; with YaRN at least `factor` times what it was before.
    pub max_position_embeddings: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Factor of the cosines and sines: 1 but where a scaling comes with another, as YaRN does.
    pub rope_magnitude: f32,
    /// Base of the rotary frequencies, not stretched, of Gemma's layers that see no further back than
    /// a window.
    pub rope_local_base_freq: Option<f64>,
    /// What the root is taken of that scores are divided by: the width of a head, but for Gemma.
    pub query_pre_attn_scalar: f64,
    /// Greatest magnitude that logits are brought to, if there is one.
    pub final_logit_softcapping: Option<f32>,
    /// Layers that see no further back than a window, if there are any.
    pub sliding_window: Option<SlidingWindow>,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v (Qwen2), or q, k, v and o (others with `attention_bias`), carry biases.
    pub attention_bias: bool,
    /// Whether gate, up and down carry biases (Llama's `mlp_bias`).
    pub mlp_bias: bool,
    /// Layers of experts, if there are any.
    pub experts: Option<Experts>,
}

impl ModelConfig {
    /// Checks that the numbers can belong to a model, so that later code may multiply them freely.
    pub fn validate(&self) -> Result<(), Error> {
        let bounded = [
            ("hidden_size", self.hidden_size, SIZE_MAX),
            ("intermediate_size", self.intermediate_size, SIZE_MAX),
            ("num_hidden_layers", self.num_hidden_layers, 4096),
            ("num_attention_heads", self.num_attention_heads, 4096),
            ("num_key_value_heads", self.num_key_value_heads, 4096),
            ("head_dim", self.head_dim, 4096),
            ("rotary_dim", self.rotary_dim, self.head_dim),
            ("vocab_size", self.vocab_size, SIZE_MAX),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 28),
        ];
        for (name, value, limit) in bounded {
            if value == 0 || value > limit {
                return Err(Error::Config(format!("{name} is {value}, expected 1 to {limit}")));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(Error::Config(format!(
                "num_attention_heads {} is no multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            )));
        }
        for (name, width) in [("head_dim", self.head_dim), ("rotary_dim", self.rotary_dim)] {
            if !width.is_multiple_of(2) {
                return Err(Error::Config(format!("{name} {width} is odd")));
            }
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(Error::Config(format!(
                "rms_norm_eps is {}, expected a small number above 0",
                self.rms_norm_eps
            )));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return Err(Error::Config(format!(
                "rope_theta is {}, expected a number of at least 1",
                self.rope_theta
            )));
        }
        if !(self.rope_magnitude > 0.0 && self.rope_magnitude.is_finite()) {
            return Err(Error::Config(format!(
                "rope magnitude is {}, expected a finite number above 0",
                self.rope_magnitude
            )));
        }
        for (name, value) in [
            ("rope_local_base_freq", self.rope_local_base_freq),
            ("query_pre_attn_scalar", Some(self.query_pre_attn_scalar)),
            ("final_logit_softcapping", self.final_logit_softcapping.map(f64::from)),
        ] {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && value.is_finite())) {
                return Err(Error::Config(format!(
                    "{name} is {value}, expected a finite number above 0"
                )));
            }
        }
        if self.rope_local_base_freq.is_some_and(|base| base < 1.0) {
            return Err(Error::Config("rope_local_base_freq is below 1".to_owned()));
        }
        if let Some(window) = &self.sliding_window
            && window.layers.len() != self.num_hidden_layers
        {
            return Err(Error::Config(format!(
                "sliding windows: of {} layers, expected {}",
                window.layers.len(),
                self.num_hidden_layers
            )));
        }
        if let Some(experts) = &self.experts {
            experts.validate(self.num_hidden_layers)?;
        }
        match &self.rope_scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor } if *factor > 0.0 && factor.is_finite() => {}
            RopeScaling::Linear { factor } => {
                return Err(Error::Config(format!("rope scaling factor is {factor}")));
            }
            RopeScaling::Factors(factors) => self.check_factors(factors)?,
            RopeScaling::Long { short, long, trained } => {
                self.check_factors(short)?;
                self.check_factors(long)?;
                if *trained == 0 {
                    return Err(Error::Config("the trained context is 0".to_owned()));
                }
            }
        }
        Ok(())
    }

    /// How many positions a row of `layer` sees, itself the last of them; `None` for all.
    pub fn window(&self, layer: usize) -> Option<NonZeroUsize> {
        let window = self.sliding_window.as_ref()?;
        window.layers.get(layer)?.then_some(window.size)
    }

    /// The experts of `layer`, if it has any.
    pub fn experts(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers.get(layer) == Some(&true))
    }

    /// The rotary table of layers within a window, where that is another, without rows.
    pub(crate) fn local_rope_table(&self) -> Option<RopeTable> {
        self.rope_local_base_freq.map(|base| RopeTable::new(base, self.rotary_dim, 1.0, |_| 1.0))
    }

    fn check_factors(&self, factors: &[f32]) -> Result<(), Error> {
        let pairs = self.rotary_dim / 2;
        if factors.len() != pairs || !factors.iter().all(|f| f.is_finite() && *f > 0.0) {
            return Err(Error::Config(format!(
                "rope factors: {} of them, expected {pairs} finite numbers above 0",
                factors.len()
            )));
        }
        Ok(())
    }

    /// The rotary table for a text that may come to have `context` tokens.
    pub fn rope_for(&self, context: usize) -> RopeId {
        match &self.rope_scaling {
            RopeScaling::Long { trained, .. } => RopeId(usize::from(context > *trained)),
            _ => RopeId::default(),
        }
    }

    /// The rotary tables that the numbers make, by [`RopeId`], without rows.
    pub(crate) fn rope_tables(&self) -> Vec<RopeTable> {
        let table = |divisor: &dyn Fn(usize) -> f64| {
            RopeTable::new(self.rope_theta, self.rotary_dim, self.rope_magnitude, divisor)
        };
        match &self.rope_scaling {
            RopeScaling::None => vec![table(&|_| 1.0)],
            RopeScaling::Linear { factor } => vec![table(&|_| *factor)],
            RopeScaling::Factors(factors) => vec![table(&|i| factors[i].into())],
            RopeScaling::Long { short, long, .. } => {
                vec![table(&|i| short[i].into()), table(&|i| long[i].into())]
            }
        }
    }
}
