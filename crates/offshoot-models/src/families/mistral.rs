//! Mistral: Llama's form without biases, whose rows may see no further back than a window.
//!
//! Jiang et al. 2023, <https://arxiv.org/abs/2310.06825>. From version 0.2 on there is no window.
//!
//! ```text
//! h = embed(tokens)
//! for each block:
//!     x = rms_norm(h);  q, k, v = W_q x, W_k x, W_v x;  rotate q, k by position
//!     h = h + W_o softmax(q k^T / sqrt(head_dim)) v        over the last `window` positions
//!     x = rms_norm(h);  h = h + W_down (silu(W_gate x) * W_up x)
//! logits = W_head rms_norm(h)
//! ```
//!
//! A window of `w` reaches to the position `w - 1` before a row's own, as in transformers. llama.cpp
//! runs these files as Llama's and sees everything.

use super::decoder::Form;

/// What sets Mistral apart.
pub(super) fn form() -> Form {
    Form::default()
}
