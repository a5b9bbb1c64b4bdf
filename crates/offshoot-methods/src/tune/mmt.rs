//! ZO-SGD-MMT: descent with momentum, whose buffer is made again from the last directions.
//!
//! Zhang et al. 2024, section 3, <https://arxiv.org/abs/2402.11592>; the replay of directions is
//! Malladi et al. 2023, appendix B.2, <https://arxiv.org/abs/2305.17333>.
//! ```text
//! m_t = beta m_(t-1) + (1/n) sum over j of g_j z_j
//! w   = w (1 - eta lambda) - eta m_t
//!     = w (1 - eta lambda) - sum over i, j of (eta beta^(t-i) g_ij / n) z_ij,   t - i < history
//! ```
//! beta: momentum; g_ij, z_ij: slope and direction j of step i. Steps that were skipped do not
//! count.
//! Recorded: the n slopes.
//!
//! Departs from the paper: the sum ends `history` steps back, where `beta^history` is left (0.1 %
//! by default), so no buffer of the weights' size is kept.
//! Cost: 2 n forward passes a step; an update draws `history * n` directions, which in the full
//! space of a large model takes longer than the passes.
//! Defaults: `beta` 0.9 (the paper's program), `history` 64 (ours); probing as `mezo`; of all
//! weights the rate is 1e-7 where none is found (within the paper's grid of 1e-4 to 1e-8).
//! Published: the first paper's table 2 has it beside five others on SST-2.
//! Ours: SmolLM2-135M, all weights, 100 steps of 16 sentences at the rate that is found, one seed:
//! macro-F1 0.724 on 600 held-out sentences, where zero-shot has 0.391 and the majority class 0.333
//! (LOG.md, 2026-11-27).
//!
//! When not to use it: estimates along random directions hardly agree from step to step, so
//! momentum mostly multiplies the rate by `1 / (1 - beta)`; lower the rate by as much when coming
//! from MeZO.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::history::{History, power};
use super::probing::{ProbeOptions, within};
use super::stepper::{Rule, Stepper, dense_directions};
use super::{Direction, Setting, Update, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "mmt",
    summary: "descent with momentum, made again from the last directions",
    paper: "https://arxiv.org/abs/2402.11592",
    forwards: "2 n",
    memory: "none: an update draws history * n directions",
    rate: 1e-7, // within the paper's grid of 1e-4 to 1e-8
    unit: RateUnit::Gradient,
    distribution: Distribution::GaussQ8,
    space: None,
    defaults: defaults::<MmtOptions>,
    build: build::<MmtOptions>,
    page: include_str!("mmt.rs"),
};

/// Options of ZO-SGD-MMT.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MmtOptions {
    /// How slopes are measured.
    pub probe: ProbeOptions,
    /// What is kept of the momentum in a step. Default 0.9 (the paper's program).
    pub beta: f64,
    /// Steps that the momentum looks back on. Default 64, where 0.9^64 is 0.001; ours.
    pub history: u32,
}

impl Default for MmtOptions {
    fn default() -> Self {
        Self { probe: ProbeOptions::default(), beta: 0.9, history: 64 }
    }
}

impl MethodOptions for MmtOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()?;
        within("beta", self.beta, 0.0..=0.9999, "between 0 and 0.9999")?;
        let history = f64::from(self.history);
        within("history", history, 1.0..=65_536.0, "between 1 and 65536")
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        let n = self.probe.directions;
        let rule = Momentum { n, beta: self.beta, history: History::new(self.history) };
        Stepper::boxed(rule, self.probe, setting)
    }
}

#[derive(Debug)]
struct Momentum {
    n: u32,
    beta: f64,
    history: History,
}

impl Rule for Momentum {
    fn directions(&self, step: u32) -> Vec<Direction> {
        dense_directions(step, self.n)
    }

    fn update(&mut self, step: u32, rate: f64, decay: f32, numbers: &[f32]) -> Update {
        self.history.push(step, numbers);
        let n = f64::from(self.n);
        let weight = |age, g| (rate * power(self.beta, age) * f64::from(g) / n) as f32;
        let terms = self.history.terms(|step| dense_directions(step, self.n), weight);
        Update::Linear { decay, terms }
    }

    fn gain(&self) -> f64 {
        1.0 / (1.0 - self.beta)
    }
}
