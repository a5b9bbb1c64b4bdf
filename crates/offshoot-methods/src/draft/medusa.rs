//! Medusa: trees of tokens from the ranked lists of several heads, and how likely their paths are.
//!
//! Cai et al. 2024, <https://arxiv.org/abs/2401.10774>, section 2.1.2 and appendix C. Head `k` lists
//! tokens for the place `k + 1` behind the state's own. A node at depth `d` is a path of ranks
//! `(i_1 .. i_d)`: token `i_d` of head `d`, behind token `i_(d-1)` of head `d - 1`, and so on. With
//! `a_k[i]` the share of places where rank `i` of head `k` was right, and the heads taken as
//! independent,
//! ```text
//! pi(i_1 .. i_d) = a_1[i_1] ... a_d[i_d]        E(tree) = 1 + sum of pi over the tree's nodes
//! ```
//! E is the number of tokens that a step gains on average. As pi falls with depth and rank, taking
//! the greatest again and again gives the best tree of each size. [`search`] does that.
//! [`Calibrator`] also counts the true paths themselves, a trie whose N greatest counts are the best
//! tree of the text seen, with no independence assumed ([`Calibration::counted_tree`]).
//!
//! While a text is made, [`Calibration::corrected`] says how often such a probability was right behind
//! right tokens, and the [`Planner`](super::Planner) makes one tree for the state at hand.
//!
//! Departs from the paper: sizes come from the caller's costs, not a fixed 63, and shares are of
//! each head's own count of places.
//!
//! Options: the caller's. `--spec medusa` evaluates 10 ranks of each head, the paper's number, and
//! guesses with up to 6 of them whose corrected probability is 0.02 or more. Heads are the file's:
//! `medusa train` makes 3 of one residual block that see the token chosen last.
//!
//! Cost: O(N log N) for a tree of N nodes; a list costs nothing that grows with the vocabulary.
//!
//! | | | times plain | tokens a step |
//! |---|---|---|---|
//! | paper, A100, Medusa-1, 63 nodes | Vicuna-7B, MT-Bench | 2.18 | |
//! | paper, A100, Medusa-2, 63 nodes | Vicuna-7B, MT-Bench | 2.83 | 3.47 |
//! | Spec-Bench, A100, Medusa-1 heads | Vicuna-7B, six kinds of text | 1.71 | 2.31 |
//! | ours, 2 cores, heads of the model's own | Qwen2.5-Coder 0.5B, HumanEval | 1.69 | |
//! | ours, 2 cores, heads as shipped and all else | SmolLM2 135M, chat | 1.43 | 1.76 |
//!
//! Ours: `bench --spec`, LOG.md 2026-11-26 and 2026-11-27. The first of the shipped heads is right in
//! 44 of 100 places, of 4 MB and for chat of any kind; that of the 0.5B in 60 on code; the published
//! 7B heads' in 56. Two cores pay for each row of a tree, where an A100 checks 63 in little more than
//! the time of one. Spec-Bench: <https://github.com/hemingkx/Spec-Bench>.
//!
//! When not to use it: for text of another kind than the heads were trained on, as they then guess
//! little and cost what they cost, and with a base that was changed since.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use serde::{Deserialize, Serialize};

use crate::Error;

/// Ranks of a list that are looked at (the paper's trees use 10).
const RANKS_MAX: usize = 64;
/// Nodes of a tree at most.
const NODES_MAX: usize = 1024;
/// Depth of a tree at most.
const DEPTH_MAX: usize = 16;
/// Steps in which probabilities are corrected, equal in their square root.
const BINS: usize = 16;
/// Nodes of the counted trie that a calibration keeps.
const TRIE_NODES: usize = 128;

/// A node of a tree of ranks, and how likely the path to it is right.
#[derive(Debug, Clone, PartialEq)]
pub struct RankNode {
    /// Ranks from 0 on, one for each depth.
    pub path: Vec<u16>,
    /// The probability of the whole path.
    pub probability: f64,
}

/// The `n` best nodes by independent shares: `shares[k][i]` is how often rank `i` of head `k` is
/// right. Best first, equals in the order of their paths; fewer if no more have a share.
pub fn search(shares: &[Vec<f64>], n: usize) -> Vec<RankNode> {
    let order: Vec<Vec<u16>> = shares.iter().map(|shares| by_share(shares)).collect();
    let mut heap = BinaryHeap::new();
    let push = |heap: &mut BinaryHeap<Open>, places: Vec<u16>, parent: f64| {
        let depth = places.len() - 1;
        let rank = order.get(depth).and_then(|o| o.get(usize::from(places[depth])));
        let share = rank.map_or(0.0, |&rank| shares[depth][usize::from(rank)]);
        if share > 0.0 {
            heap.push(Open { probability: parent * share, parent, places });
        }
    };
    push(&mut heap, vec![0], 1.0);
    let mut tree = Vec::new();
    while tree.len() < n {
        let Some(open) = heap.pop() else { break };
        let mut sibling = open.places.clone();
        *sibling.last_mut().expect("a path has a rank") += 1;
        push(&mut heap, sibling, open.parent);
        push(&mut heap, [&open.places[..], &[0]].concat(), open.probability);
        let ranks = open.places.iter().zip(&order).map(|(&i, order)| order[usize::from(i)]);
        tree.push(RankNode { path: ranks.collect(), probability: open.probability });
    }
    tree
}

