//! REST: draft what followed the same words in stored text.
//!
//! He et al. 2023, <https://arxiv.org/abs/2311.08252>, sections 3.1 to 3.3. The longest suffix of
//! the context that occurs in the store is looked up in a suffix array, and the continuations of
//! its occurrences make a trie whose likeliest `c` nodes are the draft:
//!
//! ```text
//! n        = longest n <= n_max with a stored occurrence of the last n tokens; none below n_min
//! P(t | v) = (count_n(v t) + alpha P'(t | v)) / (count_n(v) + alpha)
//! pi(v)    = product of P along the path to v
//! draft    = the c nodes of greatest pi
//! ```
//! `v` is a path of drafted tokens, `t` a token behind it; `count_n(v)` is how often the last `n`
//! tokens of the context with `v` behind them occur in all shards together. `P'` is the same
//! estimate for a shorter suffix, and 0 behind the shortest. A prefix is at least as likely as what
//! it begins, so the draft holds the parents of all its nodes.
//!
//! Departs from the paper and its reference implementation (<https://github.com/FasterDecoding/REST>):
//!
//! - Counts are of all occurrences. There the first 5000 in the order of the suffix array are
//!   taken, which favours continuations of low ids. The occurrences of a path are a range of the
//!   suffix array, so that counting is bisection, and a search that always looks into the range
//!   with the greatest bound finds the likeliest nodes without a look at the others.
//! - Where the longest suffix occurs seldom, shorter ones smooth the estimate and add nodes (the
//!   escape estimate of prediction by partial matching, with one `alpha` for all orders).
//! - `c` is exact; there, pruning can leave a node too many
//!   (<https://github.com/FasterDecoding/REST/issues/10>), ties are settled by a hash table's order,
//!   and a miss drafts a fixed token. Here equals go by depth, parent and token; a miss drafts none.
//! - Nothing is matched or drafted across the end of a document.
//!
//! Options: [`RetrieverOptions`], each with its default and where that is from; `--spec rest` asks
//! for
//! `c` = 24 nodes, of which the planner takes what pays.
//!
//! | | | times plain | tokens a step |
//! |---|---|---|---|
//! | paper, A6000, `c` = 64, store of 27 GB | CodeLlama-7B, HumanEval, greedy | 2.36 | 2.65 |
//! | paper, the same | the same, store of 0.9 GB | 1.83 | 1.96 |
//! | paper, A6000, store of 12 GB | Vicuna-7B, MT-Bench, greedy | 1.69 | |
//! | ours, 2 cores, store of 100 M tokens | Qwen2.5-Coder 0.5B, HumanEval, greedy | 1.26 | 1.33 |
//!
//! Ours: `bench --spec --arms rest`, LOG.md 2026-11-24. The paper's store of 0.9 GB has 150 M
//! tokens. In the paper 85 % of the matches are 2 to 9 tokens long.
//!
//! Cost: length by bisection, some five searches of `log2 N` probes a shard, then two bisections a
//! level and shard for each token found, stopped after `probes`. No allocation once its
//! buffers have grown. A probe of memory that is not cached takes a tenth of a microsecond, one of
//! a disk a hundred: keep the store in memory.
//!
//! When not to use it: for text that the store has nothing like, as chat beside a store of code,
//! and for text that repeats itself rather than others: what the context itself holds is not looked
//! at.

mod shard;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

pub use shard::{SAMPLED_TOKENS, Shard, ShardParts, TokenWidth};

use crate::Error;
use shard::partition;

/// Occurrences beside which those of shorter suffixes add nothing worth their cost.
const ENOUGH: usize = 64;
/// No parent: the node follows the context.
const ROOT: u32 = u32::MAX;

/// How to retrieve.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrieverOptions {
    /// The longest suffix looked for. Default 16, the paper's.
    pub longest: usize,
    /// The shortest suffix that counts as found. Default 2, where the reference's search ends.
    pub shortest: usize,
    /// Tokens drafted in a row, or as many as matched if that is more. Default 10, the paper's.
    pub depth: usize,
    /// Weight of the shorter suffixes in occurrences of the longer; 0 lets them fill up what the
    /// longer has never seen. Default 1, as in method C of prediction by partial matching.
    pub alpha: f32,
    /// Suffixes that are looked at, each half as long as the one before. Default 3; 1 is the paper.
    pub levels: usize,
    /// A path less likely than this is not drafted. Default 0.02.
    pub least: f32,
    /// Reads of the suffix array after which a selection ends with what it has. Default 1024. In
    /// memory, 95 of 100 drafts of 16 nodes then take at most 0.08 ms from 10 million tokens of
    /// code and 0.12 from 100 million; 512 make that 0.06 and 0.10 and cost 1 % of the tokens that
    /// are right, 256 make it 0.05 and 0.08 and cost 3 and 5 %.
    pub probes: usize,
}

