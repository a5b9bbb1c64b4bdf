//! What an evaluation asks of a model.

use super::Sequence;
use crate::Error;

/// How a sequence fared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The sum of the log-probabilities of the tokens that count, in nats.
    pub logprob: f64,
    /// How many they are.
    pub tokens: usize,
    /// Of how many the model's first choice was right.
    pub greedy: usize,
}

/// A model, in whatever state it is, that can be evaluated.
pub trait Scorer {
    /// Scores `sequences`, in order. The result of one does not depend on the others.
    ///
    /// # Errors
    /// If the model cannot run them.
    fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error>;

    /// The greedy continuation of each prompt: at most `max_tokens` tokens, ended by the model's stop
    /// tokens, which are left out.
    ///
    /// # Errors
    /// If the model cannot run them.
    fn generate(&mut self, prompts: &[&[u32]], max_tokens: usize) -> Result<Vec<Vec<u32>>, Error>;
}
