//! One uniform number for each place in each answer.
//!
//! A draw is keyed by what it decides, (seed, choice, position), and not by how many draws came
//! before. So a seed names a text: the same whatever the number of threads, whichever other
//! requests share the batch, and however many tokens a speculative step gains at once.

use crate::philox::{Philox, halves};

/// What a number decides at its position. Two uses never share a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The token.
    Token,
    /// The token that a drafter draws from its own distribution.
    Draft,
    /// One of the tests that drafted tokens are put to, or the draw behind them; below 2^31.
    Test(u32),
}

impl Purpose {
    /// The last word of a counter.
    fn word(self) -> u32 {
        match self {
            Self::Token => 0,
            Self::Draft => 1,
            Self::Test(n) => (1 << 31) | n,
        }
    }
}

/// Returns the uniform number in [0, 1) that decides the token at `position` of answer `choice`.
///
/// `choice` counts the answers asked for at once, `position` the tokens of one answer, both
/// from 0. The number is a multiple of 2^-53.
pub fn uniform(seed: u64, choice: u32, position: u64) -> f64 {
    uniform_for(Purpose::Token, seed, choice, position)
}

/// As [`uniform`], for another purpose at that place.
pub fn uniform_for(purpose: Purpose, seed: u64, choice: u32, position: u64) -> f64 {
    let [low, high] = halves(position);
    let bits = Philox::block(Philox::key(seed), [low, high, choice, purpose.word()]);
    let wide = (u64::from(bits[1]) << 32) | u64::from(bits[0]);
    (wide >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pearson's statistic of `counts` against equal expected counts.
    fn chi_square(counts: &[u64]) -> f64 {
        let expected = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        counts.iter().map(|&n| (n as f64 - expected).powi(2) / expected).sum()
    }

    /// Counts of `draws` in 64 equal bins of [0, 1).
    fn bins(draws: impl Iterator<Item = f64>) -> [u64; 64] {
        let mut counts = [0; 64];
        draws.for_each(|u| counts[(u * 64.0) as usize] += 1);
        counts
    }

    /// With 63 degrees of freedom the statistic has mean 63 and deviation 11.2, and passes
    /// 113.5 for one good generator in 10,000.
    #[test]
    fn draws_fill_the_unit_interval_evenly_along_each_part_of_the_key() {
        let n = 1 << 16;
        assert!(chi_square(&bins((0..n).map(|i| uniform(1, 0, i)))) < 113.5);
        assert!(chi_square(&bins((0..n).map(|i| uniform(i, 0, 0)))) < 113.5);
        assert!(chi_square(&bins((0..n as u32).map(|i| uniform(1, i, 0)))) < 113.5);
    }

    #[test]
    fn successive_positions_are_uncorrelated() {
        let pair = |i| (uniform(3, 0, i) - 0.5) * (uniform(3, 0, i + 1) - 0.5);
        let n = 1 << 16;
        let correlation = 12.0 * (0..n).map(pair).sum::<f64>() / n as f64;
        assert!(correlation.abs() < 5.0 / (n as f64).sqrt(), "{correlation}");
    }

    #[test]
    fn each_part_of_the_key_matters() {
        let base = uniform(5, 6, 7);
        assert_eq!(base, uniform(5, 6, 7));
        for other in [uniform(4, 6, 7), uniform(5, 7, 6), uniform(5, 6, 7 + (1 << 32))] {
            assert_ne!(base, other);
        }
        assert_ne!(base, uniform(5 + (1 << 32), 6, 7));
        let purposes = [Purpose::Draft, Purpose::Test(0), Purpose::Test(1)];
        let other = purposes.map(|purpose| uniform_for(purpose, 5, 6, 7));
        assert!(!other.contains(&base) && other[0] != other[1] && other[1] != other[2]);
    }

    /// The value is part of what a seed promises, so it may not change from version to version.
    #[test]
    fn the_first_draw_of_seed_zero_is_made_of_the_known_answer() {
        let wide = 0xe169_c58d_6627_e8d5u64;
        assert_eq!(uniform(0, 0, 0), (wide >> 11) as f64 * 2f64.powi(-53));
    }
}
