//! Llama: pre-norm blocks of rotary attention with grouped heads and a SiLU-gated feed-forward.
//!
//! Touvron et al. 2023, <https://arxiv.org/abs/2302.13971>; grouped heads from Llama 2,
//! <https://arxiv.org/abs/2307.09288>. SmolLM2 and TinyLlama have the same form.
//!
//! ```text
//! h = embed(tokens)
//! for each block:
//!     x = rms_norm(h);  q, k, v = W_q x, W_k x, W_v x;  rotate q, k by position
//!     h = h + W_o softmax(q k^T / sqrt(head_dim)) v
//!     x = rms_norm(h);  h = h + W_down (silu(W_gate x) * W_up x)
//! logits = W_head rms_norm(h)
//! ```

use super::decoder::Form;
use crate::ModelConfig;

/// What sets Llama apart.
pub(super) fn form(config: &ModelConfig) -> Form {
    Form {
        qkv_bias: config.attention_bias,
        o_bias: config.attention_bias,
        mlp_bias: config.mlp_bias,
        ..Form::default()
    }
}
