//! Philox-4x32-10: random numbers as a pure function of a key and a counter.
//!
//! Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3,
//! <https://doi.org/10.1145/2063384.2063405>. One round, with `*` the full 64-bit product:
//! ```text
//! (hi0, lo0) = M0 * c0        c0' = hi1 ^ c1 ^ k0     c1' = lo1
//! (hi1, lo1) = M1 * c2        c2' = hi0 ^ c3 ^ k1     c3' = lo0
//! ```
//! Between two of the ten rounds the key moves on by two Weyl constants.
//!
//! There is no state to advance, so a number depends on what it is for and never on how many were
//! drawn before it: threads, batches and restarts cannot change it.
//! Cost: 20 multiplications for 128 bits.

/// Multipliers of the two products.
pub(crate) const M: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Steps of the key: the golden ratio and the square root of three, less one.
pub(crate) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
pub(crate) const ROUNDS: usize = 10;

/// The Philox-4x32-10 generator, a function and not a state.
#[derive(Debug, Clone, Copy)]
pub struct Philox;

impl Philox {
    /// Returns the 128 random bits of `counter` under `key`.
    ///
    /// For a fixed key this is a bijection of the counters: two counters never share a block.
    pub fn block(mut key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
        for round in 0..ROUNDS {
            if round > 0 {
                key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
            }
            let (high0, low0) = wide_product(M[0], counter[0]);
            let (high1, low1) = wide_product(M[1], counter[2]);
            counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        }
        counter
    }

    /// Splits a 64-bit seed into a key, the low half first.
    pub fn key(seed: u64) -> [u32; 2] {
        halves(seed)
    }
}

/// The low and the high half of `x`.
fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let [low, high] = halves(u64::from(a) * u64::from(b));
    (high, low)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The three `philox4x32 10` lines of the known-answer file of Random123, the authors' library.
    #[test]
    fn blocks_equal_the_known_answers_of_random123() {
        let ones = u32::MAX;
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([ones; 4], [ones; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(Philox::block(key, counter), expected);
        }
    }

    #[test]
    fn a_key_holds_the_low_half_of_the_seed_first() {
        assert_eq!(Philox::key(0x0123_4567_89ab_cdef), [0x89ab_cdef, 0x0123_4567]);
    }
}
