//! Spaces of a few tensors around a model that stays as it is.

use std::path::Path;

use offshoot_kernels::{Distribution, KvCache};
use offshoot_methods::tune::{Layout, Probe, SpaceChoice, SpaceKind, Update};
use offshoot_models::{Hooks, LoraAdapter, PackedExecutor, PackedModel, StagedStep};

use super::super::dense::DensePoints;
use super::Space;
use super::before::Before;
use super::parameters::Parameters;
use crate::Error;

/// The most points that stand beside the weights at once, and the bytes that they may take together, if
/// that is not less than two take.
const LANES: usize = 32;
const LANE_BYTES: usize = 64 << 20;
/// What a number of a point takes: as it was computed, in what stands beside the model, and packed.
const NUMBER_BYTES: usize = 12;

/// How many points of so many numbers stand at once: a search for a rate asks for 33.
pub(super) fn lanes_of(numbers: usize) -> usize {
    (LANE_BYTES / (NUMBER_BYTES * numbers).max(1)).clamp(2, LANES)
}

/// What a space of [`Parameters`] has of its own; it is a [`Space`] by that.
pub(super) trait Around: std::fmt::Debug + Send {
    fn parameters(&self) -> &Parameters;

    fn parameters_mut(&mut self) -> &mut Parameters;

    /// As [`Space::kind`].
    fn kind(&self) -> SpaceKind;

    /// As [`Space::choice`].
    fn choice(&self) -> SpaceChoice;

    /// As [`Space::model`].
    fn model(&self) -> &PackedModel;

    /// As [`Space::lanes`].
    fn lanes(&self) -> usize {
        lanes_of(self.parameters().layout().elements())
    }

    /// Makes variant `i + 1` of the steps that follow the model with the parameters `points[i]`.
    fn stand(&mut self, points: Vec<Vec<Vec<f32>>>) -> Result<(), Error>;

    /// What stands beside the model of the dense executor at the parameters `points`, if it can run
    /// there.
    fn adapters(&self, _points: &[Vec<Vec<f32>>]) -> Option<Vec<LoraAdapter>> {
        None
    }

    /// What the values are brought to after a step.
    fn bound(_values: &mut [f32]) {}

    /// Hands the model and what reaches into its steps to `run`.
    fn with_hooks(
        &mut self,
        run: &mut dyn FnMut(&PackedModel, &mut dyn Hooks) -> Result<(), Error>,
    ) -> Result<(), Error>;

    /// As [`Space::rounds`].
    fn rounds(&self) -> bool {
        false
    }

    /// As [`Space::set_rounding`].
    fn set_rounding(&mut self, _rounds: bool) {}

    /// What stands before every text, if anything does.
    fn before(&self) -> Option<&Before> {
        None
    }

    /// As [`Space::write_variant`].
    fn write_variant(&self, folder: &Path) -> Result<(), Error>;
}

/// The parameters at `probes`.
fn points(space: &mut impl Around, probes: &[Probe]) -> Result<Vec<Vec<Vec<f32>>>, Error> {
    let (n, lanes) = (probes.len(), Around::lanes(space));
    if n > lanes {
        return Err(Error::Training(format!("{n} points at once, where {lanes} can stand")));
    }
    let parameters = space.parameters_mut();
    probes.iter().map(|probe| parameters.at(probe)).collect()
}

impl<A: Around> Space for A {
    fn layout(&self) -> &Layout {
        self.parameters().layout()
    }

    fn seed(&self) -> u64 {
        self.parameters().entries.seed()
    }

    fn distribution(&self) -> Distribution {
        self.parameters().entries.distribution()
    }

    fn draw_from(&mut self, seed: u64, distribution: Distribution) -> Result<(), Error> {
        self.parameters_mut().entries.draw_from(seed, distribution);
        Ok(())
    }

    fn kind(&self) -> SpaceKind {
        Around::kind(self)
    }

    fn choice(&self) -> SpaceChoice {
        Around::choice(self)
    }

    fn model(&self) -> &PackedModel {
        Around::model(self)
    }

    fn read_rows(&self, tensor: usize, first: usize, out: &mut [f32]) -> Result<(), Error> {
        self.parameters().read_rows(tensor, first, out)
    }

    fn write(&mut self, tensor: usize, values: &[f32]) -> Result<(), Error> {
        self.parameters_mut().write(tensor, values)
    }

    fn apply(&mut self, _step: u32, update: &Update) -> Result<(), Error> {
        self.parameters_mut().apply(update, A::bound)
    }

    fn lanes(&self) -> usize {
        Around::lanes(self)
    }

    fn stand_at(&mut self, probes: &[Probe]) -> Result<(), Error> {
        let points = points(self, probes)?;
        self.stand(points)
    }

    fn stand_on(&mut self, probes: &[Probe], dense: &mut DensePoints) -> Result<(), Error> {
        let points = points(self, probes)?;
        dense.add(&self.adapters(&points).ok_or(Error::OnlyPacked)?)
    }

    fn run(
        &mut self,
        executor: &mut PackedExecutor,
        steps: &mut [StagedStep<'_, '_>],
    ) -> Result<(), Error> {
        self.with_hooks(&mut |model, hooks| {
            let mut each = steps.iter_mut();
            Ok(each.try_for_each(|step| executor.run_step(model, step, hooks))?)
        })
    }

    fn rounds(&self) -> bool {
        Around::rounds(self)
    }

    fn set_rounding(&mut self, rounds: bool) {
        Around::set_rounding(self, rounds);
    }

    fn positions_before(&self) -> usize {
        self.before().map_or(0, |before| before.tokens)
    }

    fn begin_cache(&self, probe: usize, cache: &mut KvCache) -> Result<(), Error> {
        self.before().map_or(Ok(()), |before| before.begin(probe, cache))
    }

    fn write_variant(&self, folder: &Path) -> Result<(), Error> {
        Around::write_variant(self, folder)
    }
}
