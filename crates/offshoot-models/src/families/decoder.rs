//! The decoder that Llama and its kin have in common: pre-norm blocks of rotary attention with grouped
//! heads and a SiLU-gated feed-forward. What sets a family apart is its [`Form`], in its own file.
//!
//! ```text
//! h = embed(tokens)
//! for each block:
//!     x = rms_norm(h);  q, k, v = W_q x, W_k x, W_v x
//!     norm each head of q and k, in some forms;  rotate q, k by position
//!     h = h + W_o softmax(q k^T / sqrt(head_dim)) v        within a window, in some layers
//!     x = rms_norm(h);  h = h + W_down (silu(W_gate x) * W_up x)     or experts' shares of that
//! logits = W_head rms_norm(h)
//! ```
//!
//! Matrices have biases where the form says so. Windows are the configuration's.

use std::num::NonZeroUsize;

use crate::architecture::{
    Attention, Blueprint, Executor, ExpertLayer, Frequencies, HeadNorms, Input, LinearId, Output,
    Site, VectorId,
};
use crate::{Activation, ModelConfig};

/// What sets a family apart in this form.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Form {
    /// Whether q, k and v have biases.
    pub(super) qkv_bias: bool,
    /// Whether the output of attention has one.
    pub(super) o_bias: bool,
    /// Whether gate, up and down have.
    pub(super) mlp_bias: bool,
    /// Whether each head of queries and of keys is normed.
    pub(super) head_norms: bool,
}

/// The places of a decoder's parts.
#[derive(Debug, Clone)]
pub struct Decoder {
    blocks: Vec<Block>,
    norm: VectorId,
    head: LinearId,
    eps: f32,
    head_dim: usize,
}

#[derive(Debug, Clone)]
struct Block {
    window: Option<NonZeroUsize>,
    input_layernorm: VectorId,
    q_proj: LinearId,
    k_proj: LinearId,
    v_proj: LinearId,
    norms: Option<HeadNorms>,
    o_proj: LinearId,
    post_attention_layernorm: VectorId,
    feed_forward: FeedForward,
}

#[derive(Debug, Clone)]
enum FeedForward {
    Gated { gate_proj: LinearId, up_proj: LinearId, down_proj: LinearId },
    Experts(ExpertLayer),
}

impl Decoder {
    pub(super) fn new(config: &ModelConfig, form: Form, b: &mut Blueprint) -> Self {
        let layers = 0..config.num_hidden_layers;
        let blocks = layers.map(|i| Block::new(config, form, i, b)).collect();
        let norm = b.vector("model.norm.weight".to_owned(), config.hidden_size);
        let head = b.embedding_and_head(config);
        Self { blocks, norm, head, eps: config.rms_norm_eps, head_dim: config.head_dim }
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn begin<E: Executor>(&self, e: &mut E) -> Result<(), E::Error> {
        e.embed(1.0)
    }

    pub(super) fn block<E: Executor>(&self, layer: usize, e: &mut E) -> Result<(), E::Error> {
        let block = &self.blocks[layer];
        e.norm(block.input_layernorm, self.eps)?;
        e.linear(
            Input::Normed,
            &[
                (block.q_proj, Output::Query),
                (block.k_proj, Output::Key),
                (block.v_proj, Output::Value),
            ],
        )?;
        e.attend(Attention {
            layer,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            norms: block.norms,
            window: block.window,
            frequencies: Frequencies::Segment,
        })?;
        e.linear_residual(Input::Attended, block.o_proj, None)?;
        e.norm(block.post_attention_layernorm, self.eps)?;
        match block.feed_forward {
            FeedForward::Gated { gate_proj, up_proj, down_proj } => {
                e.gated(Input::Normed, gate_proj, up_proj, Activation::Silu)?;
                e.linear_residual(Input::Gated, down_proj, None)?;
            }
            FeedForward::Experts(layer) => e.experts(Input::Normed, layer)?,
        }
        e.tap(Site::Block(layer))
    }

    pub(super) fn end<E: Executor>(&self, e: &mut E) -> Result<(), E::Error> {
        e.norm(self.norm, self.eps)?;
        e.tap(Site::Final)?;
        e.logits(self.head, None)
    }
}

impl Block {
    fn new(c: &ModelConfig, form: Form, i: usize, b: &mut Blueprint) -> Self {
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let name = |part: &str| format!("model.layers.{i}.{part}");
        Self {
            window: c.window(i),
            input_layernorm: b.vector(name("input_layernorm.weight"), hidden),
            q_proj: b.linear(name("self_attn.q_proj"), q, hidden, form.qkv_bias),
            k_proj: b.linear(name("self_attn.k_proj"), kv, hidden, form.qkv_bias),
            v_proj: b.linear(name("self_attn.v_proj"), kv, hidden, form.qkv_bias),
            norms: form.head_norms.then(|| HeadNorms {
                query: b.vector(name("self_attn.q_norm.weight"), c.head_dim),
                key: b.vector(name("self_attn.k_norm.weight"), c.head_dim),
                eps: c.rms_norm_eps,
            }),
            o_proj: b.linear(name("self_attn.o_proj"), hidden, q, form.o_bias),
            post_attention_layernorm: b.vector(name("post_attention_layernorm.weight"), hidden),
            feed_forward: match c.experts(i) {
                Some(experts) => {
                    FeedForward::Experts(b.experts(&name("mlp"), hidden, experts, Activation::Silu))
                }
                None => FeedForward::Gated {
                    gate_proj: b.linear(name("mlp.gate_proj"), inner, hidden, form.mlp_bias),
                    up_proj: b.linear(name("mlp.up_proj"), inner, hidden, form.mlp_bias),
                    down_proj: b.linear(name("mlp.down_proj"), hidden, inner, form.mlp_bias),
                },
            },
        }
    }
}
