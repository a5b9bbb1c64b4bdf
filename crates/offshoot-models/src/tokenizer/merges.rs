//! Byte-pair merging.
//!
//! Sennrich, Haddow and Birch 2016, <https://arxiv.org/abs/1508.07909>, section 3.2: of all
//! neighbouring pairs the one of lowest rank is merged, the leftmost of equals first, until none is
//! left. Pairs wait in a heap, so a word of n bytes costs O(n log n).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::vocab::NONE;

/// What a pair of neighbours becomes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merge {
    /// Place in the list of merges; lower goes first.
    pub(super) rank: u32,
    /// The token made.
    pub(super) id: u32,
}

/// All merges, by the pair of ids they take.
pub(super) type Merges = HashMap<(u32, u32), Merge>;

/// A piece of the word: a token and its living neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    prev: u32,
    next: u32,
    dead: bool,
}

/// Memory that merging one word leaves for the next.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

impl Scratch {
    /// Merges the symbols `ids` as far as `merges` go and appends what is left to `out`.
    pub(super) fn merge(
        &mut self,
        merges: &Merges,
        ids: impl Iterator<Item = u32>,
        out: &mut Vec<u32>,
    ) {
        self.symbols.clear();
        self.symbols.extend((0u32..).zip(ids).map(|(i, id)| Symbol {
            id,
            prev: i.wrapping_sub(1),
            next: i + 1,
            dead: false,
        }));
        let Some(last) = self.symbols.last_mut() else { return };
        last.next = NONE;
        self.queue.clear();
        for left in 0..self.symbols.len() as u32 - 1 {
            self.enqueue(merges, left, left + 1);
        }
        while let Some(Reverse((_, at, id))) = self.queue.pop() {
            self.step(merges, at, id);
        }
        out.extend(self.symbols.iter().filter(|symbol| !symbol.dead).map(|symbol| symbol.id));
    }

    /// Queues the pair of symbols `left` and `right`, if it merges.
    fn enqueue(&mut self, merges: &Merges, left: u32, right: u32) {
        let pair = (self.symbols[left as usize].id, self.symbols[right as usize].id);
        if let Some(merge) = merges.get(&pair) {
            self.queue.push(Reverse((merge.rank, left, merge.id)));
        }
    }

    /// Merges symbol `at` with its right neighbour into `id`, unless the pair has changed since it
    /// was queued so that it no longer makes `id`.
    fn step(&mut self, merges: &Merges, at: u32, id: u32) {
        let left = self.symbols[at as usize];
        if left.dead || left.next == NONE {
            return;
        }
        let right = self.symbols[left.next as usize];
        if merges.get(&(left.id, right.id)).is_none_or(|merge| merge.id != id) {
            return;
        }
        self.symbols[left.next as usize].dead = true;
        let merged = &mut self.symbols[at as usize];
        (merged.id, merged.next) = (id, right.next);
        if right.next != NONE {
            self.symbols[right.next as usize].prev = at;
            self.enqueue(merges, at, right.next);
        }
        if left.prev != NONE {
            self.enqueue(merges, left.prev, at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The method as the paper words it: look at all pairs, merge the best, again.
    fn naive(merges: &Merges, mut ids: Vec<u32>) -> Vec<u32> {
        loop {
            let pairs = ids.windows(2).enumerate();
            let best = pairs.filter_map(|(i, w)| merges.get(&(w[0], w[1])).map(|m| (m.rank, i)));
            let Some((_, at)) = best.min() else { return ids };
            ids[at] = merges[&(ids[at], ids[at + 1])].id;
            ids.remove(at + 1);
        }
    }

    proptest! {
        #[test]
        fn the_heap_merges_as_the_paper_says(
            pairs in proptest::collection::vec((0u32..12, 0u32..12), 0..40),
            words in proptest::collection::vec(proptest::collection::vec(0u32..4, 0..60), 1..8),
        ) {
            let mut merges = Merges::new();
            for (rank, (left, right)) in (0u32..).zip(pairs) {
                // A merge only takes what is already made, as in a trained list.
                let (left, right) = (left % (4 + rank), right % (4 + rank));
                merges.entry((left, right)).or_insert(Merge { rank, id: 4 + rank });
            }
            let mut scratch = Scratch::default();
            for word in words {
                let mut out = Vec::new();
                scratch.merge(&merges, word.iter().copied(), &mut out);
                prop_assert_eq!(out, naive(&merges, word));
            }
        }
    }
}
