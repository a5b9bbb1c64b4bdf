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

use offshoot_kernels::{Distribution, FloatStore, KvCache, Traffic};
use offshoot_methods::tune::{Layout, Probe, SpaceChoice, SpaceKind, TensorSpec, Update};
use offshoot_models::{PackedExecutor, PackedModel, StagedStep};

use super::dense::DensePoints;
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
    ///
    /// # Errors
    /// As [`Space::settle`].
    fn draw_from(&mut self, seed: u64, distribution: Distribution) -> Result<(), Error>;

    /// What kind of space it is, as far as common learning rates tell.
    fn kind(&self) -> SpaceKind;

    /// What makes the space again: its name and all of its options.
    fn choice(&self) -> SpaceChoice;

    /// What matrices are stored as. Vectors, and all that is tuned beside a model, are in single precision.
    fn store(&self) -> FloatStore {
        FloatStore::F32
    }

    /// The model that steps run.
    fn model(&self) -> &PackedModel;

    /// Writes the rows from `first` on of tensor `tensor` of the layout to `out`, as many as fill it.
    ///
    /// # Errors
    /// If `out` ends within a row, the tensor has fewer of them, or is not [settled](Space::settle).
    fn read_rows(&self, tensor: usize, first: usize, out: &mut [f32]) -> Result<(), Error>;

    /// Writes tensor `tensor` of the layout, row by row, to `out`.
    ///
    /// # Errors
    /// If `out` has another length, and as [`Space::read_rows`].
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

    /// Carries out what step `step` does in the end, or keeps it in mind until the next step reads the
    /// weights: steps see it as done. Weights that are rounded by chance are so by its number.
    ///
    /// # Errors
    /// If a direction does not fit the layout; nothing is changed then. And as [`Space::settle`].
    fn apply(&mut self, step: u32, update: &Update) -> Result<(), Error>;

    /// Carries out what was kept in mind, so that the weights can be read. They always can unless an
    /// update was applied since.
    ///
    /// # Errors
    /// If weights are on a disk that fails.
    fn settle(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// How many points can stand beside the weights at once.
    fn lanes(&self) -> usize;

    /// Whether a step is of one point alone, and those that are run together read the weights once.
    fn side_by_side(&self) -> bool {
        false
    }

    /// Makes variant `i + 1` of the steps that follow the model at `probes[i]`.
    ///
    /// # Errors
    /// If there are more than [`Space::lanes`], or a direction does not fit the layout.
    fn stand_at(&mut self, probes: &[Probe]) -> Result<(), Error>;

    /// Makes variant `i + 1` of the steps that `dense` runs the model at `probes[i]`. As many stand
    /// at once as by [`Space::stand_at`], or one where steps go [side by
    /// side](Space::side_by_side).
    ///
    /// # Errors
    /// [`Error::OnlyPacked`] if the space is one of the packed executor alone; [`Error::Model`] if
    /// the device has no room; and as [`Space::stand_at`] and [`Space::settle`].
    fn stand_on(&mut self, _probes: &[Probe], _dense: &mut DensePoints) -> Result<(), Error> {
        Err(Error::OnlyPacked)
    }

    /// Runs `steps`, whose segments are of the points that stand.
    ///
    /// # Errors
    /// Those of the steps, and as [`Space::settle`].
    fn run(
        &mut self,
        executor: &mut PackedExecutor,
        steps: &mut [StagedStep<'_, '_>],
    ) -> Result<(), Error>;

    /// What was read and written so far of the file that weights lie in, if they do.
    fn traffic(&self) -> Option<Traffic> {
        None
    }

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
    /// If a file cannot be written, and as [`Space::read_rows`].
    fn write_variant(&self, folder: &Path) -> Result<(), Error>;
}

/// What the tensor of `spec` is stored as in `space`.
pub(super) fn float_of(space: &dyn Space, spec: &TensorSpec) -> FloatStore {
    if spec.vector { FloatStore::F32 } else { space.store() }
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
