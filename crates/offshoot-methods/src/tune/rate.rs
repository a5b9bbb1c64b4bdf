//! A learning rate from a few losses about the weights, in place of a sweep.
//!
//! One step of plain descent along `g z` with independent z of variance 1 changes the loss, to
//! second order and in the mean, by
//! ```text
//! -eta |grad|^2 + (eta^2 / 2) (|grad|^2 tr H + 2 grad' H grad)        n = 1
//! ```
//! which is least at `1 / (tr H + 2 R)` with `R = grad' H grad / |grad|^2`; n directions bring
//! `n / (tr H + (n + 1) R)`, so that `1 / R`, the step of an exact gradient, is never passed. All
//! three are seen by probes at fixed weights on one batch:
//! ```text
//! g_j = (l+_j - l-_j) / (2 eps)      c_j = (l+_j + l-_j - 2 l0) / eps^2       j = 1..m
//! |grad|^2 ~ mean g_j^2        tr H ~ mean c_j        R ~ cov(g_j^2, c_j) / (2 mean g_j^2)
//! eta = kappa min(n / tr H, 1 / R)
//! ```
//! H: Hessian, in the space and under the mask of the method's directions. On a quadratic, steps of
//! up to twice the best are harmless and three times the best diverges, hence `kappa`. With m = 16
//! the relative error of `tr H` is about `sqrt(2 / m)` over the root of H's effective rank. The mean
//! change is Malladi et al. 2023, theorem 1, <https://arxiv.org/abs/2305.17333>; the rest is ours.
//!
//! Of a model's loss that is not the whole truth. About a model that is sure of the wrong answers
//! curvature is small or negative, so by it alone any rate would do; and the quadratic was seen no
//! further out than eps. Nearly all of a step `eta g z` is across the gradient, a random walk. So in
//! a run of T steps the walk, `eta |g| sqrt(T / n)` in units of z, is kept within `reach` times what
//! a probe goes, and a step within `kappa` of it:
//! ```text
//! eta <= min(kappa, reach / sqrt(T)) eps sqrt(n) / rms(g)
//! ```
//! `reach` is set by our own runs of SmolLM2-135M, whose slope rms(g) is 32 at eps 1e-3: it makes 0.9e-5
//! of 300 steps, where 1e-5 was good. By that slope it would make 1.1e-6 of 20,000, near the 1e-6 of
//! MeZO's appendix; other models have other slopes, and of them nothing is known here.

use serde::{Deserialize, Serialize};

use super::probing::within;
use super::{Direction, Probe, RateUnit, Term};
use crate::Error;

/// How a rate is found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateOptions {
    /// The share of the best rate that is used. Default 0.5.
    pub kappa: f64,
    /// `m`: directions that are probed, two losses each. Default 16.
    pub probes: u32,
    /// Steps after which the rate is found anew. Default 500.
    pub interval: u32,
    /// `T`: steps of the run. Default 0: not known, and no bound follows from it.
    pub steps: u32,
    /// How far the walk of a run may go, in lengths of a probe. Default 5.
    pub reach: f64,
}

impl Default for RateOptions {
    fn default() -> Self {
        Self { kappa: 0.5, probes: 16, interval: 500, steps: 0, reach: 5.0 }
    }
}

/// The first index of directions that are probed for a rate: no step draws these.
const FIRST_INDEX: u32 = 1 << 23;

impl RateOptions {
    /// Checks the fields against their bounds.
    ///
    /// # Errors
    /// [`Error::Option`] names the first field outside its bounds, and the bounds.
    pub fn validate(&self) -> Result<(), Error> {
        within("kappa", self.kappa, 1e-6..=2.0, "between a millionth and 2")?;
        within("probes", f64::from(self.probes), 4.0..=4096.0, "between 4 and 4096")?;
        within("interval", f64::from(self.interval), 1.0..=1e9, "between 1 and a billion")?;
        within("reach", self.reach, 1e-3..=1e6, "between a thousandth and a million")
    }

    /// The points at which losses are needed: the weights, then both sides of each direction. The
    /// directions are like `like`, a direction of the method's.
    pub fn plan(&self, like: &Direction, eps: f64) -> Vec<Probe> {
        let point = |j: u32, eps: f64| {
            let direction = Direction { index: FIRST_INDEX + j, ..like.clone() };
            Probe { terms: vec![Term { scale: eps as f32, direction }] }
        };
        let sides = (0..self.probes).flat_map(|j| [point(j, eps), point(j, -eps)]);
        [Probe::default()].into_iter().chain(sides).collect()
    }

