//! Steps of packed weights, on the kernels.

use offshoot_kernels::{Cpu, Greatest, KvCache};
use offshoot_models::{
    Hooks, NoHooks, PackedExecutor, PackedModel, RopeId, Segment, Site, VariantId,
};

use super::{Rows, Runner, Want};
use crate::{Error, Model};

/// The packed executor's registers and a cache.
#[derive(Debug)]
pub(super) struct PackedRunner {
    executor: PackedExecutor,
    cache: KvCache,
    states: States,
}

/// Keeps what the final norm gives.
#[derive(Debug, Default)]
struct States(Vec<f32>);

impl Hooks for States {
    fn taps(&self, site: Site) -> bool {
        site == Site::Final
    }

    fn tap(&mut self, _: Site, rows: &[f32], _: usize) {
        self.0.clear();
        self.0.extend_from_slice(rows);
    }
}

impl PackedRunner {
    pub(super) fn new(model: &PackedModel, cpu: &Cpu, capacity: usize, rope: RopeId) -> Self {
        let mut executor = PackedExecutor::new(cpu.clone(), model.config());
        executor.reserve_positions(rope, capacity);
        Self { executor, cache: model.new_cache(capacity), states: States::default() }
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
            variant: VariantId::default(),
            logits: rows.logits,
        };
        let model = model.packed()?;
        match want {
            Want::Logits => self.executor.step(model, &mut [segment], &mut NoHooks).map(drop)?,
            Want::Greatest => {
                self.executor.step_greatest(model, &mut [segment], &mut NoHooks).map(drop)?;
            }
            Want::States => {
                self.executor.step(model, &mut [segment], &mut self.states).map(drop)?;
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
        Ok(&self.states.0)
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
