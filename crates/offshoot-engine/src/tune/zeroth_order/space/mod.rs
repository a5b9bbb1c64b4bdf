//! What is tuned: tensors, and how a model is run with others in their place.

mod around;
mod before;
mod full;
mod lora;
mod parameters;
mod prefix;
mod prompt;
mod scales;

use std::path::Path;

use offshoot_kernels::{Distribution, KvCache};
use offshoot_methods::tune::{Layout, Probe, SpaceChoice, SpaceKind, Update};
use offshoot_models::{Hooks, PackedModel};

use crate::Error;
use crate::tune::numbers::PART;

pub(crate) use lora::layer_of;
pub(super) use parameters::tensor_ids;

pub use before::VirtualSpace;
pub use full::{FullOptions, FullSpace};
pub use lora::{Activations, LoraOptions, LoraSpace};
pub use prefix::PrefixOptions;
pub use prompt::PromptOptions;
pub use scales::{ScalesOptions, ScalesSpace};

/// Tensors that are tuned, of a model whose other weights stay as they are.
///
/// A probe never changes a weight: points stand beside the weights, as variants 1, 2, ... of the model,
/// for the steps that follow [`Space::stand_at`].
pub trait Space: std::fmt::Debug + Send {
    /// What is tuned, in ascending order of names.
    fn layout(&self) -> &Layout;

    /// What directions are drawn from.
    fn seed(&self) -> u64;

    /// How directions are drawn.
    fn distribution(&self) -> Distribution;

    /// Draws directions from another seed and distribution from now on.
    fn draw_from(&mut self, seed: u64, distribution: Distribution);

    /// What kind of space it is, as far as common learning rates tell.
    fn kind(&self) -> SpaceKind;

    /// What makes the space again: its name and all of its options.
    fn choice(&self) -> SpaceChoice;

    /// The model that steps run.
    fn model(&self) -> &PackedModel;

    /// Writes the rows from `first` on of tensor `tensor` of the layout to `out`, as many as fill it.
    ///
    /// # Errors
    /// If `out` ends within a row, or the tensor has fewer of them.
    fn read_rows(&self, tensor: usize, first: usize, out: &mut [f32]) -> Result<(), Error>;

    /// Writes tensor `tensor` of the layout, row by row, to `out`.
    ///
    /// # Errors
    /// If `out` has another length.
    fn read(&self, tensor: usize, out: &mut [f32]) -> Result<(), Error> {
        let spec = self.layout().tensors.get(tensor);
        match spec.filter(|spec| spec.rows * spec.cols == out.len()) {
            Some(_) => self.read_rows(tensor, 0, out),
            None => Err(other_length(tensor, out.len())),
        }
    }

    /// Replaces tensor `tensor` of the layout.
    ///
    /// # Errors
    /// If `values` has another length.
    fn write(&mut self, tensor: usize, values: &[f32]) -> Result<(), Error>;

    /// Carries out what a step does in the end.
    ///
    /// # Errors
    /// If a direction does not fit the layout; nothing is changed then.
    fn apply(&mut self, update: &Update) -> Result<(), Error>;

    /// How many points can stand beside the weights at once.
    fn lanes(&self) -> usize;

    /// Makes variant `i + 1` of the steps that follow the model at `probes[i]`.
    ///
    /// # Errors
    /// If there are more than [`Space::lanes`], or a direction does not fit the layout.
    fn stand_at(&mut self, probes: &[Probe]) -> Result<(), Error>;

    /// Hands the model and what reaches into its steps to `run`.
    ///
    /// # Errors
    /// Those of `run`.
    fn with_hooks(
        &mut self,
        run: &mut dyn FnMut(&PackedModel, &mut dyn Hooks) -> Result<(), Error>,
    ) -> Result<(), Error>;

    /// Whether products round what they multiply to fewer bits.
    fn rounds(&self) -> bool {
        false
    }

    /// Lets products round, where a space can choose, or not.
    fn set_rounding(&mut self, _rounds: bool) {}

    /// Positions that stand in a cache before a text's.
    fn positions_before(&self) -> usize {
        0
    }

    /// Fills an empty cache with what stands before a text at point `probe`.
    ///
    /// # Errors
    /// If the cache has too little room.
    fn begin_cache(&self, _probe: usize, _cache: &mut KvCache) -> Result<(), Error> {
        Ok(())
    }

    /// Makes sure that nothing of what is tuned was lost on its way to a disk, if that is where it is kept.
    ///
    /// # Errors
    /// If something was.
    fn sync(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Writes what was learned into `folder`, in the form in which it is served.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn write_variant(&self, folder: &Path) -> Result<(), Error>;
}

/// Shows tensor `tensor` of `space` to `see`, some whole rows at a time: memory holds no second copy of
/// it.
///
/// # Errors
/// Those of `see`, and if there is no such tensor.
pub(super) fn read_in_parts(
    space: &dyn Space,
    tensor: usize,
    see: &mut dyn FnMut(&mut [f32]) -> Result<(), Error>,
) -> Result<(), Error> {
    let spec = space.layout().tensors.get(tensor).ok_or_else(|| other_length(tensor, 0))?;
    let (rows, cols) = (spec.rows, spec.cols);
    let height = (PART / cols.max(1)).clamp(1, rows.max(1));
    let mut values = vec![0.0; height * cols];
    for first in (0..rows).step_by(height) {
        let part = &mut values[..height.min(rows - first) * cols];
        space.read_rows(tensor, first, part)?;
        see(part)?;
    }
    Ok(())
}

fn other_length(tensor: usize, length: usize) -> Error {
    Error::Training(format!("tensor {tensor} of the layout does not have {length} numbers"))
}
