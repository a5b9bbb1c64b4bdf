//! Which examples a step is made of.
//!
//! The examples are put one after another, epoch behind epoch, each epoch in an order of its own,
//! and a step takes the next ones: step `t` of batches of `b` takes places `t b` to `t b + b - 1`.
//! Place `p` of `n` examples lies in epoch `p / n`. So every example comes exactly once an epoch,
//! also where a batch reaches into the next one, and what a step takes follows from the seed and
//! its number alone: nothing has to be remembered for a run to go on.
//!
//! An epoch's order is Fisher and Yates' (Knuth, The Art of Computer Programming 2, 3.4.2,
//! algorithm P), whose draw for place `i` is word `i % 4` of the Philox block with counter
//! `(i / 4, 0, epoch, 5 << 24)`. A draw below `m` is the high half of the product with `m`: its
//! bias is below `m / 2^32`.
//! Cost: four bytes for each example, made anew when an epoch begins.

use offshoot_methods::Philox;

/// What the draws are for, in the last word of the counter: the order of data.
const PURPOSE: u32 = 5 << 24;

/// The order of the examples of a run.
#[derive(Debug)]
pub struct BatchOrder {
    seed: u64,
    examples: u32,
    batch: u32,
    /// The epochs that the last step touched.
    epochs: Vec<(u32, Vec<u32>)>,
}

impl BatchOrder {
    /// The order of `examples` examples, at least one, in batches of `batch`, at least one.
    pub fn new(seed: u64, examples: u32, batch: u32) -> Self {
        Self { seed, examples: examples.max(1), batch: batch.max(1), epochs: Vec::new() }
    }

    /// The examples of step `step`, counted from 0.
    pub fn batch(&mut self, step: u64) -> Vec<u32> {
        self.shard(step, 0, 1)
    }

    /// Those of them that fall to worker `worker` of `workers`: every `workers`-th from its own on.
    /// All workers' together, in turn, are the batch.
    pub fn shard(&mut self, step: u64, worker: u32, workers: u32) -> Vec<u32> {
        let first = step * u64::from(self.batch);
        let own = (worker..self.batch).step_by(workers.max(1) as usize);
        let places: Vec<u64> = own.map(|i| first + u64::from(i)).collect();
        let examples = u64::from(self.examples);
        let oldest = (first / examples) as u32;
        self.epochs.retain(|(epoch, _)| *epoch >= oldest);
        places
            .into_iter()
            .map(|place| self.epoch((place / examples) as u32)[(place % examples) as usize])
            .collect()
    }

    fn epoch(&mut self, epoch: u32) -> &[u32] {
        let at = self.epochs.iter().position(|(e, _)| *e == epoch).unwrap_or_else(|| {
            self.epochs.push((epoch, permutation(self.seed, epoch, self.examples)));
            self.epochs.len() - 1
        });
        &self.epochs[at].1
    }
}

/// `0..len` in the order of epoch `epoch`.
pub(crate) fn permutation(seed: u64, epoch: u32, len: u32) -> Vec<u32> {
    let key = Philox::key(seed);
    let mut order: Vec<u32> = (0..len).collect();
    let (mut words, mut block) = ([0; 4], u32::MAX);
    for i in (1..len).rev() {
        if i / 4 != block {
            block = i / 4;
            words = Philox::block(key, [block, 0, epoch, PURPOSE]);
        }
        let draw = (u64::from(words[(i % 4) as usize]) * (u64::from(i) + 1)) >> 32;
        order.swap(i as usize, draw as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_batch_depends_on_the_seed_and_the_step_alone() {
        let mut one = BatchOrder::new(7, 10, 4);
        let forwards: Vec<_> = (0..20).map(|step| one.batch(step)).collect();
        for step in [19, 3, 3, 0, 12] {
            let again = BatchOrder::new(7, 10, 4).batch(step);
            assert_eq!(again, forwards[step as usize]);
            assert_eq!(one.batch(step), again, "whatever was asked before");
        }
        assert_ne!(BatchOrder::new(8, 10, 4).batch(0), forwards[0]);
    }

    #[test]
    fn places_of_an_order_are_equally_likely() {
        // 24 orders of 4 examples, 4800 epochs: chi-square of 23 degrees is above 49.7 once in
        // 1000.
        let mut counts = std::collections::BTreeMap::new();
        (0..4800).for_each(|e| *counts.entry(permutation(3, e, 4)).or_insert(0u32) += 1);
        assert_eq!(counts.len(), 24);
        let chi: f64 = counts.values().map(|&n| (f64::from(n) - 200.0).powi(2) / 200.0).sum();
        assert!(chi < 49.7, "{chi}");
    }

    proptest! {
        #[test]
        fn every_example_comes_once_an_epoch(seed: u64, n in 1u32..60, batch in 1u32..70) {
            let mut order = BatchOrder::new(seed, n, batch);
            let steps = u64::from(3 * n.div_ceil(batch) + 3);
            let all: Vec<u32> = (0..steps).flat_map(|step| order.batch(step)).collect();
            for epoch in all.chunks_exact(n as usize) {
                let mut seen = epoch.to_vec();
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..n).collect::<Vec<_>>());
            }
        }

        #[test]
        fn the_workers_shares_in_turn_are_the_batch(step in 0u64..50, workers in 1u32..6) {
            let batch = BatchOrder::new(1, 23, 7).batch(step);
            let mut order = BatchOrder::new(1, 23, 7);
            let shares: Vec<_> = (0..workers).map(|w| order.shard(step, w, workers)).collect();
            let (mut joined, mut at) = (Vec::<u32>::new(), 0);
            while joined.len() < batch.len() {
                joined.extend(shares.iter().filter_map(|share| share.get(at)));
                at += 1;
            }
            prop_assert_eq!(joined, batch);
        }
    }
}
