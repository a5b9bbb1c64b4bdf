//! Tensors in single precision that stand row by row, and points near them.
//!
//! What spaces that add something small to a frozen model have in common: their numbers are few beside
//! the model's, so points are made whole.

use offshoot_kernels::{Cpu, Distribution, add_terms, tensor_id, update_rows};
use offshoot_methods::tune::{Layout, Probe, Update};

use super::super::entries::{Entries, terms};
use super::other_length;
use crate::Error;

/// Named tensors and the directions among them.
#[derive(Debug)]
pub(super) struct Parameters {
    cpu: Cpu,
    layout: Layout,
    values: Vec<Vec<f32>>,
    /// What they were before the first step: masks may ask for it.
    first: Vec<Vec<f32>>,
    pub(super) entries: Entries,
}

impl Parameters {
    /// `tensors` with their values, of a run of this seed, on the threads of `cpu`.
    pub(super) fn new(
        cpu: &Cpu,
        layout: Layout,
        values: Vec<Vec<f32>>,
        seed: u64,
        distribution: Distribution,
    ) -> Result<Self, Error> {
        debug_assert_eq!(layout.tensors.len(), values.len());
        let entries = Entries::new(&layout, seed, distribution)?;
        let first = values.clone();
        Ok(Self { cpu: cpu.clone(), layout, values, first, entries })
    }

    pub(super) fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn values(&self) -> &[Vec<f32>] {
        &self.values
    }

    pub(super) fn read_rows(
        &self,
        tensor: usize,
        first: usize,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let spec = self.layout.tensors.get(tensor);
        let start = spec.and_then(|spec| first.checked_mul(spec.cols));
        let values = self
            .values
            .get(tensor)
            .zip(start)
            .and_then(|(values, start)| values.get(start..start.checked_add(out.len())?));
        out.copy_from_slice(values.ok_or_else(|| other_length(tensor, out.len()))?);
        Ok(())
    }

    pub(super) fn write(&mut self, tensor: usize, values: &[f32]) -> Result<(), Error> {
        let own = self.values.get_mut(tensor).filter(|own| own.len() == values.len());
        own.ok_or_else(|| other_length(tensor, values.len()))?.copy_from_slice(values);
        Ok(())
    }

    /// The values at a point near these.
    pub(super) fn at(&mut self, probe: &Probe) -> Result<Vec<Vec<f32>>, Error> {
        self.entries.check(&probe.terms)?;
        let mut moved = self.values.clone();
        for (tensor, (values, spec)) in moved.iter_mut().zip(&self.layout.tensors).enumerate() {
            let first = || Ok(self.first[tensor].clone());
            let drawn = self.entries.drawn(tensor, &probe.terms, &first)?;
            add_terms(self.cpu.isa(), &terms(&drawn), (spec.rows, spec.cols), 0, values);
        }
        Ok(moved)
    }

    /// Carries `update` out, and brings the values of each tensor to where `bound` wants them.
    pub(super) fn apply(&mut self, update: &Update, bound: fn(&mut [f32])) -> Result<(), Error> {
        self.entries.check(update.terms())?;
        for (tensor, (values, spec)) in self.values.iter_mut().zip(&self.layout.tensors).enumerate()
        {
            let first = || Ok(self.first[tensor].clone());
            self.entries.change(tensor, update, &first, &mut |change| {
                update_rows(&self.cpu, (spec.rows, spec.cols), values, change);
                Ok(())
            })?;
            bound(values);
        }
        Ok(())
    }
}

