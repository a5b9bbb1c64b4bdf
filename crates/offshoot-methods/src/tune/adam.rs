//! ZO-Adam: Adam on the estimated gradient, its moments made again from the last directions.
//!
//! Zhang et al. 2024, section 3, <https://arxiv.org/abs/2402.11592>, after Chen et al. 2019
//! (ZO-AdaMM), <https://arxiv.org/abs/1910.06513>; the replay of directions is Malladi et al. 2023,
//! appendix B.2, <https://arxiv.org/abs/2305.17333>.
//! ```text
//! g = (1/n) sum over j of g_j z_j                       for each of the last t <= history steps
//! m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2         from m = v = 0
//! w = w (1 - eta lambda) - eta (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)
//! ```
//! t: steps looked back on; squares and quotients are element by element. Skipped steps do not
//! count.
//! Recorded: the n slopes.
//!
//! Departs from the paper: the moments are those of the last `history` steps, begun at zero and
//! corrected for it, so that nothing of the weights' size is kept. For the first moment that is all
//! but exact; the second is an average over the window and not over 1,000 steps.
//! Cost: 2 n forward passes a step; an update draws `history * n` directions, so it suits LoRA.
//! Defaults: `beta1` 0.9, `beta2` 0.999 and `epsilon` 1e-8 (PyTorch's, which the paper's
//! program uses), `history` 64 (ours); probing as `mezo`; of all weights the rate is 1e-6 where
//! none is found (within the paper's grid of 1e-4 to 1e-8).
//! Published: the first paper's table 2 has it beside five others on SST-2. MeZO's paper
//! has it on RoBERTa-large (k = 512): SST-2 93.3 as without it, RTE 79.2 for 78.6.
//! Ours: LoRA on SmolLM2-135M, 100 steps of 16 sentences at the rate that is found, one seed:
//! macro-F1 0.653 on 600 held-out sentences, where zero-shot has 0.391 and the majority class 0.333
//! (LOG.md, 2026-11-27).
//!
//! When not to use it: estimates along random directions have hardly any structure by coordinate,
//! so that it gains nothing over a tuned plain descent (<https://arxiv.org/abs/2605.03869>); take
//! `meazo`.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::history::{History, power};
use super::probing::{ProbeOptions, within};
use super::stepper::{Rule, Stepper, dense_directions};
use super::{Direction, Setting, Update, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "adam",
    summary: "Adam on the estimated gradient, its moments made again from the last directions",
    paper: "https://arxiv.org/abs/2402.11592",
    forwards: "2 n",
    memory: "none: an update draws history * n directions",
    rate: 1e-6, // within the paper's grid of 1e-4 to 1e-8
    unit: RateUnit::Normalized,
    distribution: Distribution::GaussQ8,
    space: None,
    defaults: defaults::<AdamOptions>,
    build: build::<AdamOptions>,
    page: include_str!("adam.rs"),
};

/// Options of ZO-Adam.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamOptions {
    /// How slopes are measured.
    pub probe: ProbeOptions,
    /// Decay of the first moment. Default 0.9 (PyTorch's, which the paper's program uses).
    pub beta1: f64,
    /// Decay of the second moment. Default 0.999 (as above).
    pub beta2: f64,
    /// Keeps the quotient finite. Default 1e-8 (as above).
    pub epsilon: f64,
    /// Steps that the moments look back on. Default 64, where 0.9^64 is 0.001; ours.
    pub history: u32,
}

impl Default for AdamOptions {
    fn default() -> Self {
        let probe = ProbeOptions::default();
        Self { probe, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, history: 64 }
    }
}

impl MethodOptions for AdamOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()?;
        for (field, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            within(field, beta, 0.0..=0.99999, "between 0 and 0.99999")?;
        }
        within("epsilon", self.epsilon, 1e-30..=1.0, "between 1e-30 and 1")?;
        let history = f64::from(self.history);
        within("history", history, 1.0..=65_536.0, "between 1 and 65536")
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        let history = History::new(self.history);
        Stepper::boxed(Adam { options: self, corrected: true, history }, self.probe, setting)
    }
}

/// Adam by replay, with or without the correction for moments that began at zero.
#[derive(Debug)]
pub(crate) struct Adam {
    pub(crate) options: AdamOptions,
    pub(crate) corrected: bool,
    pub(crate) history: History,
}

impl Adam {
    /// `1 / (1 - beta^t)`, or 1.
    fn correction(&self, beta: f64) -> f32 {
        let left = if self.corrected { power(beta, self.history.len()) } else { 0.0 };
        (1.0 / (1.0 - left)) as f32
    }
}

impl Rule for Adam {
    fn directions(&self, step: u32) -> Vec<Direction> {
        dense_directions(step, self.options.probe.directions)
    }

    fn update(&mut self, step: u32, rate: f64, decay: f32, numbers: &[f32]) -> Update {
        self.history.push(step, numbers);
        let AdamOptions { probe, beta1, beta2, epsilon, .. } = self.options;
        let n = f64::from(probe.directions);
        let weight = |_age, g| (f64::from(g) / n) as f32;
        Update::Moments {
            decay,
            rate: rate as f32,
            first: beta1 as f32,
            second: beta2 as f32,
            first_correction: self.correction(beta1),
            second_correction: self.correction(beta2),
            epsilon: epsilon as f32,
            group: probe.directions,
            history: self.history.terms(|step| self.directions(step), weight),
        }
    }
}
