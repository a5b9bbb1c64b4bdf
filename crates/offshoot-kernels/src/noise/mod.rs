//! Random directions in the space of a model's weights: what [`Noise::at`] says, and nothing else.
//!
//! An entry of a direction is a function of who asks (the run's seed), for what ([`Purpose`]), when
//! (the step), which direction of the step, which tensor and which element. Nothing is drawn in an
//! order, so tiles, threads and restarts make the same numbers, and a direction takes no memory.
//!
//! ```text
//! key     = (seed mod 2^32, seed / 2^32)
//! counter = (element / n, tensor, step, purpose 2^24 + index)
//! words   = Philox-4x32-10(key, counter)
//! ```
//! A block of four words serves `n` elements that follow one another, in row-major order of the
//! tensor's own shape:
//! ```text
//! Rademacher      n = 128   bit e mod 32 of word e / 32, 0 for +1 and 1 for -1
//! GaussQ8         n = 16    byte e mod 4 of word e / 4, lowest first: a step of the table
//! GaussBoxMuller  n = 4     words 0 and 1 make elements 0 and 1, words 2 and 3 the others
//! ```
//! Every form computes in single precision, each operation rounded on its own, with no function of a
//! library: the numbers are part of what a run is, and have to be the same in all times and places.
//! What makes them in bulk ([`Noise::fill`]) is tested against [`Noise::at`] to the bit.

mod blocks;
mod normal;
mod rounding;
mod table;

use crate::Philox;

pub(crate) use blocks::{BLOCK_COLS, Block, BlockPlace, fill_block, fill_lanes};
pub use rounding::Rounding;
pub(crate) use rounding::{PairBits, round_pair};

/// How the entries of a direction are drawn. All are symmetric about 0, with variance 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Distribution {
    /// +1 or -1: a bit each.
    Rademacher,
    /// A Gaussian in 256 steps of equal chance: a byte each. The greatest is 2.8929.
    #[default]
    GaussQ8,
    /// A Gaussian by Box and Muller: 32 bits each.
    GaussBoxMuller,
}

impl Distribution {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rademacher, Self::GaussQ8, Self::GaussBoxMuller];

    /// Its name: `rademacher`, `gauss-q8` or `gauss-bm`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rademacher => "rademacher",
            Self::GaussQ8 => "gauss-q8",
            Self::GaussBoxMuller => "gauss-bm",
        }
    }

    /// The one called `name`, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|distribution| distribution.name() == name)
    }

    /// Elements that a block of random bits serves.
    const fn elements(self) -> u64 {
        match self {
            Self::Rademacher => 128,
            Self::GaussQ8 => 16,
            Self::GaussBoxMuller => 4,
        }
    }
}

/// What random numbers are for: streams of different purposes share nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Purpose {
    /// The independent entries of a direction.
    #[default]
    Direction = 0,
    /// Rounding up or down by chance.
    Rounding = 1,
    /// Which elements a direction leaves out.
    Mask = 2,
    /// The left factor of a direction of low rank.
    LeftFactor = 3,
    /// The right factor, which stands for an epoch: its step is the epoch's number.
    RightFactor = 4,
    /// The order of examples.
    DataOrder = 5,
    /// Choosing tokens.
    Sampling = 6,
    /// The first values of what is added to a model.
    Initial = 7,
}

/// A direction within one tensor: its name, from which every entry follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Noise {
    /// The run's seed.
    pub seed: u64,
    /// Which tensor, as [`tensor_id`] numbers it.
    pub tensor: u32,
    /// The step that draws it.
    pub step: u32,
    /// Which of the step's directions it is, below 2^24.
    pub index: u32,
    /// What it is for.
    pub purpose: Purpose,
    /// How its entries are drawn.
    pub distribution: Distribution,
}

impl Noise {
    /// The entry of `element`, counted in row-major order of the tensor's shape: the definition.
    ///
    /// Elements are told apart up to 2^32 blocks of random bits, which is 2^34 elements at the least.
    ///
    /// # Panics
    /// If the index or the element is out of range.
    pub fn at(&self, element: u64) -> f32 {
        let place = (element % self.distribution.elements()) as usize;
        let words = Philox::block(Philox::key(self.seed), self.counter(element));
        match self.distribution {
            Distribution::Rademacher => {
                if words[place / 32] >> (place % 32) & 1 == 0 {
                    1.0
                } else {
                    -1.0
                }
            }
            Distribution::GaussQ8 => step(words[place / 4] >> (8 * (place % 4)) & 0xff),
            Distribution::GaussBoxMuller => {
                let first = place / 2 * 2;
                normal::pair(words[first], words[first + 1])[place % 2]
            }
        }
    }

    /// Writes the entries of elements `first..first + out.len()`, which are those of
    /// [`Noise::at`], to `out`.
    ///
    /// # Panics
    /// As [`Noise::at`].
    pub fn fill(&self, isa: crate::Isa, first: u64, out: &mut [f32]) {
        self.check(first + out.len() as u64);
        fill_run(isa, self, first, out);
    }

    /// Checks that all of `elements` can be told apart.
    ///
    /// # Panics
    /// If the index or the number of elements is out of range.
    pub(crate) fn check(&self, elements: u64) {
        self.counter(elements.saturating_sub(1));
    }

    /// The counter of the block that serves `element`.
    fn counter(&self, element: u64) -> [u32; 4] {
        assert!(self.index < 1 << 24, "a direction's index below 2^24");
        let block = u32::try_from(element / self.distribution.elements());
        let block = block.expect("callers ask for elements of tensors below 2^34 of them");
        [block, self.tensor, self.step, (self.purpose as u32) << 24 | self.index]
    }
}

