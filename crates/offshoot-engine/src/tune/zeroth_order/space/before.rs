//! Positions before every text, at several points: the space that prefixes and prompts are.

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{Cpu, Distribution, Forming, KvCache, KvType, Philox, Purpose, tensor_id};
use offshoot_methods::tune::{Layout, SpaceChoice, SpaceKind};
use offshoot_models::huggingface::virtual_files;
use offshoot_models::{
    Beginnings, Hooks, LinearId, LogitRows, PackedExecutor, PackedModel, Segment, SegmentRows,
    VariantId, VirtualKind, VirtualTokens, chain,
};
use serde_json::json;

use super::around::Around;
use super::parameters::Parameters;
use crate::Error;
use crate::beside::write_whole;

/// Most positions.
const TOKENS_MAX: usize = 1 << 12;

/// Keeps products from rounding their inputs, whatever the weights' format.
#[derive(Debug)]
struct FloatInputs;

impl Hooks for FloatInputs {
    fn forming(&self, _: LinearId) -> Option<Forming<'_>> {
        Some(Forming::default())
    }
}

/// A model and the positions before its texts at the points that stand.
#[derive(Debug)]
pub(super) struct Before {
    pub(super) model: Arc<PackedModel>,
    pub(super) tokens: usize,
    pub(super) kind: VirtualKind,
    executor: PackedExecutor,
    standing: Beginnings,
}

impl Before {
    /// `tokens` positions of `model` at no point.
    pub(super) fn new(
        cpu: &Cpu,
        model: Arc<PackedModel>,
        kind: VirtualKind,
        tokens: usize,
    ) -> Result<Self, Error> {
        let most = TOKENS_MAX.min(model.config().max_position_embeddings - 1);
        if !(1..=most).contains(&tokens) {
            let what = format!("{tokens} tokens before a text, expected 1 to {most}");
            return Err(Error::Training(what));
        }
        let executor = PackedExecutor::new(cpu.clone(), model.config());
        Ok(Self { model, tokens, kind, executor, standing: Beginnings::default() })
    }

    /// The embeddings of random tokens, `[p, hidden_size]`, and what the model keeps of them. They are
    /// drawn by `seed` and `name`.
    pub(super) fn of_random_tokens(
        &mut self,
        seed: u64,
        name: &str,
    ) -> Result<(Vec<f32>, KvCache), Error> {
        struct Seen(Vec<f32>);
        impl Hooks for Seen {
            fn embeds(&self, _: VariantId) -> bool {
                true
            }

            fn embedded(&mut self, _: SegmentRows, x: &mut [f32]) {
                self.0 = x.to_vec();
            }
        }
        let (n, model) = (self.tokens, &*self.model);
        let vocab = model.config().vocab_size as u64;
        let draw = |at: usize| {
            let purpose = (Purpose::Initial as u32) << 24;
            let counter = [(at / 4) as u32, tensor_id(name), 0, purpose];
            let word = Philox::block(Philox::key(seed), counter)[at % 4];
            ((u64::from(word) * vocab) >> 32) as u32
        };
        let tokens: Vec<u32> = (0..n).map(draw).collect();
        let mut cache = model.new_cache_of(KvType::Single, n);
        let segment = Segment {
            cache: &mut cache,
            tokens: &tokens,
            parents: &chain(n),
            positions: &(0..n as u32).collect::<Vec<_>>(),
            rope: model.config().rope_for(n),
            variant: VariantId::default(),
            logits: LogitRows::None,
        };
        let mut seen = Seen(Vec::new());
        self.executor.step(model, &mut [segment], &mut seen)?;
        cache.commit_chain(n);
        Ok((seen.0, cache))
    }

    /// Positions of these numbers.
    fn of(&self, numbers: Vec<f32>) -> Result<VirtualTokens, Error> {
        Ok(VirtualTokens::new(self.kind, self.model.config(), numbers)?)
    }

