//! What a row of logits makes of the guesses behind its node: the rules of acceptance at work.

use offshoot_methods::Purpose;
use offshoot_methods::draft::{Drawn, TokenTree, Typical, reject};

use super::{Row, Writer, greatest_token};
use crate::Error;
use crate::runner::{Runner, Want};
use crate::spec::{Acceptance, Behind, Chain, View};

/// How the token behind a row is found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way<'a> {
    /// The greatest logit, which the step found.
    Greatest,
    /// A choice as in plain decoding.
    Choice,
    /// It is decided.
    Given(u32),
    /// One of these candidates, or a draw behind them.
    Among(&'a [Drawn]),
}

/// The rule of an answer, and what it needs in a step.
#[derive(Debug, Default)]
pub(super) struct Rule {
    acceptance: Acceptance,
    greatest: bool,
    candidates: Vec<Drawn>,
    /// The nodes that are kept because they are likely enough.
    kept: Vec<usize>,
}

impl Rule {
    pub(super) fn new(acceptance: Acceptance, greatest: bool) -> Self {
        Self { acceptance, greatest, ..Self::default() }
    }

    /// What a step needs to find of the logits of each row.
    pub(super) fn want(&self) -> Want {
        if self.greatest { Want::Greatest } else { Want::Logits }
    }

    /// A step was made of `tree`.
    pub(super) fn begin_step(
        &mut self,
        writer: &mut Writer<'_>,
        runner: &mut dyn Runner,
        tree: &TokenTree,
    ) -> Result<(), Error> {
        if let Acceptance::Typical(typical) = self.acceptance {
            self.kept = writer.typical_path(&typical, runner, tree)?;
        }
        Ok(())
    }

    /// How the token behind `node` is found.
    pub(super) fn way(&mut self, tree: &TokenTree, chain: Option<&Chain>, node: usize) -> Way<'_> {
        match (self.acceptance, chain) {
            (Acceptance::Exact, _) if self.greatest => Way::Greatest,
            (Acceptance::Exact, _) | (Acceptance::Rejection, None) => Way::Choice,
            (Acceptance::Rejection, Some(chain)) => {
                chain.candidates(tree, node, &mut self.candidates);
                Way::Among(&self.candidates)
            }
            (Acceptance::Typical(_), _) => {
                let next = self.kept.iter().skip_while(|&&kept| kept != node).nth(1);
                next.map_or(Way::Choice, |&next| Way::Given(tree.tokens()[next]))
            }
        }
    }
}

impl<'w> Writer<'w> {
    /// What the next step is drafted behind.
    pub(super) fn behind<'s>(&'s mut self, hidden: Option<&'s [f32]>) -> Behind<'s, 'w, 's> {
        Behind {
            view: View { text: &self.context, hidden },
            filtering: self.filtering.as_mut(),
            sampler: &mut self.sampler,
            choice: self.options.choice,
            position: self.answer.tokens.len() as u64,
        }
    }

    /// Finds the token behind the context, of which `row` tells; `None` if it is in doubt, and nothing
    /// has happened then.
    pub(super) fn choose(&mut self, row: Row<'_>, way: Way<'_>) -> Result<Option<u32>, Error> {
        let Row { runner, guard, node } = row;
        if let Way::Greatest = way {
            return greatest_token(runner.greatest()[node], self.model).map(Some);
        }
        let n_vocab = self.model.config().vocab_size;
        let logits = &mut runner.logits_mut()[node * n_vocab..(node + 1) * n_vocab];
        let error = guard.error_of(logits);
        // Masks, penalties and biases are written into the logits; probabilities are of the raw ones.
        if self.options.logprobs.is_some() {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        if let Some(filtering) = &mut self.filtering {
            filtering.mask(&[], logits);
        }
        let (choice, position) = (self.options.choice, self.answer.tokens.len() as u64);
        let token = match way {
            Way::Given(token) => token,
            Way::Among(candidates) if !candidates.is_empty() => {
                self.sampler.distribution(logits, &self.context, &mut self.law)?;
                let mut tests = 0..;
                let verdict = reject(&mut self.law, candidates, || {
                    let test = tests.next().unwrap_or(u32::MAX >> 1);
                    self.sampler.uniform_for(Purpose::Test(test), choice, position)
                });
                verdict.token(candidates)
            }
            _ => self.sampler.sample(logits, &self.context, choice, position)?.token,
        };
        if let Some(error) = error {
            let u = self.sampler.uniform_for(Purpose::Token, choice, position);
            if !guard.stands(logits, token, (self.sampler.options(), u), error) {
                return Ok(None);
            }
        }
        if let Some(n) = self.options.logprobs {
            let all = offshoot_methods::LogProbabilities::of(&self.raw)?;
            (self.logprob, self.top) = (all.get(token), all.top(n));
        }
        if let Some(filtering) = &mut self.filtering {
            filtering.accept(token)?;
        }
        Ok(Some(token))
    }

    /// The nodes of `tree` that are likely enough, the root first. The runner's logits stay as they
    /// are.
    fn typical_path(
        &mut self,
        typical: &Typical,
        runner: &mut dyn Runner,
        tree: &TokenTree,
    ) -> Result<Vec<usize>, Error> {
        let n_vocab = self.model.config().vocab_size;
        let Self { sampler, filtering, context, row, .. } = self;
        let decided = context.len();
        let kept = typical.path(tree, |node| {
            // Penalties and filters look at the node's own path.
            let mut at = node;
            while let Some(parent) = tree.parents()[at] {
                context.push(tree.tokens()[at]);
                at = parent as usize;
            }
            context[decided..].reverse();
            row.clear();
            row.extend_from_slice(&runner.logits_mut()[node * n_vocab..(node + 1) * n_vocab]);
            if let Some(filtering) = filtering {
                filtering.mask(&context[decided..], row);
            }
            let mut law = Vec::new();
            let done = sampler.distribution(row, context, &mut law);
            context.truncate(decided);
            done.map(|()| law)
        })?;
        Ok(kept)
    }
}