impl Default for RetrieverOptions {
    fn default() -> Self {
        Self {
            longest: 16,
            shortest: 2,
            depth: 10,
            alpha: 1.0,
            levels: 3,
            least: 0.02,
            probes: 1024,
        }
    }
}

impl RetrieverOptions {
    /// Checks every field against its bounds.
    ///
    /// # Errors
    /// [`Error::Option`] names the first field outside its bounds, and the bounds.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |holds: bool, field, bound, got: &dyn ToString| match holds {
            true => Ok(()),
            false => Err(Error::Option { field, bound, got: got.to_string() }),
        };
        let longest = (1..=256).contains(&self.longest);
        check(longest, "longest", "between 1 and 256", &self.longest)?;
        let shortest = (1..=self.longest).contains(&self.shortest);
        check(shortest, "shortest", "between 1 and the longest", &self.shortest)?;
        check((1..=256).contains(&self.depth), "depth", "between 1 and 256", &self.depth)?;
        let alpha = (0.0..=1e6).contains(&self.alpha);
        check(alpha, "alpha", "between 0 and 1000000", &self.alpha)?;
        check((1..=8).contains(&self.levels), "levels", "between 1 and 8", &self.levels)?;
        check((0.0..=1.0).contains(&self.least), "least", "between 0 and 1", &self.least)
    }
}

/// A drafted token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftNode {
    /// The node that this one follows, always an earlier one; none if it follows the context.
    pub parent: Option<usize>,
    /// The token.
    pub token: u32,
    /// Estimate of the chance that it is the next token, given that its parent was.
    pub probability: f32,
    /// Occurrences of the path to here behind the longest suffix that has any.
    pub support: u32,
    /// Tokens of that suffix.
    pub matched: u32,
    /// Tokens from the context to here, 1 at least.
    pub depth: u32,
}

/// What of the context was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// Tokens of the longest suffix that occurs.
    pub len: usize,
    /// How often it occurs, ends of documents included.
    pub count: usize,
}

/// Drafts from shards, with the buffers that this takes.
#[derive(Debug)]
pub struct Retriever {
    options: RetrieverOptions,
    /// Suffix lengths, longest first.
    levels: Vec<usize>,
    /// Ranges of ranks, for each candidate one of each level and shard.
    ranges: Vec<(u32, u32)>,
    frontier: BinaryHeap<Candidate>,
    shards: usize,
    probes: usize,
}

/// A token that may become a node, or a gap: all tokens of an interval that may stand behind a node
/// and have not been looked at.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Probability of the path to here; for a gap, at least that of all it holds.
    bound: f32,
    /// `None` for a gap.
    token: Option<u32>,
    depth: u32,
    parent: u32,
    /// Where its ranges are.
    at: u32,
    /// Where those of its parent are.
    parent_at: u32,
    /// Probability of the path to the parent.
    parent_bound: f32,
}

impl Retriever {
    /// A retriever with these options.
    ///
    /// # Errors
    /// [`Error::Option`] if they are out of bounds.
    pub fn new(options: RetrieverOptions) -> Result<Self, Error> {
        options.validate()?;
        Ok(Self {
            options,
            levels: Vec::new(),
            ranges: Vec::new(),
            frontier: BinaryHeap::new(),
            shards: 0,
            probes: 0,
        })
    }

    /// Replaces `out` by the likeliest `max_nodes` continuations of `context`, parents before
    /// children and likelier paths before others. Says what of the context was found.
    ///
    /// The same whether the documents are in one shard or in many. Deterministic; equals go by
    /// depth, then parent, then token.
    pub fn draft<B: AsRef<[u8]>>(
        &mut self,
        context: &[u32],
        shards: &[Shard<B>],
        max_nodes: usize,
        out: &mut Vec<DraftNode>,
    ) -> Option<Match> {
        out.clear();
        self.ranges.clear();
        self.shards = shards.len();
        let len = self.longest_match(context, shards)?;
        let count = self.find_levels(context, shards, len);
        self.select(shards, max_nodes, len, out);
        Some(Match { len, count })
    }

