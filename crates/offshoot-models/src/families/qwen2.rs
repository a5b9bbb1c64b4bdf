//! Qwen2 and Qwen2.5: Llama's form with biases on q, k and v alone.
//!
//! Yang et al. 2024, <https://arxiv.org/abs/2407.10671>.
//!
//! ```text
//! h = embed(tokens)
//! for each block:
//!     x = rms_norm(h);  q, k, v = W_q x + b_q, W_k x + b_k, W_v x + b_v;  rotate q, k by position
//!     h = h + W_o softmax(q k^T / sqrt(head_dim)) v
//!     x = rms_norm(h);  h = h + W_down (silu(W_gate x) * W_up x)
//! logits = W_head rms_norm(h)
//! ```

use super::decoder::Form;

/// What sets Qwen2 apart.
pub(super) fn form() -> Form {
    Form { qkv_bias: true, ..Form::default() }
}
