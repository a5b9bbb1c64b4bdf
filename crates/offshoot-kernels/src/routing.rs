//! Which experts a row goes through, and the sum of what they make of it.
//!
//! Fedus et al. 2022, section 2.1, <https://arxiv.org/abs/2101.03961>, with the `k` greatest of Shazeer
//! et al. 2017, <https://arxiv.org/abs/1701.06538>:
//!
//! ```text
//! p = softmax(router x)                      over all experts
//! C = the k experts of the greatest p        of equals the one of the lowest number
//! y = sum over e in C, ascending, of s_e E_e(x)      s_e = p_e, or p_e / sum over C of p
//! ```
//! Rows are put in order of their experts, so that an expert's weights are read once for all of its
//! rows. A row's own order of operations depends on no other row.

use crate::disjoint::Disjoint;
use crate::parts::Part;
use crate::{Cpu, Isa, softmax};

/// An expert of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Which expert.
    pub expert: u32,
    /// The share that it has in the row's sum.
    pub share: f32,
    /// The row's place among all in order of experts.
    pub slot: u32,
}

/// Where the rows of a step go. Room grows to the largest step seen and is kept.
#[derive(Debug, Default)]
pub struct Routes {
    /// The choices of each row, ascending.
    choices: Vec<Choice>,
    per_row: usize,
    /// The row at each place.
    rows: Vec<u32>,
    /// The places of each expert that has any.
    parts: Vec<Part>,
    /// How many rows each expert has, then the first of its places.
    counts: Vec<u32>,
}

/// How experts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// How many there are.
    pub experts: usize,
    /// How many a row goes through, at least 1 and at most all.
    pub per_row: usize,
    /// Whether the shares of a row are made to sum to 1.
    pub normalized: bool,
}

impl Routes {
    /// Chooses experts for each row of `logits`, `[rows, experts]`, in whose place their softmax is
    /// left.
    ///
    /// # Panics
    /// If the rule asks for no expert of a row or for more than there are, or `logits` holds no whole
    /// rows.
    pub fn choose(&mut self, isa: Isa, logits: &mut [f32], rule: Rule) {
        assert!((1..=rule.experts).contains(&rule.per_row), "experts of a row");
        assert!(logits.len().is_multiple_of(rule.experts), "whole rows of logits");
        let rows = logits.len() / rule.experts;
        self.per_row = rule.per_row;
        self.choices.clear();
        self.choices.resize(rows * rule.per_row, Choice { expert: 0, share: 0.0, slot: 0 });
        self.counts.clear();
        self.counts.resize(rule.experts, 0);
        let each = logits.chunks_exact_mut(rule.experts);
        for (shares, chosen) in each.zip(self.choices.chunks_exact_mut(rule.per_row)) {
            softmax(isa, shares);
            greatest(shares, chosen);
            if rule.normalized {
                let sum = chosen.iter().fold(0.0, |sum, choice| sum + choice.share);
                chosen.iter_mut().for_each(|choice| choice.share /= sum);
            }
            chosen.iter().for_each(|choice| self.counts[choice.expert as usize] += 1);
        }
        self.sort_rows();
    }

    /// Gives each choice its place.
    fn sort_rows(&mut self) {
        self.parts.clear();
        let mut start = 0;
        for (matrix, count) in self.counts.iter_mut().enumerate() {
            let (first, n) = (start, *count as usize);
            start += n;
            if n > 0 {
                self.parts.push(Part { matrix, start: first, end: start });
            }
            *count = first as u32;
        }
        self.rows.clear();
        self.rows.resize(self.choices.len(), 0);
        for (i, choice) in self.choices.iter_mut().enumerate() {
            let next = &mut self.counts[choice.expert as usize];
            choice.slot = *next;
            self.rows[*next as usize] = (i / self.per_row) as u32;
            *next += 1;
        }
    }

    /// The row at each place, ascending within an expert.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The places of each expert that has any, ascending.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The choices of row `row`, ascending.
    pub fn choices(&self, row: usize) -> &[Choice] {
        &self.choices[row * self.per_row..(row + 1) * self.per_row]
    }

    /// Adds to each row of `sums`, `[rows, width]`, what its experts made of it: `products`,
    /// `[places, width]`, by their shares.
    ///
    /// # Panics
    /// If `sums` or `products` is of another length than these routes have.
    pub fn add_shares(&self, cpu: &Cpu, products: &[f32], sums: &mut [f32]) {
        let rows = self.choices.len() / self.per_row.max(1);
        let width = sums.len() / rows.max(1);
        assert_eq!(sums.len(), rows * width, "a sum for each row");
        assert_eq!(products.len(), self.choices.len() * width, "a product for each place");
        let sums = Disjoint::new(sums);
        cpu.team().for_pieces(rows, 1, |_, piece| {
            for row in piece {
                // SAFETY: pieces do not overlap, so a member alone has this row.
                let sum = unsafe { sums.slice(row * width, width) };
                let mut parts = [0f32; CHUNK];
                for start in (0..width).step_by(CHUNK) {
                    let parts = &mut parts[..CHUNK.min(width - start)];
                    parts.fill(0.0);
                    for choice in self.choices(row) {
                        let at = choice.slot as usize * width + start;
                        let product = &products[at..at + parts.len()];
                        for (part, x) in parts.iter_mut().zip(product) {
                            *part += choice.share * x;
                        }
                    }
                    for (sum, part) in sum[start..].iter_mut().zip(&*parts) {
                        *sum += part;
                    }
                }
            }
        });
    }
}

