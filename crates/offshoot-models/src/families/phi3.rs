//! Phi-3: Llama's form without biases, with or without a window, whose files keep q, k and v in one
//! matrix and gate and up in another.
//!
//! Abdin et al. 2024, <https://arxiv.org/abs/2404.14219>; the frequencies for long texts are LongRoPE's,
//! Ding et al. 2024, <https://arxiv.org/abs/2402.13753>.
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
//! Phi-4 mini rotates the first `rotary_dim` elements of a head of q and k and leaves the others.
//!
//! The parts are matrices of their own here, under the names that other families give them, so that
//! whoever adds to one adds to that one. Which of LongRoPE's two sets of frequencies a text is read by
//! is chosen once for a session, by how long it may get (as llama.cpp does; transformers changes over
//! in the middle of a text, keys that it has kept aside).

use super::decoder::Form;

/// What sets Phi-3 apart.
pub(super) fn form() -> Form {
    Form::default()
}
