//! A variant of a model as low-rank differences of its matrices.
//!
//! Hu et al. 2021, "LoRA", section 4.1, <https://arxiv.org/abs/2106.09685>: a matrix `W` of the base
//! becomes
//! ```text
//! W' = W + s B A        A [r, cols], B [rows, r]        s = alpha / r
//! ```
//! or, with rank-stabilised scaling (Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732>),
//! `s = alpha / sqrt(r)`. The base's weights stay as they are and are shared by all variants; a step
//! adds `s B (A x)` to the products `W x` of the rows that run as the variant.

use std::collections::BTreeMap;

use crate::{Blueprint, Error, LinearId};

/// The difference of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// `r`, at least 1.
    pub rank: usize,
    /// `s`.
    pub scale: f32,
    /// `A`, `[rank, cols]`.
    pub a: Vec<f32>,
    /// `B`, `[rows, rank]`.
    pub b: Vec<f32>,
}

/// The differences of a variant, by the canonical names of the matrices, as in
/// [`crate::LinearSpec::name`]. Their shapes are those that the model's architecture asks for.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoraAdapter {
    /// What is added to which matrix.
    pub matrices: BTreeMap<String, LowRank>,
}

impl LoraAdapter {
    /// The differences by the matrices of `blueprint`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if a matrix is missing there or has another shape.
    pub(crate) fn by_matrix<'a>(
        &'a self,
        blueprint: &Blueprint,
    ) -> Result<Vec<(LinearId, &'a LowRank)>, Error> {
        let one = |(name, low): (&String, &'a LowRank)| {
            let wrong = |what: &str| Error::Adapter(format!("matrix {name}: {what}"));
            let id = blueprint.linear_id(name).ok_or_else(|| wrong("the model has none"))?;
            let linear = &blueprint.linears[id.index()];
            let fits =
                low.a.len() == low.rank * linear.cols && low.b.len() == linear.rows * low.rank;
            match fits && low.rank > 0 {
                true => Ok((id, low)),
                false => Err(wrong("of another shape than the model's")),
            }
        };
        self.matrices.iter().map(one).collect()
    }

    /// Bytes of the differences in single precision.
    pub fn bytes(&self) -> usize {
        self.matrices.values().map(|m| 4 * (m.a.len() + m.b.len())).sum()
    }
}
