//! A variant of a quantised model as multiples of the scales of its weights.
//!
//! Shang et al. 2025, "Fine-tuning Quantized Neural Networks with Zeroth-order Optimization",
//! <https://arxiv.org/abs/2505.13430>, section 3: the codes of a quantised matrix stay and its scales `D`
//! are tuned. Here a scale is a multiple of its first value:
//! ```text
//! w_i = f_g D_g code_i        g: the group that shares the scale, f_g >= 0, at first 1
//! ```
//! Formats with a minimum beside the scale have it multiplied as well, and those with scales within scales
//! the outer one, so that a group is a block of the format. The base's bytes stay as they are and are
//! shared by all its variants; products form their weights with the factors, on float activations.

use std::collections::BTreeMap;

use offshoot_kernels::{Forming, GroupFactors};

use crate::{Blueprint, Error, LinearId};

/// The factors of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixFactors {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of a group.
    pub group: usize,
    /// `[rows, cols / group]`.
    pub values: Vec<f32>,
}

impl MatrixFactors {
    /// Whether they are of a matrix `[rows, cols]`, in groups that products can multiply by.
    pub(crate) fn fit(&self, rows: usize, cols: usize) -> bool {
        self.group > 0
            && self.group.is_multiple_of(32)
            && cols.is_multiple_of(self.group)
            && self.rows == rows
            && self.values.len() == rows * (cols / self.group)
    }

    /// Multiplies `weights`, which are row `row`, by its factors.
    pub(crate) fn multiply_row(&self, row: usize, weights: &mut [f32]) {
        let groups = weights.len() / self.group;
        let factors = &self.values[row * groups..(row + 1) * groups];
        for (group, factor) in weights.chunks_mut(self.group).zip(factors) {
            group.iter_mut().for_each(|weight| *weight *= factor);
        }
    }
}

/// Factors by the canonical names of the matrices, as in [`crate::LinearSpec::name`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScaleFactors {
    /// What the scales of which matrix are multiplied by.
    pub matrices: BTreeMap<String, MatrixFactors>,
}

impl ScaleFactors {
    pub(crate) fn hash(&self, hasher: &mut blake3::Hasher) {
        for (name, MatrixFactors { group, values, .. }) in &self.matrices {
            hasher.update(name.as_bytes()).update(&(*group as u64).to_le_bytes());
            for number in values {
                hasher.update(&number.to_le_bytes());
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.matrices.values().map(|factors| factors.values.len()).sum()
    }
}

/// Factors by the matrices of a model, as products take them.
#[derive(Debug, Clone, Default)]
pub struct PackedScales {
    by_linear: Vec<Option<MatrixFactors>>,
}

impl PackedScales {
    /// The factors for the model that asks for `blueprint`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if a matrix is missing there or has another shape.
    pub fn new(blueprint: &Blueprint, factors: ScaleFactors) -> Result<Self, Error> {
        let mut by_linear = vec![None; blueprint.linears.len()];
        for (name, factors) in factors.matrices {
            let wrong = |what: &str| Error::Adapter(format!("matrix {name}: {what}"));
            let at = blueprint.linears.iter().position(|linear| linear.name == name);
            let at = at.ok_or_else(|| wrong("the model has none"))?;
            let linear = &blueprint.linears[at];
            if !factors.fit(linear.rows, linear.cols) {
                return Err(wrong("scales of another shape than the model's"));
            }
            by_linear[at] = Some(factors);
        }
        Ok(Self { by_linear })
    }

    /// How the weights of `linear` are formed, if they have factors.
    pub fn forming(&self, linear: LinearId) -> Option<Forming<'_>> {
        let MatrixFactors { group, values, .. } = self.by_linear.get(linear.index())?.as_ref()?;
        let factors = Some(GroupFactors { values, group: *group });
        Some(Forming { factors, ..Forming::default() })
    }
}
