//! MEAZO: descent with one adaptive step size for all weights.
//!
//! Dbouk et al. 2026, "On Adaptivity in Zeroth-Order Optimization",
//! <https://arxiv.org/abs/2605.03869>.
//! ```text
//! g_j as in MeZO      q = (1/n) sum over j of g_j^2
//! v = beta v + (1 - beta) q      v_hat = v / (1 - beta^t)
//! w = w (1 - eta lambda) - sum over j of (eta g_j / (n (sqrt(v_hat) + zeta))) z_j
//! ```
//! v: one number, 0 at first; t: steps so far, those that were skipped left out.
//! Recorded: the n slopes.
//!
//! Departs from the paper: `t` counts from 1 at the first step, so that the correction is exact; of
//! several directions the squares are averaged, as their sum may vanish by chance.
//! Cost: as MeZO, and one number.
//! Defaults: `beta` 0.99 and `zeta` 1e-8 (RMSprop's in PyTorch: the paper's are not known to
//! us); probing as `mezo`; of all weights the rate is 1e-5 where none is found (ours).
//! Published: ZO-Adam's results at the memory of ZO-SGD; adaptive steps by coordinate are found to
//! gain nothing over tuned plain ones (abstract).
//! Ours: SmolLM2-135M, all weights, 100 steps of 16 sentences at the rate that is found, one seed:
//! macro-F1 0.699 on 600 held-out sentences, where zero-shot has 0.391 and the majority class 0.333
//! (LOG.md, 2026-11-27).
//!
//! When not to use it: nothing speaks against it where the rate is not known; a rate tuned for MeZO
//! does not carry over, as this one is for slopes of size 1.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::probing::{ProbeOptions, within};
use super::stepper::{Rule, Stepper, dense_directions, mean_terms};
use super::{Direction, Setting, Update, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "meazo",
    summary: "descent with one adaptive step size for all weights",
    paper: "https://arxiv.org/abs/2605.03869",
    forwards: "2 n",
    memory: "one number",
    rate: 1e-5, // ours: the paper's is not known to us
    unit: RateUnit::Normalized,
    distribution: Distribution::GaussQ8,
    space: None,
    defaults: defaults::<MeazoOptions>,
    build: build::<MeazoOptions>,
    page: include_str!("meazo.rs"),
};

/// Options of MEAZO. The paper's values are not known to us; these are the field's common ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeazoOptions {
    /// How slopes are measured.
    pub probe: ProbeOptions,
    /// What is kept of the second moment in a step. Default 0.99 (that of RMSprop in PyTorch).
    pub beta: f64,
    /// Keeps the quotient finite. Default 1e-8 (as above).
    pub zeta: f64,
}

impl Default for MeazoOptions {
    fn default() -> Self {
        Self { probe: ProbeOptions::default(), beta: 0.99, zeta: 1e-8 }
    }
}

impl MethodOptions for MeazoOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()?;
        within("beta", self.beta, 0.0..=0.99999, "between 0 and 0.99999")?;
        within("zeta", self.zeta, 1e-30..=1e3, "between 1e-30 and 1000")
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        let rule = Meazo { options: self, moment: 0.0, left: 1.0 };
        Stepper::boxed(rule, self.probe, setting)
    }
}

#[derive(Debug)]
struct Meazo {
    options: MeazoOptions,
    /// `v`.
    moment: f64,
    /// `beta^t`.
    left: f64,
}

impl Rule for Meazo {
    fn directions(&self, step: u32) -> Vec<Direction> {
        dense_directions(step, self.options.probe.directions)
    }

    fn update(&mut self, step: u32, rate: f64, decay: f32, numbers: &[f32]) -> Update {
        let MeazoOptions { beta, zeta, .. } = self.options;
        let squares = numbers.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        let square = squares / numbers.len() as f64;
        self.moment = beta * self.moment + (1.0 - beta) * square;
        self.left *= beta;
        let rate = rate / ((self.moment / (1.0 - self.left)).sqrt() + zeta);
        Update::Linear { decay, terms: mean_terms(&self.directions(step), rate, numbers) }
    }
}
