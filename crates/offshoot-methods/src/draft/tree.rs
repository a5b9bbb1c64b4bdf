//! The exact rule: the guesses are kept that plain decoding would make, so no draft changes a token.
//!
//! A step checks a tree. Node 0 is the *pending* token: decided, but not yet in the cache. Every other
//! node is a guess at what follows its parent. One step of the model runs all nodes as rows behind the
//! cache; a node sees the cache, its ancestors and itself (Miao et al. 2023, SpecInfer, section 4.2,
//! <https://arxiv.org/abs/2305.09781>). [`follow`] then goes down it:
//! ```text
//! t(v) = argmax p_v                                   greedily, the lowest of equals
//! t(v) = min { t : sum over s <= t of p_v(s) > u_i }  drawn, u_i = uniform(seed, choice, i)
//! from v on to its child t(v); where there is none, t(v) is the next pending token
//! ```
//! `p_v` is the model's distribution behind `v`'s own path, after penalties, filters and temperature,
//! `i` the place in the text. As `u_i` depends on that alone, the text is not only as likely as without
//! drafts, as in speculative sampling (Leviathan et al. 2023, <https://arxiv.org/abs/2211.17192>; Chen
//! et al. 2023, <https://arxiv.org/abs/2302.01318>): it is the same one. Daliri et al. 2024,
//! <https://arxiv.org/abs/2408.07978>, call decoding drafter-invariant whose seed names a text whoever
//! drafts. A guess is right as often as `p_v` says, and no rule that keeps the law keeps a set guess
//! more often.
//!
//! Departs from REST (He et al. 2023, <https://arxiv.org/abs/2311.08252>), which draws and compares as
//! well: one draw for each node, not for each path through it, and one that matches no guess is the next
//! token, not thrown away; otherwise likely guesses come too often (a test of `rejection.rs`).
//!
//! Options: none; `--acceptance exact` is the default.
//!
//! Cost: a choice for each token of the text, as without drafts.
//!
//! | published | | |
//! |---|---|---|
//! | REST, greedily, A6000 | CodeLlama-7B, HumanEval | 2.36 times plain |
//! | REST, temperature 0.8, top-p 0.95 | the same | 2.12 |
//!
//! | ours, all drafters, 2 cores | | |
//! |---|---|---|
//! | greedily | SmolLM2 135M, chat | 1.24 times plain |
//! | temperature 0.8 | the same | 1.33 |
//! | greedily, five workloads | and Qwen2.5-Coder 0.5B | 0 of 51,200 tokens differ from plain |
//! | temperature 0.8, four workloads | SmolLM2 135M | 0 of 51,840 |
//!
//! Ours: `bench/spec` and `bench --spec`, LOG.md 2026-11-26. It rests on rows of logits that do not
//! depend on the rows beside them; where they do, `margin.rs` guards the choice.
//!
//! When not to use it: with a draft model that is nearly as good as the model, at a high temperature.
//! The draw seldom falls on what was drawn for the draft: `rejection.rs` keeps more there, and
//! `typical.rs` where another law of the text will do.

/// Drafted tokens below the pending one, parents before their children.
#[derive(Debug, Clone, Default)]
pub struct TokenTree {
    tokens: Vec<u32>,
    parents: Vec<Option<u32>>,
    depths: Vec<u32>,
}

impl TokenTree {
    /// The tree of `root` alone: plain decoding.
    pub fn new(root: u32) -> Self {
        let mut tree = Self::default();
        tree.reset(root);
        tree
    }

    /// Makes it the tree of `root` alone.
    pub fn reset(&mut self, root: u32) {
        self.tokens.clear();
        self.parents.clear();
        self.depths.clear();
        self.tokens.push(root);
        self.parents.push(None);
        self.depths.push(0);
    }

    /// Adds a guess that `token` follows node `parent`; gives its node.
    ///
    /// # Panics
    /// If there is no such parent.
    pub fn push(&mut self, parent: usize, token: u32) -> usize {
        self.depths.push(self.depths[parent] + 1);
        self.tokens.push(token);
        self.parents.push(Some(parent as u32));
        self.tokens.len() - 1
    }

