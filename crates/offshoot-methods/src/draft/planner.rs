//! One tree from all drafters, as large as pays.
//!
//! Chen et al. 2024, Sequoia, section 3, <https://arxiv.org/abs/2402.12374>, grow the tree that
//! promises most tokens for a given size; Li et al. 2024, EAGLE-2, section 4,
//! <https://arxiv.org/abs/2406.16858>, found that drafters know their chances. So:
//! ```text
//! chance(v) = max over drafters of the calibrated chance that v follows its parent, corrected by
//!             what came of such chances (`agreement.rs`)
//! reach(v)  = reach(parent) * chance(v)         that v is reached and right; 1 of the root
//! grow:  take the open guess of the greatest reach, ask every drafter what follows it, repeat
//! E(n)   = 1 + sum of the n greatest reaches     tokens that a step of n guesses makes
//! n*     = argmax E(n) - pace * T(n + 1)         T = step times, of a plain step 1; pace = tokens
//!                                                that the text makes in such a time (`pace.rs`)
//! ```
//! As no guess reaches further than its parent, the n guesses taken first are the best n, and a
//! tree. Every drafter is asked behind every node, whoever guessed it: a head's guess may lead into
//! a passage that the text had before. Siblings are given at most the whole chance between them, the
//! likelier first.
//!
//! Departs from both papers: chances are learned while decoding, for each drafter; the size follows
//! measured step times, n* = 0 among them, which is plain decoding. The best `E(n) / T(n + 1)` of each
//! step, as Sequoia has it for all steps alike, is not the best of a text whose steps differ: where
//! little can be guessed it checks too much, and too little where much can.
//!
//! Options: [`Limits`]; sessions ask for 31 guesses at most, and as deep as the answer may still
//! go. A guess has a reach of 0.02 or more, and a tree promises to be 1.02 times as fast as plain
//! decoding, or it is not made, but for a look now and then (`looks.rs`).
//!
//! Cost: the drafters' own, and O(n log n).
//!
//! | | | times plain | tokens a step |
//! |---|---|---|---|
//! | EAGLE-2, Spec-Bench, A100, 60 nodes | Vicuna-7B, six kinds of text | 2.36 | 4.34 |
//! | the same with a suffix automaton | the same | 2.73 | 4.58 |
//! | ours, suffix and rest, 2 cores | Qwen2.5-Coder 0.5B, HumanEval | 1.52 | 1.66 |
//! | ours, with heads beside them | the same | 1.98 | 2.19 |
//! | ours, all that comes with the program | SmolLM2 135M, chat | 1.43 | 1.76 |
//! | the same | SmolLM2 135M, copying | 2.37 | 3.15 |
//!
//! Ours: `bench --spec --arms auto`, LOG.md 2026-11-24 and 2026-11-27, with trees of the best ratio of
//! each step; those by pace were not measured on a machine with AVX-512 yet. Spec-Bench:
//! <https://github.com/hemingkx/Spec-Bench>. A drafter more brings less than it does alone, as
//! several guess the same.
//!
//! A drafter more never promises less, but where its guesses take of the chance that siblings share,
//! or where agreement was learned to lower odds.
//!
//! When not to use it: where the tree must be the same in every step, as for a compiled graph; and
//! with guesses that were drawn and not set, which must not be chosen from once they are known (see
//! `rejection.rs`).

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

use super::agreement::{Agreed, Agreement};
use super::calibration::{Calibration, CellId};
use super::looks::Looks;
use super::pace::Pace;
use super::step_times::StepTimes;
use super::tree::TokenTree;

/// The least reach that a guess is worth a row for: a row costs a thirtieth of a step at least.
const LEAST_REACH: f32 = 0.02;
/// What siblings may have together.
const WHOLE: f32 = 0.995;
/// How much faster than plain decoding a tree must promise to be.
const MARGIN: f64 = 1.02;

/// A guess at the token behind a node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// The token.
    pub token: u32,
    /// The drafter's score, between 0 and 1.
    pub score: f32,
    /// Which of its kinds of guess this is, below [`super::CLASSES`].
    pub class: u8,
}

