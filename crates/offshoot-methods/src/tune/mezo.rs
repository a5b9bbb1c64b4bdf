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
//! Published: OPT-13B, SST-2 91.4 and BoolQ 67.6 after 20,000 steps, against 92.0 and 77.1 by Adam
//! with twelve times the memory (the paper's table of OPT-13B).
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
