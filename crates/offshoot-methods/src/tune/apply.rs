//! What probes and updates do to the weights, element by element: the definition that everything
//! faster is tested against.

use offshoot_kernels::{Distribution, tensor_id};

use super::factors::{Draw, Factors};
use super::{Direction, Layout, Probe, Term, Update};

/// A direction in one tensor, ready to be read.
enum Entries {
    Zero,
    Independent(offshoot_kernels::Noise),
    Product(Factors, usize),
}

/// The tensors of a run and what their directions are drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// The run's seed.
    pub seed: u64,
    /// The run's distribution.
    pub distribution: Distribution,
    /// The shapes.
    pub layout: Layout,
    /// The tensors before the first step, row-major, in the layout's order: masks may need them.
    pub first: Vec<Vec<f32>>,
    /// The tensors now.
    pub tensors: Vec<Vec<f32>>,
}

impl Weights {
    /// Weights before the first step. The tensors have the layout's sizes.
    pub fn new(seed: u64, distribution: Distribution, layout: Layout, t: Vec<Vec<f32>>) -> Self {
        Self { seed, distribution, layout, first: t.clone(), tensors: t }
    }

    /// All entries of `direction` in tensor `index`, row-major.
    pub fn entries(&self, direction: &Direction, index: usize) -> Vec<f32> {
        let (draw, count) = (self.draw(index), self.first[index].len());
        let entries = if !direction.covers(index) {
            Entries::Zero
        } else if let Some(factors) = draw.factors(direction) {
            Entries::Product(factors, draw.cols)
        } else {
            Entries::Independent(draw.entries(direction))
        };
        let mut z: Vec<f32> = (0..count).map(|element| entries.at(element)).collect();
        if let Some(bits) = self.mask(direction, index) {
            let is_out = |element: usize| bits[element / 64] >> (element % 64) & 1 == 0;
            (0..count).filter(|&e| is_out(e)).for_each(|element| z[element] = 0.0);
        }
        z
    }

    /// What the mask of `direction` leaves of tensor `index`, as [`Mask::bits`](super::Mask::bits) has it.
    pub fn mask(&self, direction: &Direction, index: usize) -> Option<Vec<u64>> {
        let (first, draw) = (&self.first[index], self.draw(index));
        let bits = direction.mask.bits(self.seed, draw.tensor, first.len(), || {
            Ok::<_, std::convert::Infallible>(first.clone())
        });
        match bits {
            Ok(bits) => bits,
        }
    }

    /// Tensor `index` at `probe`.
    pub fn at(&self, probe: &Probe, index: usize) -> Vec<f32> {
        let sum = self.sum(&probe.terms, index);
        self.tensors[index].iter().zip(sum).map(|(w, u)| w + u).collect()
    }

    /// The sum of `terms` in tensor `index`.
    fn sum(&self, terms: &[Term], index: usize) -> Vec<f32> {
        let mut sum = vec![0.0; self.tensors[index].len()];
        for term in terms {
            let z = self.entries(&term.direction, index);
            sum.iter_mut().zip(z).for_each(|(u, z)| *u += term.scale * z);
        }
        sum
    }

    fn draw(&self, index: usize) -> Draw {
        let tensor = &self.layout.tensors[index];
        let (seed, distribution) = (self.seed, self.distribution);
        let (rows, cols) = (tensor.rows, tensor.cols);
        Draw { seed, distribution, tensor: tensor_id(&tensor.name), rows, cols }
    }
}

impl Entries {
    fn at(&self, element: usize) -> f32 {
        match self {
            Self::Zero => 0.0,
            Self::Independent(noise) => noise.at(element as u64),
            Self::Product(factors, cols) => factors.at(element / cols, element % cols),
        }
    }
}

/// Carries `update` out on `weights`: the definition of what it means, slow.
pub fn apply_update(update: &Update, weights: &mut Weights) {
    for index in 0..weights.tensors.len() {
        let is_vector = weights.layout.tensors[index].vector;
        let step = match update {
            Update::Linear { terms, .. } => weights.sum(terms, index),
            Update::Moments { .. } => moments_step(update, weights, index),
        };
        let (Update::Linear { decay, .. } | Update::Moments { decay, .. }) = *update;
        let keep = if is_vector { 1.0 } else { 1.0 - decay };
        for (w, u) in weights.tensors[index].iter_mut().zip(step) {
            *w = *w * keep - u;
        }
    }
}

/// What [`Update::Moments`] takes from tensor `index`.
fn moments_step(update: &Update, weights: &Weights, index: usize) -> Vec<f32> {
    let Update::Moments { rate, first, second, epsilon, group, history, .. } = update else {
        return Vec::new();
    };
    let Update::Moments { first_correction, second_correction, .. } = update else {
        return Vec::new();
    };
    let count = weights.tensors[index].len();
    let (mut m, mut v) = (vec![0.0_f32; count], vec![0.0_f32; count]);
    for gradient in history.chunks((*group).max(1) as usize) {
        let g = weights.sum(gradient, index);
        for ((m, v), g) in m.iter_mut().zip(&mut v).zip(g) {
            *m = first * *m + (1.0 - first) * g;
            *v = second * *v + (1.0 - second) * (g * g);
        }
    }
    let step = |(m, v): (f32, f32)| {
        rate * (m * first_correction) / ((v * second_correction).sqrt() + epsilon)
    };
    m.into_iter().zip(v).map(step).collect()
}