/// How far a tree may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Guesses.
    pub guesses: usize,
    /// Guesses that follow one another.
    pub depth: usize,
}

#[derive(Debug, Clone)]
struct Node {
    token: u32,
    reach: f32,
    /// What its chance came from; nothing for the root.
    agreed: Agreed,
    /// Its own guesses, once it was taken.
    children: Range<u32>,
    votes: Range<u32>,
    /// Its row in the step, if it has one.
    row: Option<u32>,
}

/// A drafter's opinion of a guess.
#[derive(Debug, Clone, Copy)]
struct Vote {
    token: u32,
    drafter: u32,
    chance: f32,
    cell: CellId,
}

/// A guess not taken yet.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Open {
    reach: f32,
    node: u32,
    /// Its parent's place in the tree.
    parent: u32,
}

impl Eq for Open {}

impl Ord for Open {
    fn cmp(&self, other: &Self) -> Ordering {
        self.reach.total_cmp(&other.reach).then(other.node.cmp(&self.node))
    }
}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What a drafter contributed to a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Contribution {
    /// Its guesses among those that were checked.
    pub proposed: u32,
    /// Those that were right.
    pub accepted: u32,
    /// Of each right guess its share with those who guessed it too.
    pub credit: f32,
}

/// What drafters' guesses are believed to be worth.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Beliefs {
    /// What each drafter's scores are worth by themselves.
    pub calibrations: Vec<Calibration>,
    /// And beside the others'.
    pub agreement: Agreement,
}

/// Grows and sizes trees, and learns what the drafters' guesses are worth.
#[derive(Debug, Clone)]
pub struct Planner {
    beliefs: Beliefs,
    nodes: Vec<Node>,
    votes: Vec<Vote>,
    open: BinaryHeap<Open>,
    /// The guesses in the order in which they were taken, the root first.
    taken: Vec<u32>,
    grown: TokenTree,
    guesses: Vec<Guess>,
    room: Vec<Vote>,
    contributions: Vec<Contribution>,
}

impl Planner {
    /// A planner for drafters whose scores are worth `calibrations`.
    pub fn new(calibrations: Vec<Calibration>) -> Self {
        Self {
            contributions: vec![Contribution::default(); calibrations.len()],
            beliefs: Beliefs { calibrations, agreement: Agreement::default() },
            nodes: Vec::new(),
            votes: Vec::new(),
            open: BinaryHeap::new(),
            taken: Vec::new(),
            grown: TokenTree::default(),
            guesses: Vec::new(),
            room: Vec::new(),
        }
    }

    /// What each drafter's scores are worth.
    pub fn calibrations(&self) -> &[Calibration] {
        &self.beliefs.calibrations
    }

    /// What the drafters' guesses are believed to be worth.
    pub fn beliefs(&self) -> &Beliefs {
        &self.beliefs
    }

    /// Goes on with other beliefs about the same drafters; gives those so far.
    pub fn exchange(&mut self, beliefs: Beliefs) -> Beliefs {
        std::mem::replace(&mut self.beliefs, beliefs)
    }

    /// Grows a tree of guesses below `root`.
    ///
    /// `ask(drafter, tree, node, guesses)` appends what the drafter guesses behind the newest `node`
    /// of `tree`; every node comes once, the root first, parents before their children. Guesses behind
    /// nodes of the greatest depth are dropped.
    pub fn grow(
        &mut self,
        root: u32,
        limits: Limits,
        mut ask: impl FnMut(usize, &TokenTree, usize, &mut Vec<Guess>),
    ) {
        self.nodes.clear();
        self.votes.clear();
        self.open.clear();
        self.taken.clear();
        self.grown.reset(root);
        self.nodes.push(Node {
            token: root,
            reach: 1.0,
            agreed: Agreed::default(),
            children: 0..0,
            votes: 0..0,
            row: Some(0),
        });
        self.taken.push(0);
        self.expand(0, 0, limits, &mut ask);
        while self.grown.guesses() < limits.guesses {
            let Some(Open { reach, node, parent }) = self.open.pop() else { break };
            if reach < LEAST_REACH {
                break;
            }
            let place = self.grown.push(parent as usize, self.nodes[node as usize].token);
            self.taken.push(node);
            self.expand(node, place, limits, &mut ask);
        }
    }

