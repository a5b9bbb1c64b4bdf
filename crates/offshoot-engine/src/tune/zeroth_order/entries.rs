//! The entries of directions within the tensors of a space.

use offshoot_kernels::{Distribution, Noise, Purpose};
use offshoot_methods::tune::{Direction, Form, Layout, Term};

use super::space::tensor_ids;
use crate::Error;

/// Makes entries anew from their names, of one run over one layout.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    seed: u64,
    distribution: Distribution,
    /// Each tensor's number, rows and columns.
    tensors: Vec<(u32, usize, usize)>,
}

impl Entries {
    /// Those of a run of `seed` over `layout`.
    pub(super) fn new(
        layout: &Layout,
        seed: u64,
        distribution: Distribution,
    ) -> Result<Self, Error> {
        let ids = tensor_ids(layout)?;
        let of = |(id, spec): (u32, &offshoot_methods::tune::TensorSpec)| (id, spec.rows, spec.cols);
        Ok(Self { seed, distribution, tensors: ids.into_iter().zip(&layout.tensors).map(of).collect() })
    }

    /// Checks that directions are of this layout.
    pub(super) fn check<'t>(&self, terms: impl Iterator<Item = &'t Term>) -> Result<(), Error> {
        for Term { direction, .. } in terms {
            let listed = direction.tensors.as_ref().map_or(self.tensors.len(), |list| list.len());
            if listed != self.tensors.len() {
                let n = self.tensors.len();
                let what = format!("a direction over {listed} tensors, where {n} are tuned");
                return Err(Error::Training(what));
            }
        }
        Ok(())
    }

    /// Writes the entries of `direction` within `tensor`, row by row; whether they are not all zero.
    pub(super) fn fill(&self, tensor: usize, direction: &Direction, out: &mut Vec<f32>) -> bool {
        if direction.tensors.as_ref().is_some_and(|list| !list[tensor]) {
            return false;
        }
        let (id, rows, cols) = self.tensors[tensor];
        let noise = |purpose, step| Noise {
            seed: self.seed,
            tensor: id,
            step,
            index: direction.index,
            purpose,
            distribution: self.distribution,
        };
        out.clear();
        match direction.form {
            Form::LowRank { rank, epoch } if rows > 1 => {
                let u = noise(Purpose::LeftFactor, direction.step);
                let v = noise(Purpose::RightFactor, epoch);
                let rank = rank as usize;
                let drawn = |noise: Noise, n: usize| -> Vec<f32> {
                    (0..(n * rank) as u64).map(|e| noise.at(e)).collect()
                };
                let (u, v) = (drawn(u, rows), drawn(v, cols));
                let root = 1.0 / (rank as f32).sqrt();
                for u in u.chunks_exact(rank) {
                    let dot = |v: &[f32]| u.iter().zip(v).fold(0.0, |sum, (u, v)| sum + u * v);
                    out.extend(v.chunks_exact(rank).map(|v| dot(v) * root));
                }
            }
            _ => {
                let noise = noise(Purpose::Direction, direction.step);
                out.extend((0..(rows * cols) as u64).map(|e| noise.at(e)));
            }
        }
        true
    }
}