    /// What the losses at the points of [`Self::plan`] say. `None` if there are too few of them or
    /// one is not finite.
    pub fn estimate(&self, eps: f64, losses: &[f64]) -> Option<RateEstimate> {
        let (&l0, sides) = losses.split_first()?;
        if sides.len() < 8 || losses.iter().any(|loss| !loss.is_finite()) {
            return None;
        }
        let (pairs, eps) = (sides.chunks_exact(2), f64::from(eps as f32));
        let squares: Vec<f64> =
            pairs.clone().map(|p| ((p[0] - p[1]) / (2.0 * eps)).powi(2)).collect();
        let curvatures: Vec<f64> = pairs.map(|p| (p[0] + p[1] - 2.0 * l0) / (eps * eps)).collect();
        let [square, trace] = [mean(&squares), mean(&curvatures)];
        let centred = squares.iter().zip(&curvatures).map(|(s, c)| (s - square) * (c - trace));
        let covariance = mean(&centred.collect::<Vec<f64>>());
        let spread: Vec<f64> = curvatures.iter().map(|c| (c - trace).powi(2)).collect();
        let error = (mean(&spread) / (spread.len() as f64 - 1.0)).sqrt();
        let along = if square > 0.0 { covariance / (2.0 * square) } else { 0.0 };
        Some(RateEstimate { eps, square, trace, error, along })
    }
}

/// What was seen of a loss about the weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateEstimate {
    /// How far the probes went.
    pub eps: f64,
    /// `|grad|^2`.
    pub square: f64,
    /// `tr H`.
    pub trace: f64,
    /// The standard error of `trace`.
    pub error: f64,
    /// `R`: the curvature along the gradient. The noisiest of the four.
    pub along: f64,
}

impl RateEstimate {
    /// A rate for `directions` directions a step; of a method whose steps have no scale of their
    /// own, that rate times the length of the gradient. `gain` is what the method multiplies a
    /// lasting slope by. `None` if neither the curvature, which has to be positive by twice its
    /// error, nor the number of steps bounds it: then the loss says nothing of the rate, and the
    /// field's common one ([`common_rate`]) is left.
    pub fn rate(
        &self,
        options: &RateOptions,
        directions: u32,
        unit: RateUnit,
        gain: f64,
    ) -> Option<f64> {
        let n = f64::from(directions.max(1));
        let slope = self.square.sqrt();
        let mut rate = f64::INFINITY;
        if self.trace > 2.0 * self.error {
            let along = self.along.clamp(0.0, self.trace);
            rate = options.kappa / (self.trace / n).max(along);
        }
        if options.steps > 0 {
            let share = options.kappa.min(options.reach / f64::from(options.steps).sqrt());
            rate = rate.min(share * self.eps * n.sqrt() / slope);
        }
        let scale = match unit {
            RateUnit::Gradient => 1.0,
            RateUnit::Normalized => slope,
        };
        rate *= scale / gain;
        (rate.is_finite() && rate > 0.0).then_some(rate)
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// What is tuned, as far as the field's common rates tell spaces apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpaceKind {
    /// The weights themselves.
    Full,
    /// Low-rank factors beside them.
    Lora,
    /// Keys and values before the text.
    Prefix,
    /// Embeddings before the text.
    Prompt,
    /// The scales of quantised weights.
    Scales,
}

/// The rate and the eps of MeZO that the field uses where nothing is known of the loss; `weights`
/// are those of the base model.
///
/// MeZO's authors give 1e-6, 1e-4 and 1e-2 for full tuning, LoRA and prefixes with eps 1e-3, 1e-2
/// and 1e-1 (<https://github.com/princeton-nlp/MeZO/issues/7>); below a billion weights LoRA is
/// reported to move only near 4e-2 with eps 5e-3
/// (<https://github.com/princeton-nlp/MeZO/issues/6>); prompts are SubZero's. Scales are tuned as multiples
/// of themselves, with QZO's rate in units of the square of a weight; ours.
pub fn common_rate(space: SpaceKind, weights: u64) -> (f64, f64) {
    match space {
        SpaceKind::Full => (1e-6, 1e-3),
        SpaceKind::Lora if weights < 1_000_000_000 => (4e-2, 5e-3),
        SpaceKind::Lora => (1e-4, 1e-2),
        SpaceKind::Prefix => (1e-2, 1e-1),
        SpaceKind::Prompt => (1e-3, 1e-2),
        SpaceKind::Scales => (1e-4, 1e-2),
    }
}
