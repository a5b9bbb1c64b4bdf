//! SubZero: directions within a random subspace of every matrix.
//!
//! Yu et al. 2024, "Zeroth-Order Fine-Tuning of LLMs in Random Subspaces",
//! <https://arxiv.org/abs/2410.08989>.
//! ```text
//! S = P Z Q^T sqrt(m n) / r      P [m, r], Q [n, r] orthonormal, new every F steps; Z [r, r] new
//! g = (L(W + eps S) - L(W - eps S)) / (2 eps)
//! W = W (1 - eta lambda) - eta g S
//! ```
//! W: matrix `[m, n]`; r: `rank`, at most the smaller side; F: `interval`. The factor gives S the
//! norm of a direction of independent entries. Vectors have independent entries.
//! Recorded: the slopes of `probe.directions` directions, which share P and Q.
//!
//! Departs from the paper's program, whose P and Q come from a generator in whatever state it is,
//! so that slopes and seeds do not suffice to make a run again: here they are keyed by their epoch.
//! Cost: 2 n forward passes; r (m + n) numbers a matrix while it is at work, and a QR every F
//! steps.
//! Defaults: `rank` 24 and `interval` 1000 (the paper's program); probing as `mezo`; of all
//! weights the rate is 1e-7 where none is found (within MeZO's grid: the paper's program names
//! 1e-3 for prompts alone).
//! Published: better results and faster convergence than MeZO over language tasks (abstract).
//! Ours: SmolLM2-135M, all weights, 100 steps of 16 sentences at the rate that is found, one seed:
//! macro-F1 0.737 on 600 held-out sentences, where zero-shot has 0.391 and the majority class 0.333
//! (LOG.md, 2026-11-27).
//!
//! When not to use it: with LoRA of a rank as small as the subspace.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::probing::{ProbeOptions, within_low_rank};
use super::stepper::{Rule, Stepper, formed_directions};
use super::{Direction, Form, Setting, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "subzero",
    summary: "directions within a random subspace of every matrix",
    paper: "https://arxiv.org/abs/2410.08989",
    forwards: "2 n",
    memory: "rank * (rows + columns) numbers of the matrix at work",
    rate: 1e-7, // within MeZO's grid; the paper's program names 1e-3 for prompts alone
    unit: RateUnit::Gradient,
    distribution: Distribution::GaussQ8,
    space: None,
    defaults: defaults::<SubzeroOptions>,
    build: build::<SubzeroOptions>,
    page: include_str!("subzero.rs"),
};

/// Options of SubZero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SubzeroOptions {
    /// How slopes are measured. For prompts the paper's program has `eps` 1e-2.
    pub probe: ProbeOptions,
    /// `r`. Default 24 (the paper's program).
    pub rank: u32,
    /// `F`: steps that the subspace is kept for. Default 1000 (the paper's program).
    pub interval: u32,
}

impl Default for SubzeroOptions {
    fn default() -> Self {
        Self { probe: ProbeOptions::default(), rank: 24, interval: 1000 }
    }
}

impl MethodOptions for SubzeroOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()?;
        within_low_rank(self.rank, self.interval)
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        Stepper::boxed(Subzero { options: self }, self.probe, setting)
    }
}

#[derive(Debug)]
struct Subzero {
    options: SubzeroOptions,
}

impl Rule for Subzero {
    fn directions(&self, step: u32) -> Vec<Direction> {
        let SubzeroOptions { probe, rank, interval } = self.options;
        formed_directions(step, probe.directions, Form::Subspace { rank, epoch: step / interval })
    }
}
