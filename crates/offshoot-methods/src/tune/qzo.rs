//! QZO: MeZO on the scales of a quantised model, with its slopes clipped.
//!
//! Shang et al. 2025, "Fine-tuning Quantized Neural Networks with Zeroth-order Optimization",
//! <https://arxiv.org/abs/2505.13430>.
//! ```text
//! g_j = (L((D + eps z_j) . codes) - L((D - eps z_j) . codes)) / (2 eps), clipped to [-C, C]
//! D   = max(D - sum over j of (eta g_j / n) z_j, 0)
//! ```
//! D: the scales; codes: frozen; C: `probe.clip_g`.
//! Recorded: the n slopes, before clipping.
//!
//! What is tuned is the space of scales, which keeps the bound at zero by itself: a sum is all that
//! a method says. In it a scale is a multiple of its first value, `D = D0 m` with m = 1 at first,
//! since the scales of one model differ by orders of magnitude; eps and eta are of m.
//! Cost: 2 n forward passes a step, and a number a block of weights.
//! Defaults: `clip_g` 100 (ours: the paper's C is not known to us); a run takes `eps` 1e-2 and,
//! where it finds no rate, 1e-4, both of multiples of scales (ours: the paper's program has
//! 1e-3 and 1e-7, of the scales themselves).
//! Published: over 18 times less memory than full tuning in 16 bits; Llama-2-13B within 24 GB
//! (abstract).
//! Ours: the scales of SmolLM2-135M in Q4_1, 100 steps of 16 sentences at the rate that is found, one
//! seed: macro-F1 0.711 on 600 held-out sentences, where zero-shot has 0.391 and the majority class
//! 0.333 (LOG.md, 2026-11-27).
//!
//! When not to use it: where the base can stay as it is, LoRA over it learns more.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::probing::ProbeOptions;
use super::stepper::{Rule, Stepper, dense_directions};
use super::{Direction, Setting, SpaceKind, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "qzo",
    summary: "descent on the scales of a quantised model, with its slopes clipped",
    paper: "https://arxiv.org/abs/2505.13430",
    forwards: "2 n",
    memory: "none beyond the scales",
    rate: 1e-7, // the example of the paper's repository
    unit: RateUnit::Gradient,
    distribution: Distribution::GaussQ8,
    space: Some(SpaceKind::Scales),
    defaults: defaults::<QzoOptions>,
    build: build::<QzoOptions>,
    page: include_str!("qzo.rs"),
};

/// Options of QZO.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QzoOptions {
    /// How slopes are measured. `eps` is 1e-3 (the paper's repository) and `clip_g`, the paper's
    /// `C`, 100 by default; its value there is not known to us.
    pub probe: ProbeOptions,
}

impl Default for QzoOptions {
    fn default() -> Self {
        Self { probe: ProbeOptions { clip_g: Some(100.0), ..ProbeOptions::default() } }
    }
}

impl MethodOptions for QzoOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        Stepper::boxed(Qzo { n: self.probe.directions }, self.probe, setting)
    }
}

#[derive(Debug)]
struct Qzo {
    n: u32,
}

impl Rule for Qzo {
    fn directions(&self, step: u32) -> Vec<Direction> {
        dense_directions(step, self.n)
    }
}
