//! Rounding to bfloat16 by chance, so that on average nothing is lost: what [`Rounding::round`] says.
//!
//! ```text
//! key, counter   as of a direction of the purpose `Rounding`, index 0; n = 8
//! r(e)           bits 16 (e mod 2) .. of word e mod 8 / 2, the lower half first
//! round(x)       the bits of x plus r(e), the lower 16 cleared
//! ```
//! Between its neighbours in bfloat16, `a <= x < b` in magnitude, `x` becomes `b` with a chance of
//! `(x - a) / (b - a)`, to the bit, so its expectation is `x`; a bfloat16 stays. Updates far below half
//! a step of the grid move weights in the mean, where rounding to nearest would lose them all (Gupta et
//! al. 2015, <https://arxiv.org/abs/1502.02551>).

use super::blocks::{BLOCK_COLS, BlockPlace, philox, ramp};
use super::{Noise, Purpose};
use crate::Philox;
use crate::lanes::Lanes;
use crate::tile::TILE_ROWS;

/// Elements that a block of random bits serves.
const ELEMENTS: usize = 8;

/// What chance decides by, within one tensor and for one step, where weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rounding {
    /// The run's seed.
    pub seed: u64,
    /// Which tensor, as [`tensor_id`](crate::tensor_id) numbers it.
    pub tensor: u32,
    /// The step that changes it.
    pub step: u32,
}

/// Random bits for a block of weights, a pair of columns in each lane: `[pair][row]`.
pub(crate) type PairBits = [[u32; TILE_ROWS]; BLOCK_COLS / 2];

impl Rounding {
    /// What `x` is as a bfloat16 in the place of `element`, counted in row-major order of the tensor's
    /// shape: the definition. What is no finite number is cut, which it does not change.
    ///
    /// # Panics
    /// If the element is out of range, 2^35.
    pub fn round(&self, element: u64, x: f32) -> f32 {
        let bits = if x.is_finite() { self.bits(element) } else { 0 };
        f32::from_bits((x.to_bits() + bits) & 0xffff_0000)
    }

    /// The 16 bits of `element`.
    fn bits(&self, element: u64) -> u32 {
        self.check(element + 1);
        let purpose = (Purpose::Rounding as u32) << 24;
        let counter = [(element / ELEMENTS as u64) as u32, self.tensor, self.step, purpose];
        let place = (element % ELEMENTS as u64) as usize;
        Philox::block(Philox::key(self.seed), counter)[place / 2] >> (16 * (place % 2)) & 0xffff
    }

    /// Checks that all of `elements` can be told apart.
    ///
    /// # Panics
    /// If there are more than 2^35.
    pub(crate) fn check(&self, elements: u64) {
        assert!(elements <= (ELEMENTS as u64) << 32, "elements of tensors of at most 2^35 of them");
    }

    /// Writes the bits of a block of weights: the even column's are the lower half.
    #[inline(always)]
    pub(crate) unsafe fn fill_pairs<L: Lanes>(&self, place: BlockPlace, pairs: &mut PairBits) {
        let (rows, cols) = place.shape;
        let first = place.row as u64 * cols as u64 + place.col as u64;
        if cols.is_multiple_of(ELEMENTS) {
            let (seed, tensor, step) = (self.seed, self.tensor, self.step);
            let noise =
                Noise { seed, tensor, step, purpose: Purpose::Rounding, ..Noise::default() };
            let blocks = place.count.div_ceil(ELEMENTS);
            for (i, pairs) in pairs.chunks_exact_mut(ELEMENTS / 2).enumerate().take(blocks) {
                // SAFETY: the caller runs where the instructions of `L` exist; rows hold 16 integers.
                unsafe {
                    let block = first / ELEMENTS as u64 + i as u64;
                    let words = philox::<L>(&noise, ramp::<L>(block, cols / ELEMENTS));
                    for (pair, word) in pairs.iter_mut().zip(words) {
                        L::store_i(pair.as_mut_ptr().cast(), word);
                    }
                }
            }
            return;
        }
        pairs.fill([0; TILE_ROWS]);
        let height = TILE_ROWS.min(rows - place.row);
        for col in 0..place.count {
            for (lane, pair) in pairs[col / 2].iter_mut().enumerate().take(height) {
                let bits = self.bits(first + (lane * cols + col) as u64);
                *pair |= bits << (16 * (col % 2));
            }
        }
    }
}