/// Columns whose shares are summed at a time.
const CHUNK: usize = 64;

/// The greatest of `shares`, ascending by their place; of equals those of the lowest places.
fn greatest(shares: &[f32], chosen: &mut [Choice]) {
    for (expert, &share) in shares.iter().enumerate() {
        let filled = expert.min(chosen.len());
        // What is no number is beaten by none and beats none.
        let at = chosen[..filled].iter().position(|other| share > other.share).unwrap_or(filled);
        if at < chosen.len() {
            let end = chosen.len().min(filled + 1);
            chosen.copy_within(at..end - 1, at + 1);
            chosen[at] = Choice { expert: expert as u32, share, slot: 0 };
        }
    }
    chosen.sort_unstable_by_key(|choice| choice.expert);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chosen(logits: &[f32], rule: Rule) -> Vec<(u32, f32)> {
        let mut routes = Routes::default();
        routes.choose(Isa::best(), &mut logits.to_vec(), rule);
        routes.choices(0).iter().map(|choice| (choice.expert, choice.share)).collect()
    }

    #[test]
    fn of_equals_the_lowest_numbers_are_chosen() {
        let rule = Rule { experts: 6, per_row: 3, normalized: true };
        let experts = |logits: &[f32]| chosen(logits, rule).iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(experts(&[0.0; 6]), [0, 1, 2]);
        assert_eq!(experts(&[0.0, 1.0, 0.0, 1.0, 0.0, 1.0]), [1, 3, 5]);
        assert_eq!(experts(&[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]), [0, 1, 3]);
        assert_eq!(experts(&[f32::NAN; 6]), [0, 1, 2]);
        assert!(chosen(&[0.0; 6], rule).iter().all(|c| (c.1 - 1.0 / 3.0).abs() < 1e-6));
    }

    #[test]
    fn shares_are_those_of_all_experts_unless_they_are_to_sum_to_1() {
        let logits = [2f32.ln(), 0.0, 5f32.ln(), 2f32.ln()];
        let rule = Rule { experts: 4, per_row: 2, normalized: false };
        for (normalized, expected) in [(false, [0.2, 0.5]), (true, [2.0 / 7.0, 5.0 / 7.0])] {
            let chosen = chosen(&logits, Rule { normalized, ..rule });
            for ((expert, share), (by_hand, at)) in chosen.iter().zip(expected.iter().zip([0, 2])) {
                assert_eq!(*expert, at);
                assert!((share - by_hand).abs() < 1e-6, "{share} for {by_hand}");
            }
        }
    }

    proptest! {
        #[test]
        fn places_are_in_order_of_experts_and_rows_and_sums_are_of_each_row(
            per_row in 1usize..5,
            logits in prop::collection::vec(prop::array::uniform5(-2f32..2.0), 1..20),
            width in 1usize..150,
        ) {
            let rule = Rule { experts: 5, per_row, normalized: false };
            let mut routes = Routes::default();
            // Room of an earlier step is no part of this one.
            routes.choose(Isa::best(), &mut [0.0; 35], rule);
            routes.choose(Isa::best(), &mut logits.concat(), rule);
            let places: Vec<(u32, u32)> = routes.parts().iter().flat_map(|part| {
                (part.start..part.end).map(|place| (part.matrix as u32, routes.rows()[place]))
            }).collect();
            prop_assert!(places.is_sorted() && places.len() == logits.len() * per_row);
            let mut sums = vec![1f32; logits.len() * width];
            let products: Vec<f32> = (0..places.len() * width).map(|i| (i % 97) as f32).collect();
            routes.add_shares(&Cpu::new(Isa::best(), 2), &products, &mut sums);
            for (row, sum) in sums.chunks_exact(width).enumerate() {
                let chosen = routes.choices(row);
                for choice in chosen {
                    prop_assert_eq!(places[choice.slot as usize], (choice.expert, row as u32));
                    let beats = logits[row].iter().filter(|x| **x > logits[row][choice.expert as usize]);
                    prop_assert!(beats.count() < per_row);
                }
                for (col, sum) in sum.iter().enumerate() {
                    let all = chosen.iter().fold(0.0, |all, choice| {
                        all + choice.share * products[choice.slot as usize * width + col]
                    });
                    prop_assert_eq!(*sum, 1.0 + all);
                }
            }
        }
    }
}
