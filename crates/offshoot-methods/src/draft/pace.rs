//! How many tokens a text makes in the time of a plain step, lately: what a row has to bring to pay.
//!
//! A row of a step is worth its time if what it promises is more than the text makes in that time
//! anyway, in the steps before and after this one. Dinkelbach 1967, "On nonlinear fractional
//! programming": the greatest ratio of two sums is found by the greatest `tokens - pace * time`.
//! ```text
//! pace = (BEGIN best + sum d^(t - i) tokens_i) / (BEGIN + sum d^(t - i) T_i),   d = 1 - 1 / SPAN
//! ```
//! `best` is the best ratio of the step to come: of a text that only begins all steps may be like it.
//!
//! Options: none. `SPAN` is 32 steps, about a passage of a text; `BEGIN` 8.

/// Plain steps that the step to come counts for.
const BEGIN: f64 = 8.0;
/// Steps after which one counts for a third.
const SPAN: f64 = 32.0;

/// A running pace.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    tokens: f64,
    time: f64,
}

impl Pace {
    /// Takes in a step that made so many tokens in so many times a plain step.
    pub fn note(&mut self, tokens: f64, time: f64) {
        self.tokens += tokens - self.tokens / SPAN;
        self.time += time - self.time / SPAN;
    }

    /// Tokens in the time of a plain step, at least 1, as plain steps can always be made; `best` is the
    /// best ratio of the step to come.
    pub(crate) fn rate(&self, best: f64) -> f64 {
        ((BEGIN * best + self.tokens) / (BEGIN + self.time)).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_follows_the_text_and_is_never_below_a_plain_steps() {
        let mut pace = Pace::default();
        assert_eq!((pace.rate(1.0), pace.rate(3.5)), (1.0, 3.5));
        (0..200).for_each(|_| pace.note(4.0, 2.0));
        assert!((pace.rate(2.0) - 2.0).abs() < 0.01);
        assert!((1.8..2.0).contains(&pace.rate(1.0)) && (2.0..2.3).contains(&pace.rate(4.0)));
        (0..32).for_each(|_| pace.note(1.0, 1.0));
        assert!((1.3..1.7).contains(&pace.rate(1.4)), "{}", pace.rate(1.4));
        (0..200).for_each(|_| pace.note(1.0, 1.2));
        assert_eq!(pace.rate(1.0), 1.0);
    }
}
