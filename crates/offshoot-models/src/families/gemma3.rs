//! Gemma 3, text alone: norms before and after each half of a block, attention that mostly looks no
//! further back than a window, and a gate of GELU.
//!
//! Gemma Team 2025, <https://arxiv.org/abs/2503.19786>; the caps of logits are Gemma 2's,
//! <https://arxiv.org/abs/2408.00118>.
//!
//! ```text
//! h = embed(tokens) * sqrt(hidden_size)
//! for each block:
//!     x = rms_norm(h);  q, k, v = W_q x, W_k x, W_v x;  norm each head of q and k
//!     local block:   rotate q, k by the local frequencies;  attend within the window
//!     global block:  rotate q, k by the stretched frequencies;  attend to everything
//!     h = h + rms_norm(W_o softmax(q k^T / sqrt(query_pre_attn_scalar)) v)
//!     x = rms_norm(h);  h = h + rms_norm(W_down (gelu(W_gate x) * W_up x))
//! logits = cap(W_head rms_norm(h))
//! ```
//!
//! A Hugging Face file stores the weight of a norm less 1, a GGUF file the weight: the canonical
//! tensors are the weights. The scale of the embedding is not rounded to the weights' type, as
//! transformers does and llama.cpp does not.

use std::num::NonZeroUsize;

use crate::architecture::{
    Attention, Blueprint, Executor, Frequencies, HeadNorms, Input, LinearId, Output, PostNorm,
    Site, VectorId,
};
use crate::{Activation, ModelConfig};

/// The places of a Gemma 3 model's parts.
#[derive(Debug, Clone)]
pub struct Gemma3 {
    blocks: Vec<Block>,
    norm: VectorId,
    head: LinearId,
    eps: f32,
    embedding_scale: f32,
    attention_scale: f32,
    logit_cap: Option<f32>,
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
    pre_feedforward_layernorm: VectorId,
    gate_proj: LinearId,
    up_proj: LinearId,
    down_proj: LinearId,
    post_feedforward_layernorm: VectorId,
}

impl Gemma3 {
    pub(super) fn new(config: &ModelConfig, b: &mut Blueprint) -> Self {
        let blocks = (0..config.num_hidden_layers).map(|i| Block::new(config, i, b)).collect();
        let norm = b.vector("model.norm.weight".to_owned(), config.hidden_size);
        let head = b.embedding_and_head(config);
        Self {
            blocks,
            norm,
            head,
            eps: config.rms_norm_eps,
            embedding_scale: (config.hidden_size as f64).sqrt() as f32,
            attention_scale: config.query_pre_attn_scalar.powf(-0.5) as f32,
            logit_cap: config.final_logit_softcapping,
        }
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn begin<E: Executor>(&self, e: &mut E) -> Result<(), E::Error> {
        e.embed(self.embedding_scale)
    }

    pub(super) fn block<E: Executor>(&self, layer: usize, e: &mut E) -> Result<(), E::Error> {
        let (block, eps) = (&self.blocks[layer], self.eps);
        let post = |weight| Some(PostNorm { weight, eps });
        e.norm(block.input_layernorm, eps)?;
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
            scale: self.attention_scale,
            norms: Some(HeadNorms { query: block.q_norm, key: block.k_norm, eps }),
            window: block.window,
            frequencies: match block.window {
                Some(_) => Frequencies::Local,
                None => Frequencies::Segment,
            },
        })?;
        e.linear_residual(Input::Attended, block.o_proj, post(block.post_attention_layernorm))?;
        e.norm(block.pre_feedforward_layernorm, eps)?;
        e.gated(Input::Normed, block.gate_proj, block.up_proj, Activation::GeluTanh)?;
        let norm = post(block.post_feedforward_layernorm);
        e.linear_residual(Input::Gated, block.down_proj, norm)?;
        e.tap(Site::Block(layer))
    }

    pub(super) fn end<E: Executor>(&self, e: &mut E) -> Result<(), E::Error> {
        e.norm(self.norm, self.eps)?;
        e.tap(Site::Final)?;
        e.logits(self.head, self.logit_cap)
    }
}

impl Block {
    fn new(c: &ModelConfig, i: usize, b: &mut Blueprint) -> Self {
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let name = |part: &str| format!("model.layers.{i}.{part}");
        let bias = c.attention_bias;
        let mut norm = |part: &str, len| b.vector(name(&format!("{part}.weight")), len);
        let (input_layernorm, post_attention_layernorm) =
            (norm("input_layernorm", hidden), norm("post_attention_layernorm", hidden));
        let pre_feedforward_layernorm = norm("pre_feedforward_layernorm", hidden);
        let post_feedforward_layernorm = norm("post_feedforward_layernorm", hidden);
        let q_norm = norm("self_attn.q_norm", c.head_dim);
        let k_norm = norm("self_attn.k_norm", c.head_dim);
        Self {
            window: c.window(i),
            input_layernorm,
            q_proj: b.linear(name("self_attn.q_proj"), q, hidden, bias),
            k_proj: b.linear(name("self_attn.k_proj"), kv, hidden, bias),
            v_proj: b.linear(name("self_attn.v_proj"), kv, hidden, bias),
            q_norm,
            k_norm,
            o_proj: b.linear(name("self_attn.o_proj"), hidden, q, bias),
            post_attention_layernorm,
            pre_feedforward_layernorm,
            gate_proj: b.linear(name("mlp.gate_proj"), inner, hidden, false),
            up_proj: b.linear(name("mlp.up_proj"), inner, hidden, false),
            down_proj: b.linear(name("mlp.down_proj"), hidden, inner, false),
            post_feedforward_layernorm,
        }
    }
}
