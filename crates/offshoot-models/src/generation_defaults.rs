//! How a model's makers would have its answers made.

/// Settings of sampling that a model's files recommend, each where they give one. Whoever asks for
/// an answer may set another; what neither sets is the caller's default.
///
/// ```text
/// here                 generation_config.json    GGUF
/// temperature          temperature               general.sampling.temp
/// top_k                top_k                     general.sampling.top_k
/// top_p                top_p                     general.sampling.top_p
/// min_p                min_p                     general.sampling.min_p
/// repetition_penalty   repetition_penalty        general.sampling.penalty_repeat
/// penalty_window       all, with a penalty       general.sampling.penalty_last_n
/// max_new_tokens       max_new_tokens            none
/// ```
/// `do_sample: false` is temperature 0. As vLLM has it, and unlike transformers, settings count where
/// `do_sample` is not given.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GenerationDefaults {
    /// What the logits are divided by, 0 or more; at 0 the likeliest token is taken.
    pub temperature: Option<f32>,
    /// How many of the likeliest tokens are kept; 0 for all.
    pub top_k: Option<u32>,
    /// The probability that the kept tokens sum to, between 0 and 1.
    pub top_p: Option<f32>,
    /// The least probability relative to the likeliest token, between 0 and 1.
    pub min_p: Option<f32>,
    /// What the logits of tokens seen before are divided by, between 0.01 and 100.
    pub repetition_penalty: Option<f32>,
    /// How many of the last tokens penalties look at.
    pub penalty_window: Option<u32>,
    /// The most tokens of an answer, 1 or more.
    pub max_new_tokens: Option<usize>,
}

impl GenerationDefaults {
    /// Of these, what `other` leaves open.
    pub(crate) fn without(self, other: &Self) -> Self {
        fn open<T>(mine: Option<T>, other: &Option<T>) -> Option<T> {
            mine.filter(|_| other.is_none())
        }
        Self {
            temperature: open(self.temperature, &other.temperature),
            top_k: open(self.top_k, &other.top_k),
            top_p: open(self.top_p, &other.top_p),
            min_p: open(self.min_p, &other.min_p),
            repetition_penalty: open(self.repetition_penalty, &other.repetition_penalty),
            penalty_window: open(self.penalty_window, &other.penalty_window),
            max_new_tokens: open(self.max_new_tokens, &other.max_new_tokens),
        }
    }

    /// These, and of `other` what they leave open.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            temperature: self.temperature.or(other.temperature),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
            penalty_window: self.penalty_window.or(other.penalty_window),
            max_new_tokens: self.max_new_tokens.or(other.max_new_tokens),
        }
    }
}

/// Bounds of the numbers, with the words for them in errors: those of sampling.
pub(crate) const TEMPERATURE: Bounds = Bounds(0.0, f32::MAX, "a finite number of 0 or more");
pub(crate) const SHARE: Bounds = Bounds(0.0, 1.0, "a number from 0 to 1");
pub(crate) const PENALTY: Bounds = Bounds(0.01, 100.0, "a number from 0.01 to 100");

/// The least and the greatest number, and what to call them.
pub(crate) struct Bounds(f32, f32, pub(crate) &'static str);

impl Bounds {
    /// The number, if it lies within.
    pub(crate) fn hold(&self, number: f64) -> Option<f32> {
        let number = number as f32;
        (self.0..=self.1).contains(&number).then_some(number)
    }
}
