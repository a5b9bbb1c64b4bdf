//! What the model thought of a token, and of the ones it might have been.
//!
//! ```text
//! log p(t) = l_t - m - log sum_s exp(l_s - m)      m = max_s l_s
//! ```
//! The logits are meant to be the model's own, before any penalty, temperature or truncation: that
//! is what llama.cpp's server reports unless asked otherwise, and what vLLM calls `raw_logprobs`.
//! So make this first and sample afterwards, since sampling writes its penalties into the logits.
//!
//! Cost: one exponential a token of the vocabulary, in double precision and summed in the order of
//! the tokens, so that equal logits give equal bits on every machine.

use super::sampler::argmax;
use super::top_k::{Candidate, select_top_k};
use crate::Error;

/// A token and its log probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability: at most 0, negative infinity if it was ruled out.
    pub logprob: f64,
}

/// The log softmax of one row of logits, evaluated where it is asked for.
#[derive(Debug, Clone, Copy)]
pub struct LogProbabilities<'a> {
    logits: &'a [f32],
    log_total: f64,
}

impl<'a> LogProbabilities<'a> {
    /// Normalizes `logits`, one for each token of the vocabulary.
    ///
    /// # Errors
    /// [`Error::Logit`] if one is NaN or positive infinity, [`Error::NoTokenAllowed`] if none is
    /// finite.
    pub fn of(logits: &'a [f32]) -> Result<Self, Error> {
        let max = f64::from(argmax(logits)?.logit);
        let total: f64 = logits.iter().map(|&logit| libm::exp(f64::from(logit) - max)).sum();
        Ok(Self { logits, log_total: max + libm::log(total) })
    }

    /// The log probability of `token`, or `None` outside the vocabulary.
    pub fn get(&self, token: u32) -> Option<f64> {
        self.logits.get(token as usize).map(|&logit| f64::from(logit) - self.log_total)
    }

    /// The `n` likeliest tokens, likeliest first and the lower token first of equals.
    pub fn top(&self, n: usize) -> Vec<TokenLogprob> {
        let mut kept = Vec::new();
        select_top_k(self.logits, n, &mut kept);
        kept.sort_unstable_by(Candidate::rank);
        kept.iter()
            .map(|c| TokenLogprob { token: c.token, logprob: f64::from(c.logit) - self.log_total })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_equal_logits_are_one_half_each() {
        let logits = [700.0, f32::NEG_INFINITY, 700.0];
        let log_probabilities = LogProbabilities::of(&logits).unwrap();
        assert!((log_probabilities.get(2).unwrap() + 2f64.ln()).abs() < 1e-12);
        assert_eq!(log_probabilities.get(1), Some(f64::NEG_INFINITY));
        assert_eq!(log_probabilities.get(3), None);
        assert_eq!(log_probabilities.top(9).iter().map(|t| t.token).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn bad_rows_are_refused() {
        let of = |logits| LogProbabilities::of(logits).unwrap_err();
        assert!(matches!(of(&[0.0, f32::NAN]), Error::Logit { token: 1, .. }));
        assert_eq!(of(&[f32::INFINITY]), Error::Logit { token: 0, got: f32::INFINITY });
        assert_eq!(of(&[f32::NEG_INFINITY]), Error::NoTokenAllowed { n_vocab: 1 });
        assert_eq!(of(&[]), Error::NoTokenAllowed { n_vocab: 0 });
    }

    proptest! {
        #[test]
        fn probabilities_sum_to_one_and_ignore_a_common_shift(
            logits in prop::collection::vec(-40f32..40.0, 1..100),
        ) {
            let shifted: Vec<f32> = logits.iter().map(|logit| logit + 64.0).collect();
            let (here, there) = (LogProbabilities::of(&logits)?, LogProbabilities::of(&shifted)?);
            let tokens = 0..logits.len() as u32;
            let total: f64 = tokens.clone().map(|t| here.get(t).unwrap().exp()).sum();
            prop_assert!((total - 1.0).abs() < 1e-12);
            for token in tokens {
                let difference = here.get(token).unwrap() - there.get(token).unwrap();
                prop_assert!(difference.abs() < 1e-4); // the shift itself rounds in f32
            }
        }

        #[test]
        fn the_top_is_sorted_and_beats_the_rest(
            logits in prop::collection::vec((-9i8..9).prop_map(f32::from), 1..60),
            n in 0usize..20,
        ) {
            let all = LogProbabilities::of(&logits)?;
            let top = all.top(n);
            prop_assert_eq!(top.len(), n.min(logits.len()));
            let in_order = top.is_sorted_by(|a, b| {
                a.logprob > b.logprob || (a.logprob == b.logprob && a.token < b.token)
            });
            prop_assert!(in_order);
            let worst = top.last().map_or(f64::INFINITY, |t| t.logprob);
            for token in 0..logits.len() as u32 {
                let kept = top.iter().any(|t| t.token == token);
                prop_assert!(kept || all.get(token).unwrap() <= worst);
            }
        }
    }
}
