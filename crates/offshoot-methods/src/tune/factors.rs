//! The factors of directions that are products of two thin matrices.
//!
//! Names: `m` = rows, `n` = columns of the tensor, `r` = rank. All matrices are row-major.

use offshoot_kernels::{Distribution, Isa, Noise, Purpose};

use super::orthonormal::orthonormal_columns;
use super::{Direction, Form};

/// A direction in a matrix as two factors: its entry `(i, j)` is the sum of `left[i, k] right[j,
/// k]` over `k`, which begins at zero and goes in ascending order, each term by a multiplication
/// and an addition in single precision. What a form divides or multiplies by is in `left` already.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// The `r` of the shapes.
    pub rank: usize,
    /// `[m, r]`.
    pub left: Vec<f32>,
    /// `[n, r]`.
    pub right: Vec<f32>,
}

impl Factors {
    /// The entry at row `i` and column `j`.
    pub fn at(&self, i: usize, j: usize) -> f32 {
        let left = &self.left[i * self.rank..][..self.rank];
        let right = &self.right[j * self.rank..][..self.rank];
        left.iter().zip(right).fold(0.0, |sum, (l, r)| sum + l * r)
    }
}

/// What is the same for all directions of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// The run's seed.
    pub seed: u64,
    /// The run's distribution.
    pub distribution: Distribution,
    /// The tensor's number, as [`tensor_id`](offshoot_kernels::tensor_id) has it.
    pub tensor: u32,
    /// Its rows.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
}

/// What the directions of one form share in a tensor, of whatever step and index they are. Making
/// it may take longer than the rest of a direction, so who makes many of them keeps it for the
/// epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Basis {
    /// Columns of the factors.
    rank: usize,
    /// Of a subspace `P`, `[m, r]`; else the matrices that carry a direction on, one behind the
    /// other.
    left: Vec<f32>,
    /// `V` or `Q`, `[n, r]`.
    right: Vec<f32>,
}

impl Draw {
    /// The factors of `direction` in the tensor, or `None` if its entries there are independent, as
    /// those of all directions are in a tensor of one row.
    pub fn factors(&self, direction: &Direction) -> Option<Factors> {
        Some(self.factors_on(direction, &self.basis(direction.form)?))
    }

    /// What all directions of `form` share, or `None` if their entries are independent here.
    pub fn basis(&self, form: Form) -> Option<Basis> {
        if self.rows == 1 {
            return None;
        }
        match form {
            Form::Dense => None,
            Form::LowRank { rank, epoch } => Some(self.carried(rank, epoch, epoch)),
            Form::Carried { rank, from, to } => Some(self.carried(rank, from, to)),
            Form::Subspace { rank, epoch } => Some(self.subspace(rank, epoch)),
        }
    }

    /// The factors of `direction`, given the [`Self::basis`] of its form.
    pub fn factors_on(&self, direction: &Direction, basis: &Basis) -> Factors {
        let Basis { rank: r, ref left, ref right } = *basis;
        let (mut left, scale) = match direction.form {
            Form::Subspace { .. } => {
                let core = draw(&self.entries(direction), r * r);
                let scale = (self.rows as f64 * self.cols as f64).sqrt() / r as f64;
                (multiply(left, &core, r), scale)
            }
            // `U` is keyed by the step and `V` by the epoch alone, so what a step measures along
            // and what it adds cannot differ, in whatever order they are drawn.
            Form::Dense | Form::LowRank { .. } | Form::Carried { .. } => {
                let noise = self.noise(Purpose::LeftFactor, direction.step, direction.index);
                let drawn = draw(&noise, self.rows * r);
                let carry = |u: Vec<f32>, bridge: &[f32]| multiply(&u, bridge, r);
                (left.chunks(r * r).fold(drawn, carry), 1.0 / (r as f64).sqrt())
            }
        };
        left.iter_mut().for_each(|x| *x *= scale as f32);
        Factors { rank: r, left, right: right.clone() }
    }

    /// The noise of independent entries of `direction`.
    pub fn entries(&self, direction: &Direction) -> Noise {
        self.noise(Purpose::Direction, direction.step, direction.index)
    }

    fn noise(&self, purpose: Purpose, step: u32, index: u32) -> Noise {
        let Self { seed, distribution, tensor, .. } = *self;
        Noise { seed, tensor, step, index, purpose, distribution }
    }

