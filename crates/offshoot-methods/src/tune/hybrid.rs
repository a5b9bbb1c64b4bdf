//! Hybrid: random directions for the first blocks, gradients for the last.
//!
//! Zhang et al. 2024, "Revisiting Zeroth-Order Optimization for Memory-Efficient LLM Fine-Tuning",
//! section 6, <https://arxiv.org/abs/2402.11592>.
//! ```text
//! deep     g = grad of L(u, v) by v, with what goes into the first deep block as a constant
//!          v = optimiser(v, g)
//! shallow  s_j = (L(u + eps z_j, v) - L(u - eps z_j, v)) / (2 eps)
//!          u = u (1 - eta' lambda) - sum over j of (eta' s_j / n) z_j,  eta' = share eta
//! ```
//! v: what is tuned in the last `blocks` blocks and behind them; u: all else; eta: learning rate; n:
//! `directions` a step, z_j the j-th of them; both halves are measured at the same weights, on the same
//! batch.
//!
//! Departs from the paper: the deep half takes any optimiser, as tuning by gradients does; the shallow
//! one is plain descent at a rate of its own, since what a direction says of a gradient is far longer
//! than the gradient. Departs from methods that ask for losses alone, which touch no weight before the
//! update: automatic differentiation has one set of variables, so a point is written into them, and the
//! weights are made again from a copy of the shallow half, to the bit. It takes what has a gradient
//! here: `lora`, `lora_fa` and `full`, held in memory, of matrices that `target_modules` names; no
//! prefixes, prompts or scales, no `train` and `freeze`, no `offload`, and no objective that is a metric.
//! Cost: a forward and a backward pass of the last blocks, run twice where they are not kept, and 1 + 2 n
//! forward passes of all; activations of the last blocks alone; the copy, which is one of all that is
//! tuned in the shallow half, while it is moved.
//! Defaults: `blocks` 4 and `share` 0.5 (ours), `eps` 1e-3 and `directions` 1 (MeZO's); rate 1e-4 for
//! adapters, 2e-5 for all weights, as by gradients.
//! Published: no accuracy for this split alone that could be set beside ours.
//! Ours: only on a random model of two layers, one of which has gradients, where its loss falls from
//! 6.84 to 4.92 in 100 steps at rate 1e-2, of LoRA (the tests); not measured on a language model yet.
//!
//! When not to use it: with activations that are made again block by block, gradients of all blocks
//! take hardly more memory than those of the last, and get further.

use serde::{Deserialize, Serialize};

use super::probing::within;
use crate::{Error, page_of};

/// Options of the hybrid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HybridOptions {
    /// How many of the last blocks have gradients. Default 4; ours.
    pub blocks: u32,
    /// How far the points of the shallow half are from its weights. Default 1e-3 (MeZO's).
    pub eps: f64,
    /// `n`: directions a step that the shallow half is measured along, all on the same batch. Default 1
    /// (MeZO's).
    pub directions: u32,
    /// The shallow half's rate as a share of the learning rate. Default 0.5: of 1e-4, the usual one of
    /// LoRA by gradients, MeZO's 5e-5; ours.
    pub share: f64,
}

impl Default for HybridOptions {
    fn default() -> Self {
        Self { blocks: 4, eps: 1e-3, directions: 1, share: 0.5 }
    }
}

impl HybridOptions {
    /// What the method is, where it comes from, what it did and when not to use it.
    pub fn page() -> String {
        page_of(include_str!("hybrid.rs"))
    }

    /// Checks the fields against their bounds.
    ///
    /// # Errors
    /// [`Error::Option`] names the first field outside its bounds, and the bounds.
    pub fn validate(&self) -> Result<(), Error> {
        within("blocks", f64::from(self.blocks), 1.0..=4096.0, "between 1 and 4096")?;
        within("eps", self.eps, 1e-7..=10.0, "between 1e-7 and 10")?;
        within("directions", f64::from(self.directions), 1.0..=4096.0, "between 1 and 4096")?;
        within("share", self.share, 0.0..=1e3, "between 0 and 1000")
    }

    /// The slope along the direction whose ends have these losses; none if one is no number.
    pub fn slope(&self, ahead: f64, behind: f64) -> Option<f64> {
        let slope = (ahead - behind) / (2.0 * f64::from(self.eps as f32));
        slope.is_finite().then_some(slope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_is_the_difference_over_the_distance_and_options_are_bounded() {
        let options = HybridOptions { eps: 0.25, ..HybridOptions::default() };
        assert_eq!(options.slope(3.0, 1.0), Some(4.0));
        assert_eq!(options.slope(f64::NAN, 1.0), None);
        options.validate().unwrap();
        for wrong in [
            HybridOptions { blocks: 0, ..options },
            HybridOptions { eps: 0.0, ..options },
            HybridOptions { directions: 0, ..options },
            HybridOptions { share: f64::NAN, ..options },
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
    }
}
