//! Which elements of a tensor a direction leaves as they are.

use offshoot_kernels::{Philox, Purpose};

/// Elements that a direction has. What a mask leaves out is zero in the direction, so that it is
/// neither perturbed nor changed by it; decay knows no masks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Mask {
    /// All.
    #[default]
    All,
    /// Each by its own chance.
    Random {
        /// How likely an element is there, between 0 and 1.
        density: f64,
        /// What the mask is drawn for: equal numbers, equal masks.
        draw: u32,
    },
    /// Those that are nearest to zero, or farthest from it, in the weights before the first step:
    /// of each tensor the same share.
    Magnitude {
        /// The share of elements that are there, between 0 and 1.
        density: f64,
        /// Which.
        side: Side,
    },
}

/// Which end of an order of magnitudes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Side {
    /// The elements nearest to zero.
    #[default]
    Smallest,
    /// The elements farthest from zero.
    Largest,
}

impl Mask {
    /// The mask of a tensor, as bits, the lowest of each word first, 1 for an element that is
    /// there;
    /// `None` if all are. `seed` is the run's, `tensor` the tensor's number as
    /// [`tensor_id`](offshoot_kernels::tensor_id) has it, `count` how many elements it has, and
    /// `first` gives them as they were before the first step, row-major, if they matter.
    ///
    /// # Errors
    /// Those of `first`.
    pub fn bits<E>(
        &self,
        seed: u64,
        tensor: u32,
        count: usize,
        first: impl FnOnce() -> Result<Vec<f32>, E>,
    ) -> Result<Option<Vec<u64>>, E> {
        Ok(match *self {
            Self::All => None,
            Self::Random { density, draw } => {
                Some(random_bits((seed, tensor, draw), density, count))
            }
            Self::Magnitude { density, side } => Some(magnitude_bits(&first()?, density, side)),
        })
    }
}

/// Whether a random mask of `density` keeps `element`.
///
/// A uniform number of 32 bits is compared with the density: four neighbours share a block of
/// ```text
/// Philox-4x32-10(key = seed, counter = (element / 4, tensor, draw, purpose 2^24))
/// ```
pub fn random_keeps(seed: u64, tensor: u32, draw: u32, density: f64, element: u64) -> bool {
    let words = random_words((seed, tensor, draw), (element / 4) as u32);
    keeps(words[(element % 4) as usize], density)
}

fn random_words((seed, tensor, draw): (u64, u32, u32), block: u32) -> [u32; 4] {
    let purpose = (Purpose::Mask as u32) << 24;
    Philox::block(Philox::key(seed), [block, tensor, draw, purpose])
}

fn keeps(word: u32, density: f64) -> bool {
    f64::from(word) < density * 4_294_967_296.0
}

/// [`random_keeps`] of all `count` elements, a block of random words at a time.
fn random_bits(key: (u64, u32, u32), density: f64, count: usize) -> Vec<u64> {
    let mut bits = vec![0; count.div_ceil(64)];
    for block in 0..count.div_ceil(4) {
        let words = random_words(key, block as u32);
        for (lane, &word) in words.iter().enumerate().take(count - 4 * block) {
            let element = 4 * block + lane;
            bits[element / 64] |= u64::from(keeps(word, density)) << (element % 64);
        }
    }
    bits
}

/// The share `density` of `weights` that is nearest to zero or farthest from it; of equal
/// magnitudes the earlier element comes first.
fn magnitude_bits(weights: &[f32], density: f64, side: Side) -> Vec<u64> {
    let kept = (density * weights.len() as f64).round() as usize;
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    let compare = |&a: &u32, &b: &u32| {
        let [x, y] = [a, b].map(|i| weights[i as usize].abs());
        let magnitude = match side {
            Side::Smallest => x.total_cmp(&y),
            Side::Largest => y.total_cmp(&x),
        };
        magnitude.then(a.cmp(&b))
    };
    if (1..order.len()).contains(&kept) {
        order.select_nth_unstable_by(kept - 1, compare);
    }
    let mut bits = vec![0; weights.len().div_ceil(64)];
    for &element in order.iter().take(kept) {
        bits[element as usize / 64] |= 1 << (element % 64);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(bits: &[u64]) -> u32 {
        bits.iter().map(|word| word.count_ones()).sum()
    }

    /// The bits of a mask that no weight matters to, and none may be asked for.
    fn random(mask: Mask, (seed, tensor): (u64, u32), count: usize) -> Vec<u64> {
        mask.bits(seed, tensor, count, || Err("a weight was asked for")).unwrap().unwrap()
    }

    /// 2^23 draws: a share of `p` has standard deviation `sqrt(p (1 - p) / 2^23)`, at most 0.0002,
    /// so that 0.001 is five of them. A mask that compares a normal draw with the density keeps
    /// 0.54 where 0.1 is asked for.
    #[test]
    fn a_random_mask_has_the_density_that_was_asked_for() {
        let n = 1 << 23;
        for density in [0.0, 0.001, 0.1, 0.25, 0.5, 0.9, 1.0] {
            let mask = Mask::Random { density, draw: 3 };
            let kept = count(&random(mask, (1, 2), n));
            let share = f64::from(kept) / n as f64;
            assert!((share - density).abs() < 0.001, "{share} for {density}");
        }
    }

    #[test]
    fn the_bits_of_a_mask_are_what_it_says_of_each_element() {
        for n in [0, 1, 3, 4, 63, 64, 65, 130] {
            let bits = random(Mask::Random { density: 0.4, draw: 9 }, (5, 6), n);
            let expected: u32 =
                (0..n as u64).map(|e| u32::from(random_keeps(5, 6, 9, 0.4, e))).sum();
            assert_eq!(count(&bits), expected);
            for e in 0..n {
                let kept = bits[e / 64] >> (e % 64) & 1 == 1;
                assert_eq!(kept, random_keeps(5, 6, 9, 0.4, e as u64));
            }
        }
    }

    #[test]
    fn random_masks_differ_between_seeds_tensors_and_draws() {
        let bits =
            |seed, tensor, draw| random(Mask::Random { density: 0.5, draw }, (seed, tensor), 256);
        assert_eq!(bits(1, 2, 3), bits(1, 2, 3));
        for other in [bits(2, 2, 3), bits(1, 3, 3), bits(1, 2, 4)] {
            assert_ne!(bits(1, 2, 3), other);
        }
    }

    #[test]
    fn a_magnitude_mask_keeps_the_end_that_was_asked_for() {
        let weights = [0.5, -0.1, 0.1, -3.0, 0.0, 0.2];
        let bits = |density, side| {
            let mask = Mask::Magnitude { density, side };
            mask.bits(0, 0, 6, || Ok::<_, ()>(weights.to_vec())).unwrap().unwrap()[0]
        };
        assert_eq!(bits(0.5, Side::Smallest), 0b01_0110);
        assert_eq!(bits(0.5, Side::Largest), 0b10_1001);
        assert_eq!(bits(0.0, Side::Largest), 0);
        assert_eq!(bits(1.0, Side::Smallest), 0b11_1111);
    }

    #[test]
    fn the_empty_mask_of_an_empty_tensor_is_no_fault() {
        let mask = Mask::Magnitude { density: 0.5, side: Side::Smallest };
        assert_eq!(mask.bits(0, 0, 0, || Ok::<_, ()>(Vec::new())), Ok(Some(vec![])));
        assert_eq!(Mask::All.bits(0, 0, 1, || Err(())), Ok(None));
    }
}
