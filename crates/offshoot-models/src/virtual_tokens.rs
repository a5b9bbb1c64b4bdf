//! A variant of a model as positions before every text that no text has.
//!
//! A prefix (Li and Liang 2021, "Prefix-Tuning", section 4.2, <https://arxiv.org/abs/2101.00190>) is what
//! attention finds at these positions, a prompt (Lester et al. 2021, "The Power of Scale for
//! Parameter-Efficient Prompt Tuning", section 2, <https://arxiv.org/abs/2104.08691>) what stands there in
//! place of embeddings:
//! ```text
//! prefix    attention(q) over [K_prefix; K], [V_prefix; V]       in every layer
//! prompt    h_0 = [P; embed(tokens)]
//! ```
//! They are positions 0 to p - 1, and a text begins at position p. The weights stay as they are. What the
//! model makes of a prompt does not depend on what comes after it, so both are keys and values at the
//! beginning of a cache, made once.

use crate::{Error, ModelConfig};

/// What stands at positions before every text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtualKind {
    /// Keys and values of all layers.
    Prefix,
    /// What the first block takes: embeddings, scaled where the model scales them.
    Prompt,
}

impl VirtualKind {
    /// Numbers of a position of a model of `config`.
    pub fn width(self, config: &ModelConfig) -> usize {
        match self {
            Self::Prefix => {
                2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
            }
            Self::Prompt => config.hidden_size,
        }
    }
}

/// Positions before every text.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualTokens {
    kind: VirtualKind,
    width: usize,
    numbers: Vec<f32>,
}

/// Most positions.
const TOKENS_MAX: usize = 1 << 14;

impl VirtualTokens {
    /// Positions of a model of `config`: `numbers` is `[p, width]`, of a prefix `[p, layers, 2, kv heads,
    /// head_dim]`, each layer's keys, which are rotated already, before its values.
    ///
    /// # Errors
    /// [`Error::Adapter`] if there are no positions, too many or more than the model reads, or not all
    /// their numbers are there.
    pub fn new(kind: VirtualKind, config: &ModelConfig, numbers: Vec<f32>) -> Result<Self, Error> {
        let width = kind.width(config);
        let most = TOKENS_MAX.min(config.max_position_embeddings.saturating_sub(1));
        let tokens = numbers.len() / width.max(1);
        if !numbers.len().is_multiple_of(width.max(1)) || !(1..=most).contains(&tokens) {
            let n = numbers.len();
            let what = format!("{n} numbers, expected {width} of each of 1 to {most} positions");
            return Err(Error::Adapter(what));
        }
        Ok(Self { kind, width, numbers })
    }

    /// What they are.
    pub fn kind(&self) -> VirtualKind {
        self.kind
    }

    /// `p`: how many positions there are, at least 1.
    pub fn tokens(&self) -> usize {
        self.numbers.len() / self.width
    }

    /// All numbers, `[p, width]`.
    pub fn numbers(&self) -> &[f32] {
        &self.numbers
    }

    /// The numbers position by position.
    pub(crate) fn positions(&self) -> impl Iterator<Item = &[f32]> {
        self.numbers.chunks_exact(self.width)
    }

    /// The keys and the values of a position of a prefix whose layers have `row` numbers of each.
    pub(crate) fn keys_and_values(position: &[f32], row: usize) -> (Vec<f32>, Vec<f32>) {
        let halves = |half: usize| {
            let of_layer = move |layer: &[f32]| layer[half * row..(half + 1) * row].to_vec();
            position.chunks_exact(2 * row).flat_map(of_layer).collect()
        };
        (halves(0), halves(1))
    }
}
