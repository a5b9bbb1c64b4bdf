//! Guesses that are drawn, for the rejection rule: a chain in the tree of a step.
//!
//! The rule keeps the model's distribution if a candidate is what its distribution `q` made it, so no
//! choice may be made with the candidates in sight. The tree of set guesses is grown first, as without
//! a chain; then the chain's length is fixed; then it is drawn, token after token, and all of it is
//! checked. Where it runs along the tree the two share rows. At each node the set guesses are tested
//! first, then the drawn one, even if its token was refused as a set one.

use offshoot_methods::draft::{Contribution, Drawn, StepTimes, TokenTree};
use offshoot_methods::{FilterState, Purpose, Sampler};

use super::filtering::Filtering;
use super::{Behind, View};
use crate::Error;

/// The longest chain.
const LONGEST: usize = 6;
/// What drawing a token takes, in plain steps, where a model of an eighth of the size does.
const COST: f64 = 0.125;
/// How often a drawn token stands before any was tested, and the tests over which that is forgotten.
const BEGIN: f64 = 0.6;
const SPAN: f64 = 20.0;

/// The drawn guesses of a step.
#[derive(Debug)]
pub(crate) struct Chain {
    drawn: Vec<Drawn>,
    /// The tree's node of each.
    nodes: Vec<usize>,
    /// The tree's nodes that were there before.
    set: usize,
    /// How often drawn tokens stand.
    rate: f64,
}

impl Default for Chain {
    fn default() -> Self {
        Self { drawn: Vec::new(), nodes: Vec::new(), set: 1, rate: BEGIN }
    }
}

impl Chain {
    /// How many tokens to draw beside a tree of `rows` that promises `promised` tokens, at most
    /// `most`, and what both promise: what makes most tokens a second, and one at least, as nothing
    /// would be learned of none.
    pub(crate) fn length(
        &self,
        (promised, rows): (f64, usize),
        times: &StepTimes,
        most: usize,
    ) -> (usize, f64) {
        let (mut tokens, mut chance) = (promised, 1.0);
        let (mut best, mut highest) = ((0, promised), 0.0);
        for len in 1..=most.min(LONGEST) {
            chance *= self.rate;
            tokens += chance;
            let rate = tokens / (times.ratio(rows + len) + COST * len as f64);
            if rate > highest {
                (best, highest) = ((len, tokens), rate);
            }
        }
        best
    }

    /// Room for the tokens of a step with `tree`.
    pub(crate) fn begin(&mut self, tree: &TokenTree) -> &mut Vec<Drawn> {
        self.nodes.clear();
        self.drawn.clear();
        self.set = tree.len();
        &mut self.drawn
    }

    /// Adds what was drawn to the tree.
    pub(crate) fn join(&mut self, tree: &mut TokenTree) {
        let mut at = 0;
        for Drawn { token, .. } in &self.drawn {
            at = tree.child(at, *token).unwrap_or_else(|| tree.push(at, *token));
            self.nodes.push(at);
        }
    }

    /// The candidates behind `node`, in the order in which they are to be tested; none if none of
    /// them was drawn, as one draw of the token does as well for those that were set.
    pub(crate) fn candidates(&self, tree: &TokenTree, node: usize, out: &mut Vec<Drawn>) {
        out.clear();
        let depth = match node {
            0 => Some(0),
            _ => self.nodes.iter().position(|&at| at == node).map(|i| i + 1),
        };
        let Some(drawn) = depth.and_then(|depth| self.drawn.get(depth)) else { return };
        let set = node + 1..self.set;
        let set = set.filter(|&child| tree.parents()[child] == Some(node as u32));
        out.extend(set.map(|child| Drawn::set(tree.tokens()[child])));
        out.push(drawn.clone());
    }

    /// Takes in the tokens that a step decided.
    pub(crate) fn learn(&mut self, text: &[u32]) -> Contribution {
        let mut contribution =
            Contribution { proposed: self.drawn.len() as u32, ..Contribution::default() };
        for (Drawn { token, .. }, decided) in self.drawn.iter().zip(text) {
            let stands = token == decided;
            self.rate += (f64::from(u8::from(stands)) - self.rate) / SPAN;
            if !stands {
                break;
            }
            contribution.accepted += 1;
        }
        contribution
    }
}

