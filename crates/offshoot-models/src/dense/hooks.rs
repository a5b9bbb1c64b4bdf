//! Where others reach into a step of the dense executor.

use candle_core::Tensor;

use crate::{Error, LinearId, NoHooks, SegmentRows, Site};

/// What may be watched or added while a step runs. Every method does nothing by default. Gradients
/// flow through what is shown and what is added.
pub trait DenseHooks {
    /// Sees the activations of `site`, `[rows, hidden_size]`, all rows of the step in order.
    ///
    /// # Errors
    /// Its own, which end the step.
    fn tap(&mut self, _site: Site, _rows: &Tensor) -> Result<(), Error> {
        Ok(())
    }

    /// What the first block takes of one segment in place of its tokens' embeddings, if anything:
    /// `[rows, hidden_size]`, scaled where the model scales them.
    ///
    /// # Errors
    /// Its own, which end the step.
    fn embedding(&mut self, _rows: SegmentRows) -> Result<Option<Tensor>, Error> {
        Ok(None)
    }

    /// What to add to a matrix's product for one segment, if anything: `x` is the input
    /// `[rows, cols]`, the answer is `[rows, width]`. Asked of every matrix; of the
    /// output head for the rows whose logits are asked for.
    ///
    /// # Errors
    /// Its own, which end the step.
    fn addend(
        &mut self,
        _linear: LinearId,
        _rows: SegmentRows,
        _x: &Tensor,
    ) -> Result<Option<Tensor>, Error> {
        Ok(None)
    }
}

impl DenseHooks for NoHooks {}
