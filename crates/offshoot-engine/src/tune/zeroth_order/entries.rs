//! Directions within the tensors of a space, as the kernels take them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use offshoot_kernels as kernels;
use offshoot_kernels::{Change, Distribution, Moments, Noise, Rounding};
use offshoot_methods::tune::{
    Basis, Direction, Draw, Factors, Form, Layout, Mask, TensorSpec, Term, Update,
};

use super::space::tensor_ids;
use crate::Error;

/// Directions of one run over one layout, as
/// [`Weights::entries`](offshoot_methods::tune::Weights::entries) defines them.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    distribution: Distribution,
    draws: Vec<Draw>,
    /// Of each tensor whether it is a vector, which does not decay.
    vectors: Vec<bool>,
    /// Masks of each tensor: most methods have one for many steps.
    masks: Latest<Mask, Vec<u64>>,
    /// What directions of one form share: an epoch's are drawn once.
    bases: Latest<Form, Basis>,
}

/// Of each tensor the two values that were made last, with what each is of: one of the update that
/// is still to be made and one of the points that stand before it. Of more the first made goes, so
/// that neither of these two is made again while the other is used.
#[derive(Debug, Clone)]
struct Latest<K, V>(HashMap<usize, VecDeque<(K, Arc<V>)>>);

impl<K: PartialEq, V> Latest<K, V> {
    const MOST: usize = 2;

    fn get(&self, tensor: usize, key: &K) -> Option<Arc<V>> {
        let found = self.0.get(&tensor)?.iter().find(|(of, _)| of == key);
        found.map(|(_, value)| Arc::clone(value))
    }

    fn insert(&mut self, tensor: usize, key: K, value: V) -> Arc<V> {
        let (latest, value) = (self.0.entry(tensor).or_default(), Arc::new(value));
        if latest.len() == Self::MOST {
            latest.pop_front();
        }
        latest.push_back((key, Arc::clone(&value)));
        value
    }
}

/// A term within one tensor.
#[derive(Debug, Clone)]
pub(super) struct Drawn {
    scale: f32,
    noise: Noise,
    factors: Option<Factors>,
    mask: Option<Arc<Vec<u64>>>,
}

impl Drawn {
    /// The same to the kernels.
    pub(super) fn term(&self) -> kernels::Term<'_> {
        let entries = match &self.factors {
            None => kernels::Entries::Noise(self.noise),
            Some(Factors { rank, left, right }) => {
                kernels::Entries::LowRank { left, right, rank: *rank, factor: 1.0 }
            }
        };
        let mask = self.mask.as_ref().map(|bits| kernels::Mask(bits));
        kernels::Term { scale: self.scale, entries, mask }
    }
}

/// Terms as the kernels take them.
pub(super) fn terms(drawn: &[Drawn]) -> Vec<kernels::Term<'_>> {
    drawn.iter().map(Drawn::term).collect()
}

impl Entries {
    /// Those of a run of `seed` over `layout`.
    pub(super) fn new(
        layout: &Layout,
        seed: u64,
        distribution: Distribution,
    ) -> Result<Self, Error> {
        let ids = tensor_ids(layout)?;
        let draw = |(tensor, spec): (u32, &TensorSpec)| Draw {
            seed,
            distribution,
            tensor,
            rows: spec.rows,
            cols: spec.cols,
        };
        let draws = ids.into_iter().zip(&layout.tensors).map(draw).collect();
        let vectors = layout.tensors.iter().map(|spec| spec.vector).collect();
        let (masks, bases) = (Latest(HashMap::new()), Latest(HashMap::new()));
        Ok(Self { distribution, draws, vectors, masks, bases })
    }

    pub(super) fn seed(&self) -> u64 {
        self.draws.first().map_or(0, |draw| draw.seed)
    }

    /// What `tensor` is rounded by where step `step` changes it.
    pub(super) fn rounding(&self, tensor: usize, step: u32) -> Rounding {
        let Draw { seed, tensor, .. } = self.draws[tensor];
        Rounding { seed, tensor, step }
    }

    pub(super) fn distribution(&self) -> Distribution {
        self.distribution
    }

    /// Draws from another seed and distribution from now on.
    pub(super) fn draw_from(&mut self, seed: u64, distribution: Distribution) {
        self.distribution = distribution;
        self.draws
            .iter_mut()
            .for_each(|draw| (draw.seed, draw.distribution) = (seed, distribution));
        self.masks.0.clear();
        self.bases.0.clear();
    }

    /// Checks that directions are of this layout.
    pub(super) fn check(&self, terms: &[Term]) -> Result<(), Error> {
        let n = self.draws.len();
        for Term { direction, .. } in terms {
            let listed = direction.tensors.as_ref().map_or(n, |list| list.len());
            if listed != n || direction.index >= 1 << 24 {
                let what = format!("a direction over {listed} tensors, where {n} are tuned");
                return Err(Error::Training(what));
            }
        }
        Ok(())
    }

