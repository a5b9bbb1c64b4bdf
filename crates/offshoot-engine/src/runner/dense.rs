//! Steps of tensors.

use candle_core::{DType, Tensor};
use offshoot_kernels::Greatest;
use offshoot_models::{
    Adapter, DenseAdapters, DenseCache, DenseHooks, LinearId, ModelConfig, RopeId, Segment,
    SegmentRows, Site, VariantId,
};

use super::{Rows, Runner, Want};
use crate::executor::DenseType;
use crate::{Error, Model};

/// A cache of tensors, and what the last step gave.
#[derive(Debug)]
pub(super) struct DenseRunner {
    cache: DenseCache,
    /// Positions in the cache before the text.
    before: usize,
    noise: f32,
    bytes_per_position: usize,
    vocab_size: usize,
    logits: Vec<f32>,
    greatest: Vec<Result<Greatest, u32>>,
    /// The base, or the one variant of it that there is.
    variant: VariantId,
    hooks: Reached,
    /// One row of it, or all.
    row: Vec<f32>,
}

/// Adds the model's adapter, if it has one, and keeps what the output head multiplies.
#[derive(Debug, Default)]
struct Reached {
    adapters: Option<DenseAdapters>,
    /// The final norm's result for the last step's rows.
    normed: Option<Tensor>,
}

impl DenseHooks for Reached {
    fn tap(&mut self, site: Site, rows: &Tensor) -> Result<(), offshoot_models::Error> {
        if site == Site::Final {
            self.normed = Some(rows.clone());
        }
        Ok(())
    }

    fn addend(
        &mut self,
        linear: LinearId,
        rows: SegmentRows,
        x: &Tensor,
    ) -> Result<Option<Tensor>, offshoot_models::Error> {
        self.adapters.as_mut().map_or(Ok(None), |adapters| adapters.addend(linear, rows, x))
    }
}

impl DenseRunner {
    pub(super) fn new(model: &Model, dtype: DenseType, rope: RopeId) -> Result<Self, Error> {
        let config = model.config();
        if model.adapter().and_then(Adapter::scales).is_some() {
            // Factors belong to the blocks of packed weights.
            return Err(Error::OnlyPacked);
        }
        let cache = match model.adapter().and_then(Adapter::virtual_tokens) {
            Some(tokens) => model.dense()?.beginning(tokens, rope)?,
            None => DenseCache::new(config),
        };
        let lora = model.adapter().and_then(Adapter::lora).map(std::slice::from_ref);
        let adapters = lora.map(|all| DenseAdapters::new(model.dense()?, all).map_err(Error::from));
        let adapters = adapters.transpose()?;
        let width = config.num_key_value_heads * config.head_dim * dtype.bytes() as usize;
        Ok(Self {
            before: cache.len(),
            cache,
            noise: noise_of(config, dtype),
            bytes_per_position: 2 * config.num_hidden_layers * width,
            vocab_size: config.vocab_size,
            logits: Vec::new(),
            greatest: Vec::new(),
            variant: VariantId(u32::from(adapters.is_some())),
            hooks: Reached { adapters, normed: None },
            row: Vec::new(),
        })
    }
}

/// The library's errors are those of the models' room.
fn tensors(error: candle_core::Error) -> Error {
    offshoot_models::Error::from(error).into()
}

impl Runner for DenseRunner {
    fn step(&mut self, model: &Model, rows: Rows<'_>, want: Want) -> Result<(), Error> {
        let positions: Vec<u32> = rows.positions.iter().map(|p| self.before as u32 + p).collect();
        let segment = Segment {
            cache: &mut self.cache,
            tokens: rows.tokens,
            parents: rows.parents,
            positions: &positions,
            rope: rows.rope,
            variant: self.variant,
            logits: rows.logits,
        };
        self.greatest.clear();
        self.logits.clear();
        let logits = model.dense()?.step(&mut [segment], &mut self.hooks)?;
        let logits = logits.to_dtype(DType::F32).and_then(|x| x.flatten_all()?.to_vec1());
        self.logits = logits.map_err(tensors)?;
        if want == Want::Greatest {
            self.greatest.extend(self.logits.chunks_exact(self.vocab_size).map(Greatest::of));
        }
        Ok(())
    }

    fn logits_mut(&mut self) -> &mut [f32] {
        &mut self.logits
    }

    fn greatest(&self) -> &[Result<Greatest, u32>] {
        &self.greatest
    }

    fn head_input_row(&mut self, row: usize) -> Result<&[f32], Error> {
        self.row.clear();
        if let Some(rows) = &self.hooks.normed {
            let row = rows.get(row).and_then(|row| row.to_dtype(DType::F32)?.to_vec1());
            self.row = row.map_err(tensors)?;
        }
        Ok(&self.row)
    }

    fn states(&mut self) -> Result<&[f32], Error> {
        self.row.clear();
        if let Some(rows) = &self.hooks.normed {
            let rows = rows.to_dtype(DType::F32).and_then(|rows| rows.flatten_all()?.to_vec1());
            self.row = rows.map_err(tensors)?;
        }
        Ok(&self.row)
    }

    fn commit(&mut self, path: &[usize]) -> Result<(), Error> {
        Ok(self.cache.commit(path)?)
    }

    fn commit_chain(&mut self, rows: usize) -> Result<(), Error> {
        Ok(self.cache.commit(&(0..rows).collect::<Vec<_>>())?)
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(self.before + len);
    }

    fn bytes_per_position(&self) -> usize {
        self.bytes_per_position
    }

    fn noise(&self) -> Option<f32> {
        Some(self.noise)
    }
}

/// How much a row's logits change with the rows beside it. Where a router stands between two experts,
/// the last bit decides what a row goes through, and no bound is known.
fn noise_of(config: &ModelConfig, dtype: DenseType) -> f32 {
    if config.experts.is_some() { f32::INFINITY } else { dtype.noise() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use offshoot_models::Checkpoint;

    #[test]
    fn where_a_router_decides_no_bound_of_the_noise_is_known() {
        let models =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../offshoot-models/tests/data/logits");
        for (name, known) in [("qwen3_tied", true), ("qwen3_moe", false)] {
            let checkpoint = Checkpoint::open(&models.join(format!("{name}.gguf"))).unwrap();
            let noise = noise_of(checkpoint.config(), DenseType::F32);
            assert_eq!(noise.is_finite(), known, "{name}");
        }
    }
}
