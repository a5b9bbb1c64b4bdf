//! FZOO: one-sided slopes along several sign vectors, in units of their own spread.
//!
//! Dang et al. 2025, "FZOO: Fast Zeroth-Order Optimizer for Fine-Tuning Large Language Models
//! towards Adam-Scale Speed", <https://arxiv.org/abs/2506.09034>.
//! ```text
//! l0 = L(w; B)      l_i = L(w + eps u_i; B)      i = 1..N
//! sigma = standard deviation of l_1..l_N (divided by N, not N - 1)
//! w = w (1 - eta lambda) - sum over i of (eta / N) ((l_i - l0) / sigma) u_i
//! ```
//! u_i: Rademacher direction; N: `probe.directions`. sigma is about `eps |grad|`, so the step's
//! mean is eta along the gradient's direction whatever its length (1.2 eta at N = 4, 1.06 eta at N
//! = 8).
//! Recorded: the N numbers `(l_i - l0) / sigma`; clipping and rejection look at these. If all l_i
//! are equal there is no scale, and the numbers are 0.
//!
//! Departs from the paper's program: `l0` and all `l_i` see the same batch; eps is 1e-3, not 1e-4,
//! at which what half-precision keys and values round would be most of a difference.
//! Cost: N + 1 forward passes a step, which can run as one batch; no memory.
//! Defaults: `directions` 8 and Rademacher entries (the paper's program), `eps` 1e-3 (ours, see
//! above); of all weights the rate is 5e-5 where none is found (the paper's program).
//! Published: 3 points over MeZO with a third of its forward passes; RoBERTa-large 5.6 points and
//! 18 times fewer (abstract).
//! Ours: SmolLM2-135M, all weights, 22 steps of 16 sentences at the rate that is found, one seed:
//! macro-F1 0.652 on 600 held-out sentences, where zero-shot has 0.391 and the majority class 0.333;
//! on a random model of two layers its loss falls the most of all (LOG.md, 2026-11-27).
//!
//! When not to use it: with fewer than 4 directions, where sigma is now and then next to nothing
//! and the step as long as you like; with losses that are counts (accuracy of a small batch), which
//! are often all equal and give no step. The rate is per sigma, so it does not carry over from
//! MeZO.

use offshoot_kernels::Distribution;
use serde::{Deserialize, Serialize};

use super::card::{MethodCard, MethodOptions, RateUnit, build, defaults};
use super::probing::{ProbeOptions, within};
use super::stepper::{Measure, Moment, Rule, Stepper, dense_directions};
use super::{Direction, Probe, Setting, Term, ZerothOrder};
use crate::Error;

pub(crate) const CARD: MethodCard = MethodCard {
    name: "fzoo",
    summary: "one-sided slopes along several sign vectors, in units of their own spread",
    paper: "https://arxiv.org/abs/2506.09034",
    forwards: "n + 1",
    memory: "none",
    rate: 5e-5, // the paper's program
    unit: RateUnit::Normalized,
    distribution: Distribution::Rademacher, // the paper's sign vectors
    space: None,
    defaults: defaults::<FzooOptions>,
    build: build::<FzooOptions>,
    page: include_str!("fzoo.rs"),
};

/// Options of FZOO.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FzooOptions {
    /// How slopes are measured. `directions` is 8 by default, as in the paper's program.
    pub probe: ProbeOptions,
}

impl Default for FzooOptions {
    fn default() -> Self {
        Self { probe: ProbeOptions { eps: 1e-3, directions: 8, ..ProbeOptions::default() } }
    }
}

impl MethodOptions for FzooOptions {
    fn validate(&self) -> Result<(), Error> {
        self.probe.validate()?;
        let bound = "at least 2: one loss has no spread";
        let n = f64::from(self.probe.directions);
        within("probe.directions", n, 2.0..=f64::MAX, bound)
    }

    fn start(self, setting: &Setting) -> Result<Box<dyn ZerothOrder>, Error> {
        self.validate()?;
        Stepper::boxed(Fzoo { n: self.probe.directions }, self.probe, setting)
    }
}

#[derive(Debug)]
struct Fzoo {
    n: u32,
}

impl Rule for Fzoo {
    fn directions(&self, step: u32) -> Vec<Direction> {
        dense_directions(step, self.n)
    }

    fn measure(&self, probe: &ProbeOptions, moment: &Moment) -> Measure {
        let Some((&l0, losses)) = moment.told.first().and_then(|told| told.split_first()) else {
            let scale = probe.eps as f32;
            let point = |direction| Probe { terms: vec![Term { scale, direction }] };
            let points = self.directions(moment.step).into_iter().map(point);
            return Measure::Ask([Probe::default()].into_iter().chain(points).collect());
        };
        let sigma = deviation(losses);
        // Of equal losses the mean may round, and the spread with it: that is none, though not 0.
        let greatest = losses.iter().fold(l0.abs(), |most, loss| most.max(loss.abs()));
        let spread = sigma > 1e-12 * greatest;
        let number = |loss: &f64| if spread { (loss - l0) / sigma } else { 0.0 };
        Measure::Numbers(losses.iter().map(number).collect())
    }

    fn forwards(&self, _step: u32) -> usize {
        self.n as usize + 1
    }
}

/// The standard deviation of a whole population.
fn deviation(losses: &[f64]) -> f64 {
    let n = losses.len() as f64;
    let mean = losses.iter().sum::<f64>() / n;
    (losses.iter().map(|loss| (loss - mean) * (loss - mean)).sum::<f64>() / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::probing::Guards;
    use super::*;

    /// As an accuracy does that is the same at all points but the middle.
    #[test]
    fn losses_that_are_equal_move_nothing_even_where_their_mean_rounds() {
        let rule = Fzoo { n: 8 };
        let mut rounds = 0;
        for (k, b) in (1..=64).flat_map(|b| (0..b).map(move |k| (k, b))) {
            let loss = -f64::from(k) / f64::from(b);
            rounds += u32::from(deviation(&[loss; 8]) > 0.0);
            let mut told = vec![loss; 9];
            told[0] = loss - 1.0 / f64::from(b);
            let guards = Guards::new(&ProbeOptions::default());
            let moment = Moment { step: 0, rate: 1.0, guards: &guards, told: &[told] };
            let Measure::Numbers(numbers) = rule.measure(&ProbeOptions::default(), &moment) else {
                panic!()
            };
            assert_eq!(numbers, [0.0; 8], "{k} of {b}");
        }
        assert!(rounds > 100);
    }
}
