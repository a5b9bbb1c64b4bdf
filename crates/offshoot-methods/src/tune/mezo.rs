//! MeZO: descent along random directions by the slope that two forward passes measure.
//!
//! Malladi et al. 2023, "Fine-Tuning Language Models with Just Forward Passes", algorithm 1,
//! <https://arxiv.org/abs/2305.17333>.
//! ```text
//! g_j = (L(w + eps z_j; B) - L(w - eps z_j; B)) / (2 eps)
//! w   = w (1 - eta lambda) - sum over j of (eta g_j / n) z_j
//! ```
//! eta: learning rate; lambda: weight decay; n: directions a step; z_j: direction j of the step.
//! Recorded: the n slopes.
//!
//! Departs from the paper: the weights are never perturbed in place, so nothing has to be undone;
//! the loss that is reported is the mean of both sides; directions come from a counter-based
//! generator.
//! Cost: 2 n forward passes a step, no memory beyond that of running the model.
//! Defaults: `eps` 1e-3, one direction (the paper's, for full tuning of OPT; a run takes 5e-3
//! or 1e-2 for LoRA, 1e-1 for prefixes, 1e-2 for prompts and scales); without --learning-rate
//! the rate is found, and is 1e-6, the paper's, where it cannot be.
//! Published: OPT-13B, SST-2 91.4 and BoolQ 67.6 after 20,000 steps, against 92.0 and 77.1 by Adam
//! with twelve times the memory (the paper's table of OPT-13B).
//! Ours: SmolLM2-135M, all weights, 300 steps of 16 sentences at rate 1e-5: macro-F1 on 600
//! held-out sentences 0.746, 0.736 and 0.738 for three seeds, where zero-shot has 0.391 and the
//! majority class 0.333; LoRA at the rate that is found 0.715 for one seed (LOG.md,
//! 2026-11-27).
//!
//! When not to use it: where gradients fit into memory, first-order LoRA gets further in a fraction
//! of the time. Without a prompt for the task it fails, and it does not train from scratch.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::probing::ProbeOptions;
use super::stepper::{Rule, Stepper, dense_directions};
use super::{Direction, Setting, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "mezo",
    summary: "descent along random directions by the slope that two forward passes measure",
    paper: "https://arxiv.org/abs/2305.17333",
    forwards: "2 n",
    memory: "none",
    rate: 1e-6, // the paper's appendix: 1e-6 or 1e-7 for full tuning of OPT
    unit: RateUnit::Gradient,
    distribution: Distribution::GaussQ8,
    space: None,
    defaults: defaults::<MezoOptions>,
    build: build::<MezoOptions>,
    page: include_str!("mezo.rs"),
};

/// Options of MeZO; [`ProbeOptions`] has its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MezoOptions {
    /// How slopes are measured.
    pub probe: ProbeOptions,
}

impl MethodOptions for MezoOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        Stepper::boxed(Mezo { n: self.probe.directions }, self.probe, setting)
    }
}

#[derive(Debug)]
struct Mezo {
    n: u32,
}

impl Rule for Mezo {
    fn directions(&self, step: u32) -> Vec<Direction> {
        dense_directions(step, self.n)
    }
}