    /// Collects the guesses behind `node`, which stands at `place` in the tree.
    fn expand(
        &mut self,
        node: u32,
        place: usize,
        limits: Limits,
        ask: &mut impl FnMut(usize, &TokenTree, usize, &mut Vec<Guess>),
    ) {
        self.room.clear();
        for (drafter, calibration) in self.beliefs.calibrations.iter().enumerate() {
            self.guesses.clear();
            ask(drafter, &self.grown, place, &mut self.guesses);
            for guess in &self.guesses {
                let (chance, cell) = calibration.chance(guess.class, guess.score);
                let drafter = drafter as u32;
                self.room.push(Vote { token: guess.token, drafter, chance, cell });
            }
        }
        let depth = self.grown.depths()[place] as usize + 1;
        if depth > limits.depth {
            return;
        }
        // Votes for one token side by side, the most hopeful first, and one of each drafter.
        self.room.sort_unstable_by(|a, b| {
            let chances = b.chance.total_cmp(&a.chance);
            a.token.cmp(&b.token).then(chances).then(a.drafter.cmp(&b.drafter))
        });
        let first = self.nodes.len() as u32;
        let reach = self.nodes[node as usize].reach;
        for votes in self.room.chunk_by(|a, b| a.token == b.token) {
            let begin = self.votes.len();
            for vote in votes {
                if !self.votes[begin..].iter().any(|v| v.drafter == vote.drafter) {
                    self.votes.push(*vote);
                }
            }
            let drafters = self.votes.len() - begin;
            let (reach, agreed) = self.beliefs.agreement.chance(drafters, depth, votes[0].chance);
            self.nodes.push(Node {
                token: votes[0].token,
                reach,
                agreed,
                children: 0..0,
                votes: begin as u32..self.votes.len() as u32,
                row: None,
            });
        }
        let children = &mut self.nodes[first as usize..];
        children.sort_by(|a, b| b.reach.total_cmp(&a.reach).then(a.token.cmp(&b.token)));
        let mut left = WHOLE;
        for (i, child) in children.iter_mut().enumerate() {
            let chance = child.reach.min(left);
            left -= chance;
            child.reach = reach * chance;
            let node = first + i as u32;
            self.open.push(Open { reach: child.reach, node, parent: place as u32 });
        }
        self.nodes[node as usize].children = first..self.nodes.len() as u32;
    }

    /// Writes into `tree` the part of what was grown that pays most in a text of this pace, and gives
    /// the tokens that it promises, at least 1. Where none pays by itself `looks` may ask for one guess.
    ///
    /// The likeliest path comes first, so that its rows need not be moved when it is right.
    pub fn cut(
        &mut self,
        (times, pace): (&StepTimes, &Pace),
        looks: Option<&mut Looks>,
        tree: &mut TokenTree,
    ) -> f64 {
        let reaches = self.taken[1..].iter().map(|&node| self.nodes[node as usize].reach);
        let likeliest = reaches.clone().next().map(f64::from);
        let (mut size, mut promised) = best_size(reaches, pace, |rows| times.ratio(rows));
        if size == 0
            && let (Some(looks), Some(chance)) = (looks, likeliest)
            && 1.0 + chance <= MARGIN * times.ratio(2)
            && looks.wants(chance, MARGIN, times)
        {
            (size, promised) = (1, 1.0 + chance);
        }
        self.taken.truncate(size + 1);
        tree.reset(self.nodes[0].token);
        let mut at = 0;
        loop {
            // Children stand in the order of their reach.
            let children = self.nodes[at].children.clone();
            let Some(next) = children.into_iter().find(|child| self.taken.contains(child)) else {
                break;
            };
            self.add(tree, at, next);
            at = next as usize;
        }
        for i in 1..self.taken.len() {
            let node = self.taken[i];
            if self.nodes[node as usize].row.is_none() {
                let parent = (0..i).map(|j| self.taken[j] as usize);
                let mut parent = parent.filter(|&p| self.nodes[p].children.contains(&node));
                let parent = parent.next().expect("a guess is taken after its parent");
                self.add(tree, parent, node);
            }
        }
        promised
    }

