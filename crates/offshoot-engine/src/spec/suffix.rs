//! The suffix automaton of the conversation as a drafter.

use offshoot_methods::draft::SuffixAutomaton;
use offshoot_methods::draft::{Continuation, Guess, Place, Prior, TokenTree};

use super::drafter::{Drafter, View};
use super::prior;
use crate::Error;

/// Guesses behind a node.
const GUESSES: usize = 3;

/// Guesses that the text repeats itself.
#[derive(Debug, Default)]
pub struct SuffixDrafter {
    automaton: SuffixAutomaton,
    /// Where each node of the tree stands in the text.
    matches: Vec<Place>,
    found: Vec<Continuation>,
}

impl SuffixDrafter {
    /// A drafter of an empty text.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Drafter for SuffixDrafter {
    fn name(&self) -> &'static str {
        "suffix"
    }

    fn prior(&self) -> Prior {
        prior::shipped("suffix")
    }

    fn begin(&mut self, text: &[u32]) {
        self.automaton.clear();
        self.extend(text);
    }

    fn extend(&mut self, tokens: &[u32]) {
        tokens.iter().for_each(|&token| self.automaton.push(token));
    }

    fn prepare(&mut self, _: View<'_>) -> Result<(), Error> {
        self.matches.clear();
        Ok(())
    }

    fn guess(&mut self, tree: &TokenTree, node: usize, out: &mut Vec<Guess>) {
        let at = match tree.parents()[node] {
            None => self.automaton.repeated_end(),
            Some(parent) => self.automaton.step(self.matches[parent as usize], tree.tokens()[node]),
        };
        self.matches.push(at);
        self.found.clear();
        self.automaton.continuations(at, GUESSES, &mut self.found);
        out.extend(self.found.iter().map(|c| Guess {
            token: c.token,
            score: c.share,
            class: class_of(c.len),
        }));
    }
}

/// Guesses behind longer matches come true more often.
fn class_of(len: u32) -> u8 {
    match len {
        0..=3 => len.saturating_sub(1) as u8,
        4..=5 => 3,
        6..=8 => 4,
        9..=14 => 5,
        15..=30 => 6,
        _ => 7,
    }
}
