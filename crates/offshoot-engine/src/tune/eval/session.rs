//! Scoring one sequence after the other, with any executor.

use offshoot_models::LogitRows;

use super::packed::token_of;
use crate::tune::{Scored, Scorer, Sequence};
use crate::{Error, Model, Session, score};

/// A model and a session of it.
#[derive(Debug)]
pub struct SessionScorer<'m> {
    model: &'m Model,
    session: Session,
}

impl<'m> SessionScorer<'m> {
    /// A scorer; the session forgets what it held.
    pub fn new(model: &'m Model, session: Session) -> Self {
        Self { model, session }
    }

    fn one(&mut self, sequence: &Sequence) -> Result<Scored, Error> {
        let none = Scored { logprob: 0.0, tokens: 0, greedy: 0 };
        let Some(from) = sequence.trained.iter().position(|&trained| trained) else {
            return Ok(none);
        };
        let scores = score(self.model, &mut self.session, &sequence.tokens, from, 0, |_| {})?;
        let trained = scores.iter().zip(&sequence.trained[from..]).filter(|(_, trained)| **trained);
        Ok(trained.fold(none, |sum, (score, _)| Scored {
            logprob: sum.logprob + score.logprob,
            tokens: sum.tokens + 1,
            greedy: sum.greedy + usize::from(score.rank == 1),
        }))
    }

    fn continued(&mut self, prompt: &[u32], max_tokens: usize) -> Result<Vec<u32>, Error> {
        let room = self.session.context().saturating_sub(prompt.len());
        let Some((&last, before)) = prompt.split_last().filter(|_| room > 0) else {
            let (prompt, context) = (prompt.len(), self.session.context());
            return Err(Error::PromptTooLong { prompt, context });
        };
        self.session.truncate(0);
        self.session.read(self.model, before)?;
        let (mut said, mut next) = (Vec::new(), last);
        while said.len() < max_tokens.min(room) {
            let found = self.session.feed_greatest(self.model, &[next], LogitRows::Last)?;
            next = token_of(found.first(), self.model)?;
            if self.model.stop_tokens().contains(&next) {
                break;
            }
            said.push(next);
        }
        self.session.truncate(0);
        Ok(said)
    }
}

impl Scorer for SessionScorer<'_> {
    fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error> {
        sequences.iter().map(|sequence| self.one(sequence)).collect()
    }

    fn generate(&mut self, prompts: &[&[u32]], max_tokens: usize) -> Result<Vec<Vec<u32>>, Error> {
        prompts.iter().map(|prompt| self.continued(prompt, max_tokens)).collect()
    }
}