    /// Tokens of the longest suffix of `context` that occurs in `shards`, if it is long enough.
    ///
    /// If a suffix occurs, so do the shorter ones, so its length is found by bisection.
    pub fn longest_match<B: AsRef<[u8]>>(
        &self,
        context: &[u32],
        shards: &[Shard<B>],
    ) -> Option<usize> {
        let occurs = |n: usize| {
            let query = &context[context.len() - n..];
            shards.iter().any(|shard| shard.contains(query))
        };
        let longest = self.options.longest.min(context.len());
        let shortest = self.options.shortest;
        if longest < shortest || !occurs(shortest) {
            return None;
        }
        Some(partition(shortest + 1..longest + 1, occurs) - 1)
    }

    /// Finds the ranges of the suffix of `len` tokens and of shorter ones; gives how often the
    /// first occurs.
    fn find_levels<B: AsRef<[u8]>>(
        &mut self,
        context: &[u32],
        shards: &[Shard<B>],
        len: usize,
    ) -> usize {
        self.levels.clear();
        let (mut n, mut first, mut last) = (len, 0, 0);
        loop {
            let start = self.ranges.len();
            let query = &context[context.len() - n..];
            self.ranges.extend(shards.iter().map(|shard| {
                let range = shard.find(query);
                (range.start as u32, range.end as u32)
            }));
            let count = total(&self.ranges[start..]);
            if count > last {
                self.levels.push(n);
            } else {
                self.ranges.truncate(start); // the same occurrences as of the longer suffix
            }
            if n == len {
                first = count;
            }
            last = count.max(last);
            let shorter = (n / 2).max(self.options.shortest);
            if shorter == n || self.levels.len() == self.options.levels || last >= ENOUGH {
                return first;
            }
            n = shorter;
        }
    }

    /// Best-first search: the candidate of greatest bound is a node, or a gap to look into.
    fn select<B: AsRef<[u8]>>(
        &mut self,
        shards: &[Shard<B>],
        max_nodes: usize,
        len: usize,
        out: &mut Vec<DraftNode>,
    ) {
        self.probes = 0;
        self.frontier.clear();
        let deepest = self.options.depth.max(len) as u32;
        self.push_gap(0, 0, ROOT, 1.0, 1);
        while out.len() < max_nodes {
            let Some(candidate) = self.frontier.pop() else { return };
            let Some(token) = candidate.token else {
                if self.probes < self.options.probes {
                    self.look_into(shards, candidate);
                }
                continue;
            };
            let (level, support) = self.support(candidate.at);
            let node = out.len() as u32;
            out.push(DraftNode {
                parent: (candidate.parent != ROOT).then_some(candidate.parent as usize),
                token,
                probability: self.estimate(candidate.at, candidate.parent_at),
                support: u32::try_from(support).unwrap_or(u32::MAX),
                matched: self.levels[level] as u32,
                depth: candidate.depth,
            });
            if candidate.depth < deepest {
                let (at, depth) = (candidate.at, candidate.depth + 1);
                self.push_gap(at, at, node, candidate.bound, depth);
            }
        }
    }

    /// The longest level that has occurrences of a candidate, and how many it has.
    fn support(&self, at: u32) -> (usize, usize) {
        let counts = (0..self.levels.len()).map(|level| self.count(at, level));
        counts.enumerate().find(|(_, count)| *count > 0).unwrap_or((0, 0))
    }

    /// Occurrences at a level, in all shards, of what has its ranges at `at`.
    fn count(&self, at: u32, level: usize) -> usize {
        let start = at as usize + level * self.shards;
        total(&self.ranges[start..start + self.shards])
    }

    /// The smoothed chance of what has its ranges at `at`, given what has them at `parent_at`.
    ///
    /// Rounding keeps the order of counts, so a gap's estimate is no less than that of its tokens.
    fn estimate(&self, at: u32, parent_at: u32) -> f32 {
        let alpha = self.options.alpha;
        (0..self.levels.len()).rev().fold(0.0, |shorter, level| {
            let of = self.count(parent_at, level) as f32 + alpha;
            if of == 0.0 { shorter } else { (self.count(at, level) as f32 + alpha * shorter) / of }
        })
    }