    /// `V_to`, and what carries from one epoch to the next.
    fn carried(&self, rank: u32, from: u32, to: u32) -> Basis {
        let rank = (rank as usize).max(1);
        let left = (from..to).flat_map(|epoch| self.bridge(epoch, rank)).collect();
        Basis { rank, left, right: self.right(to, rank) }
    }

    /// `V` of an epoch, `[n, r]`.
    fn right(&self, epoch: u32, r: usize) -> Vec<f32> {
        draw(&self.noise(Purpose::RightFactor, epoch, 0), self.cols * r)
    }

    /// `V_epoch^T V_(epoch+1) / n`, `[r, r]`.
    fn bridge(&self, epoch: u32, r: usize) -> Vec<f32> {
        let (old, new) = (self.right(epoch, r), self.right(epoch + 1, r));
        let mut sums = vec![0.0_f64; r * r];
        for (old, new) in old.chunks(r).zip(new.chunks(r)) {
            for (row, &o) in sums.chunks_mut(r).zip(old) {
                row.iter_mut().zip(new).for_each(|(sum, &n)| *sum += f64::from(o) * f64::from(n));
            }
        }
        sums.iter().map(|sum| (sum / self.cols as f64) as f32).collect()
    }

    /// `P` and `Q` of an epoch.
    fn subspace(&self, rank: u32, epoch: u32) -> Basis {
        let rank = (rank as usize).min(self.rows).min(self.cols).max(1);
        let basis = |purpose, length| {
            orthonormal_columns(draw(&self.noise(purpose, epoch, 0), length * rank), rank)
        };
        let left = basis(Purpose::LeftFactor, self.rows);
        Basis { rank, left, right: basis(Purpose::RightFactor, self.cols) }
    }
}

/// The first `count` entries.
fn draw(noise: &Noise, count: usize) -> Vec<f32> {
    let mut entries = vec![0.0; count];
    // The bits are the same on every instruction set.
    noise.fill(Isa::best(), 0, &mut entries);
    entries
}

