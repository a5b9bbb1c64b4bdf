//! The small set of operations that every architecture is stated in, and what one declares.
//!
//! An architecture is written once, as a walk over an [`Executor`]'s registers. Two executors run
//! it: the packed one over the kernels' own buffers, the dense one over tensors with gradients.

use std::num::NonZeroUsize;

use offshoot_kernels::{Activation, RoutingRule};

use crate::{Experts, ModelConfig};

/// A matrix of the model that activations are multiplied with: an index into
/// [`Blueprint::linears`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinearId(pub(crate) usize);

impl LinearId {
    /// Its place in [`Blueprint::linears`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// A vector of the model, such as a norm's weight: an index into [`Blueprint::vectors`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VectorId(pub(crate) usize);

impl VectorId {
    /// Its place in [`Blueprint::vectors`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// A matrix that the architecture asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Canonical name without its ending, `model.layers.0.self_attn.q_proj`: the weight is
    /// `{name}.weight`, the bias `{name}.bias`.
    pub name: String,
    /// Output width.
    pub rows: usize,
    /// Input width.
    pub cols: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// Whether it is of an expert, so that only some rows are multiplied with it.
    pub routed: bool,
}

/// A vector that the architecture asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VectorSpec {
    /// Canonical name, `model.norm.weight`.
    pub name: String,
    /// Length.
    pub len: usize,
}

/// All that an architecture asks of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blueprint {
    /// Matrices, the output head last.
    pub linears: Vec<LinearSpec>,
    /// Vectors.
    pub vectors: Vec<VectorSpec>,
    /// Canonical name of the embedding, `[vocab_size, hidden_size]`.
    pub embedding: String,
}

impl Blueprint {
    /// The matrix called `name`, as in [`LinearSpec::name`].
    pub fn linear_id(&self, name: &str) -> Option<LinearId> {
        self.linears.iter().position(|linear| linear.name == name).map(LinearId)
    }

    /// Asks for a matrix `[rows, cols]`, with a bias of `rows` if `bias`.
    pub(crate) fn linear(
        &mut self,
        name: String,
        rows: usize,
        cols: usize,
        bias: bool,
    ) -> LinearId {
        self.linears.push(LinearSpec { name, rows, cols, bias, routed: false });
        LinearId(self.linears.len() - 1)
    }

    /// Asks for the router and all experts of a layer, named `{name}.gate` and
    /// `{name}.experts.{number}.gate_proj` and so on, of inputs `hidden` wide.
    pub(crate) fn experts(
        &mut self,
        name: &str,
        hidden: usize,
        experts: &Experts,
        activation: Activation,
    ) -> ExpertLayer {
        let Experts { num_experts, moe_intermediate_size: inner, .. } = *experts;
        let router = self.linear(format!("{name}.gate"), num_experts, hidden, false);
        for expert in 0..num_experts {
            for (part, rows, cols) in
                [("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)]
            {
                let name = format!("{name}.experts.{expert}.{part}_proj");
                self.linears.push(LinearSpec { name, rows, cols, bias: false, routed: true });
            }
        }
        ExpertLayer {
            router,
            rule: RoutingRule {
                experts: num_experts,
                per_row: experts.num_experts_per_tok,
                normalized: experts.norm_topk_prob,
            },
            activation,
        }
    }

    /// Asks for a vector.
    pub(crate) fn vector(&mut self, name: String, len: usize) -> VectorId {
        self.vectors.push(VectorSpec { name, len });
        VectorId(self.vectors.len() - 1)
    }

    /// Asks for the embedding and the output head; a tied head is the embedding's own matrix.
    pub(crate) fn embedding_and_head(&mut self, config: &ModelConfig) -> LinearId {
        self.embedding = "model.embed_tokens.weight".to_owned();
        let name = if config.tie_word_embeddings { "model.embed_tokens" } else { "lm_head" };
        self.linear(name.to_owned(), config.vocab_size, config.hidden_size, false)
    }
}

/// A layer's router and the experts that it chooses from, whose matrices follow its own: gate, up and
/// down of the first, then of the second, and so on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertLayer {
    /// The matrix that scores the experts.
    pub router: LinearId,
    /// How it is made a choice of.
    pub rule: RoutingRule,
    /// What the gates go through.
    pub activation: Activation,
}

impl ExpertLayer {
    /// The gate of expert `number`.
    pub fn gate(&self, number: usize) -> LinearId {
        LinearId(self.router.0 + 1 + 3 * number)
    }

