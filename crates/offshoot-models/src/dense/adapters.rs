//! Adapters in steps of the dense executor.

use candle_core::Tensor;

use super::{DenseHooks, DenseModel};
use crate::{Error, LinearId, LoraAdapter, SegmentRows};

/// The differences of variants 1, 2, ... as tensors: variant `i` is adapter `i - 1`.
#[derive(Debug)]
pub struct DenseAdapters {
    /// By variant, then by matrix: `A^T [cols, rank]` and `s B^T [rank, rows]`.
    variants: Vec<Vec<Option<(Tensor, Tensor)>>>,
}

impl DenseAdapters {
    /// Brings `adapters` to the device of `model`, in its number type.
    ///
    /// # Errors
    /// [`Error::Adapter`] if one changes a matrix that the model does not have, or has of another
    /// shape; [`Error::Tensors`] if the device has no room.
    pub fn new(model: &DenseModel, adapters: &[LoraAdapter]) -> Result<Self, Error> {
        let blueprint = model.blueprint();
        let tensor = |values: &[f32], rows: usize, cols: usize| {
            let tensor = Tensor::from_slice(values, (rows, cols), model.device())?;
            tensor.to_dtype(model.dtype())?.t()?.contiguous()
        };
        let brought = |adapter: &LoraAdapter| {
            let mut pairs = vec![None; blueprint.linears.len()];
            for (id, low) in adapter.by_matrix(blueprint)? {
                let linear = &blueprint.linears[id.index()];
                let scaled: Vec<f32> = low.b.iter().map(|x| low.scale * x).collect();
                let a = tensor(&low.a, low.rank, linear.cols)?;
                pairs[id.index()] = Some((a, tensor(&scaled, linear.rows, low.rank)?));
            }
            Ok(pairs)
        };
        Ok(Self { variants: adapters.iter().map(brought).collect::<Result<_, Error>>()? })
    }
}

impl DenseHooks for DenseAdapters {
    fn addend(
        &mut self,
        linear: LinearId,
        rows: SegmentRows,
        x: &Tensor,
    ) -> Result<Option<Tensor>, Error> {
        let at = (rows.variant.0 as usize).wrapping_sub(1);
        let of_variant = self.variants.get(at).and_then(|pairs| pairs.get(linear.index()));
        let Some((a, b)) = of_variant.and_then(Option::as_ref) else { return Ok(None) };
        Ok(Some(x.matmul(a)?.matmul(b)?))
    }
}