    /// Looks at the token in the middle of a gap, which leaves a candidate and two smaller gaps.
    fn look_into<B: AsRef<[u8]>>(&mut self, shards: &[Shard<B>], gap: Candidate) {
        let offset = gap.depth as usize - 1;
        let (level, s) = self.heaviest(gap);
        let slot = gap.at as usize + level * shards.len() + s;
        let (start, end) = self.ranges[slot];
        let middle = start + (end - start) / 2;
        let behind = self.levels[level] + offset;
        self.probes += 1;
        // Behind the end of the text, and thus of a document, is nothing; so it goes with the gap.
        let Some(token) = shards[s].token_of(middle as usize, behind) else { return };
        let size = self.levels.len() * shards.len();
        let (before, found) = (self.ranges.len(), self.ranges.len() + size);
        self.ranges.resize(before + 3 * size, (0, 0));
        for level in 0..self.levels.len() {
            let behind = self.levels[level] + offset;
            for (s, shard) in shards.iter().enumerate() {
                let i = level * shards.len() + s;
                let (start, end) = self.ranges[gap.at as usize + i];
                let known = (gap.at as usize + i == slot).then_some(middle);
                let range = self.equal(shard, (start, end), behind, token, known);
                self.ranges[before + i] = (start, range.start);
                self.ranges[found + i] = (range.start, range.end);
                self.ranges[found + size + i] = (range.end, end);
            }
        }
        let Candidate { depth, parent, parent_at, parent_bound, .. } = gap;
        for at in [before, found + size] {
            self.push_gap(at as u32, parent_at, parent, parent_bound, depth);
        }
        if token < shards[s].vocab_size() {
            let at = found as u32;
            let bound = parent_bound * self.estimate(at, parent_at);
            self.push(Candidate { bound, token: Some(token), at, ..gap });
        }
    }

    /// The level and shard whose range of a gap adds most to its bound.
    fn heaviest(&self, gap: Candidate) -> (usize, usize) {
        let (mut best, mut weight, mut most) = ((0, 0), 1.0, 0.0);
        for level in 0..self.levels.len() {
            let alpha = self.options.alpha;
            let scale = weight / (self.count(gap.parent_at, level) as f32 + alpha).max(1.0);
            let start = gap.at as usize + level * self.shards;
            for (s, range) in self.ranges[start..start + self.shards].iter().enumerate() {
                let share = scale * (range.1 - range.0) as f32;
                if share > most {
                    (best, most) = ((level, s), share);
                }
            }
            // Where nothing is smoothed, a shorter suffix counts for what the longer has not seen.
            weight = (scale * alpha).max(f32::MIN_POSITIVE);
        }
        best
    }

    /// The ranks of `range` whose suffix has `token` at `offset`; `known` is one of them.
    fn equal<B: AsRef<[u8]>>(
        &mut self,
        shard: &Shard<B>,
        range: (u32, u32),
        offset: usize,
        token: u32,
        known: Option<u32>,
    ) -> Range<u32> {
        let (start, end) = (range.0 as usize, range.1 as usize);
        if start == end {
            return range.0..range.0;
        }
        let (upper, lower) = match known {
            Some(at) => (at as usize, at as usize + 1),
            None => (end, start),
        };
        let probes = Cell::new(0);
        let order = |rank| {
            probes.set(probes.get() + 1);
            shard.token_of(rank, offset).cmp(&Some(token))
        };
        // A range is often of one token alone, which its ends tell.
        let first = match order(start) {
            Ordering::Less => partition(start..upper, |rank| order(rank).is_lt()),
            _ => start,
        };
        let last = match order(end - 1) {
            Ordering::Greater => partition(first.max(lower)..end, |rank| order(rank).is_le()),
            _ => end,
        };
        self.probes += probes.get();
        first as u32..last as u32
    }

    fn push_gap(&mut self, at: u32, parent_at: u32, parent: u32, parent_bound: f32, depth: u32) {
        let bound = parent_bound * self.estimate(at, parent_at);
        self.push(Candidate { bound, token: None, depth, parent, at, parent_at, parent_bound });
    }

    fn push(&mut self, candidate: Candidate) {
        if candidate.bound > 0.0 && candidate.bound >= self.options.least {
            self.frontier.push(candidate);
        }
    }
}

/// How many ranks the ranges hold together.
fn total(ranges: &[(u32, u32)]) -> usize {
    ranges.iter().map(|range| (range.1 - range.0) as usize).sum()
}

/// The greatest comes first: the likelier, then a gap, which may hold an equal, then the shallower,
/// the earlier parent, the lower token.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let rest = |c: &Self| (c.token.is_some(), c.depth, c.parent, c.token, c.at);
        self.bound.total_cmp(&other.bound).then_with(|| rest(other).cmp(&rest(self)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}
