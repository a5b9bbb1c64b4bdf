//! What a drafter is to the loop that asks it.

use std::fmt;

use offshoot_methods::Sampler;
use offshoot_methods::draft::{Drawn, Guess, Prior, TokenTree};

use super::chain::Draws;
use super::filtering::Filtering;
use crate::Error;

/// What a drafter sees before a step.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// All tokens decided, the pending one last.
    pub text: &'a [u32],
    /// What the output head multiplied to choose the pending token, `[hidden_size]`; nothing in the
    /// first step of an answer.
    pub hidden: Option<&'a [f32]>,
}

/// What a step is drafted behind.
#[derive(Debug)]
pub(crate) struct Behind<'a, 'f, 'v> {
    pub(crate) view: View<'v>,
    pub(crate) filtering: Option<&'a mut Filtering<'f>>,
    /// What chooses the text's tokens.
    pub(crate) sampler: &'a mut Sampler,
    pub(crate) choice: u32,
    /// Tokens of the answer so far.
    pub(crate) position: u64,
}

/// A source of guesses. It may use any state of its own, but neither clocks nor chance beyond the
/// draws that it is handed, so that equal texts and trees give equal guesses.
pub trait Drafter: fmt::Debug + Send {
    /// The name in options and reports.
    fn name(&self) -> &'static str;

    /// What its scores are worth before anything was learned.
    fn prior(&self) -> Prior;

    /// Whether it reads [`View::hidden`].
    fn wants_hidden(&self) -> bool {
        false
    }

    /// A new text; the pending token is its last.
    fn begin(&mut self, text: &[u32]);

    /// Tokens were decided; the last is the new pending one.
    fn extend(&mut self, tokens: &[u32]);

    /// A step is about to be drafted.
    ///
    /// # Errors
    /// What its model or file met with.
    fn prepare(&mut self, view: View<'_>) -> Result<(), Error>;

    /// Appends guesses at what follows `node` of `tree`, its newest. Every node comes once, the root
    /// first, so that what is kept of each can be kept in that order.
    fn guess(&mut self, tree: &TokenTree, node: usize, out: &mut Vec<Guess>);

    /// Whether it has to read the whole text at some cost before it can guess.
    fn reads(&self) -> bool {
        false
    }

    /// Whether it has a distribution of its own to draw from. Where the rule of acceptance weighs
    /// draws it is asked for those, instead of guesses.
    fn draws(&self) -> bool {
        false
    }

    /// Appends up to `len` tokens, each drawn behind those before it.
    ///
    /// # Errors
    /// What its model or file met with.
    fn draw(
        &mut self,
        _view: View<'_>,
        _draws: &mut Draws<'_, '_>,
        _len: usize,
        _out: &mut Vec<Drawn>,
    ) -> Result<(), Error> {
        Ok(())
    }
}