/// The numbers of the tensors of `layout` under which directions are drawn.
pub(in super::super) fn tensor_ids(layout: &Layout) -> Result<Vec<u32>, Error> {
    let ids: Vec<u32> = layout.tensors.iter().map(|tensor| tensor_id(&tensor.name)).collect();
    let mut sorted: Vec<_> = ids.iter().zip(&layout.tensors).collect();
    sorted.sort_unstable_by_key(|(id, _)| **id);
    match sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(Error::Training(format!(
            "tensors {} and {} would be moved by the same random numbers: leave one of them out",
            pair[0].1.name, pair[1].1.name
        ))),
        None => Ok(ids),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use offshoot_kernels::Isa;
    use offshoot_methods::tune::{
        Direction, Form, Mask, Side, TensorSpec, Term, Weights, apply_update,
    };

    use super::*;

    fn layout() -> Layout {
        let spec = |name: &str, rows, cols, vector| {
            let name = name.to_owned();
            TensorSpec { name, rows, cols, layer: None, vector }
        };
        let matrix = |name, rows, cols| spec(name, rows, cols, false);
        let vector = spec("b", 1, 40, true);
        Layout { tensors: vec![matrix("a", 5, 7), vector, matrix("c", 24, 3), matrix("d", 1, 40)] }
    }

    fn values() -> Vec<Vec<f32>> {
        let of = |(i, spec): (usize, &TensorSpec)| {
            (0..spec.rows * spec.cols).map(|e| ((e * 7 + i) as f32).sin()).collect()
        };
        layout().tensors.iter().enumerate().map(of).collect()
    }

    /// Directions of every form and mask, some of them over some of the tensors.
    fn terms() -> Vec<Term> {
        let forms = [
            Form::Dense,
            Form::LowRank { rank: 2, epoch: 1 },
            Form::Carried { rank: 2, from: 0, to: 2 },
            Form::Subspace { rank: 2, epoch: 3 },
        ];
        let masks = [
            Mask::All,
            Mask::Random { density: 0.3, draw: 4 },
            Mask::Magnitude { density: 0.25, side: Side::Smallest },
        ];
        let mut terms = Vec::new();
        for (index, form) in forms.into_iter().enumerate() {
            for (step, mask) in masks.into_iter().enumerate() {
                let tensors = (step == 1).then(|| Arc::from([true, index % 2 == 0, false, true]));
                let (step, index) = (step as u32, index as u32);
                let direction = Direction { step, index, form, tensors, mask };
                terms.push(Term { scale: 0.01 + 0.003 * step as f32, direction });
            }
        }
        terms
    }

    fn bits(tensors: &[Vec<f32>]) -> Vec<Vec<u32>> {
        tensors.iter().map(|t| t.iter().map(|x| x.to_bits()).collect()).collect()
    }

    #[test]
    fn points_and_updates_are_those_of_the_definition_to_the_bit() {
        let cpu = Cpu::new(Isa::best(), 2);
        for distribution in Distribution::ALL {
            let mut ours = Parameters::new(&cpu, layout(), values(), 5, distribution).unwrap();
            let mut theirs = Weights::new(5, distribution, layout(), values());
            let linear = Update::Linear { decay: 0.01, terms: terms() };
            let moments = Update::Moments {
                decay: 0.001,
                rate: 0.1,
                first: 0.9,
                second: 0.99,
                first_correction: 1.5,
                second_correction: 3.5,
                epsilon: 1e-8,
                group: 3,
                history: terms(),
            };
            for update in [linear, moments] {
                ours.apply(&update, |_| {}).unwrap();
                apply_update(&update, &mut theirs);
                assert!(bits(ours.values()) == bits(&theirs.tensors), "{distribution:?}");
                let probe = Probe { terms: terms() };
                let at: Vec<_> = (0..4).map(|tensor| theirs.at(&probe, tensor)).collect();
                assert!(bits(&ours.at(&probe).unwrap()) == bits(&at), "{distribution:?}");
            }
            assert!(bits(ours.values()) != bits(&values()));
        }
    }

    #[test]
    fn a_direction_of_another_layout_changes_nothing() {
        let cpu = Cpu::new(Isa::best(), 1);
        let mut ours = Parameters::new(&cpu, layout(), values(), 5, Distribution::GaussQ8).unwrap();
        let direction = Direction { tensors: Some(Arc::from([true])), ..Direction::dense(0, 0) };
        let terms = vec![terms()[0].clone(), Term { scale: 1.0, direction }];
        let update = Update::Linear { decay: 0.5, terms: terms.clone() };
        let told = ours.apply(&update, |_| {}).unwrap_err().to_string();
        assert!(told.contains("over 1 tensors, where 4 are tuned"), "{told}");
        assert!(ours.at(&Probe { terms }).is_err());
        assert!(bits(ours.values()) == bits(&values()));
    }
}
