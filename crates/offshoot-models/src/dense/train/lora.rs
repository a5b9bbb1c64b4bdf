//! LoRA matrices that are trained.

use candle_core::{Tensor, Var};

use super::super::DenseModel;
use super::super::ops::LowRankPair;
use crate::{Error, LinearId, LoraAdapter};

/// What is dropped of the inputs of LoRA's products (Hu et al. 2021, appendix D).
pub trait DropoutMasks {
    /// For each number of these rows of all texts' that are multiplied with LoRA's `A` of `linear`,
    /// `[rows, cols]`, 0 or one over the chance that it is kept. The same whenever it is asked for in a
    /// step.
    fn mask(&self, linear: LinearId, rows: &[u32], cols: usize) -> Vec<f32>;
}

/// The matrices of LoRA over a model, as variables.
#[derive(Debug)]
pub(super) struct DenseLora {
    /// By the model's matrices.
    pairs: Vec<Option<Pair>>,
}

#[derive(Debug)]
struct Pair {
    a: Var,
    b: Var,
    scale: f64,
    freeze_a: bool,
}

impl DenseLora {
    /// Variables that begin as `adapter`.
    pub(super) fn new(
        model: &DenseModel,
        adapter: &LoraAdapter,
        freeze_a: bool,
    ) -> Result<Self, Error> {
        let blueprint = model.blueprint();
        let mut pairs: Vec<Option<Pair>> = blueprint.linears.iter().map(|_| None).collect();
        for (id, low) in adapter.by_matrix(blueprint)? {
            let linear = &blueprint.linears[id.index()];
            let variable = |numbers: &[f32], shape: (usize, usize)| {
                let tensor = Tensor::from_slice(numbers, shape, model.device())?;
                Var::from_tensor(&tensor.to_dtype(model.dtype())?)
            };
            let a = variable(&low.a, (low.rank, linear.cols))?;
            let b = variable(&low.b, (linear.rows, low.rank))?;
            pairs[id.index()] = Some(Pair { a, b, scale: f64::from(low.scale), freeze_a });
        }
        Ok(Self { pairs })
    }

    /// What is trained, by name.
    pub(super) fn variables(&self, model: &DenseModel) -> Vec<(String, Var)> {
        let mut variables = Vec::new();
        for (linear, pair) in model.blueprint().linears.iter().zip(&self.pairs) {
            let Some(pair) = pair else { continue };
            if !pair.freeze_a {
                variables.push((format!("{}.lora_A.weight", linear.name), pair.a.clone()));
            }
            variables.push((format!("{}.lora_B.weight", linear.name), pair.b.clone()));
        }
        variables.sort_by(|(a, _), (b, _)| a.cmp(b));
        variables
    }

    /// All pairs, as constants.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (LinearId, LowRankPair)> {
        let linears = (0..self.pairs.len()).map(LinearId);
        linears.filter_map(|linear| Some((linear, self.pair(linear, false)?)))
    }

    /// The pair of a matrix, if it has one; with gradients if `graph`.
    pub(super) fn pair(&self, linear: LinearId, graph: bool) -> Option<LowRankPair> {
        let Pair { a, b, scale, freeze_a } = self.pairs.get(linear.index())?.as_ref()?;
        let tensor = |variable: &Var, graph: bool| match graph {
            true => variable.as_tensor().clone(),
            false => variable.as_detached_tensor(),
        };
        let (a, b) = (tensor(a, graph && !freeze_a), tensor(b, graph));
        Some(LowRankPair { a, b, scale: *scale })
    }
}