    /// Makes variant `i + 1` of the steps that follow the model behind the numbers `points[i]`.
    pub(super) fn stand(&mut self, points: Vec<Vec<f32>>) -> Result<(), Error> {
        let all =
            points.into_iter().map(|numbers| self.of(numbers)).collect::<Result<Vec<_>, _>>()?;
        let rope = self.model.config().rope_for(self.tokens);
        self.standing = Beginnings::new(&mut self.executor, &self.model, &all, rope, true)?;
        Ok(())
    }

    pub(super) fn begin(&self, probe: usize, cache: &mut KvCache) -> Result<(), Error> {
        Ok(self.standing.begin(probe, cache)?)
    }

    /// Writes PEFT's files of these numbers.
    pub(super) fn write(&self, numbers: Vec<f32>, folder: &Path) -> Result<(), Error> {
        let base = self.model.checkpoint().name();
        for (name, bytes) in virtual_files(&self.of(numbers)?, self.model.config(), base) {
            write_whole(&folder.join(name), &bytes)?;
        }
        Ok(())
    }
}

/// A model and a prefix or a prompt, of which the numbers are tuned.
#[derive(Debug)]
pub struct VirtualSpace {
    before: Before,
    parameters: Parameters,
    /// Of each layer of a prefix, where its keys and values are among the parameters.
    layers: Vec<(usize, usize)>,
}

impl VirtualSpace {
    /// The numbers `values` of the tensors of `layout`, before texts.
    pub(super) fn of(
        cpu: &Cpu,
        before: Before,
        (layout, values): (Layout, Vec<Vec<f32>>),
        layers: Vec<(usize, usize)>,
        (seed, distribution): (u64, Distribution),
    ) -> Result<Self, Error> {
        let parameters = Parameters::new(cpu, layout, values, seed, distribution)?;
        Ok(Self { before, parameters, layers })
    }

    /// `values` of the parameters by position: of a prompt `[p, hidden_size]`, of a prefix `[p, layers, 2,
    /// kv heads * head_dim]`.
    fn by_position(&self, values: &[Vec<f32>]) -> Vec<f32> {
        if self.before.kind == VirtualKind::Prompt {
            return values.concat();
        }
        let cols = self.parameters.layout().tensors[0].cols;
        let row = |tensor: usize, position: usize| {
            values[tensor][position * cols..(position + 1) * cols].iter().copied()
        };
        let position = |p: usize| {
            let layers = self.layers.iter();
            layers.flat_map(move |&(keys, values)| row(keys, p).chain(row(values, p)))
        };
        (0..self.before.tokens).flat_map(position).collect()
    }
}

impl Around for VirtualSpace {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    fn kind(&self) -> SpaceKind {
        match self.before.kind {
            VirtualKind::Prefix => SpaceKind::Prefix,
            VirtualKind::Prompt => SpaceKind::Prompt,
        }
    }

    fn choice(&self) -> SpaceChoice {
        let name = match self.before.kind {
            VirtualKind::Prefix => "prefix",
            VirtualKind::Prompt => "prompt",
        };
        SpaceChoice { name: name.to_owned(), options: json!({ "tokens": self.before.tokens }) }
    }

    fn model(&self) -> &PackedModel {
        &self.before.model
    }

    fn before(&self) -> Option<&Before> {
        Some(&self.before)
    }

    fn stand(&mut self, points: Vec<Vec<Vec<f32>>>) -> Result<(), Error> {
        let points = points.iter().map(|values| self.by_position(values)).collect();
        self.before.stand(points)
    }

    fn with_hooks(
        &mut self,
        run: &mut dyn FnMut(&PackedModel, &mut dyn Hooks) -> Result<(), Error>,
    ) -> Result<(), Error> {
        run(&self.before.model, &mut FloatInputs)
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        self.before.write(self.by_position(self.parameters.values()), folder)
    }
}