/// Draws of a drafter that has a distribution of its own, made as the text's own tokens are: with
/// its options, its penalties, its filter, and a number keyed by seed and position.
#[derive(Debug)]
pub struct Draws<'a, 'f> {
    sampler: &'a mut Sampler,
    choice: u32,
    position: u64,
    filtering: Option<(&'a mut Filtering<'f>, FilterState)>,
    n_vocab: usize,
    /// The text and what was drawn.
    text: Vec<u32>,
    row: Vec<f32>,
}

impl<'a, 'f> Draws<'a, 'f> {
    /// Draws behind a text over `n_vocab` tokens; and what a drafter sees of it.
    pub(crate) fn new<'v>(behind: Behind<'a, 'f, 'v>, n_vocab: usize) -> (Self, View<'v>) {
        let Behind { view, filtering, sampler, choice, position } = behind;
        let filtering = filtering.map(|filtering| {
            let state = filtering.state();
            (filtering, state)
        });
        let (text, row) = (view.text.to_vec(), Vec::with_capacity(n_vocab));
        (Self { sampler, choice, position, filtering, n_vocab, text, row }, view)
    }

    /// Draws the next token by a drafter's `logits`; `None` if none may come.
    ///
    /// # Errors
    /// If a logit is no number.
    pub fn draw(&mut self, logits: &[f32]) -> Result<Option<Drawn>, Error> {
        self.row.clear();
        self.row.extend_from_slice(&logits[..logits.len().min(self.n_vocab)]);
        self.row.resize(self.n_vocab, f32::NEG_INFINITY);
        if let Some((filtering, state)) = &mut self.filtering {
            filtering.mask_in(Some(*state), &mut self.row);
        }
        let mut q = Vec::new();
        match self.sampler.distribution(&mut self.row, &self.text, &mut q) {
            Err(offshoot_methods::Error::NoTokenAllowed { .. }) => return Ok(None),
            done => done?,
        }
        let u = self.sampler.uniform_for(Purpose::Draft, self.choice, self.position);
        let token = offshoot_methods::draft::draw(&q, u);
        if let Some((filtering, state)) = &mut self.filtering {
            *state = filtering.next(*state, token).ok_or(Error::Filter { token })?;
        }
        self.text.push(token);
        self.position += 1;
        Ok(Some(Drawn { token, q }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(token: u32) -> Drawn {
        Drawn { token, q: vec![(token, 0.5), (token + 1, 0.5)] }
    }

    #[test]
    fn set_candidates_come_first_and_a_shared_row_is_both() {
        let mut tree = TokenTree::new(9);
        let shared = tree.push(0, 4);
        tree.push(0, 5);
        tree.push(2, 7);
        let mut chain = Chain::default();
        chain.begin(&tree).extend([drawn(4), drawn(6)]);
        chain.join(&mut tree);
        assert_eq!(tree.tokens(), [9, 4, 5, 7, 6]);
        let mut candidates = Vec::new();
        chain.candidates(&tree, 0, &mut candidates);
        assert_eq!(candidates, [Drawn::set(4), Drawn::set(5), drawn(4)]);
        chain.candidates(&tree, shared, &mut candidates);
        assert_eq!(candidates, [drawn(6)]);
        for without in 2..5 {
            chain.candidates(&tree, without, &mut candidates);
            assert_eq!(candidates, []);
        }
        assert_eq!(chain.learn(&[4, 7]).accepted, 1);
    }

    #[test]
    fn chains_are_as_long_as_their_tokens_stand() {
        let times = StepTimes::default();
        let length = |rate| Chain { rate, ..Chain::default() }.length((1.0, 1), &times, 9).0;
        assert_eq!((length(0.01), length(0.6), length(0.99)), (1, 2, 6));
        assert!((1..100).all(|i| length(f64::from(i) / 100.0) <= length(f64::from(i + 1) / 100.0)));
        assert_eq!(Chain::default().length((1.0, 1), &times, 0), (0, 1.0));
    }
}
