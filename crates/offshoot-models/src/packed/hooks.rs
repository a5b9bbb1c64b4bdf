//! Where others reach into a step of the packed executor.

use offshoot_kernels::{Forming, Forms, Term};

use crate::{LinearId, Site, VariantId, VectorId};

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

    /// Whether [`Hooks::embedded`] is to be called for the variant's segments.
    fn embeds(&self, _variant: VariantId) -> bool {
        false
    }

    /// Changes what the first block takes of one segment, `[rows, hidden_size]`: its tokens' embeddings,
    /// scaled where the model scales them.
    fn embedded(&mut self, _rows: SegmentRows, _x: &mut [f32]) {}

    /// Whether [`Hooks::addend`] is to be called for `linear` and the variant's segments.
    fn adds(&self, _linear: LinearId, _variant: VariantId) -> bool {
        false
    }

    /// Adds to a matrix's product for one segment: `x` is the input `[rows, cols]`, `y` the product
    /// `[rows, width]`. This is where a variant's low-rank or one-bit difference comes in.
    fn addend(&mut self, _linear: LinearId, _rows: SegmentRows, _x: &[f32], _y: &mut [f32]) {}

    /// How the weights of `linear` are formed for the product, tile by tile, if they are not taken as
    /// they are stored. The product then runs on float activations, and no stored weight changes.
    fn forming(&self, _linear: LinearId) -> Option<Forming<'_>> {
        None
    }

    /// What is added to the bias of `linear`, a tensor of one row.
    fn bias_terms(&self, _linear: LinearId) -> &[Term<'_>] {
        &[]
    }

    /// What is added to a vector, a tensor of one row.
    fn vector_terms(&self, _vector: VectorId) -> &[Term<'_>] {
        &[]
    }

    /// What is added to the embedding, `[vocab_size, hidden_size]`. Where it is the output head too,
    /// [`Hooks::forming`] is asked for the head's part all the same.
    fn embedding_terms(&self) -> &[Term<'_>] {
        &[]
    }

    /// Forms of activations that products formed as [`Hooks::forming`] says need, beside those of the
    /// model's own weights.
    fn forms(&self) -> Forms {
        Forms::default()
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {}
