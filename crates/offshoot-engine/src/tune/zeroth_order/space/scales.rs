//! The scales of a quantised model, whose codes stay.
//!
//! Shang et al. 2025, "Fine-tuning Quantized Neural Networks with Zeroth-order Optimization", section 3,
//! <https://arxiv.org/abs/2505.13430>, in relative form, as scales of one model differ by orders of
//! magnitude:
//! ```text
//! w_i = f_g D_g code_i        f_g >= 0, at first 1; g: a block of the format
//! ```
//! Tuned are the matrices of the blocks that are quantised, or those of some names; not the output head,
//! whose matrix may be the embedding's, and no experts. Points are made where products form their weights,
//! one at a time, each over all texts of a step; no byte of the base changes.
//!
//! Departs from the paper: it tunes the scales themselves, in 16 bits; a factor is held in single precision
//! and a format's minimum is multiplied as its scale is.
//! Cost: four bytes a block for the factors and as many for a point, which beside Q8_0 is an eighth each
//! and beside Q4_0 a quarter; a product as slow as with float weights.

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{Cpu, Distribution, Forming};
use offshoot_methods::tune::{Layout, SpaceChoice, SpaceKind, TensorSpec};
use offshoot_models::huggingface::scale_files;
use offshoot_models::{Hooks, LinearId, MatrixFactors, PackedModel, PackedScales, ScaleFactors};
use serde::{Deserialize, Serialize};

use super::around::Around;
use super::lora::{chosen, layer_of};
use super::parameters::Parameters;
use crate::Error;
use crate::beside::write_whole;

/// Which scales are tuned.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScalesOptions {
    /// The last parts of the names of the matrices, `q_proj`.
    pub targets: Vec<String>,
    /// Draws the directions.
    #[serde(skip)]
    pub seed: u64,
    /// How directions are drawn.
    #[serde(skip)]
    pub distribution: Distribution,
}

/// A quantised model and multiples of its scales.
#[derive(Debug)]
pub struct ScalesSpace {
    model: Arc<PackedModel>,
    options: ScalesOptions,
    parameters: Parameters,
    /// Of each tensor of the layout, its matrix and the columns of a group.
    matrices: Vec<(String, usize)>,
    standing: Standing,
}

/// Products with the factors that stand, on float activations.
#[derive(Debug, Default)]
struct Standing(PackedScales);

impl Hooks for Standing {
    fn forming(&self, linear: LinearId) -> Option<Forming<'_>> {
        Some(self.0.forming(linear).unwrap_or_default())
    }
}

impl ScalesSpace {
    /// The scales of `model` as they are.
    ///
    /// # Errors
    /// [`Error::Training`] if no matrix has one of the names or none of them is quantised.
    pub fn new(cpu: &Cpu, model: Arc<PackedModel>, options: &ScalesOptions) -> Result<Self, Error> {
        let mut tensors = Vec::new();
        for linear in chosen(model.blueprint(), &options.targets)? {
            let stored = model.checkpoint().require(&format!("{}.weight", linear.name))?;
            let group = stored.block.block_len();
            if group > 1 {
                let spec = TensorSpec {
                    name: format!("{}.scales", linear.name),
                    rows: linear.rows,
                    cols: linear.cols / group,
                    layer: layer_of(&linear.name),
                    vector: false,
                };
                tensors.push((spec, (linear.name.clone(), group)));
            }
        }
        if tensors.is_empty() {
            let what =
                "scales: none of the matrices is quantised: give --quantize, or another base";
            return Err(Error::Training(what.to_owned()));
        }
        tensors.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
        let (tensors, matrices): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
        let ones =
            tensors.iter().map(|spec: &TensorSpec| vec![1.0; spec.rows * spec.cols]).collect();
        let layout = Layout { tensors };
        let parameters = Parameters::new(cpu, layout, ones, options.seed, options.distribution)?;
        let options = options.clone();
        Ok(Self { model, options, parameters, matrices, standing: Standing::default() })
    }

    /// The factors that `values` of the parameters are.
    fn of(&self, values: &[Vec<f32>]) -> ScaleFactors {
        let each = self.matrices.iter().zip(&self.parameters.layout().tensors).zip(values);
        let factors = each.map(|(((name, group), spec), values)| {
            (name.clone(), MatrixFactors { rows: spec.rows, group: *group, values: values.clone() })
        });
        ScaleFactors { matrices: factors.collect() }
    }
}

impl Around for ScalesSpace {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn kind(&self) -> SpaceKind {
        SpaceKind::Scales
    }

    fn choice(&self) -> SpaceChoice {
        let options = serde_json::to_value(&self.options).unwrap_or_default();
        SpaceChoice { name: "scales".to_owned(), options }
    }

    fn model(&self) -> &PackedModel {
        &self.model
    }

    fn lanes(&self) -> usize {
        1
    }

    fn stand(&mut self, points: Vec<Vec<Vec<f32>>>) -> Result<(), Error> {
        let factors = points.first().map(|values| self.of(values)).unwrap_or_default();
        self.standing = Standing(PackedScales::new(self.model.blueprint(), factors)?);
        Ok(())
    }

    fn bound(values: &mut [f32]) {
        values.iter_mut().for_each(|x| *x = x.max(0.0));
    }

    fn with_hooks(
        &mut self,
        run: &mut dyn FnMut(&PackedModel, &mut dyn Hooks) -> Result<(), Error>,
    ) -> Result<(), Error> {
        run(&self.model, &mut self.standing)
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        let base = self.model.checkpoint().name();
        for (name, bytes) in scale_files(&self.of(self.parameters.values()), base) {
            write_whole(&folder.join(name), &bytes)?;
        }
        Ok(())
    }
}
