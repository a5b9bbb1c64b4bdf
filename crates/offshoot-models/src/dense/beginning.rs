//! What virtual tokens stand for in steps of the dense executor: how a cache begins.

use candle_core::Tensor;

use super::{DenseCache, DenseHooks, DenseModel};
use crate::{
    Error, LogitRows, RopeId, Segment, SegmentRows, VariantId, VirtualKind, VirtualTokens, chain,
};

/// Puts a prompt in the place of embeddings.
struct Prompt(Tensor);

impl DenseHooks for Prompt {
    fn embedding(&mut self, _: SegmentRows) -> Result<Option<Tensor>, Error> {
        Ok(Some(self.0.clone()))
    }
}

impl DenseModel {
    /// A cache of `tokens` and no text, rotated by the table `rope`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if they are not of the model's sizes; [`Error::Tensors`] if the device has no
    /// room.
    pub fn beginning(&self, tokens: &VirtualTokens, rope: RopeId) -> Result<DenseCache, Error> {
        let (config, n) = (self.config(), tokens.tokens());
        let width = tokens.kind().width(config);
        if tokens.numbers().len() != n * width {
            let what = format!("virtual tokens of another model: {width} numbers are one here");
            return Err(Error::Adapter(what));
        }
        let numbers = |shape: &[usize]| {
            let all = Tensor::from_slice(tokens.numbers(), shape, self.device())?;
            all.to_dtype(self.dtype())
        };
        let mut cache = DenseCache::new(config);
        match tokens.kind() {
            VirtualKind::Prefix => {
                let (heads, head_dim) = (config.num_key_value_heads, config.head_dim);
                let all = numbers(&[n, config.num_hidden_layers, 2, heads, head_dim])?;
                for layer in 0..config.num_hidden_layers {
                    let of = |half: usize| {
                        let half = all.narrow(1, layer, 1)?.narrow(2, half, 1)?;
                        half.reshape((n, heads, head_dim))?.transpose(0, 1)?.contiguous()
                    };
                    cache.append(layer, of(0)?, of(1)?)?;
                }
                cache.end(n);
            }
            VirtualKind::Prompt => {
                let segment = Segment {
                    cache: &mut cache,
                    tokens: &vec![0; n],
                    parents: &chain(n),
                    positions: &(0..n as u32).collect::<Vec<_>>(),
                    rope,
                    variant: VariantId::default(),
                    logits: LogitRows::None,
                };
                let mut hooks = Prompt(numbers(&[n, config.hidden_size])?);
                self.step(&mut [segment], &mut hooks)?;
            }
        }
        cache.commit(&(0..n).collect::<Vec<_>>())?;
        cache.detach();
        Ok(cache)
    }
}