/// `a b` for `a` of `r` columns and `b` of `[r, r]`, each entry summed in ascending order in double
/// precision.
fn multiply(a: &[f32], b: &[f32], r: usize) -> Vec<f32> {
    let entry = |row: &[f32], j: usize| {
        row.iter().enumerate().map(|(k, &x)| f64::from(x) * f64::from(b[k * r + j])).sum::<f64>()
    };
    a.chunks(r).flat_map(|row| (0..r).map(move |j| entry(row, j) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(rows: usize, cols: usize) -> Draw {
        Draw { seed: 9, distribution: Distribution::GaussQ8, tensor: 77, rows, cols }
    }

    fn direction(step: u32, form: Form) -> Direction {
        Direction { form, ..Direction::dense(step, 0) }
    }

    #[test]
    fn vectors_and_dense_directions_have_no_factors() {
        let low = direction(0, Form::LowRank { rank: 2, epoch: 0 });
        assert_eq!(tensor(1, 8).factors(&low), None);
        assert_eq!(tensor(8, 8).factors(&direction(0, Form::Dense)), None);
        assert!(tensor(8, 1).factors(&low).is_some());
    }

    /// Each entry against `U` and `V` drawn here, element by element.
    #[test]
    fn a_low_rank_direction_is_the_product_of_its_keyed_factors() {
        let (t, r) = (tensor(5, 3), 2);
        let factors = t.factors(&direction(4, Form::LowRank { rank: 2, epoch: 1 })).unwrap();
        let key = |purpose, step| Noise { purpose, step, ..t.entries(&Direction::default()) };
        let (u, v) = (key(Purpose::LeftFactor, 4), key(Purpose::RightFactor, 1));
        for i in 0..5 {
            for j in 0..3 {
                let dot: f64 =
                    (0..r).map(|k| f64::from(u.at(i * r + k)) * f64::from(v.at(j * r + k))).sum();
                let got = f64::from(factors.at(i as usize, j as usize));
                assert!((got - dot / 2.0_f64.sqrt()).abs() < 1e-6);
            }
        }
    }

    /// Over many epochs, whatever the rank: a rank that was not divided by would be a longer step.
    #[test]
    fn entries_of_a_low_rank_direction_have_variance_1_at_any_rank() {
        let t = tensor(40, 30);
        for rank in [1, 2, 4] {
            let of_step = |step| {
                let factors = t.factors(&direction(step, Form::LowRank { rank, epoch: step }));
                let factors = factors.unwrap();
                let entries = (0..40 * 30).map(|e| f64::from(factors.at(e / 30, e % 30)));
                entries.map(|entry| entry * entry).sum::<f64>() / (40.0 * 30.0)
            };
            let square = (0..400).map(of_step).sum::<f64>() / 400.0;
            // At rank 1 that of a step is (sum of u^2 / 40) (sum of v^2 / 30), which deviates by a third.
            assert!((square - 1.0).abs() < 0.09, "rank {rank}: {square}");
        }
    }

    /// A step's measurement and its update name the same direction, in the first step of an epoch
    /// as in the others: `V` does not change what `U` is.
    #[test]
    fn left_factors_do_not_depend_on_whether_the_right_one_is_new() {
        let t = tensor(6, 4);
        for step in [0, 49, 50, 51, 100] {
            let now = direction(step, Form::LowRank { rank: 2, epoch: step / 50 });
            let other = direction(step, Form::LowRank { rank: 2, epoch: step / 50 + 1 });
            let (a, b) = (t.factors(&now).unwrap(), t.factors(&other).unwrap());
            assert_eq!(a, t.factors(&now).unwrap());
            assert_eq!(a.left, b.left);
            assert_ne!(a.right, b.right);
        }
    }

    /// `N V_old^T V_new / n` computed densely.
    #[test]
    fn a_carried_direction_is_projected_onto_the_new_epochs_space() {
        let (t, r) = (tensor(4, 6), 2);
        let from = t.factors(&direction(3, Form::LowRank { rank: 2, epoch: 0 })).unwrap();
        let carried = direction(3, Form::Carried { rank: 2, from: 0, to: 1 });
        let carried = t.factors(&carried).unwrap();
        let new = t.factors(&direction(9, Form::LowRank { rank: 2, epoch: 1 })).unwrap();
        assert_eq!(carried.right, new.right);
        for i in 0..4 {
            for l in 0..r {
                let mut sum = 0.0;
                for j in 0..6 {
                    sum += f64::from(from.at(i, j)) * f64::from(new.right[j * r + l]) / 6.0;
                }
                assert!((sum - f64::from(carried.left[i * r + l])).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn nothing_is_carried_within_an_epoch() {
        let t = tensor(4, 6);
        let carried = direction(3, Form::Carried { rank: 2, from: 5, to: 5 });
        let plain = direction(3, Form::LowRank { rank: 2, epoch: 5 });
        assert_eq!(t.factors(&carried), t.factors(&plain));
    }

    /// With orthonormal bases the squared norm of `P Z Q^T` is that of `Z`, so the direction's is
    /// `m n |Z|^2 / r^2`.
    #[test]
    fn a_subspace_direction_has_the_norm_of_its_core() {
        let (t, r) = (tensor(12, 9), 3_usize);
        let d = direction(8, Form::Subspace { rank: 3, epoch: 2 });
        let factors = t.factors(&d).unwrap();
        let mut norm = 0.0;
        for i in 0..12 {
            for j in 0..9 {
                norm += f64::from(factors.at(i, j)).powi(2);
            }
        }
        let core: f64 = (0..9).map(|e| f64::from(t.entries(&d).at(e)).powi(2)).sum();
        let expected = core * 12.0 * 9.0 / (r * r) as f64;
        assert!((norm - expected).abs() < 1e-4 * expected, "{norm} {expected}");
    }

    #[test]
    fn a_basis_that_was_kept_makes_the_same_factors() {
        let t = tensor(7, 5);
        let forms = [
            Form::LowRank { rank: 2, epoch: 3 },
            Form::Carried { rank: 2, from: 1, to: 3 },
            Form::Subspace { rank: 3, epoch: 3 },
        ];
        for form in forms {
            let basis = t.basis(form).unwrap();
            for step in 0..3 {
                let d = direction(step, form);
                assert_eq!(t.factors(&d).unwrap(), t.factors_on(&d, &basis));
            }
        }
    }

    #[test]
    fn a_subspace_is_never_larger_than_the_matrix() {
        let d = direction(8, Form::Subspace { rank: 24, epoch: 2 });
        assert_eq!(tensor(12, 2).factors(&d).unwrap().rank, 2);
    }
}