/// Ranks by falling share, the lower of equals first.
fn by_share(shares: &[f64]) -> Vec<u16> {
    let mut order: Vec<u16> = (0..shares.len() as u16).collect();
    let share = |rank: u16| shares[usize::from(rank)];
    order.sort_by(|&a, &b| share(b).total_cmp(&share(a)).then(a.cmp(&b)));
    order
}

/// A node that may be taken next; its places count in the order of falling shares.
#[derive(PartialEq)]
struct Open {
    probability: f64,
    parent: f64,
    places: Vec<u16>,
}

impl Eq for Open {}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Open {
    fn cmp(&self, other: &Self) -> Ordering {
        self.probability.total_cmp(&other.probability).then_with(|| other.places.cmp(&self.places))
    }
}

/// How candidates of like probability fared.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bin {
    /// The sum of the probabilities that the head gave them.
    pub given: f32,
    /// How many of them were right.
    pub right: u32,
}

/// What heads did on text that they were not trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Places at which each head was looked at.
    pub places: Vec<u32>,
    /// `hits[k][i]`: how often rank `i` of head `k` was right.
    pub hits: Vec<Vec<u32>>,
    /// `bins[k]`: how head `k` fared where all heads before it were right at once.
    pub bins: Vec<Vec<Bin>>,
    /// True paths and how often they came, most often first; prefixes before what they begin.
    pub paths: Vec<(Vec<u16>, u32)>,
}

impl Calibration {
    /// Checks that the counts can be those of `heads` heads.
    ///
    /// # Errors
    /// [`Error::Draft`].
    pub fn validate(&self, heads: usize) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::Draft(format!("calibration: {what}")));
        if heads > DEPTH_MAX || [self.places.len(), self.hits.len(), self.bins.len()] != [heads; 3]
        {
            return wrong(&format!("counts that are not of {heads} heads"));
        }
        let ranks = self.hits.first().map_or(0, Vec::len);
        if ranks == 0 || ranks > RANKS_MAX || self.hits.iter().any(|hits| hits.len() != ranks) {
            return wrong(&format!(
                "lists of {ranks} ranks, expected equal ones of 1 to {RANKS_MAX}"
            ));
        }
        let sums = self.hits.iter().map(|hits| hits.iter().map(|&n| u64::from(n)).sum::<u64>());
        if sums.zip(&self.places).any(|(sum, &places)| sum > u64::from(places)) {
            return wrong("more hits than places");
        }
        if self.bins.iter().any(|bins| bins.len() != BINS)
            || self.bins.iter().flatten().any(|bin| !(bin.given >= 0.0 && bin.given.is_finite()))
        {
            return wrong(&format!("bins that are not {BINS} finite sums for each head"));
        }
        let paths = self.paths.iter().map(|(path, _)| path.clone()).collect();
        DraftTree::new(paths, heads, ranks).map(drop)
    }

    /// The share of places where each rank was right, `[k][i]`.
    pub fn shares(&self) -> Vec<Vec<f64>> {
        let share = |n: &u32, places: &u32| f64::from(*n) / f64::from((*places).max(1));
        let heads = self.hits.iter().zip(&self.places);
        heads.map(|(hits, places)| hits.iter().map(|n| share(n, places)).collect()).collect()
    }

    /// The `n` nodes whose paths came most often, and how often that was.
    pub fn counted_tree(&self, n: usize) -> Vec<RankNode> {
        let places = f64::from(self.places.first().copied().unwrap_or(0).max(1));
        let node = |(path, count): &(Vec<u16>, u32)| RankNode {
            path: path.clone(),
            probability: f64::from(*count) / places,
        };
        self.paths.iter().take(n).map(node).collect()
    }

    /// How often a token that head `head` gave `probability` is right behind right tokens.
    pub fn corrected(&self, head: usize, probability: f32) -> f32 {
        let Some(bin) = self.bins.get(head).and_then(|bins| bins.get(bin_of(probability))) else {
            return probability;
        };
        // Eight candidates as good as the head says stand beside those that were counted.
        let factor = (bin.right as f32 + 8.0 * probability) / (bin.given + 8.0 * probability);
        if factor.is_finite() { (probability * factor).min(1.0) } else { 0.0 }
    }
}

