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

use super::decoder::Form;
use crate::ModelConfig;

/// What sets Qwen3 apart.
pub(super) fn form(config: &ModelConfig) -> Form {
    Form {
        qkv_bias: config.attention_bias,
        o_bias: config.attention_bias,
        head_norms: true,
        ..Form::default()
    }
}
