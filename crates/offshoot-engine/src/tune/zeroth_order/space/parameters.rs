//! Tensors in single precision that stand row by row, and points near them.
//!
//! What spaces that add something small to a frozen model have in common: their numbers are few beside
//! the model's, so points are made whole.

use offshoot_kernels::{Distribution, tensor_id};
use offshoot_methods::tune::{Layout, Probe, Update};

use super::super::entries::Entries;
use super::super::update;
use crate::Error;

/// Named tensors and the directions among them.
#[derive(Debug)]
pub(super) struct Parameters {
    layout: Layout,
    values: Vec<Vec<f32>>,
    entries: Entries,
}

impl Parameters {
    /// `tensors` with their values, of a run of this seed.
    pub(super) fn new(
        layout: Layout,
        values: Vec<Vec<f32>>,
        seed: u64,
        distribution: Distribution,
    ) -> Result<Self, Error> {
        debug_assert_eq!(layout.tensors.len(), values.len());
        let entries = Entries::new(&layout, seed, distribution)?;
        Ok(Self { layout, values, entries })
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn values(&self) -> &[Vec<f32>] {
        &self.values
    }

    pub(super) fn read(&self, tensor: usize, out: &mut [f32]) -> Result<(), Error> {
        let values = self.values.get(tensor).filter(|values| values.len() == out.len());
        out.copy_from_slice(values.ok_or_else(|| other_length(tensor, out.len()))?);
        Ok(())
    }

    pub(super) fn write(&mut self, tensor: usize, values: &[f32]) -> Result<(), Error> {
        let own = self.values.get_mut(tensor).filter(|own| own.len() == values.len());
        own.ok_or_else(|| other_length(tensor, values.len()))?.copy_from_slice(values);
        Ok(())
    }

    /// The values at a point near these.
    pub(super) fn at(&self, probe: &Probe) -> Result<Vec<Vec<f32>>, Error> {
        self.entries.check(probe.terms.iter())?;
        let mut z = Vec::new();
        let mut moved = self.values.clone();
        for (tensor, values) in moved.iter_mut().enumerate() {
            let mut sum = vec![0.0; values.len()];
            for term in &probe.terms {
                if self.entries.fill(tensor, &term.direction, &mut z) {
                    update::add(&mut sum, term.scale, &z);
                }
            }
            values.iter_mut().zip(&sum).for_each(|(value, sum)| *value += sum);
        }
        Ok(moved)
    }

    pub(super) fn apply(&mut self, update: &Update) -> Result<(), Error> {
        update::check(&self.entries, update)?;
        for (tensor, (values, spec)) in self.values.iter_mut().zip(&self.layout.tensors).enumerate() {
            update::apply(&self.entries, update, tensor, spec.rows > 1, values);
        }
        Ok(())
    }
}

fn other_length(tensor: usize, length: usize) -> Error {
    Error::Training(format!("tensor {tensor} of the layout does not have {length} numbers"))
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
