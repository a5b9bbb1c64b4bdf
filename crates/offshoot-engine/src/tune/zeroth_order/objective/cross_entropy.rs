//! The mean surprise of the tokens that are trained on.
//!
//! ```text
//! L = - sum over trained tokens t of log p(t | what is before it) / number of trained tokens
//! ```
//! Logits are single precision; logarithms and sums are double precision, in the order of examples and
//! tokens. Only rows that carry loss have logits. A choice counts as its first right answer, as the
//! tasks of MeZO with free answers do (Malladi et al. 2023, <https://arxiv.org/abs/2305.17333>, E.2).

use super::{Objective, Part, Points, unfit};
use crate::Error;
use crate::tune::zeroth_order::tree::TextTree;
use crate::tune::{Example, Sequence};

/// Cross-entropy of the trained tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct CrossEntropy;

impl Objective for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn parts(&mut self, at: &mut Points<'_>, batch: &[&Example]) -> Result<Vec<Vec<Part>>, Error> {
        let text = |(index, example): (usize, &&Example)| match example {
            Example::Text(sequence) | Example::Answer { gold: sequence, .. } => {
                Ok(TextTree::of(sequence))
            }
            Example::Choice { prompt, candidates, answers } => {
                let right = answers.first().and_then(|&answer| candidates.get(answer));
                let right = right.map_or(&[][..], Vec::as_slice);
                Ok(TextTree::of(&Sequence::of(prompt, right)))
            }
            Example::Preference { .. } => {
                Err(unfit(index, example, self.name(), "texts, choices and answers"))
            }
        };
        let texts = batch.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?;
        let scores = at.score(&texts)?;
        let part = |scores: Vec<_>| Part {
            sum: scores
                .iter()
                .fold(0.0, |sum, score: &super::super::forward::TokenScore| sum - score.logprob),
            weight: scores.len() as f64,
        };
        Ok(scores.into_iter().map(|texts| texts.into_iter().map(part).collect()).collect())
    }
}
