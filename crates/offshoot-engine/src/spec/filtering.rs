//! A token filter beside an answer, and beside the tree that is drafted behind it.

use std::fmt;

use offshoot_methods::draft::{Guess, TokenTree};
use offshoot_methods::{FilterState, TokenFilter};

use crate::Error;

/// A filter and its state behind the tokens that are decided.
pub(crate) struct Filtering<'a> {
    filter: &'a mut dyn TokenFilter,
    state: FilterState,
    /// Its state behind each node of the tree that is grown; `None` where there is none.
    nodes: Vec<Option<FilterState>>,
}

impl<'a> Filtering<'a> {
    /// `filter` before an answer.
    pub(crate) fn begin(filter: &'a mut dyn TokenFilter) -> Self {
        let state = filter.start();
        Self { filter, state, nodes: Vec::new() }
    }

    /// The state behind what is decided.
    pub(crate) fn state(&self) -> FilterState {
        self.state
    }

    /// The state behind `token`; `None` if it may not come there.
    pub(crate) fn next(&mut self, state: FilterState, token: u32) -> Option<FilterState> {
        self.filter.next(state, token)
    }

    /// Masks what may not come in `state`; everything if there is none.
    pub(crate) fn mask_in(&mut self, state: Option<FilterState>, logits: &mut [f32]) {
        match state {
            Some(state) => self.filter.mask(state, logits),
            None => logits.fill(f32::NEG_INFINITY),
        }
    }

    /// Masks what may not come behind the text and `path`.
    pub(crate) fn mask(&mut self, path: &[u32], logits: &mut [f32]) {
        let mut state = Some(self.state);
        for &token in path {
            state = state.and_then(|state| self.filter.next(state, token));
        }
        self.mask_in(state, logits);
    }

    /// Moves on by a token that the mask left.
    ///
    /// # Errors
    /// [`Error::Filter`] if the filter has no state behind it.
    pub(crate) fn accept(&mut self, token: u32) -> Result<(), Error> {
        self.state = self.filter.next(self.state, token).ok_or(Error::Filter { token })?;
        Ok(())
    }

    /// A tree is about to be grown.
    pub(crate) fn begin_tree(&mut self) {
        self.nodes.clear();
    }

    /// Drops the guesses that may not come behind `node`, the newest of `tree`. Every node comes, the
    /// root first.
    pub(crate) fn retain(&mut self, tree: &TokenTree, node: usize, guesses: &mut Vec<Guess>) {
        if self.nodes.len() == node {
            let state = match tree.parents()[node] {
                None => Some(self.state),
                Some(parent) => {
                    let behind = self.nodes[parent as usize];
                    behind.and_then(|state| self.filter.next(state, tree.tokens()[node]))
                }
            };
            self.nodes.push(state);
        }
        let state = self.nodes[node];
        guesses.retain(|guess| {
            state.is_some_and(|state| self.filter.next(state, guess.token).is_some())
        });
    }
}

impl fmt::Debug for Filtering<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filtering").field("state", &self.state).finish_non_exhaustive()
    }
}
