//! What a row says, once its format is known.

use offshoot_models::Message;

/// Text as it is, or turns of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// Text, which no template is put around.
    Text(String),
    /// Turns, which go through the model's chat template.
    Turns(Vec<Message>),
}

/// A row of any format.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A text to predict.
    Text(String),
    /// A text to predict behind another.
    Completion {
        /// What stands before.
        prompt: String,
        /// What is predicted.
        completion: String,
    },
    /// A conversation, of which the assistant's turns are predicted.
    Chat {
        /// The turns.
        messages: Vec<Message>,
        /// The first turn that may be predicted; those before it are given.
        from: usize,
    },
    /// Continuations of which some are right.
    Choice {
        /// What stands before each.
        prompt: Said,
        /// The continuations.
        candidates: Vec<String>,
        /// The right ones, ascending.
        answers: Vec<usize>,
    },
    /// A question with answers of which any is right.
    Answer {
        /// The question.
        prompt: Said,
        /// What stands between it and an answer.
        separator: String,
        /// The answers.
        answers: Vec<String>,
        /// The text that ends an answer; none for the model's own end token.
        end: Option<String>,
    },
    /// A better and a worse text.
    Preference {
        /// What stands before both.
        prompt: Said,
        /// The better.
        chosen: Said,
        /// The worse.
        rejected: Said,
        /// What each is worth, better first, where the row says it.
        rewards: Option<[f64; 2]>,
    },
}
