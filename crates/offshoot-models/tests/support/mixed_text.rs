//! Text of many kinds, the same from this file and from `scripts/oracles/mixed_text.py`.
//!
//! Numbers are SplitMix64's (Steele, Lea and Flood 2014, <https://doi.org/10.1145/2660193.2660195>),
//! from seed 2026; `below(n)` is the next number modulo n. `tests/data/mixed_text.json` holds lists
//! of snippets (code, words of eleven scripts, emoji, combining marks, white space, digits, control
//! characters), the gaps between them, and ranges of code points.

use serde::Deserialize;

/// What the generators choose from.
#[derive(Deserialize)]
pub(crate) struct Source {
    lists: Vec<Vec<String>>,
    gaps: Vec<String>,
    ranges: Vec<(u32, u32)>,
}

impl Source {
    /// Reads the committed lists.
    pub(crate) fn load() -> Self {
        serde_json::from_str(include_str!("../data/mixed_text.json"))
            .expect("the committed lists are JSON")
    }

    /// Snippets until there are at least `bytes` bytes: a list, 1 to 12 of its snippets, each with
    /// a gap after it; again.
    pub(crate) fn mixed_text(&self, bytes: usize) -> String {
        let mut numbers = SplitMix64(2026);
        let mut text = String::new();
        while text.len() < bytes {
            let list = numbers.choose(&self.lists);
            for _ in 0..=numbers.below(12) {
                text.push_str(numbers.choose::<String>(list));
                text.push_str(numbers.choose::<String>(&self.gaps));
            }
        }
        text
    }

    /// `count` strings of 0 to 24 characters; for each character a range, then a place in it.
    pub(crate) fn random_strings(&self, count: usize) -> Vec<String> {
        let mut numbers = SplitMix64(2026);
        let string = |_| (0..numbers.below(25)).map(|_| self.character(&mut numbers)).collect();
        (0..count).map(string).collect()
    }

    fn character(&self, numbers: &mut SplitMix64) -> char {
        let (low, high) = *numbers.choose(&self.ranges);
        char::from_u32(low + numbers.below((high - low + 1) as usize) as u32)
            .expect("the committed ranges hold no surrogates")
    }

    /// `count` lists of 1 to 16 ids below `vocab_size`.
    pub(crate) fn random_ids(&self, count: usize, vocab_size: usize) -> Vec<Vec<u32>> {
        let mut numbers = SplitMix64(2026);
        let ids = |_| (0..=numbers.below(16)).map(|_| numbers.below(vocab_size) as u32).collect();
        (0..count).map(ids).collect()
    }
}

struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