    /// What it multiplies.
    pub fn up(&self, number: usize) -> LinearId {
        LinearId(self.router.0 + 2 + 3 * number)
    }

    /// What makes a residual of the product.
    pub fn down(&self, number: usize) -> LinearId {
        LinearId(self.router.0 + 3 + 3 * number)
    }
}

/// A register that a matrix multiplies: a row for each token of the step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// The normed residual stream, `[rows, hidden_size]`.
    Normed,
    /// The attention's result, `[rows, heads * head_dim]`.
    Attended,
    /// The gated feed-forward activation, `[rows, intermediate_size]`.
    Gated,
}

/// A register that a matrix's product, or the embedding, is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// The residual stream, `[rows, hidden_size]`.
    Residual,
    /// Queries, `[rows, heads * head_dim]`.
    Query,
    /// Keys, `[rows, kv_heads * head_dim]`.
    Key,
    /// Values, `[rows, kv_heads * head_dim]`.
    Value,
}

/// Norms of each head of `Query` and `Key`, before it is rotated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadNorms {
    /// Weight of a head of `Query`.
    pub query: VectorId,
    /// Weight of a head of `Key`.
    pub key: VectorId,
    /// Added to the mean square before the root.
    pub eps: f32,
}

/// Which rotary frequencies a layer turns queries and keys by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Frequencies {
    /// Those that the segment asks for.
    Segment,
    /// The model's own for layers that see no further back than a window
    /// ([`ModelConfig::rope_local_base_freq`]).
    Local,
}

/// A norm of a product, before it is added to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PostNorm {
    /// Its weight.
    pub weight: VectorId,
    /// Added to the mean square before the root.
    pub eps: f32,
}

/// How a layer attends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// The layer whose caches it has.
    pub layer: usize,
    /// Factor of the scores.
    pub scale: f32,
    /// Norms of queries and keys, if there are any.
    pub norms: Option<HeadNorms>,
    /// How many positions a row sees, itself the last of them; `None` for all.
    pub window: Option<NonZeroUsize>,
    /// What queries and keys are rotated by.
    pub frequencies: Frequencies,
}

/// A place whose activations can be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Site {
    /// The residual stream after block `0..`.
    Block(usize),
    /// The final norm's result: what the output head multiplies.
    Final,
}

/// What the registers of a step go through. A step's rows are those of its segments, in order.
pub trait Executor {
    /// What can go wrong.
    type Error;

    /// `Residual = embedding[tokens] * scale`.
    fn embed(&mut self, scale: f32) -> Result<(), Self::Error>;

    /// `Normed = rms_norm(Residual) * weight`.
    fn norm(&mut self, weight: VectorId, eps: f32) -> Result<(), Self::Error>;

    /// `out = matrix * x + bias` for each of up to four matrices.
    fn linear(&mut self, x: Input, outs: &[(LinearId, Output)]) -> Result<(), Self::Error>;

    /// `Residual += matrix * x + bias`, the sum of the latter two normed first if there is a `norm`.
    fn linear_residual(
        &mut self,
        x: Input,
        linear: LinearId,
        norm: Option<PostNorm>,
    ) -> Result<(), Self::Error>;

    /// Norms each head of `Query` and `Key` if `how` says so, rotates it by its row's position, appends
    /// `Key` and `Value` to the caches of the layer and writes the attention of `Query` over them to
    /// `Attended`.
    fn attend(&mut self, how: Attention) -> Result<(), Self::Error>;

    /// `Gated = activation(gate * x) * (up * x)`, each product with its bias.
    fn gated(
        &mut self,
        x: Input,
        gate: LinearId,
        up: LinearId,
        activation: Activation,
    ) -> Result<(), Self::Error>;

    /// `Residual += sum over e of share_e * down_e * (activation(gate_e * x) * (up_e * x))` over the
    /// experts that the router chooses for the row, in ascending order; of equals it chooses the lowest.
    fn experts(&mut self, x: Input, layer: ExpertLayer) -> Result<(), Self::Error>;

    /// Shows `Residual` ([`Site::Block`]) or `Normed` ([`Site::Final`]) to whoever watches `site`.
    fn tap(&mut self, site: Site) -> Result<(), Self::Error>;

    /// Writes `head * Normed` for the rows whose logits were asked for, brought between `-cap` and `cap`
    /// by `cap * tanh(x / cap)` if there is a cap.
    fn logits(&mut self, head: LinearId, cap: Option<f32>) -> Result<(), Self::Error>;
}
