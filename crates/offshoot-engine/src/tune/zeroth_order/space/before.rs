//! What prefixes and prompts have in common: positions before every text, at several points.

use std::path::Path;
use std::sync::Arc;

use offshoot_kernels::{Cpu, Forming, KvCache, Philox, Purpose, tensor_id};
use offshoot_models::huggingface::virtual_files;
use offshoot_models::{
    Beginnings, Hooks, LinearId, LogitRows, PackedExecutor, PackedModel, Segment, SegmentRows,
    VariantId, VirtualKind, VirtualTokens, chain,
};

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
    kind: VirtualKind,
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
        let mut cache = model.new_cache(n);
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

    pub(super) fn with_hooks(
        &self,
        run: &mut dyn FnMut(&PackedModel, &mut dyn Hooks) -> Result<(), Error>,
    ) -> Result<(), Error> {
        run(&self.model, &mut FloatInputs)
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