    /// Nodes, the pending one among them.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is not even a pending token: the tree was never reset.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Guesses.
    pub fn guesses(&self) -> usize {
        self.tokens.len().saturating_sub(1)
    }

    /// The tokens of all nodes.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Each node's parent, `None` of the root: what a step's segment takes.
    pub fn parents(&self) -> &[Option<u32>] {
        &self.parents
    }

    /// Each node's distance from the root.
    pub fn depths(&self) -> &[u32] {
        &self.depths
    }

    /// The child of `node` that is `token`.
    pub fn child(&self, node: usize, token: u32) -> Option<usize> {
        let is_it = |&child: &usize| {
            self.parents[child] == Some(node as u32) && self.tokens[child] == token
        };
        (node + 1..self.len()).find(is_it)
    }
}

/// Goes down `tree` as far as the guesses are right, and gives the token to go on from.
///
/// `choose(node)` makes the token behind `node`'s path exactly as plain decoding would there, or
/// `None` to end the text; it is called once for each token of the text. So greedy text, and text
/// drawn with one number for each position, is that of plain decoding whatever was guessed. `path`
/// receives the nodes that are right, the root first: the rows to keep.
pub fn follow<E>(
    tree: &TokenTree,
    path: &mut Vec<usize>,
    mut choose: impl FnMut(usize) -> Result<Option<u32>, E>,
) -> Result<Option<u32>, E> {
    path.clear();
    path.push(0);
    let mut node = 0;
    loop {
        let Some(token) = choose(node)? else { return Ok(None) };
        match tree.child(node, token) {
            Some(child) => {
                path.push(child);
                node = child;
            }
            None => return Ok(Some(token)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    #[test]
    fn a_root_alone_is_plain_decoding() {
        let (tree, mut path) = (TokenTree::new(7), Vec::new());
        let next = follow(&tree, &mut path, |node| Ok::<_, Infallible>(Some(node as u32 + 3)));
        assert_eq!((next, path), (Ok(Some(3)), vec![0]));
    }

    #[test]
    fn an_end_keeps_the_rows_before_it() {
        let (mut tree, mut path) = (TokenTree::new(0), Vec::new());
        tree.push(0, 1);
        tree.push(1, 2);
        let mut left = 1;
        let next = follow(&tree, &mut path, |node| {
            left -= 1;
            Ok::<_, Infallible>((left >= 0).then_some(node as u32 + 1))
        });
        assert_eq!((next, path), (Ok(None), vec![0, 1]));
    }

    proptest! {
        /// The text is a function of what came before, and no tree changes it.
        #[test]
        fn the_text_is_that_of_plain_decoding(
            guesses in prop::collection::vec((any::<prop::sample::Index>(), 0u32..3), 0..40),
        ) {
            let next = |token: u32, depth: u32| (token * 7 + depth * 5 + 1) % 3;
            let mut tree = TokenTree::new(1);
            for (parent, token) in guesses {
                let parent = parent.index(tree.len());
                if tree.child(parent, token).is_none() {
                    tree.push(parent, token);
                }
            }
            let (mut path, mut text) = (Vec::new(), Vec::new());
            let last = follow(&tree, &mut path, |node| {
                let token = next(tree.tokens()[node], tree.depths()[node]);
                text.push(token);
                Ok::<_, Infallible>(Some(token))
            });
            let (mut plain, mut token) = (Vec::new(), 1);
            for depth in 0..text.len() as u32 {
                token = next(token, depth);
                plain.push(token);
            }
            prop_assert_eq!(&text, &plain);
            prop_assert_eq!(last, Ok(text.last().copied()));
            prop_assert!(path.windows(2).all(|w| w[0] < w[1]), "rows rise");
            prop_assert_eq!(path.len(), text.len());
        }
    }
}
