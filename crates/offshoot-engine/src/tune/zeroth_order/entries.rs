//! The entries of directions within the tensors of a space.

use offshoot_kernels::Distribution;
use offshoot_methods::tune::{Direction, Draw, Layout, Term};

use super::space::tensor_ids;
use crate::Error;

/// Makes entries anew from their names, of one run over one layout, as
/// [`Weights::entries`](offshoot_methods::tune::Weights::entries) defines them.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    draws: Vec<Draw>,
}

impl Entries {
    /// Those of a run of `seed` over `layout`.
    pub(super) fn new(
        layout: &Layout,
        seed: u64,
        distribution: Distribution,
    ) -> Result<Self, Error> {
        let ids = tensor_ids(layout)?;
        let draw = |(tensor, spec): (u32, &offshoot_methods::tune::TensorSpec)| Draw {
            seed,
            distribution,
            tensor,
            rows: spec.rows,
            cols: spec.cols,
        };
        Ok(Self { draws: ids.into_iter().zip(&layout.tensors).map(draw).collect() })
    }

    /// Checks that directions are of this layout.
    pub(super) fn check(&self, terms: &[Term]) -> Result<(), Error> {
        let n = self.draws.len();
        for Term { direction, .. } in terms {
            let listed = direction.tensors.as_ref().map_or(n, |list| list.len());
            if listed != n {
                let what = format!("a direction over {listed} tensors, where {n} are tuned");
                return Err(Error::Training(what));
            }
        }
        Ok(())
    }

    /// Writes the entries of `direction` within `tensor`, row by row, whose numbers before the first
    /// step were `first`. `false` if all are zero, and then nothing is written.
    pub(super) fn fill(
        &self,
        tensor: usize,
        direction: &Direction,
        first: &[f32],
        out: &mut Vec<f32>,
    ) -> bool {
        if !direction.covers(tensor) {
            return false;
        }
        let draw = self.draws[tensor];
        let n = draw.rows * draw.cols;
        out.clear();
        match draw.factors(direction) {
            Some(factors) => {
                out.extend((0..n).map(|at| factors.at(at / draw.cols, at % draw.cols)));
            }
            None => {
                let noise = draw.entries(direction);
                out.extend((0..n as u64).map(|element| noise.at(element)));
            }
        }
        if let Some(bits) = direction.mask.bits(draw.seed, draw.tensor, first) {
            let kept = |at: usize| bits[at / 64] >> (at % 64) & 1 == 1;
            out.iter_mut().enumerate().filter(|(at, _)| !kept(*at)).for_each(|(_, z)| *z = 0.0);
        }
        true
    }

    /// Writes the sum of `terms` within `tensor`: from zero on, term by term, each by a multiplication
    /// and an addition.
    pub(super) fn sum(&self, tensor: usize, terms: &[Term], first: &[f32], out: &mut Vec<f32>) {
        let mut z = Vec::new();
        out.clear();
        out.resize(first.len(), 0.0);
        for term in terms {
            if self.fill(tensor, &term.direction, first, &mut z) {
                out.iter_mut().zip(&z).for_each(|(sum, z)| *sum += term.scale * z);
            }
        }
    }
}