    fn add(&mut self, tree: &mut TokenTree, parent: usize, node: u32) {
        let parent = self.nodes[parent].row.expect("a parent has a row before its children");
        let node = &mut self.nodes[node as usize];
        node.row = Some(tree.push(parent as usize, node.token) as u32);
    }

    /// Learns from what followed the root: `text` are the tokens that this step decided, in order.
    /// Gives each drafter's contribution.
    pub fn learn(&mut self, text: &[u32]) -> &[Contribution] {
        self.contributions.fill(Contribution::default());
        for &node in self.taken.iter().skip(1) {
            for vote in &self.votes[range(&self.nodes[node as usize].votes)] {
                self.contributions[vote.drafter as usize].proposed += 1;
            }
        }
        let mut at = 0;
        for &token in text {
            let children = self.nodes[at].children.clone();
            let mut right = None;
            for child in children {
                let Node { token: guess, votes, row, agreed, .. } = &self.nodes[child as usize];
                let votes = &self.votes[range(votes)];
                let hit = *guess == token;
                self.beliefs.agreement.note(*agreed, hit);
                for vote in votes {
                    let calibration = &mut self.beliefs.calibrations[vote.drafter as usize];
                    calibration.note(vote.cell, vote.chance, hit);
                    if hit && row.is_some() {
                        let contribution = &mut self.contributions[vote.drafter as usize];
                        contribution.accepted += 1;
                        contribution.credit += 1.0 / votes.len() as f32;
                    }
                }
                if hit {
                    right = Some(child as usize);
                }
            }
            match right {
                Some(child) => at = child,
                None => break,
            }
        }
        &self.contributions
    }
}

