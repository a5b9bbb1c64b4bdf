//! Random directions in the space of what is tuned.

use std::sync::Arc;

pub use offshoot_kernels::Distribution;
use sha2::{Digest, Sha256};

use super::{Hash, Mask};

/// What a direction looks like within a matrix. Tensors of one row always have independent
/// entries. All but the first are products of two factors: see
/// [`Factors`](super::Factors).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
    /// A direction `U V_from^T / sqrt(rank)` of an earlier epoch, carried over to the space of a
    /// later one: `U T V_to^T / sqrt(rank)`, where `T` is the product of `V_e^T V_(e+1) / columns`
    /// over the epochs `e` from `from` to `to - 1`, in this order.
    Carried {
        /// Columns of `U` and `V`.
        rank: u32,
        /// The epoch in which `U` was drawn.
        from: u32,
        /// The epoch whose `V` it is given.
        to: u32,
    },
    /// `P Z Q^T sqrt(rows columns) / rank`: `P` and `Q` have orthonormal columns and are new in
    /// each epoch, `Z` is square, independent and new in each step. The rank is at most the smaller
    /// side.
    Subspace {
        /// Columns of `P` and `Q`.
        rank: u32,
        /// What `P` and `Q` are drawn for.
        epoch: u32,
    },
}

/// A direction: nothing but its name, from which its entries follow.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Direction {
    /// The step that draws it.
    pub step: u32,
    /// Which of the step's directions it is, from 0 on, below 2^24.
    pub index: u32,
    /// Its form.
    pub form: Form,
    /// For each tensor of the [`Layout`] whether the direction is other than zero there; all are if
    /// there is no list.
    pub tensors: Option<Arc<[bool]>>,
    /// Which elements of those tensors it leaves as they are.
    pub mask: Mask,
}

impl Direction {
    /// The direction of independent entries everywhere.
    pub fn dense(step: u32, index: u32) -> Self {
        Self { step, index, ..Self::default() }
    }

    /// Whether it is other than zero in tensor `tensor` of the layout.
    pub fn covers(&self, tensor: usize) -> bool {
        self.tensors.as_ref().is_none_or(|tensors| tensors.get(tensor).copied().unwrap_or(false))
    }
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
    /// Whether it is a vector, as norms and biases are: these do not decay. A matrix may have one
    /// row, too, as LoRA's of rank 1 have.
    pub vector: bool,
}

/// All that is tuned, in ascending order of names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// The tensors.
    pub tensors: Vec<TensorSpec>,
}

impl Layout {
    /// How many numbers are tuned.
    pub fn elements(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.rows * tensor.cols).sum()
    }

    /// The layers that tensors belong to, each once, ascending.
    pub fn layers(&self) -> Vec<usize> {
        let mut layers: Vec<usize> =
            self.tensors.iter().filter_map(|tensor| tensor.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        layers
    }

    /// What tells this layout from others: SHA-256 over each tensor's name, a zero byte, rows,
    /// columns and layer plus 1 (0 for none), as 64 bits each, the lowest byte first.
    pub fn hash(&self) -> Hash {
        let mut sha = Sha256::new();
        for tensor in &self.tensors {
            sha.update(tensor.name.as_bytes());
            sha.update([0]);
            let layer = tensor.layer.map_or(0, |layer| layer as u64 + 1);
            for number in [tensor.rows as u64, tensor.cols as u64, layer] {
                sha.update(number.to_le_bytes());
            }
        }
        Hash(sha.finalize().into())
    }
}