    /// `terms` within `tensor`, without those that are zero there. `first` gives the tensor's numbers
    /// before the first step, row by row, if a mask asks for them.
    pub(super) fn drawn(
        &mut self,
        tensor: usize,
        terms: &[Term],
        first: &dyn Fn() -> Result<Vec<f32>, Error>,
    ) -> Result<Vec<Drawn>, Error> {
        let within = terms.iter().filter(|term| term.direction.covers(tensor));
        within.map(|term| self.draw_term(tensor, term, first)).collect()
    }

    fn draw_term(
        &mut self,
        tensor: usize,
        term: &Term,
        first: &dyn Fn() -> Result<Vec<f32>, Error>,
    ) -> Result<Drawn, Error> {
        let draw = self.draws[tensor];
        Ok(Drawn {
            scale: term.scale,
            noise: draw.entries(&term.direction),
            factors: self.factors(tensor, &term.direction),
            mask: self.mask(tensor, term.direction.mask, first)?,
        })
    }

    fn factors(&mut self, tensor: usize, direction: &Direction) -> Option<Factors> {
        let draw = self.draws[tensor];
        let basis = match self.bases.get(tensor, &direction.form) {
            Some(basis) => basis,
            None => self.bases.insert(tensor, direction.form, draw.basis(direction.form)?),
        };
        Some(draw.factors_on(direction, &basis))
    }

    fn mask(
        &mut self,
        tensor: usize,
        mask: Mask,
        first: &dyn Fn() -> Result<Vec<f32>, Error>,
    ) -> Result<Option<Arc<Vec<u64>>>, Error> {
        if let Some(bits) = self.masks.get(tensor, &mask) {
            return Ok(Some(bits));
        }
        let Draw { seed, tensor: id, rows, cols, .. } = self.draws[tensor];
        let bits = mask.bits(seed, id, rows * cols, first)?;
        Ok(bits.map(|bits| self.masks.insert(tensor, mask, bits)))
    }

    /// Hands what `update` does to `tensor` to `change`.
    pub(super) fn change(
        &mut self,
        tensor: usize,
        update: &Update,
        first: &dyn Fn() -> Result<Vec<f32>, Error>,
        change: &mut dyn FnMut(&Change<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let decays = |decay| if self.vectors[tensor] { 0.0 } else { decay };
        match *update {
            Update::Linear { decay, terms: ref all } => {
                let decay = decays(decay);
                let drawn = self.drawn(tensor, all, first)?;
                change(&Change::Linear { decay, terms: &terms(&drawn) })
            }
            Update::Moments {
                decay,
                rate,
                first: first_decay,
                second,
                first_correction,
                second_correction,
                epsilon,
                group,
                ref history,
            } => {
                let decay = decays(decay);
                // Where a direction is zero moments still fade, so it stays, along nothing.
                let mut drawn = Vec::with_capacity(history.len());
                for term in history {
                    let scale = if term.direction.covers(tensor) { term.scale } else { 0.0 };
                    drawn.push(Drawn { scale, ..self.draw_term(tensor, term, first)? });
                }
                let rule = Moments {
                    rate,
                    first: first_decay,
                    second,
                    first_correction,
                    second_correction,
                    epsilon,
                };
                let group = group as usize;
                change(&Change::Moments { decay, rule, group, history: &terms(&drawn) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// As where weights lie on a disk: both points of a step stand before the update of the step
    /// before is made. With a mask that is drawn in every step, each is made once.
    #[test]
    fn neither_the_mask_of_an_update_nor_that_of_the_points_before_it_is_made_twice() {
        const STEPS: u32 = 9;
        let name = "a.weight".to_owned();
        let spec = TensorSpec { name, rows: 8, cols: 100, layer: None, vector: false };
        let layout = Layout { tensors: vec![spec] };
        let mut entries = Entries::new(&layout, 3, Distribution::default()).unwrap();
        let first = || -> Result<Vec<f32>, Error> {
            Err(Error::Training("no mask here asks for weights".to_owned()))
        };
        let along = |step: u32| {
            let mask = Mask::Random { density: 0.5, draw: step };
            vec![Term { scale: 1.0, direction: Direction { mask, ..Direction::dense(step, 0) } }]
        };
        // Masks are told by where they lie, so those of points have to stay.
        let (mut points, mut masks, mut asked) = (Vec::new(), HashSet::new(), 0);
        for step in 0..STEPS {
            for _ in 0..2 {
                points.extend(entries.drawn(0, &along(step), &first).unwrap());
                let mask = points.last().and_then(|drawn| drawn.mask.as_ref());
                masks.insert(mask.unwrap().as_ptr());
                asked += 1;
            }
            let Some(before) = step.checked_sub(1) else { continue };
            let update = Update::Linear { decay: 0.0, terms: along(before) };
            let change = &mut |change: &Change<'_>| {
                let Change::Linear { terms, .. } = change else { panic!("{change:?}") };
                masks.insert(terms[0].mask.unwrap().0.as_ptr());
                asked += 1;
                Ok(())
            };
            entries.change(0, &update, &first, change).unwrap();
        }
        assert_eq!((masks.len(), asked), (STEPS as usize, 3 * STEPS - 1));
    }
}
