//! Steps that follow random directions, for some or all of what is tuned.

use offshoot_kernels::{Distribution, Isa, Noise, Purpose, tensor_id};
use offshoot_methods::optim::TensorShape;
use offshoot_methods::tune::HybridOptions;

use super::batch::{MicroBatch, Shares};
use super::{Example, FirstOrder, change};
use crate::Error;

/// Writes numbers of the directions of step `step`: of tensor and direction of these numbers, from an
/// element on.
fn directions(
    seed: u64,
    step: u64,
    tensors: Vec<u32>,
) -> Result<impl Fn(usize, u32, u64, &mut [f32]), Error> {
    let step = u32::try_from(step)
        .map_err(|_| Error::Training(format!("step {step} has no directions")))?;
    let isa = Isa::best();
    Ok(move |tensor: usize, index, first, out: &mut [f32]| {
        let tensor = tensors[tensor];
        let (purpose, distribution) = (Purpose::Direction, Distribution::GaussQ8);
        Noise { seed, tensor, step, index, purpose, distribution }.fill(isa, first, out);
    })
}

impl FirstOrder {
    fn tensor_ids(&self) -> Vec<u32> {
        self.tuning.variables().iter().map(|(name, _)| tensor_id(name)).collect()
    }

    /// Leaves of the gradients what is known of them along step `step`'s directions, if only that is
    /// followed; the slopes along them.
    pub(super) fn projected(
        &self,
        step: u64,
        gradients: &mut [Vec<f32>],
    ) -> Result<Vec<f64>, Error> {
        let Some(forward) = self.options.forward else { return Ok(Vec::new()) };
        let fill = directions(self.options.seed, step, self.tensor_ids())?;
        Ok(forward.project(gradients, &fill))
    }

    /// The batch's loss, without gradients.
    fn loss(&self, batch: &[&Example]) -> Result<f64, Error> {
        let size = match self.options.micro_batch {
            0 => batch.len().max(1),
            size => size,
        };
        let share = Shares::of(batch, self.options.choice)?;
        let mut sum = 0.0;
        for examples in batch.chunks(size) {
            let micro = MicroBatch::new(&self.tuning, examples, &share, self.options.choice)?;
            if micro.targets.is_empty() {
                continue;
            }
            let texts: Vec<&[u32]> = micro.texts.iter().map(|text| text.tokens.as_ref()).collect();
            let scores = self.tuning.score(&texts, &micro.targets)?;
            let each = scores.iter().zip(&micro.targets);
            sum = each.fold(sum, |sum, ((logprob, _), target)| sum - target.weight * logprob);
        }
        Ok(sum)
    }

    /// Moves what is tuned in the first blocks along step `step`'s directions by the slopes there, which
    /// it gives. Where it fails, all is as it was.
    pub(super) fn shallow_step(
        &self,
        (step, rate): (u64, f64),
        options: HybridOptions,
        batch: &[&Example],
    ) -> Result<Vec<f64>, Error> {
        let fill = directions(self.options.seed, step, self.tensor_ids())?;
        let each = || self.tuning.variables().iter().enumerate().filter(|(i, _)| self.shallow[*i]);
        let kept = each().map(|(_, (_, variable))| super::read(variable.as_tensor()));
        let kept = kept.collect::<Result<Vec<_>, Error>>()?;
        let mut z = Vec::new();
        // Decay times w, and each direction times its number: from the weights as they were, so that no
        // rounding of a way there and back is left.
        let mut stand_at = |decay: f32, terms: &[(u32, f32)]| -> Result<(), Error> {
            for ((tensor, (_, variable)), kept) in each().zip(&kept) {
                let decays = !matches!(self.shapes[tensor], TensorShape::Vector { .. });
                let decay = if decays { decay } else { 1.0 };
                z.resize(kept.len(), 0.0);
                change(variable, |weights| {
                    weights.iter_mut().zip(kept).for_each(|(w, kept)| *w = kept * decay);
                    for &(index, scale) in terms {
                        fill(tensor, index, 0, &mut z);
                        weights.iter_mut().zip(&z).for_each(|(w, z)| *w += scale * z);
                    }
                })?;
            }
            Ok(())
        };
        let eps = options.eps as f32;
        let mut slope = |index| -> Result<f64, Error> {
            stand_at(1.0, &[(index, eps)])?;
            let ahead = self.loss(batch)?;
            stand_at(1.0, &[(index, -eps)])?;
            options.slope(ahead, self.loss(batch)?).ok_or_else(|| {
                let what = "a loss along a direction is no number: lower the learning rate or eps";
                Error::Training(what.to_owned())
            })
        };
        let slopes = (0..options.directions).map(&mut slope).collect::<Result<Vec<f64>, Error>>();
        let rate = rate * options.share;
        match &slopes {
            Ok(slopes) => {
                let share = rate / f64::from(options.directions);
                let terms = (0u32..).zip(slopes.iter().map(|slope| -(share * slope) as f32));
                let decay = 1.0 - rate * self.optimizer_decay();
                stand_at(decay as f32, &terms.collect::<Vec<_>>())?;
            }
            Err(_) => stand_at(1.0, &[])?,
        }
        slopes
    }

    fn optimizer_decay(&self) -> f64 {
        use offshoot_methods::optim::OptimizerOptions;
        match self.options.optimizer {
            OptimizerOptions::AdamW(options) => options.weight_decay,
            OptimizerOptions::Sgd(options) => options.weight_decay,
            OptimizerOptions::Muon(options) => options.weight_decay,
        }
    }
}
