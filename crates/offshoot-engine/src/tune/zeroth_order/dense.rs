//! Points on the dense executor: texts run on a device, all else stays with the processor.
//!
//! The division of labour is that of ZO2 (Wang et al. 2025, <https://arxiv.org/abs/2503.12668>):
//! the processor's memory has what is tuned, and the processor makes directions and updates, by the
//! code that a run on the packed executor has; a device is brought a point and runs texts there. So
//! a run's directions, its updates and its trajectory have the same bits wherever losses are
//! computed, and a trajectory is replayed without a device. The losses differ in their last bits.
//!
//! ```text
//! weights    w + sum of scale z, tensor by tensor, made by the processor and brought to the device;
//!            what does not differ from what is there is not brought again
//! LoRA       the model is brought once, and the matrices of each point, which share steps
//! ```
//! Departs from ZO2: the device keeps a whole model, and what it is brought is not brought while it
//! runs.
//!
//! Cost: on the device a model of its numbers and a step's activations; in the processor's memory a
//! tensor more than without.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use offshoot_kernels::argmax;
use offshoot_methods::tune::Term;
use offshoot_models::{
    Checkpoint, DenseAdapters, DenseCache, DenseHooks, DenseModel, LogitRows, LoraAdapter, NoHooks,
    RopeId, Segment, VariantId, chain,
};

use super::forward::{Order, Pair, TokenScore};
use super::tree::TextTree;
use crate::{DenseDevice, DenseType, Error};

/// A model on the dense executor, at points of a space.
#[derive(Debug)]
pub struct DensePoints {
    model: DenseModel,
    /// What stands beside the model, if that is what is tuned.
    adapters: Option<DenseAdapters>,
    /// Of tensors that were brought, what they were then.
    brought: HashMap<usize, Brought>,
    /// Those of sequences that are gone on with.
    caches: Vec<DenseCache>,
}

/// A tensor on the device: which of the weights it was made of, and what was added.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Brought {
    /// How often the tensor had changed.
    pub(super) changes: u64,
    /// What was added.
    pub(super) terms: Vec<Term>,
}

/// The library's errors are those of the models' room.
fn tensors(error: candle_core::Error) -> Error {
    offshoot_models::Error::from(error).into()
}

impl DensePoints {
    /// The model of `checkpoint` on `device`, in numbers of type `dtype`, at no point.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such device; [`Error::Model`] as [`DenseModel::load`].
    pub fn new(
        checkpoint: &Checkpoint,
        device: DenseDevice,
        dtype: DenseType,
    ) -> Result<Self, Error> {
        let model = DenseModel::load(checkpoint, &device.open()?, dtype.dtype())?;
        Ok(Self { model, adapters: None, brought: HashMap::new(), caches: Vec::new() })
    }

    /// The model, at the point of weights that stood last.
    pub fn model(&self) -> &DenseModel {
        &self.model
    }

    /// Puts `adapters` beside the model: variant `i + 1` has `adapters[i]`.
    pub(super) fn add(&mut self, adapters: &[LoraAdapter]) -> Result<(), Error> {
        self.adapters = Some(DenseAdapters::new(&self.model, adapters)?);
        Ok(())
    }

    /// Whether tensor `tensor` is there as `wanted`.
    pub(super) fn has(&self, tensor: usize, wanted: &Brought) -> bool {
        self.brought.get(&tensor) == Some(wanted)
    }

    /// Brings tensor `tensor`, called `name`, which is `brought` and has these `values`, row by
    /// row.
    pub(super) fn bring(
        &mut self,
        (tensor, name): (usize, &str),
        brought: Brought,
        values: Vec<f32>,
    ) -> Result<(), Error> {
        self.brought.remove(&tensor);
        let old = self.model.tensor(name)?;
        let (dtype, device) = (old.dtype(), self.model.device());
        let new = Tensor::from_vec(values, old.dims(), &Device::Cpu);
        let new = new.and_then(|new| new.to_dtype(dtype)?.to_device(device)).map_err(tensors)?;
        self.model.set(name, new)?;
        self.brought.insert(tensor, brought);
        Ok(())
    }

    /// Scores of the targets of the texts of `pairs`, which share a step: text by text.
    pub(super) fn scores(
        &mut self,
        pairs: &[Pair],
        texts: &[TextTree],
    ) -> Result<Vec<TokenScore>, Error> {
        let Self { model, adapters, .. } = self;
        let mut caches = vec![DenseCache::new(model.config()); pairs.len()];
        let asked: Vec<Vec<u32>> = pairs.iter().map(|pair| texts[pair.text].asked()).collect();
        let mut segments = Vec::with_capacity(pairs.len());
        for ((pair, cache), asked) in pairs.iter().zip(&mut caches).zip(&asked) {
            let TextTree { tokens, parents, depths, longest, .. } = &texts[pair.text];
            segments.push(Segment {
                cache,
                tokens,
                parents,
                positions: depths,
                rope: model.config().rope_for(*longest),
                variant: VariantId(pair.point as u32 + 1),
                logits: LogitRows::These(asked),
            });
        }
        let order = Order::of(pairs.iter().map(|pair| &texts[pair.text]));
        let (mut none, asked) = (NoHooks, order.asked());
        let found = model.step_scores(&mut segments, hooks(adapters, &mut none), &asked)?;
        Ok(order.in_order(&found))
    }

    /// Begins `n` sequences.
    pub(super) fn begin(&mut self, n: usize) {
        self.caches = vec![DenseCache::new(self.model.config()); n];
    }

    /// Runs the `next` tokens of the sequences `step`, ascending, and gives what each chooses: none
    /// where a logit is no number.
    pub(super) fn greedy(
        &mut self,
        step: &[usize],
        pairs: &[Pair],
        next: &[Vec<u32>],
        rope: RopeId,
    ) -> Result<Vec<Option<u32>>, Error> {
        let Self { model, adapters, caches, .. } = self;
        let of = |&i: &usize| {
            let first = caches[i].len() as u32;
            (chain(next[i].len()), (first..first + next[i].len() as u32).collect::<Vec<_>>())
        };
        let chains: Vec<_> = step.iter().map(of).collect();
        let own = caches.iter_mut().enumerate().filter(|(i, _)| step.contains(i));
        let mut segments = Vec::with_capacity(step.len());
        for ((i, cache), (parents, positions)) in own.zip(&chains) {
            let variant = VariantId(pairs[i].point as u32 + 1);
            let (tokens, logits) = (next[i].as_slice(), LogitRows::Last);
            segments.push(Segment { cache, tokens, parents, positions, rope, variant, logits });
        }
        let logits = model.step(&mut segments, hooks(adapters, &mut NoHooks))?;
        for segment in &mut segments {
            segment.cache.commit(&(0..segment.tokens.len()).collect::<Vec<_>>())?;
        }
        let rows = logits.to_dtype(DType::F32).and_then(|rows| rows.to_vec2::<f32>());
        let best = |row: Vec<f32>| argmax(&row).map(|token| token as u32);
        Ok(rows.map_err(tensors)?.into_iter().map(best).collect())
    }
}

/// What reaches into a step.
fn hooks<'h>(
    adapters: &'h mut Option<DenseAdapters>,
    none: &'h mut NoHooks,
) -> &'h mut dyn DenseHooks {
    match adapters {
        Some(adapters) => adapters,
        None => none,
    }
}
