//! What a method refuses, and why.

/// An input that a method cannot work with. Every message is one line.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of an options struct lies outside its bounds.
    #[error("{field} is {got}, but must be {bound}")]
    Option {
        /// The field's name, as written in a request or a configuration.
        field: &'static str,
        /// The bound, in words that follow "must be".
        bound: &'static str,
        /// The value given.
        got: String,
    },
    /// A temperature above 0 without a seed: this crate has no source of chance of its own.
    #[error("seed is missing: sampling at a temperature above 0 needs one, so choose it first")]
    SeedMissing,
    /// A logit that is NaN or positive infinity, which no softmax is defined for.
    #[error(
        "the logit of token {token} is {got}: the model's arithmetic overflowed, or its weights \
         are not all numbers"
    )]
    Logit {
        /// The first such token.
        token: u32,
        /// Its logit.
        got: f32,
    },
    /// No token is left to choose: no logits were given, or all are negative infinity.
    #[error("all {n_vocab} tokens are ruled out: a filter or the model allows none of them")]
    NoTokenAllowed {
        /// How many logits were given.
        n_vocab: usize,
    },
    /// A token id at or above the number of logits.
    #[error("token {token} in {place} is outside the vocabulary of {n_vocab}")]
    TokenOutOfRange {
        /// Where the token stood.
        place: &'static str,
        /// The token.
        token: u32,
        /// How many logits were given.
        n_vocab: usize,
    },
    /// A tree or a calibration of draft heads that cannot be used.
    #[error("{0}")]
    Draft(String),
    /// A name that no method of tuning has.
    #[error("there is no method {name:?}; there are {known}")]
    UnknownMethod {
        /// The name.
        name: String,
        /// Those there are.
        known: String,
    },
    /// A method of tuning that cannot be started as asked.
    #[error("method {method}: {reason}")]
    Method {
        /// The method's name.
        method: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A step's record that the method of the run cannot have made.
    #[error("the record of step {step} has {got} numbers, but must have {expected}, all finite")]
    Record {
        /// The step.
        step: u32,
        /// How many numbers the method measures there.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// A stop string without characters, which would end every text before it began.
    #[error("stop string {index} is empty: remove it or give it at least one character")]
    EmptyStop {
        /// Its place in the list, from 0.
        index: usize,
    },
    /// Parts of a shard of retrievable text that do not go together.
    #[error("the shard's {part}: {got}, expected {expected}; build the store anew")]
    Shard {
        /// Which part.
        part: &'static str,
        /// Its size or value.
        got: usize,
        /// What the other parts need it to be.
        expected: usize,
    },
}

/// `text` on one line that no terminal obeys, since what it quotes of a file may hold anything:
/// control characters and what is not seen are escaped, quotes stay.
pub fn one_line(text: &dyn std::fmt::Display) -> String {
    let mut line = String::new();
    for c in text.to_string().chars() {
        match c {
            '"' | '\'' | '\\' => line.push(c),
            _ => line.extend(c.escape_debug()),
        }
    }
    line
}
