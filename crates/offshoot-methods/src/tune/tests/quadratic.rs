//! A model small enough to know everything about: a sum of squares over six tensors.

use std::sync::Arc;

use crate::tune::{
    Distribution, Layout, Plan, Probe, Record, Setting, TensorSpec, Update, Weights, ZerothOrder,
    apply_update,
};

pub(super) const SEED: u64 = 0x5eed_1234_5678;

/// Two layers of two matrices each, an embedding and a norm.
pub(super) fn layout() -> Layout {
    let tensor = |name: &str, rows, cols, layer| {
        let (name, vector) = (name.to_owned(), name.ends_with("norm.weight"));
        TensorSpec { name, rows, cols, layer, vector }
    };
    Layout {
        tensors: vec![
            tensor("model.embed_tokens.weight", 5, 3, None),
            tensor("model.layers.0.mlp.up_proj.weight", 4, 3, Some(0)),
            tensor("model.layers.0.self_attn.q_proj.weight", 4, 3, Some(0)),
            tensor("model.layers.1.mlp.up_proj.weight", 4, 3, Some(1)),
            tensor("model.layers.1.self_attn.q_proj.weight", 4, 3, Some(1)),
            tensor("model.norm.weight", 1, 4, None),
        ],
    }
}

pub(super) fn setting(decay: f64) -> Setting {
    Setting { seed: SEED, layout: Arc::new(layout()), decay }
}

/// `L(w) = 1/2 sum of h_i (w_i - t_i)^2 + c/2 (sum of w_i)^2`, where `c` is 0 unless it says
/// otherwise.
pub(super) struct Quadratic {
    pub(super) coupling: f64,
    pub(super) curvature: Vec<f64>,
    pub(super) target: Vec<f64>,
}

impl Quadratic {
    /// Curvatures from 1 down to `1 / condition`, evenly on a scale of logarithms.
    pub(super) fn new(condition: f64) -> Self {
        let d = layout().elements();
        let share = |i: usize| ((i * 37) % d) as f64 / (d - 1) as f64;
        let curvature = (0..d).map(|i| condition.powf(-share(i))).collect();
        let target = (0..d).map(|i| ((i * 29 % 17) as f64 - 8.0) / 8.0).collect();
        Self { coupling: 0.0, curvature, target }
    }

    /// One in which the slope in each tensor depends on all others.
    pub(super) fn coupled(condition: f64) -> Self {
        Self { coupling: 0.5, ..Self::new(condition) }
    }

    pub(super) fn loss(&self, w: &[f64]) -> f64 {
        let terms = w.iter().zip(&self.target).zip(&self.curvature);
        let apart: f64 = terms.map(|((w, t), h)| 0.5 * h * (w - t) * (w - t)).sum();
        apart + 0.5 * self.coupling * w.iter().sum::<f64>().powi(2)
    }

    pub(super) fn gradient(&self, w: &[f64]) -> Vec<f64> {
        let terms = w.iter().zip(&self.target).zip(&self.curvature);
        let all = self.coupling * w.iter().sum::<f64>();
        terms.map(|((w, t), h)| h * (w - t) + all).collect()
    }

    pub(super) fn trace(&self) -> f64 {
        self.curvature.iter().map(|h| h + self.coupling).sum()
    }

    pub(super) fn loss_at(&self, weights: &Weights, probe: &Probe) -> f64 {
        let w = (0..weights.tensors.len()).flat_map(|tensor| weights.at(probe, tensor));
        self.loss(&w.map(f64::from).collect::<Vec<f64>>())
    }

    pub(super) fn loss_of(&self, weights: &Weights) -> f64 {
        self.loss(&flat(weights))
    }
}

/// Weights a little off zero.
pub(super) fn weights(distribution: Distribution) -> Weights {
    let mut place = 0;
    let mut next = || {
        place += 1;
        ((place * 13 % 11) as f32 - 5.0) / 50.0
    };
    let layout = layout();
    let sizes = layout.tensors.iter().map(|tensor| tensor.rows * tensor.cols);
    let tensors = sizes.map(|size| (0..size).map(|_| next()).collect()).collect();
    Weights::new(SEED, distribution, layout, tensors)
}

/// All weights in a row.
pub(super) fn flat(weights: &Weights) -> Vec<f64> {
    weights.tensors.iter().flatten().map(|&w| f64::from(w)).collect()
}

/// A direction's entries in a row.
pub(super) fn flat_direction(weights: &Weights, direction: &crate::tune::Direction) -> Vec<f64> {
    let tensors = 0..weights.tensors.len();
    tensors.flat_map(|tensor| weights.entries(direction, tensor)).map(f64::from).collect()
}

/// Carries one step out; returns its update.
pub(super) fn step(
    method: &mut dyn ZerothOrder,
    weights: &mut Weights,
    loss: &Quadratic,
    (step, rate): (u32, f64),
) -> Update {
    let mut plan = method.begin(step, rate);
    loop {
        match plan {
            Plan::Evaluate(probes) => {
                let losses: Vec<f64> = probes.iter().map(|p| loss.loss_at(weights, p)).collect();
                plan = method.answer(&losses);
            }
            Plan::Update(update) => {
                apply_update(&update, weights);
                return update;
            }
        }
    }
}

/// Makes `steps` steps; returns what is kept of them.
pub(super) fn run(
    method: &mut dyn ZerothOrder,
    weights: &mut Weights,
    loss: &Quadratic,
    (steps, rate): (u32, f64),
) -> Vec<Record> {
    let one = |t| {
        step(method, weights, loss, (t, rate));
        method.record().clone()
    };
    (0..steps).map(one).collect()
}
