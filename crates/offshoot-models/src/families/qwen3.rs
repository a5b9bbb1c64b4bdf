//! Qwen3: Llama's form with norms of each head of queries and keys, whose width is free.
//!
//! Yang et al. 2025, <https://arxiv.org/abs/2505.09388>.
//!
//! ```text
//! h = embed(tokens)
//! for each block:
//!     x = rms_norm(h);  q, k, v = W_q x, W_k x, W_v x
//!     norm each head of q and k;  rotate q, k by position
//!     h = h + W_o softmax(q k^T / sqrt(head_dim)) v
//!     x = rms_norm(h);  h = h + W_down (silu(W_gate x) * W_up x)
//! logits = W_head rms_norm(h)
//! ```

use std::num::NonZeroUsize;

use crate::architecture::{
    Attention, Blueprint, Executor, Frequencies, HeadNorms, Input, LinearId, Output, Site, VectorId,
};
use crate::{Activation, ModelConfig};

/// The places of a Qwen3 model's parts.
#[derive(Debug, Clone)]
pub struct Qwen3 {
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
    q_norm: VectorId,
    k_norm: VectorId,
    o_proj: LinearId,
    post_attention_layernorm: VectorId,
    gate_proj: LinearId,
    up_proj: LinearId,
    down_proj: LinearId,
}

impl Qwen3 {
    pub(super) fn new(config: &ModelConfig, b: &mut Blueprint) -> Self {
        let blocks = (0..config.num_hidden_layers).map(|i| Block::new(config, i, b)).collect();
        let norm = b.vector("model.norm.weight".to_owned(), config.hidden_size);
        let head = b.embedding_and_head(config);
        Self { blocks, norm, head, eps: config.rms_norm_eps, head_dim: config.head_dim }
    }

    pub(super) fn forward<E: Executor>(&self, e: &mut E) -> Result<(), E::Error> {
        e.embed(1.0)?;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        for (layer, block) in self.blocks.iter().enumerate() {
            e.norm(block.input_layernorm, self.eps)?;
            e.linear(
                Input::Normed,
                &[
                    (block.q_proj, Output::Query),
                    (block.k_proj, Output::Key),
                    (block.v_proj, Output::Value),
                ],
            )?;
            let norms = HeadNorms { query: block.q_norm, key: block.k_norm, eps: self.eps };
            e.attend(Attention {
                layer,
                scale,
                norms: Some(norms),
                window: block.window,
                frequencies: Frequencies::Segment,
            })?;
            e.linear_residual(Input::Attended, block.o_proj, None)?;
            e.norm(block.post_attention_layernorm, self.eps)?;
            e.gated(Input::Normed, block.gate_proj, block.up_proj, Activation::Silu)?;
            e.linear_residual(Input::Gated, block.down_proj, None)?;
            e.tap(Site::Block(layer))?;
        }
        e.norm(self.norm, self.eps)?;
        e.tap(Site::Final)?;
        e.logits(self.head, None)
    }
}

impl Block {
    fn new(c: &ModelConfig, i: usize, b: &mut Blueprint) -> Self {
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let name = |part: &str| format!("model.layers.{i}.{part}");
        let bias = c.attention_bias;
        Self {
            window: c.window(i),
            input_layernorm: b.vector(name("input_layernorm.weight"), hidden),
            q_proj: b.linear(name("self_attn.q_proj"), q, hidden, bias),
            k_proj: b.linear(name("self_attn.k_proj"), kv, hidden, bias),
            v_proj: b.linear(name("self_attn.v_proj"), kv, hidden, bias),
            q_norm: b.vector(name("self_attn.q_norm.weight"), c.head_dim),
            k_norm: b.vector(name("self_attn.k_norm.weight"), c.head_dim),
            o_proj: b.linear(name("self_attn.o_proj"), hidden, q, bias),
            post_attention_layernorm: b.vector(name("post_attention_layernorm.weight"), hidden),
            gate_proj: b.linear(name("mlp.gate_proj"), inner, hidden, false),
            up_proj: b.linear(name("mlp.up_proj"), inner, hidden, false),
            down_proj: b.linear(name("mlp.down_proj"), hidden, inner, false),
        }
    }
}
