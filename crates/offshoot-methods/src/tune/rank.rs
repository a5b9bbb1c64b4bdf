//! How large a rank of LoRA is enough, in the regime in which a network is linear in its weights.
//!
//! Jang, Lee and Ryu 2024, "LoRA Training in the NTK Regime has No Spurious Local Minima",
//! <https://arxiv.org/abs/2402.11867>.
//! ```text
//! r (r + 1) / 2 > K N
//! ```
//! r: rank; N: examples; K: outputs of the network that the loss looks at, for classification by
//! words the number of classes. Then the regularised loss of LoRA, moved by an arbitrarily small
//! random perturbation, has no second-order stationary point that is not a global minimum, so
//! descent finds one; and a global minimum of rank at most r exists already where `r (r + 1) / 2 >=
//! K N`.
//!
//! What it does not say. It is sufficient, not necessary: smaller ranks usually do as well. It
//! holds where fine-tuning stays near the first weights, with weight decay above 0 and B = 0 at
//! first; beyond that descent ends either in a small solution of low rank or in a visibly large one
//! of high rank (<https://arxiv.org/abs/2502.09376>), so watch the size of BA. It says nothing of
//! generalisation beyond the paper's own bound, and nothing of text generation, where K is the
//! whole vocabulary.

/// The least `r` with `r (r + 1) / 2 > outputs * examples`.
pub fn sufficient_rank(examples: u64, outputs: u64) -> u64 {
    let needed = u128::from(examples) * u128::from(outputs);
    // r = floor((sqrt(8 K N + 1) - 1) / 2) + 1; above 2^125 the root is taken of a bound.
    let root = needed.saturating_mul(8).saturating_add(1).isqrt();
    u64::try_from((root - 1) / 2 + 1).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_is_the_least_that_suffices() {
        assert_eq!(sufficient_rank(32, 2), 11);
        assert_eq!(sufficient_rank(1000, 1), 45);
        assert_eq!(sufficient_rank(0, 5), 1);
        for needed in 0..3000_u64 {
            let r = sufficient_rank(needed, 1);
            assert!(r * (r + 1) / 2 > needed && r * (r - 1) / 2 <= needed, "{needed}: {r}");
        }
        assert!(sufficient_rank(u64::MAX, u64::MAX) > 1 << 60);
    }
}
