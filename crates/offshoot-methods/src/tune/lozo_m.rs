//! LOZO-M: LOZO with momentum in the space of the left factors.
//!
//! Chen et al. 2024, algorithm 2, <https://arxiv.org/abs/2410.07698>.
//! ```text
//! N = beta N + (1 - beta) g U                 every step, U [m, r], N = 0 at first
//! N = N V_old^T V_new / n                     when V changes
//! W = W (1 - eta lambda) - eta N V^T / sqrt(r)
//! ```
//! W: matrix `[m, n]`; U, V, r, g and the root of r as in [`lozo`](super::LozoOptions); beta:
//! momentum.
//! Recorded: the slopes of `probe.directions` directions, whose mean `g U` is.
//!
//! Departs from the paper: N is made again from the last `history` steps, each step's `U` carried
//! over the changes of `V` since; in vectors the momentum is of the directions themselves.
//! Cost: 2 n forward passes; an update draws `history * n` directions of low rank.
//! Defaults: `rank` 2 and `interval` 50 (the paper's program: 1 or 2, 50 or 100), `beta` 0.9
//! (the field's common value), `history` 64 (ours); probing as `mezo`; of all weights the rate
//! is 1e-6 where none is found (the paper's program: 1e-6 or 1e-7).
//! Published: with LOZO above other zeroth-order methods and near first-order ones (abstract).
//! Ours: SmolLM2-135M, all weights, 100 steps of 16 sentences at the rate that is found, one seed:
//! macro-F1 0.710 on 600 held-out sentences, where zero-shot has 0.391 and the majority class 0.333
//! (LOG.md, 2026-11-27).
//!
//! When not to use it: as LOZO and `mmt`.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::history::{History, power};
use super::lozo::LozoOptions;
use super::probing::{ProbeOptions, within, within_low_rank};
use super::stepper::{Rule, Stepper, formed_directions};
use super::{Direction, Form, Setting, Update, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "lozo-m",
    summary: "directions of low rank, with momentum in the space of their left factors",
    paper: "https://arxiv.org/abs/2410.07698",
    forwards: "2 n",
    memory: "rank * (rows + columns) numbers of the matrix at work",
    rate: 1e-6, // the paper's program: 1e-6 or 1e-7
    unit: RateUnit::Gradient,
    distribution: Distribution::GaussQ8,
    space: None,
    defaults: defaults::<LozoMOptions>,
    build: build::<LozoMOptions>,
    page: include_str!("lozo_m.rs"),
};

/// Options of LOZO-M.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LozoMOptions {
    /// How slopes are measured.
    pub probe: ProbeOptions,
    /// `r`. Default 2 (the paper's program: 1 or 2).
    pub rank: u32,
    /// `nu`: steps that `V` is kept for. Default 50 (the paper's program: 50 or 100).
    pub interval: u32,
    /// What is kept of the momentum in a step. Default 0.9 (the field's common value).
    pub beta: f64,
    /// Steps that the momentum looks back on. Default 64, where 0.9^64 is 0.001; ours.
    pub history: u32,
}

impl Default for LozoMOptions {
    fn default() -> Self {
        let LozoOptions { probe, rank, interval } = LozoOptions::default();
        Self { probe, rank, interval, beta: 0.9, history: 64 }
    }
}

impl MethodOptions for LozoMOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()?;
        within_low_rank(self.rank, self.interval)?;
        within("beta", self.beta, 0.0..=0.9999, "between 0 and 0.9999")?;
        let history = f64::from(self.history);
        within("history", history, 1.0..=65_536.0, "between 1 and 65536")
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        let history = History::new(self.history);
        Stepper::boxed(LozoM { options: self, history }, self.probe, setting)
    }
}

#[derive(Debug)]
struct LozoM {
    options: LozoMOptions,
    history: History,
}

impl LozoM {
    fn of_form(&self, step: u32, form: Form) -> Vec<Direction> {
        formed_directions(step, self.options.probe.directions, form)
    }
}

impl Rule for LozoM {
    fn directions(&self, step: u32) -> Vec<Direction> {
        let LozoMOptions { rank, interval, .. } = self.options;
        self.of_form(step, Form::LowRank { rank, epoch: step / interval })
    }

    fn update(&mut self, step: u32, rate: f64, decay: f32, numbers: &[f32]) -> Update {
        self.history.push(step, numbers);
        let LozoMOptions { probe, rank, interval, beta, .. } = self.options;
        let to = step / interval;
        let share = rate * (1.0 - beta) / f64::from(probe.directions);
        let weight = |age, g| (share * power(beta, age) * f64::from(g)) as f32;
        let carried = |past: u32| match past / interval {
            from if from == to => self.directions(past),
            from => self.of_form(past, Form::Carried { rank, from, to }),
        };
        Update::Linear { decay, terms: self.history.terms(carried, weight) }
    }
}