crate::isa::by_isa! { fn fill_run(noise: &Noise, first: u64, out: &mut [f32]) = fill_lanes }

/// Step `byte` of the Gaussian of 256 steps.
fn step(byte: u32) -> f32 {
    table::STEPS[byte as usize]
}

/// The number of the tensor called `name`: the first four bytes of the name's SHA-256, the highest
/// first. Two names of a model may meet, by a chance of 2^-32 a pair; who uses them has to look.
pub fn tensor_id(name: &str) -> u32 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(name.as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(distribution: Distribution) -> Noise {
        Noise {
            seed: 0x0123_4567_89ab_cdef,
            tensor: 0xdead_beef,
            step: 7,
            distribution,
            ..Noise::default()
        }
    }

    #[test]
    fn a_tensor_has_the_first_digits_of_its_names_digest() {
        // The examples of FIPS 180-2, appendix B.
        assert_eq!(tensor_id("abc"), 0xba78_16bf);
        assert_eq!(tensor_id(""), 0xe3b0_c442);
    }

    #[test]
    fn the_steps_of_the_table_are_antisymmetric_of_unit_variance_and_ascending() {
        let steps: Vec<f32> = (0..256).map(step).collect();
        assert!(steps.windows(2).all(|pair| pair[0] < pair[1]));
        assert!((0..256).all(|b| steps[b].to_bits() == (-steps[255 - b]).to_bits()));
        let mean = |power| steps.iter().map(|x| f64::from(*x).powi(power)).sum::<f64>() / 256.0;
        assert!((mean(2) - 1.0).abs() < 1e-7, "{}", mean(2));
        assert!((mean(4) - 2.918).abs() < 1e-3, "{}", mean(4));
        let expected = [0.004_908_1, 0.014_724_8, 0.024_542_9, 0.034_363_3];
        assert!((0..4).all(|i| (steps[128 + i] - expected[i]).abs() < 1e-7));
        assert!((steps[255] - 2.8929).abs() < 1e-4);
    }

    #[test]
    fn entries_are_fields_of_the_named_block() {
        for distribution in Distribution::ALL {
            let noise = Noise { index: 3, purpose: Purpose::Mask, ..noise(distribution) };
            let n = distribution.elements();
            let key = [0x89ab_cdef, 0x0123_4567];
            let words = Philox::block(key, [5, 0xdead_beef, 7, 0x0200_0003]);
            for place in 0..n {
                let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                let i = place as usize;
                let expected = match distribution {
                    Distribution::Rademacher => 1.0 - 2.0 * f32::from(bytes[i / 8] >> (i % 8) & 1),
                    Distribution::GaussQ8 => step(u32::from(bytes[i])),
                    Distribution::GaussBoxMuller => {
                        normal::pair(words[i & 2], words[i & 2 | 1])[i % 2]
                    }
                };
                assert_eq!(noise.at(5 * n + place).to_bits(), expected.to_bits(), "{place}");
            }
        }
    }

    /// Bounds are six standard errors, so that a sound generator fails in one of 10^8 builds.
    #[test]
    fn entries_have_the_moments_of_their_distribution_and_neighbours_are_apart() {
        let n = 1 << 17;
        for (distribution, kurtosis) in [
            (Distribution::Rademacher, 1.0),
            (Distribution::GaussQ8, 2.918),
            (Distribution::GaussBoxMuller, 3.0),
        ] {
            let z = |noise: Noise| (0..n).map(|e| f64::from(noise.at(e))).collect::<Vec<f64>>();
            let base = z(noise(distribution));
            let mean = |f: &dyn Fn(usize) -> f64| (0..n as usize).map(f).sum::<f64>() / n as f64;
            let error = 6.0 / (n as f64).sqrt();
            assert!(mean(&|i| base[i]).abs() < error, "{distribution:?}");
            assert!((mean(&|i| base[i].powi(2)) - 1.0).abs() < 1.5 * error, "{distribution:?}");
            let fourth = mean(&|i| base[i].powi(4));
            assert!((fourth - kurtosis).abs() < 10.0 * error, "{distribution:?} {fourth}");
            let others = [
                Noise { seed: 1, ..noise(distribution) },
                Noise { tensor: 1, ..noise(distribution) },
                Noise { step: 8, ..noise(distribution) },
                Noise { index: 1, ..noise(distribution) },
                Noise { purpose: Purpose::LeftFactor, ..noise(distribution) },
            ];
            for other in others {
                let other = z(other);
                assert!(mean(&|i| base[i] * other[i]).abs() < error, "{distribution:?}");
            }
            for distance in [1, 4, 16, 128] {
                let next = |i| base[i] * base[(i + distance) % base.len()];
                assert!(mean(&next).abs() < error, "{distribution:?} {distance}");
            }
        }
    }

    /// The numbers are those that `scripts/oracles/noise.py` prints.
    #[test]
    fn known_entries_stay() {
        let first = |distribution| [0, 1, 2, 1000].map(|e| noise(distribution).at(e).to_bits());
        let known = Distribution::ALL.map(first);
        let expected = [
            [0xbf80_0000, 0x3f80_0000, 0xbf80_0000, 0x3f80_0000],
            [0x3f25_4bf0, 0x3fc6_ecd5, 0x4015_d4cd, 0xbecb_bfb3],
            [0x3dbf_c70b, 0xc047_5c7f, 0x3de2_38f6, 0xbfdc_e814],
        ];
        assert_eq!(known, expected);
    }

    #[test]
    fn distributions_are_found_by_name() {
        for distribution in Distribution::ALL {
            assert_eq!(Distribution::named(distribution.name()), Some(distribution));
        }
        assert_eq!(Distribution::named("gauss"), None);
    }
}
