//! Rows of a data file as a model sees them.

/// A text and which of its tokens count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sequence {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// For each token whether it is predicted for the loss. Never the first: nothing is before it.
    pub trained: Vec<bool>,
}

impl Sequence {
    /// `prompt`, which is not trained on, and `completion`, which is.
    pub fn of(prompt: &[u32], completion: &[u32]) -> Self {
        let mut trained = vec![false; prompt.len()];
        trained.resize(prompt.len() + completion.len(), true);
        if let Some(first) = trained.first_mut() {
            *first = false;
        }
        Self { tokens: [prompt, completion].concat(), trained }
    }

    /// How many tokens are predicted.
    pub fn targets(&self) -> usize {
        self.trained.iter().filter(|&&t| t).count()
    }
}

/// What one row of a data file asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Example {
    /// A text to predict.
    Text(Sequence),
    /// One of some continuations to prefer.
    Choice {
        /// What stands before each.
        prompt: Vec<u32>,
        /// The continuations, at least two, none of them empty.
        candidates: Vec<Vec<u32>>,
        /// Which are right, ascending and at least one; the first is the one that is trained on.
        answers: Vec<usize>,
    },
    /// An answer to write, compared as text.
    Answer {
        /// The prompt, and the first of the answers as its continuation.
        gold: Sequence,
        /// Tokens of the prompt.
        prompt: usize,
        /// Texts of which any is right.
        answers: Vec<String>,
    },
    /// Two texts, the first better than the second.
    Preference {
        /// The better.
        chosen: Sequence,
        /// The worse.
        rejected: Sequence,
        /// What each is worth, the better first, where the data say it.
        rewards: Option<[f64; 2]>,
    },
}
