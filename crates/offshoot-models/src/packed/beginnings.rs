//! What virtual tokens stand for in steps of the packed executor: how caches begin.

use offshoot_kernels::{Forming, KvCache, KvType};

use super::{Hooks, PackedExecutor, PackedModel, SegmentRows};
use crate::{
    Error, LinearId, LogitRows, RopeId, Segment, VariantId, VirtualKind, VirtualTokens, chain,
};

/// The keys and values that caches of a model begin with, of several variants.
#[derive(Debug, Default)]
pub struct Beginnings {
    caches: Vec<KvCache>,
}

/// Puts prompts in the place of embeddings: variant `i` has prompt `i`.
struct Prompts<'a> {
    all: &'a [VirtualTokens],
    floats: bool,
}

impl Hooks for Prompts<'_> {
    fn embeds(&self, _: VariantId) -> bool {
        true
    }

    fn embedded(&mut self, rows: SegmentRows, x: &mut [f32]) {
        if let Some(prompt) = self.all.get(rows.variant.0 as usize) {
            x.copy_from_slice(prompt.numbers());
        }
    }

    fn forming(&self, _: LinearId) -> Option<Forming<'_>> {
        self.floats.then(Forming::default)
    }
}

impl Beginnings {
    /// Those of `all` on `model`, rotated by the table `rope`. With `floats` products take their inputs as
    /// floats, whatever the weights' format, and keys and values are not rounded. Prompts run side by
    /// side, in one step of `executor`.
    ///
    /// # Errors
    /// [`Error::Adapter`] if one is not of the model's sizes.
    pub fn new(
        executor: &mut PackedExecutor,
        model: &PackedModel,
        all: &[VirtualTokens],
        rope: RopeId,
        floats: bool,
    ) -> Result<Self, Error> {
        let config = model.config();
        for tokens in all {
            let width = tokens.kind().width(config);
            if tokens.numbers().len() != tokens.tokens() * width {
                let what = format!("virtual tokens of another model: {width} numbers are one here");
                return Err(Error::Adapter(what));
            }
        }
        let kind = if floats { KvType::Single } else { KvType::Half };
        let mut caches: Vec<KvCache> =
            all.iter().map(|tokens| model.new_cache_of(kind, tokens.tokens())).collect();
        let row = config.num_key_value_heads * config.head_dim;
        let chains: Vec<_> = all.iter().map(|tokens| chain(tokens.tokens())).collect();
        let positions: Vec<Vec<u32>> =
            all.iter().map(|tokens| (0..tokens.tokens() as u32).collect()).collect();
        let nothing: Vec<Vec<u32>> = all.iter().map(|tokens| vec![0; tokens.tokens()]).collect();
        let mut segments = Vec::new();
        for (i, (tokens, cache)) in all.iter().zip(&mut caches).enumerate() {
            match tokens.kind() {
                VirtualKind::Prefix => {
                    for position in tokens.positions() {
                        let (keys, values) = VirtualTokens::keys_and_values(position, row);
                        cache.push(&keys, &values);
                    }
                }
                VirtualKind::Prompt => segments.push(Segment {
                    cache,
                    tokens: &nothing[i],
                    parents: &chains[i],
                    positions: &positions[i],
                    rope,
                    variant: VariantId(i as u32),
                    logits: LogitRows::None,
                }),
            }
        }
        executor.step(model, &mut segments, &mut Prompts { all, floats })?;
        for segment in &mut segments {
            segment.cache.commit_chain(segment.tokens.len());
        }
        Ok(Self { caches })
    }

    /// How many positions caches of variant `i` begin with; none if there is no such variant.
    pub fn positions(&self, i: usize) -> usize {
        self.caches.get(i).map_or(0, KvCache::len)
    }

    /// Makes `cache` one of variant `i` and no text.
    ///
    /// # Errors
    /// [`Error::Step`] if there is no such variant, or too little room.
    pub fn begin(&self, i: usize, cache: &mut KvCache) -> Result<(), Error> {
        match self.caches.get(i) {
            Some(own) if own.len() <= cache.capacity() => cache.copy_prefix(own, own.len()),
            Some(own) => {
                let (needed, room) = (own.len(), cache.capacity());
                let what = format!("{needed} positions before a text in a cache of {room}");
                return Err(Error::Step(what));
            }
            None => return Err(Error::Step(format!("no variant {i} with a beginning"))),
        }
        Ok(())
    }
}
