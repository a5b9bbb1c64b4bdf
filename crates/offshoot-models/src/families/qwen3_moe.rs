//! Qwen3 with experts: Qwen3's form, whose feed-forward parts are those of a few experts for each row.
//!
//! Yang et al. 2025, section 2, <https://arxiv.org/abs/2505.09388>. The router is that of
//! `routing.rs` in the kernels; what balances experts in training has no part here.
//!
//! ```text
//! h = embed(tokens)
//! for each block:
//!     x = rms_norm(h);  q, k, v = W_q x, W_k x, W_v x
//!     norm each head of q and k;  rotate q, k by position
//!     h = h + W_o softmax(q k^T / sqrt(head_dim)) v
//!     x = rms_norm(h);  p = softmax(W_router x);  C = the k experts of the greatest p
//!     h = h + sum over e in C of s_e W_down,e (silu(W_gate,e x) * W_up,e x)
//! logits = W_head rms_norm(h)
//! ```
//!
//! `s_e` is `p_e`, or `p_e` over the sum of them if `norm_topk_prob`. A GGUF file does not say that:
//! llama.cpp takes it to be so in every file, and so is it here, unless the key `expert_weights_norm`
//! says no. Some layers may have one gated part instead; llama.cpp knows none such.

use super::decoder::Form;
use super::qwen3;
use crate::ModelConfig;

/// What sets it apart.
pub(super) fn form(config: &ModelConfig) -> Form {
    qwen3::form(config)
}