/// Rounds 16 weights of each of two columns by `bits`: the even column's in the lower halves.
#[inline(always)]
pub(crate) unsafe fn round_pair<L: Lanes>(even: L::F, odd: L::F, bits: L::I) -> L::I {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let even = rounded::<L>(even, L::and_i(bits, L::splat_i(0xffff)));
        let odd = rounded::<L>(odd, L::shr_i(bits, 16));
        L::xor_i(L::shr_i(even, 16), L::and_i(odd, L::splat_i(-65_536)))
    }
}

/// The bits of `x` plus `bits`, those of finite numbers alone.
#[inline(always)]
unsafe fn rounded<L: Lanes>(x: L::F, bits: L::I) -> L::I {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let x = L::to_bits(x);
        // The greatest finite magnitude less this one: its sign is set where there is no number.
        let magnitude = L::and_i(x, L::splat_i(i32::MAX));
        let less = L::add_i(L::xor_i(magnitude, L::splat_i(-1)), L::splat_i(0x7f80_0000));
        let finite = L::add_i(L::shr_i(less, 31), L::splat_i(-1));
        L::add_i(x, L::and_i(bits, finite))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUNDING: Rounding = Rounding { seed: 0x0123_4567_89ab_cdef, tensor: 0xdead, step: 7 };

    #[test]
    fn bits_are_halves_of_the_named_block() {
        let words = Philox::block([0x89ab_cdef, 0x0123_4567], [5, 0xdead, 7, 0x0100_0000]);
        let halves: Vec<u32> = words.iter().flat_map(|word| [word & 0xffff, word >> 16]).collect();
        let bits: Vec<u32> = (40..48).map(|element| ROUNDING.bits(element)).collect();
        assert_eq!(bits, halves);
    }

    /// The bound is four standard errors of a million draws that are half a step off at most.
    #[test]
    fn what_is_rounded_stays_in_the_mean_and_goes_no_further_than_to_a_neighbour() {
        let (n, mut sum) = (1_000_000, 0.0);
        for element in 0..n {
            // Anywhere between two neighbours, in all binades about one and of both signs.
            let place = (element as u32).wrapping_mul(0x9e37_79b9);
            let low = (0x3e80_0000 + ((place >> 8 & 0x1ff) << 16)) | (place << 31);
            let (a, b) = (f32::from_bits(low), f32::from_bits(low + 0x1_0000));
            let x = f32::from_bits(low | place >> 7 & 0xffff);
            let rounded = ROUNDING.round(element, x);
            assert!(rounded == a || rounded == b && x != a, "{x} becomes {rounded}");
            sum += f64::from(rounded - x) / f64::from(b - a);
        }
        let mean = sum / n as f64;
        assert!(mean.abs() < 2e-3, "{mean} steps");
    }

    #[test]
    fn what_is_a_bfloat16_already_stays_as_do_infinities_and_what_is_no_number() {
        for high in 0..=u16::MAX {
            let x = f32::from_bits(u32::from(high) << 16);
            let rounded = ROUNDING.round(u64::from(high), x);
            assert_eq!(rounded.to_bits(), x.to_bits());
        }
    }

    #[test]
    fn seeds_tensors_and_steps_round_apart() {
        let up = |rounding: Rounding| -> Vec<bool> {
            (0..4096).map(|element| rounding.round(element, 1.0 + 1.0 / 256.0) > 1.0).collect()
        };
        let base = up(ROUNDING);
        let others = [
            Rounding { seed: 1, ..ROUNDING },
            Rounding { tensor: 1, ..ROUNDING },
            Rounding { step: 8, ..ROUNDING },
        ];
        for other in others {
            let same = up(other).iter().zip(&base).filter(|(a, b)| a == b).count();
            // Half of them, give or take six standard errors.
            assert!(same.abs_diff(2048) < 192, "{same}");
        }
    }
}
