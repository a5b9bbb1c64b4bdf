//! The seam where a grammar, a schema or a list of banned tokens meets decoding.
//!
//! A filter is an automaton that reads tokens. Its states are numbers of its own choosing, so that
//! the loop can keep one for each node of a tree of drafts, in any order, without a copy or a way
//! back: a table's row for a regular expression, the place of a stack in an arena for a grammar.

/// A state of a [`TokenFilter`]: what the tokens so far leave open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct FilterState(pub u32);

/// Says which tokens may come next, given those of the answer before.
///
/// The decoding loop masks the logits before it chooses from them, and moves on by the token chosen.
/// A masked token cannot be chosen: no bias, penalty or temperature lifts a logit from negative
/// infinity. Drafted tokens that may not come are dropped before any row is spent on them.
///
/// The text is that of masking at each position, whoever drafts, if the two methods agree: `next`
/// gives a state for the very tokens that `mask` leaves. States are kept for the whole answer.
///
/// The model's end tokens are tokens like others. A filter whose text is complete leaves one of them
/// and masks all else; one that leaves none and whose text cannot go on is an error.
pub trait TokenFilter {
    /// The state before the first token of an answer. The prompt is not read.
    fn start(&mut self) -> FilterState;

    /// The state behind `token` in `state`; `None` if it may not come there.
    fn next(&mut self, state: FilterState, token: u32) -> Option<FilterState>;

    /// Sets the logit of every token that may not come in `state` to negative infinity.
    ///
    /// `logits[t]` belongs to token `t`; the other logits stay as they are.
    fn mask(&mut self, state: FilterState, logits: &mut [f32]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampler, SamplingOptions};
    use proptest::prelude::*;

    /// Even and odd tokens take turns, an even one first: the state is the parity to come.
    struct Alternating;

    impl TokenFilter for Alternating {
        fn start(&mut self) -> FilterState {
            FilterState(0)
        }

        fn next(&mut self, state: FilterState, token: u32) -> Option<FilterState> {
            (token % 2 == state.0).then_some(FilterState(1 - state.0))
        }

        fn mask(&mut self, state: FilterState, logits: &mut [f32]) {
            logits.iter_mut().skip(1 - state.0 as usize).step_by(2).for_each(|logit| {
                *logit = f32::NEG_INFINITY;
            });
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
            let mut state = Alternating.start();
            let mut text = vec![];
            for position in 0..6 {
                let mut row = logits.clone();
                Alternating.mask(state, &mut row);
                let token = sampler.sample(&mut row, &text, 0, position)?.token;
                prop_assert_eq!(u64::from(token % 2), position % 2);
                state = Alternating.next(state, token).expect("what the mask leaves may come");
                text.push(token);
            }
        }
    }
}
