//! The seam where a grammar, a schema or a list of banned tokens meets the sampler.

/// Says which tokens may come next, and learns which one came.
///
/// The decoding loop calls [`mask`](Self::mask) on the logits before it samples from them, then
/// [`accept`](Self::accept) with the token chosen. A masked token cannot be drawn: no bias, penalty
/// or temperature lifts a logit from negative infinity.
pub trait TokenFilter {
    /// Sets the logit of every token that may not come next to negative infinity.
    ///
    /// `logits[t]` belongs to token `t`; the other logits stay as they are.
    fn mask(&mut self, logits: &mut [f32]);

    /// Moves on by the token that was chosen.
    fn accept(&mut self, token: u32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampler, SamplingOptions};
    use proptest::prelude::*;

    /// Even and odd tokens take turns, an even one first.
    struct Alternating {
        odd: bool,
    }

    impl TokenFilter for Alternating {
        fn mask(&mut self, logits: &mut [f32]) {
            logits.iter_mut().skip(usize::from(!self.odd)).step_by(2).for_each(|logit| {
                *logit = f32::NEG_INFINITY;
            });
        }

        fn accept(&mut self, token: u32) {
            self.odd = token.is_multiple_of(2);
        }
    }

    proptest! {
        #[test]
        fn a_masked_token_is_never_drawn(
            logits in prop::collection::vec(-30f32..30.0, 2..40),
            temperature in prop_oneof![Just(0f32), 0.1f32..5.0],
            repetition_penalty in 0.1f32..3.0,
            bias in -100f32..100.0,
            seed in any::<u64>(),
        ) {
            let mut sampler = Sampler::new(SamplingOptions {
                temperature,
                repetition_penalty,
                logit_bias: [(0, bias), (1, bias)].into(),
                seed: Some(seed),
                ..SamplingOptions::default()
            })?;
            let mut filter = Alternating { odd: false };
            let mut text = vec![];
            for position in 0..6 {
                let mut row = logits.clone();
                filter.mask(&mut row);
                let token = sampler.sample(&mut row, &text, 0, position)?.token;
                prop_assert_eq!(u64::from(token % 2), position % 2);
                filter.accept(token);
                text.push(token);
            }
        }
    }
}
