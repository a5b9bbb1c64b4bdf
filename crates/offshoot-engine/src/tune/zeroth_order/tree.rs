//! Texts of one example that begin alike, as one tree of tokens.
//!
//! Candidates of a choice share their prompt, and may share more. As a tree, what they share is run
//! through the model once in one step, and the last token of each, behind which nothing is asked for,
//! not at all: of candidates of one token, only the prompt is run.

use crate::tune::Sequence;

/// A token whose probability is asked for, behind a row of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Target {
    /// The row behind which it stands.
    pub(crate) row: u32,
    /// The token.
    pub(crate) token: u32,
}

/// Rows to run and what is asked of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TextTree {
    /// The tokens, parents before their children.
    pub(crate) tokens: Vec<u32>,
    /// What each follows; the first tokens follow nothing.
    pub(crate) parents: Vec<Option<u32>>,
    /// How many stand before each on its way from the root.
    pub(crate) depths: Vec<u32>,
    /// What is asked for, text by text and token by token.
    pub(crate) targets: Vec<Target>,
    /// How many of the targets each text has.
    pub(crate) counts: Vec<usize>,
    /// The length of the longest text, its last token too.
    pub(crate) longest: usize,
}

impl TextTree {
    /// One text.
    pub(crate) fn of(sequence: &Sequence) -> Self {
        let mut tree = Self::default();
        tree.add(&sequence.tokens, &sequence.trained);
        tree
    }

    /// Continuations of one prompt, all of whose tokens are asked for.
    pub(crate) fn of_choice(prompt: &[u32], candidates: &[Vec<u32>]) -> Self {
        let mut tree = Self::default();
        for candidate in candidates {
            let Sequence { tokens, trained } = Sequence::of(prompt, candidate);
            tree.add(&tokens, &trained);
        }
        tree
    }

    /// Adds a text, of which the tokens that are `trained` are asked for.
    fn add(&mut self, tokens: &[u32], trained: &[bool]) {
        let (mut at, before) = (None, self.targets.len());
        let last = trained.iter().rposition(|&t| t).unwrap_or(0);
        for (i, (&token, &trained)) in tokens.iter().zip(trained).enumerate() {
            // The first token of a text has nothing that it could be predicted from.
            if let (true, Some(row)) = (trained, at) {
                self.targets.push(Target { row, token });
            }
            if i < last {
                at = Some(self.row(at, token, i));
            }
        }
        self.counts.push(self.targets.len() - before);
        self.longest = self.longest.max(tokens.len());
    }

    /// The row of `token` behind `parent`, a new one if there is none yet.
    fn row(&mut self, parent: Option<u32>, token: u32, depth: usize) -> u32 {
        let first = parent.map_or(0, |parent| parent as usize + 1);
        let mut rows = first..self.tokens.len();
        let found = rows.find(|&row| self.tokens[row] == token && self.parents[row] == parent);
        let row = found.unwrap_or_else(|| {
            self.tokens.push(token);
            self.parents.push(parent);
            self.depths.push(depth as u32);
            self.tokens.len() - 1
        });
        row as u32
    }

    /// The targets' places, those of each row together and rows ascending.
    pub(crate) fn by_row(&self) -> Vec<usize> {
        let mut places: Vec<usize> = (0..self.targets.len()).collect();
        places.sort_by_key(|&place| self.targets[place].row);
        places
    }

    /// The rows that something is asked for behind, ascending.
    pub(crate) fn asked(&self) -> Vec<u32> {
        let mut rows: Vec<u32> = self.targets.iter().map(|target| target.row).collect();
        rows.sort_unstable();
        rows.dedup();
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_chain_without_its_last_token() {
        let tree = TextTree::of(&Sequence::of(&[5, 6], &[7, 8]));
        assert_eq!(tree.tokens, [5, 6, 7]);
        assert_eq!(tree.parents, [None, Some(0), Some(1)]);
        assert_eq!(tree.depths, [0, 1, 2]);
        assert_eq!(tree.targets, [Target { row: 1, token: 7 }, Target { row: 2, token: 8 }]);
        assert_eq!((tree.asked(), tree.longest), (vec![1, 2], 4));
    }

    #[test]
    fn candidates_of_one_token_add_no_row_to_their_prompt() {
        let tree = TextTree::of_choice(&[5, 6], &[vec![1], vec![2], vec![3]]);
        assert_eq!(tree.tokens, [5, 6]);
        assert_eq!(
            tree.targets.iter().map(|t| (t.row, t.token)).collect::<Vec<_>>(),
            [(1, 1), (1, 2), (1, 3)]
        );
        assert_eq!((tree.asked(), &tree.counts[..]), (vec![1], &[1, 1, 1][..]));
    }

    #[test]
    fn candidates_share_what_they_begin_with_and_nothing_behind_it() {
        let tree = TextTree::of_choice(&[5], &[vec![1, 2, 9], vec![1, 3, 2, 9], vec![1, 2, 4, 9]]);
        assert_eq!(tree.tokens, [5, 1, 2, 3, 2, 4]);
        assert_eq!(tree.parents, [None, Some(0), Some(1), Some(1), Some(3), Some(2)]);
        assert_eq!(tree.depths, [0, 1, 2, 2, 3, 3]);
        assert_eq!(tree.counts, [3, 4, 4]);
        // A row is behind all the tokens of its own text.
        let behind = |target: &Target| {
            let (mut at, mut text) = (Some(target.row), vec![target.token]);
            while let Some(row) = at {
                text.push(tree.tokens[row as usize]);
                at = tree.parents[row as usize];
            }
            text.reverse();
            text
        };
        assert_eq!(behind(&tree.targets[6]), [5, 1, 3, 2, 9]);
        assert_eq!(behind(&tree.targets[10]), [5, 1, 2, 4, 9]);
    }

    #[test]
    fn tokens_that_do_not_count_are_not_asked_for_and_the_last_of_them_not_run() {
        let trained = vec![false, false, true, false, false];
        let tree = TextTree::of(&Sequence { tokens: vec![1, 2, 3, 4, 5], trained });
        assert_eq!((tree.tokens.len(), tree.targets.len()), (2, 1));
        let none = TextTree::of(&Sequence { tokens: vec![1, 2], trained: vec![false; 2] });
        assert!(none.tokens.is_empty() && none.targets.is_empty());
        assert_eq!(TextTree::default(), TextTree::of_choice(&[], &[]));
    }
}
