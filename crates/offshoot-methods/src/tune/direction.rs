//! Random directions in the space of what is tuned.

use std::sync::Arc;

pub use offshoot_kernels::Distribution;

/// What a direction looks like within a matrix. Vectors always have independent entries.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Form {
    /// Independent entries.
    #[default]
    Dense,
    /// `U V^T / sqrt(rank)`: `U` is new in each step, `V` in each epoch.
    LowRank {
        /// Columns of `U` and `V`.
        rank: u32,
        /// What `V` is drawn for.
        epoch: u32,
    },
}

/// A direction: nothing but its name, from which its entries follow.
#[derive(Debug, Clone, PartialEq)]
pub struct Direction {
    /// The step that draws it.
    pub step: u32,
    /// Which of the step's directions it is, from 0 on.
    pub index: u32,
    /// Its form.
    pub form: Form,
    /// For each tensor of the [`Layout`] whether the direction is other than zero there; all are if
    /// there is no list.
    pub tensors: Option<Arc<[bool]>>,
}

/// A tensor that is tuned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its canonical name.
    pub name: String,
    /// Rows; of a vector 1.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// The layer it belongs to, if it belongs to one.
    pub layer: Option<usize>,
}

/// All that is tuned, in ascending order of names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The tensors.
    pub tensors: Vec<TensorSpec>,
}
