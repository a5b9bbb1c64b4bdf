//! LOZO: directions of low rank in every matrix.
//!
//! Chen et al. 2024, "Enhancing Zeroth-order Fine-tuning for Language Models with Low-rank
//! Structures", algorithm 1, <https://arxiv.org/abs/2410.07698>.
//! ```text
//! Z = U V^T / sqrt(r)      U [m, r] new in each step, V [n, r] new every nu steps
//! g = (L(W + eps Z) - L(W - eps Z)) / (2 eps)
//! W = W (1 - eta lambda) - eta g Z
//! ```
//! W: matrix `[m, n]`; r: `rank`; nu: `interval`. Vectors have independent entries, as in MeZO.
//! Recorded: the slopes of `probe.directions` directions, which share V.
//!
//! Departs from the paper: the root of r is in Z, so that its entries have variance 1 at any rank
//! and the rate does not change its meaning with it (the paper's `g U V^T / r` is the same update,
//! with an eps that grows with r). U and V are keyed by their own step and epoch: the step's update
//! cannot be along another direction than its measurement, which happens where both are drawn in
//! turn from one stream.
//! Cost: 2 n forward passes; r (m + n) numbers a matrix while it is at work.
//! Defaults: `rank` 2 and `interval` 50 (the paper's program: 1 or 2, 50 or 100); probing as
//! `mezo`; of all weights the rate is 1e-6 where none is found (the paper's program: 1e-6 or
//! 1e-7).
//! Published: above other zeroth-order methods and near first-order ones, over model sizes and
//! tasks (abstract).
//! Ours: SmolLM2-135M, all weights, 100 steps of 16 sentences at the rate that is found, one seed:
//! macro-F1 0.706 on 600 held-out sentences, where zero-shot has 0.391 and the majority class 0.333
//! (LOG.md, 2026-11-27).
//!
//! When not to use it: with LoRA, whose matrices are thin already.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::probing::{ProbeOptions, within_low_rank};
use super::stepper::{Rule, Stepper, formed_directions};
use super::{Direction, Form, Setting, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "lozo",
    summary: "directions of low rank in every matrix",
    paper: "https://arxiv.org/abs/2410.07698",
    forwards: "2 n",
    memory: "rank * (rows + columns) numbers of the matrix at work",
    rate: 1e-6, // the paper's program: 1e-6 or 1e-7
    unit: RateUnit::Gradient,
    distribution: Distribution::GaussQ8,
    space: None,
    defaults: defaults::<LozoOptions>,
    build: build::<LozoOptions>,
    page: include_str!("lozo.rs"),
};

/// Options of LOZO.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LozoOptions {
    /// How slopes are measured.
    pub probe: ProbeOptions,
    /// `r`. Default 2 (the paper's program: 1 or 2).
    pub rank: u32,
    /// `nu`: steps that `V` is kept for. Default 50 (the paper's program: 50 or 100).
    pub interval: u32,
}

impl Default for LozoOptions {
    fn default() -> Self {
        Self { probe: ProbeOptions::default(), rank: 2, interval: 50 }
    }
}

impl MethodOptions for LozoOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()?;
        within_low_rank(self.rank, self.interval)
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        Stepper::boxed(Lozo { options: self }, self.probe, setting)
    }
}

#[derive(Debug)]
struct Lozo {
    options: LozoOptions,
}

impl Rule for Lozo {
    fn directions(&self, step: u32) -> Vec<Direction> {
        let LozoOptions { probe, rank, interval } = self.options;
        formed_directions(step, probe.directions, Form::LowRank { rank, epoch: step / interval })
    }
}
