//! Where others reach into a step of the packed executor.

use offshoot_kernels::Perturbation;

use crate::{LinearId, Site, VariantId};

/// The rows of a step that belong to one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRows {
    /// The segment's place in the step.
    pub segment: usize,
    /// Its variant.
    pub variant: VariantId,
    /// Its number of rows; of the output head, the rows whose logits are asked for; of an
    /// expert, those that go through it, ascending.
    pub rows: usize,
}

/// What may be watched or added while a step runs. Every method does nothing by default.
pub trait Hooks {
    /// Whether [`Hooks::tap`] is to be called for `site`.
    fn taps(&self, _site: Site) -> bool {
        false
    }

    /// Sees the activations of `site`, `[rows, width]`, all rows of the step in order.
    fn tap(&mut self, _site: Site, _rows: &[f32], _width: usize) {}

    /// Whether [`Hooks::addend`] is to be called for `linear` and the variant's segments.
    fn adds(&self, _linear: LinearId, _variant: VariantId) -> bool {
        false
    }

    /// Adds to a matrix's product for one segment: `x` is the input `[rows, cols]`, `y` the product
    /// `[rows, width]`. This is where a variant's low-rank or one-bit difference comes in.
    fn addend(&mut self, _linear: LinearId, _rows: SegmentRows, _x: &[f32], _y: &mut [f32]) {}

    /// What to add to the weights of `linear` inside the product, tile by tile, if anything. The
    /// product then runs on float activations, and no stored weight changes.
    fn perturbation(&self, _linear: LinearId) -> Option<&dyn Perturbation> {
        None
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {}