fn bin_of(probability: f32) -> usize {
    ((probability.max(0.0).sqrt() * BINS as f32) as usize).min(BINS - 1)
}

/// Counts what heads do.
#[derive(Debug, Clone)]
pub struct Calibrator {
    counted: Calibration,
    paths: BTreeMap<Vec<u16>, u32>,
    ranks: usize,
}

impl Calibrator {
    /// For `heads` heads whose lists have `ranks` tokens.
    pub fn new(heads: usize, ranks: usize) -> Self {
        let counted = Calibration {
            places: vec![0; heads],
            hits: vec![vec![0; ranks]; heads],
            bins: vec![vec![Bin::default(); BINS]; heads],
            paths: Vec::new(),
        };
        Self { counted, paths: BTreeMap::new(), ranks }
    }

    /// Takes note of the lists at one place, `ranks` tokens with their probabilities for each head,
    /// and of the tokens that came there: `truth[k]` is head `k`'s; it may end early with the text.
    pub fn observe(&mut self, lists: &[(u32, f32)], truth: &[u32]) {
        let (mut path, mut on_path, mut all_first) = (Vec::new(), true, true);
        for (k, (list, &token)) in lists.chunks_exact(self.ranks).zip(truth).enumerate() {
            self.counted.places[k] += 1;
            let rank = list.iter().position(|&(t, _)| t == token);
            if all_first {
                for (i, &(_, probability)) in list.iter().enumerate() {
                    let bin = &mut self.counted.bins[k][bin_of(probability)];
                    bin.given += probability;
                    bin.right += u32::from(rank == Some(i));
                }
            }
            all_first &= rank == Some(0);
            on_path &= rank.is_some();
            if let Some(rank) = rank {
                self.counted.hits[k][rank] += 1;
                if on_path {
                    path.push(rank as u16);
                    *self.paths.entry(path.clone()).or_default() += 1;
                }
            }
        }
    }

    /// What was counted.
    pub fn finish(self) -> Calibration {
        let mut paths: Vec<(Vec<u16>, u32)> = self.paths.into_iter().collect();
        // A prefix comes at least as often, and is shorter.
        paths.sort_by(|(a, n), (b, m)| m.cmp(n).then(a.len().cmp(&b.len())).then(a.cmp(b)));
        paths.truncate(TRIE_NODES);
        Calibration { paths, ..self.counted }
    }
}

/// A fixed tree of rank paths, as files of trees hold it: a JSON list of lists of ranks from 0 on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftTree {
    paths: Vec<Vec<u16>>,
}

impl DraftTree {
    /// The tree of `paths`, for `heads` lists of `ranks` tokens. Prefixes that are missing are added,
    /// so that a list of leaves is enough; each stands before what it begins.
    ///
    /// # Errors
    /// [`Error::Draft`] if a path is empty, longer than there are heads, or names too high a rank.
    pub fn new(paths: Vec<Vec<u16>>, heads: usize, ranks: usize) -> Result<Self, Error> {
        let wrong = |path: &[u16], what: &str| {
            let shown = &path[..path.len().min(DEPTH_MAX)];
            Err(Error::Draft(format!("tree: path {shown:?} {what}")))
        };
        let mut tree: Vec<Vec<u16>> = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        for path in paths {
            if path.is_empty() || path.len() > heads.min(DEPTH_MAX) {
                return wrong(&path, &format!("is not of 1 to {heads} ranks"));
            }
            if path.iter().any(|&rank| usize::from(rank) >= ranks) {
                return wrong(&path, &format!("names a rank of {ranks} or more"));
            }
            for depth in 1..=path.len() {
                if known.insert(path[..depth].to_vec()) {
                    tree.push(path[..depth].to_vec());
                }
            }
            if tree.len() > NODES_MAX {
                return Err(Error::Draft(format!("tree: more than {NODES_MAX} nodes")));
            }
        }
        Ok(Self { paths: tree })
    }

    /// Reads a tree file.
    ///
    /// # Errors
    /// [`Error::Draft`] if it is no list of lists of ranks, or as [`DraftTree::new`].
    pub fn parse(json: &str, heads: usize, ranks: usize) -> Result<Self, Error> {
        let wrong = |e: serde_json::Error| {
            let (line, column) = (e.line(), e.column());
            Error::Draft(format!(
                "tree: line {line}, column {column}: expected a list of lists of ranks, [[0], [0, 0]]"
            ))
        };
        Self::new(serde_json::from_str(json).map_err(wrong)?, heads, ranks)
    }

    /// The paths, each behind its prefixes.
    pub fn paths(&self) -> &[Vec<u16>] {
        &self.paths
    }
}

#[cfg(test)]
#[path = "medusa/tests.rs"]
mod tests;
