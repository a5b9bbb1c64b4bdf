//! ZO-SGD-Cons: of standing still, descending and ascending, what is best on the batch.
//!
//! Zhang et al. 2024, section 3, <https://arxiv.org/abs/2402.11592>, after the conservative update
//! of Bergou et al. 2020, <https://doi.org/10.1137/19M1240888>.
//! ```text
//! g_j as in MeZO;  u = sum over j of (eta g_j / n) z_j
//! w = the one of w, w - u, w + u at which L(.; B) is least
//! ```
//! eta: learning rate; n: directions a step. Of equal losses the first in this order wins.
//! Recorded: the n slopes of the step that was taken: as measured, negated or zero.
//!
//! Departs from the paper's program, which walks between the candidates by optimiser steps and so
//! does not come back under momentum: here a candidate is a probe, and nothing is walked. Decay
//! applies to whatever is chosen and takes no part in the choice.
//! Cost: 2 n + 3 forward passes a step, no memory.
//! Defaults: as `mezo`; of all weights the rate is 1e-6 where none is found (within the paper's
//! grid of 1e-4 to 1e-8).
//! Published: the paper's table 2 has it beside five others on SST-2.
//! Ours: SmolLM2-135M, all weights, 40 steps of 16 sentences at the rate that is found, one seed:
//! macro-F1 0.581 on 600 held-out sentences, where zero-shot has 0.391 and the majority class 0.333
//! (LOG.md, 2026-11-27).
//!
//! When not to use it: the three further passes buy less than three further directions would,
//! unless the rate is near its largest.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::probing::ProbeOptions;
use super::stepper::{Measure, Moment, Rule, Stepper, dense_directions, mean_terms};
use super::{Direction, Probe, Setting, Term, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "cons",
    summary: "of standing still, descending and ascending, what is best on the batch",
    paper: "https://arxiv.org/abs/2402.11592",
    forwards: "2 n + 3",
    memory: "none",
    rate: 1e-6, // within the paper's grid of 1e-4 to 1e-8
    unit: RateUnit::Gradient,
    distribution: Distribution::GaussQ8,
    space: None,
    defaults: defaults::<ConsOptions>,
    build: build::<ConsOptions>,
    page: include_str!("cons.rs"),
};

/// Options of ZO-SGD-Cons; [`ProbeOptions`] has its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsOptions {
    /// How slopes are measured.
    pub probe: ProbeOptions,
}

impl MethodOptions for ConsOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        Stepper::boxed(Cons { n: self.probe.directions }, self.probe, setting)
    }
}

#[derive(Debug)]
struct Cons {
    n: u32,
}

impl Cons {
    /// `w`, `w - u` and `w + u`.
    fn candidates(&self, moment: &Moment, slopes: &[f64]) -> Vec<Probe> {
        let numbers: Vec<f32> = slopes.iter().map(|&slope| slope as f32).collect();
        let (kept, _) = moment.guards.judge(&numbers);
        let up = mean_terms(&self.directions(moment.step), moment.rate, &kept);
        let down = up.iter().map(|t| Term { scale: -t.scale, direction: t.direction.clone() });
        let down = Probe { terms: down.collect() };
        vec![Probe::default(), down, Probe { terms: up }]
    }
}

impl Rule for Cons {
    fn directions(&self, step: u32) -> Vec<Direction> {
        dense_directions(step, self.n)
    }

    fn measure(&self, probe: &ProbeOptions, moment: &Moment) -> Measure {
        match moment.told {
            [] => Measure::Ask(probe.two_sided(&self.directions(moment.step), &[])),
            [losses] => Measure::Ask(self.candidates(moment, &probe.slopes(losses))),
            [losses, tried, ..] => {
                let mut best = 0;
                for candidate in 1..tried.len() {
                    if tried[candidate] < tried[best] {
                        best = candidate;
                    }
                }
                let sign = [0.0, 1.0, -1.0][best];
                let slopes = probe.slopes(losses);
                Measure::Numbers(slopes.into_iter().map(|slope| sign * slope).collect())
            }
        }
    }

    fn forwards(&self, _step: u32) -> usize {
        2 * self.n as usize + 3
    }
}
