//! Steps of packed weights, on the kernels.

use offshoot_kernels::{Cpu, Forming, Greatest, KvCache};
use offshoot_models::{
    Adapter, Beginnings, Hooks, LinearId, NoHooks, PackedAdapters, PackedExecutor, PackedScales,
    RopeId, Segment, SegmentRows, Site, VariantId,
};

use super::{Rows, Runner, Want};
use crate::generate::PROMPT_CHUNK;
use crate::{Error, Model};

/// The packed executor's registers and a cache.
#[derive(Debug)]
pub(super) struct PackedRunner {
    executor: PackedExecutor,
    cache: KvCache,
    /// Positions in the cache before the text.
    before: usize,
    /// Those of a step's rows.
    positions: Vec<u32>,
    /// The base, or the one variant of it that there is.
    variant: VariantId,
    hooks: Reached,
}

/// Adds the model's adapter, if it has one, and keeps what the final norm gives, if that is wanted.
#[derive(Debug, Default)]
struct Reached {
    adapters: Option<PackedAdapters>,
    scales: Option<PackedScales>,
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

    fn forming(&self, linear: LinearId) -> Option<Forming<'_>> {
        self.scales.as_ref()?.forming(linear)
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
        let before = model.positions_before();
        executor.reserve_positions(rope, before + capacity);
        let mut cache = weights.new_cache(before + capacity);
        let adapter = model.adapter();
        if let Some(tokens) = adapter.and_then(Adapter::virtual_tokens) {
            let tokens = std::slice::from_ref(tokens);
            let own = Beginnings::new(&mut executor, weights, tokens, rope, false)?;
            own.begin(0, &mut cache)?;
        }
        let lora = adapter.and_then(Adapter::lora).map(std::slice::from_ref);
        let adapters = lora.map(|all| PackedAdapters::new(cpu, weights.blueprint(), all));
        let adapters = adapters.transpose()?;
        let variant = VariantId(u32::from(adapters.is_some()));
        let scales = adapter.and_then(Adapter::scales).cloned();
        let scales = scales.map(|factors| PackedScales::new(weights.blueprint(), factors));
        let hooks = Reached { adapters, scales: scales.transpose()?, ..Reached::default() };
        Ok(Self {
            executor,
            cache,
            before,
            positions: Vec::with_capacity(PROMPT_CHUNK),
            variant,
            hooks,
        })
    }
}

impl Runner for PackedRunner {
    fn step(&mut self, model: &Model, rows: Rows<'_>, want: Want) -> Result<(), Error> {
        self.positions.clear();
        self.positions.extend(rows.positions.iter().map(|p| self.before as u32 + p));
        let segment = Segment {
            cache: &mut self.cache,
            tokens: rows.tokens,
            parents: rows.parents,
            positions: &self.positions,
            rope: rows.rope,
            variant: self.variant,
            logits: rows.logits,
        };
        let model = model.packed()?;
        self.hooks.wanted = want == Want::States;
        let Reached { adapters, scales, wanted, .. } = &self.hooks;
        let hooks: &mut dyn Hooks = match *wanted || adapters.is_some() || scales.is_some() {
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
        self.cache.truncate(self.before + len);
    }

    fn bytes_per_position(&self) -> usize {
        self.cache.bytes_per_position()
    }

    fn noise(&self) -> Option<f32> {
        None
    }
}
