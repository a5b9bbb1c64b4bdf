//! AdaZeta: more directions a step from epoch to epoch.
//!
//! Yang et al. 2024, "AdaZeta: Adaptive Zeroth-Order Tensor-Train Adaption for Memory-Efficient
//! Large Language Models Fine-Tuning", <https://arxiv.org/abs/2406.18060>.
//! ```text
//! Q_e = floor(alpha e^beta), but at least 1 and at most Q_max        e = floor(step / epoch_steps)
//! w   = w (1 - eta lambda) - sum over j of (eta g_j / Q_e) z_j         j = 1..Q_e
//! ```
//! g_j, z_j: slope and direction as in MeZO.
//! Recorded: the Q_e slopes.
//!
//! Departs from the paper: this is its schedule alone. Its tensor-train adapters are a space, which
//! is not here; the schedule serves every space.
//! Cost: 2 Q_e forward passes a step, no memory.
//! Defaults: `alpha` 0.5, `beta` 0.5 and `directions_max` 15 (the paper's program),
//! `epoch_steps` 100 (ours: what an epoch is depends on the data); probing as `mezo`; of all
//! weights the rate is 1e-6 where none is found (MeZO's).
//! Published: accuracy, memory and convergence on RoBERTa-large and Llama-2-7B (abstract).
//! Ours: SmolLM2-135M, all weights, 100 steps of 16 sentences at the rate that is found, one seed:
//! macro-F1 0.723 on 600 held-out sentences, where zero-shot has 0.391 and the majority class 0.333
//! (LOG.md, 2026-11-27).
//!
//! When not to use it: with an adaptive rate such as `meazo`, which answers the same fault at less
//! cost.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::probing::{DIRECTIONS_MAX, ProbeOptions, within};
use super::stepper::{Rule, Stepper, dense_directions};
use super::{Direction, Setting, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "adazeta",
    summary: "more directions a step from epoch to epoch",
    paper: "https://arxiv.org/abs/2406.18060",
    forwards: "2 Q, growing with the epoch",
    memory: "none",
    rate: 1e-6, // as MeZO; the paper's are for its own adapters
    unit: RateUnit::Gradient,
    distribution: Distribution::GaussQ8,
    space: None,
    defaults: defaults::<AdazetaOptions>,
    build: build::<AdazetaOptions>,
    page: include_str!("adazeta.rs"),
};

/// Options of AdaZeta.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdazetaOptions {
    /// How slopes are measured. `directions` is the least that a step takes.
    pub probe: ProbeOptions,
    /// Default 0.5 (the paper's program).
    pub alpha: f64,
    /// Default 0.5 (the paper's program).
    pub beta: f64,
    /// `Q_max`. Default 15 (the paper's program).
    pub directions_max: u32,
    /// Steps of an epoch. What an epoch is depends on the data; default 100, ours.
    pub epoch_steps: u32,
}

impl Default for AdazetaOptions {
    fn default() -> Self {
        let probe = ProbeOptions::default();
        Self { probe, alpha: 0.5, beta: 0.5, directions_max: 15, epoch_steps: 100 }
    }
}

impl MethodOptions for AdazetaOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()?;
        within("alpha", self.alpha, 0.0..=1e6, "between 0 and a million")?;
        within("beta", self.beta, 0.0..=4.0, "between 0 and 4")?;
        let range = f64::from(self.probe.directions)..=f64::from(DIRECTIONS_MAX);
        let most = f64::from(self.directions_max);
        within("directions_max", most, range, "at least probe.directions and at most 65536")?;
        within("epoch_steps", f64::from(self.epoch_steps), 1.0..=1e9, "at least 1")
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        Stepper::boxed(Adazeta { options: self }, self.probe, setting)
    }
}

#[derive(Debug)]
struct Adazeta {
    options: AdazetaOptions,
}

impl Adazeta {
    fn count(&self, step: u32) -> u32 {
        let AdazetaOptions { probe, alpha, beta, directions_max, epoch_steps } = self.options;
        let epoch = f64::from(step / epoch_steps);
        let count = (alpha * libm::pow(epoch, beta)).floor();
        (count.min(f64::from(directions_max)) as u32).max(probe.directions)
    }
}

impl Rule for Adazeta {
    fn directions(&self, step: u32) -> Vec<Direction> {
        dense_directions(step, self.count(step))
    }
}