fn range(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

/// The number of guesses that pays most, and the tokens it promises. `reaches` fall; `time(rows)` is
/// that of a step, over that of one row.
///
/// Every size is tried: step times rise in stairs, so that one more guess may not pay where two do.
fn best_size(
    reaches: impl Iterator<Item = f32> + Clone,
    pace: &Pace,
    time: impl Fn(usize) -> f64,
) -> (usize, f64) {
    let sizes = reaches.enumerate().scan(1.0, |tokens, (i, reach)| {
        *tokens += f64::from(reach);
        Some((i + 1, *tokens, time(i + 2)))
    });
    let ratios = sizes.clone().map(|(_, tokens, time)| tokens / time);
    let rate = pace.rate(ratios.fold(1.0, f64::max));
    let (mut best, mut most) = ((0, 1.0), 1.0 - rate * time(1));
    for (size, tokens, time) in sizes {
        let gain = tokens - rate * time;
        if gain > most && tokens > MARGIN * time {
            (best, most) = ((size, tokens), gain);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { guesses: 20, depth: 6 };

    /// Drafters of made-up guesses: a function of drafter and path.
    fn guesses(seed: u64, drafter: usize, path: &[u32]) -> Vec<Guess> {
        let hash = path.iter().fold(seed ^ (drafter as u64) << 9, |h, &t| {
            (h ^ u64::from(t)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
        });
        (0..hash % 4)
            .map(|i| {
                let bits = (hash >> (8 + 7 * i)) as u32;
                let score = (bits % 100) as f32 / 150.0;
                Guess { token: bits % 6, score, class: (i % 3) as u8 }
            })
            .collect()
    }

    fn path(tree: &TokenTree, mut node: usize) -> Vec<u32> {
        let mut path = vec![tree.tokens()[node]];
        while let Some(parent) = tree.parents()[node] {
            node = parent as usize;
            path.push(tree.tokens()[node]);
        }
        path.reverse();
        path
    }

    fn grown(seed: u64, drafters: usize) -> (Planner, TokenTree, f64) {
        let mut planner = Planner::new(vec![Calibration::default(); drafters]);
        planner.grow(1, LIMITS, |drafter, tree, node, out| {
            out.extend(guesses(seed, drafter, &path(tree, node)));
        });
        let mut tree = TokenTree::default();
        let promised = planner.cut((&StepTimes::default(), &Pace::default()), None, &mut tree);
        (planner, tree, promised)
    }

    proptest! {
        #[test]
        fn a_tree_has_no_guess_twice_and_siblings_share_one_chance(
            seed: u64, drafters in 1usize..4,
        ) {
            let (planner, tree, promised) = grown(seed, drafters);
            let paths: Vec<_> = (0..tree.len()).map(|node| path(&tree, node)).collect();
            for (i, p) in paths.iter().enumerate() {
                prop_assert!(!paths[..i].contains(p), "{p:?} twice");
                prop_assert!(p.len() <= LIMITS.depth + 1);
            }
            prop_assert!(tree.guesses() <= LIMITS.guesses);
            for node in &planner.nodes {
                let children = &planner.nodes[range(&node.children)];
                let sum: f32 = children.iter().map(|c| c.reach).sum();
                prop_assert!(sum <= node.reach * 1.0001, "{sum} of {}", node.reach);
            }
            let rows = planner.nodes.iter().filter(|n| n.row.is_some());
            let sum: f64 = rows.map(|n| f64::from(n.reach)).sum();
            prop_assert!((sum - promised).abs() < 1e-4);
        }

        #[test]
        fn the_size_is_the_best_of_all(
            mut reaches in prop::collection::vec(0f32..1.0, 0..30),
            steps in prop::collection::vec(0f64..0.6, 31),
            before in prop::collection::vec(1f64..5.0, 0..40),
        ) {
            reaches.sort_by(|a, b| b.total_cmp(a));
            let time = |rows: usize| 1.0 + steps[..rows - 1].iter().sum::<f64>();
            let mut pace = Pace::default();
            before.iter().for_each(|&tokens| pace.note(tokens, 1.5));
            let (size, promised) = best_size(reaches.iter().copied(), &pace, time);
            let tokens = |n: usize| 1.0 + reaches[..n].iter().map(|&r| f64::from(r)).sum::<f64>();
            let all = 0..=reaches.len();
            let ratio = |n: usize| tokens(n) / time(n + 1);
            let rate = pace.rate(all.clone().map(ratio).fold(1.0, f64::max));
            let gain = |n: usize| tokens(n) - rate * time(n + 1);
            let pays = |&n: &usize| n == 0 || ratio(n) > MARGIN;
            let best = all.clone().filter(pays).map(gain).fold(f64::MIN, f64::max);
            prop_assert!(gain(size) >= best - 1e-9 && pays(&size), "{size}: {best}");
            prop_assert!((promised - tokens(size)).abs() < 1e-9);
            if before.is_empty() {
                let best = all.filter(pays).map(ratio).fold(f64::MIN, f64::max);
                prop_assert!(ratio(size) >= best - 1e-9, "the best ratio of a first step");
            }
        }

        /// Where its guesses leave the others their chance, as guesses that together claim more than
        /// there is cannot all be right; with two guesses a drafter, whatever it was taught.
        #[test]
        fn a_drafter_more_never_promises_less(
            seed: u64,
            taught in prop::collection::vec((0usize..2, 0u8..3, 0f32..0.3, 0u8..4), 0..200),
        ) {
            let few = |mut all: Vec<Guess>| {
                all.iter_mut().for_each(|g| g.score *= 0.4);
                all.truncate(2);
                all
            };
            let mut calibrations = vec![Calibration::default(); 2];
            for (drafter, class, score, quarter) in taught {
                let calibration = &mut calibrations[drafter];
                let (chance, cell) = calibration.chance(class, score);
                calibration.note(cell, chance, quarter == 0);
            }
            let planned = |drafters: usize| {
                let mut planner = Planner::new(calibrations[..drafters].to_vec());
                planner.grow(1, LIMITS, |drafter, tree, node, out| {
                    out.extend(few(guesses(seed, drafter, &path(tree, node))));
                });
                let mut tree = TokenTree::default();
                let tokens = planner.cut((&StepTimes::default(), &Pace::default()), None, &mut tree);
                (planner, tokens / StepTimes::default().ratio(tree.len()))
            };
            let (planner, promised) = planned(2);
            for node in &planner.nodes {
                let children = &planner.nodes[range(&node.children)];
                let sum: f32 = children.iter().map(|child| child.reach).sum();
                prop_assume!(sum < 0.99 * node.reach);
            }
            prop_assert!(promised >= planned(1).1 - 1e-6);
        }

        #[test]
        fn the_likeliest_path_comes_first(seed: u64) {
            let (_, tree, _) = grown(seed, 2);
            let mut at = 0;
            while let Some(child) = (1..tree.len()).find(|&c| tree.parents()[c] == Some(at)) {
                prop_assert_eq!(child as u32, at + 1);
                at += 1;
            }
        }
    }

    #[test]
    fn guesses_that_come_true_are_believed_and_others_are_not() {
        let mut planner = Planner::new(vec![Calibration::default(); 2]);
        let mut tree = TokenTree::default();
        for _ in 0..300 {
            planner.grow(1, LIMITS, |drafter, tree, _, out| {
                // The first is always right, the second never.
                let token = [2 + tree.depths().last().unwrap(), 99][drafter];
                out.push(Guess { token, score: 0.5, class: 0 });
            });
            planner.cut((&StepTimes::default(), &Pace::default()), None, &mut tree);
            let text: Vec<u32> = (2..2 + tree.len() as u32).collect();
            let found = planner.learn(&text);
            assert_eq!(found[1].accepted, 0);
        }
        assert!(!tree.tokens().contains(&99));
        assert!(tree.len() >= 5, "a chain of certain guesses: {tree:?}");
        assert_eq!(planner.learn(&[2, 3])[0].accepted, 2);
    }

    /// Chains of guesses that come true with one chance each, another at every step; counted as
    /// promised.
    #[test]
    fn sizes_by_pace_make_more_than_the_best_ratio_of_each_step() {
        let times = StepTimes::new(&[(1, 1.0), (2, 1.05), (4, 1.25), (8, 2.0), (16, 3.36)]);
        let texts: [(&[f32], f64); 4] = [
            (&[0.1, 0.3, 0.5, 0.7, 0.9], 1.03),
            (&[0.95, 0.95, 0.95, 0.2, 0.2], 1.01),
            (&[0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8], 1.005),
            (&[0.6], 0.999),
        ];
        for (chances, better) in texts {
            let made = |by_pace: bool| {
                let (mut pace, mut tokens, mut time) = (Pace::default(), 0.0, 0.0);
                for i in 0..2000 {
                    let chance = chances[i * 7 % chances.len()];
                    let reaches: Vec<f32> = (1..16).map(|n| chance.powi(n)).collect();
                    let sum =
                        |n: usize| 1.0 + reaches[..n].iter().map(|&r| f64::from(r)).sum::<f64>();
                    let ratio = |n: &usize| sum(*n) / times.ratio(n + 1);
                    let size = match by_pace {
                        true => best_size(reaches.iter().copied(), &pace, |k| times.ratio(k)).0,
                        false => (0..16).max_by(|a, b| ratio(a).total_cmp(&ratio(b))).unwrap(),
                    };
                    pace.note(sum(size), times.ratio(size + 1));
                    (tokens, time) = (tokens + sum(size), time + times.ratio(size + 1));
                }
                tokens / time
            };
            let (by_pace, by_ratio) = (made(true), made(false));
            assert!(by_pace > better * by_ratio, "{chances:?}: {by_pace} and {by_ratio}");
        }
    }

    #[test]
    fn with_nothing_to_guess_a_step_is_plain() {
        let mut planner = Planner::new(vec![Calibration::default()]);
        planner.grow(4, LIMITS, |_, _, _, _| {});
        let mut tree = TokenTree::default();
        assert_eq!(planner.cut((&StepTimes::default(), &Pace::default()), None, &mut tree), 1.0);
        assert_eq!(tree.tokens(), [4]);
    }
}
