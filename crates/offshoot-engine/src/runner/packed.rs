//! Steps of packed weights, on the kernels.

use offshoot_kernels::{Cpu, Greatest, KvCache};
use offshoot_models::{
    Hooks, LinearId, NoHooks, PackedAdapters, PackedExecutor, RopeId, Segment, SegmentRows, Site,
    VariantId,
};

use super::{Rows, Runner, Want};
use crate::{Error, Model};

/// The packed executor's registers and a cache.
#[derive(Debug)]
pub(super) struct PackedRunner {
    executor: PackedExecutor,
    cache: KvCache,
    /// The base, or the one variant of it that there is.
    variant: VariantId,
    hooks: Reached,
}

/// Adds the model's adapter, if it has one, and keeps what the final norm gives, if that is wanted.
#[derive(Debug, Default)]
struct Reached {
    adapters: Option<PackedAdapters>,
    wanted: bool,
    states: Vec<f32>,
}

impl Hooks for Reached {
    fn taps(&self, site: Site) -> bool {
        self.wanted && site == Site::Final
    }

    fn tap(&mut self, _: Site, rows: &[f32], _: usize) {
        self.states.clear();
        self.states.extend_from_slice(rows);
    }

    fn adds(&self, linear: LinearId, variant: VariantId) -> bool {
        self.adapters.as_ref().is_some_and(|adapters| adapters.adds(linear, variant))
    }

    fn addend(&mut self, linear: LinearId, rows: SegmentRows, x: &[f32], y: &mut [f32]) {
        if let Some(adapters) = &mut self.adapters {
            adapters.addend(linear, rows, x, y);
        }
    }
}

impl PackedRunner {
    pub(super) fn new(
        model: &Model,
        cpu: &Cpu,
        capacity: usize,
        rope: RopeId,
    ) -> Result<Self, Error> {
        let weights = model.packed()?;
        let mut executor = PackedExecutor::new(cpu.clone(), weights.config());
        executor.reserve_positions(rope, capacity);
        let adapter = model.adapter().map(std::slice::from_ref);
        let adapters = adapter.map(|all| PackedAdapters::new(cpu, weights.blueprint(), all));
        let adapters = adapters.transpose()?;
        let variant = VariantId(u32::from(adapters.is_some()));
        let hooks = Reached { adapters, ..Reached::default() };
        Ok(Self { executor, cache: weights.new_cache(capacity), variant, hooks })
    }
}

impl Runner for PackedRunner {
    fn step(&mut self, model: &Model, rows: Rows<'_>, want: Want) -> Result<(), Error> {
        let segment = Segment {
            cache: &mut self.cache,
            tokens: rows.tokens,
            parents: rows.parents,
            positions: rows.positions,
            rope: rows.rope,
            variant: self.variant,
            logits: rows.logits,
        };
        let model = model.packed()?;
        self.hooks.wanted = want == Want::States;
        let hooks: &mut dyn Hooks = match self.hooks.wanted || self.hooks.adapters.is_some() {
            true => &mut self.hooks,
            false => &mut NoHooks,
        };
        match want {
            Want::Logits | Want::States => {
                self.executor.step(model, &mut [segment], hooks).map(drop)?;
            }
            Want::Greatest => {
                self.executor.step_greatest(model, &mut [segment], hooks).map(drop)?
            }
        }
        Ok(())
    }

    fn logits_mut(&mut self) -> &mut [f32] {
        self.executor.logits_mut()
    }

    fn greatest(&self) -> &[Result<Greatest, u32>] {
        self.executor.greatest()
    }

    fn head_input_row(&mut self, row: usize) -> Result<&[f32], Error> {
        Ok(self.executor.head_input_row(row))
    }

    fn states(&mut self) -> Result<&[f32], Error> {
        Ok(&self.hooks.states)
    }

    fn commit(&mut self, path: &[usize]) -> Result<(), Error> {
        self.cache.commit(path);
        Ok(())
    }

    fn commit_chain(&mut self, rows: usize) -> Result<(), Error> {
        self.cache.commit_chain(rows);
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
    }

    fn bytes_per_position(&self) -> usize {
        self.cache.bytes_per_position()
    }

    fn noise(&self) -> Option<f32> {
        None
    }
}
