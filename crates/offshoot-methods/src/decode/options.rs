//! How the next token is to be chosen.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::Error;

/// How the next token is to be chosen, in the names that clients already use.
///
/// The steps are applied in this fixed order, each to what the one before it left:
///
/// 1. `logit_bias`, then the repetition, presence and frequency penalties;
/// 2. `temperature`, where 0 ends here with the largest logit (the lowest token of equals);
/// 3. `top_k`, then `top_p`, then `min_p`; at least one token always stays;
/// 4. one draw, keyed by `seed`.
///
/// Transformers and vLLM heat before they truncate, and so does this; llama.cpp's default chain
/// has temperature last, so that its `top_p` and `min_p` look at the distribution of temperature 1.
/// The default values are llama.cpp's.
///
/// In JSON a missing field takes its default and an unknown field is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingOptions {
    /// Divides the logits: below 1 sharpens, above 1 flattens, 0 takes the largest. Default 0.8.
    pub temperature: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all. Default 40.
    pub top_k: u32,
    /// Keeps the fewest likeliest tokens whose probabilities sum to at least this; 1 keeps all and
    /// 0 one. Default 0.95. (Holtzman et al. 2019, <https://arxiv.org/abs/1904.09751>.)
    pub top_p: f32,
    /// Keeps the tokens at least this probable relative to the likeliest; 0 keeps all. Default
    /// 0.05. (Nguyen et al. 2024, <https://arxiv.org/abs/2407.01082>.)
    pub min_p: f32,
    /// Divides the positive and multiplies the other logits of tokens seen before; 1 is off and the
    /// default. (Keskar et al. 2019, section 4.1, <https://arxiv.org/abs/1909.05858>, as commonly
    /// mended for negative logits.)
    pub repetition_penalty: f32,
    /// Taken once from the logit of every token seen before; 0 is off and the default.
    pub presence_penalty: f32,
    /// Taken from a token's logit once for each time it was seen; 0 is off and the default.
    pub frequency_penalty: f32,
    /// How many of the last tokens the three penalties look at, the prompt's included, as in
    /// llama.cpp; `None` is all of them. Default 64.
    pub penalty_window: Option<u32>,
    /// Added to the logits of these tokens. Default none.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Names the text: equal seeds, options, prompt and model give equal text. `None`, the
    /// default, leaves the choice to the caller, who must make it before sampling above
    /// temperature 0.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: Some(64),
            logit_bias: BTreeMap::new(),
            seed: None,
        }
    }
}

impl SamplingOptions {
    /// The options that always take the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every field against its bounds.
    ///
    /// # Errors
    /// [`Error::Option`] names the first field outside its bounds, and the bounds.
    pub fn validate(&self) -> Result<(), Error> {
        check("temperature", self.temperature, 0.0..=f32::MAX, "a finite number of at least 0")?;
        check("top_p", self.top_p, 0.0..=1.0, "between 0 and 1")?;
        check("min_p", self.min_p, 0.0..=1.0, "between 0 and 1")?;
        let bound = "between 0.01 and 100";
        check("repetition_penalty", self.repetition_penalty, 0.01..=100.0, bound)?;
        check("presence_penalty", self.presence_penalty, SHIFTS, "between -100 and 100")?;
        check("frequency_penalty", self.frequency_penalty, SHIFTS, "between -100 and 100")?;
        self.logit_bias.values().try_for_each(|&bias| {
            check("logit_bias", bias, SHIFTS, "between -100 and 100 for every token")
        })
    }

    /// Whether the choice is the greatest of the model's own logits, so that the others need not be
    /// known.
    pub fn takes_greatest(&self) -> bool {
        self.temperature == 0.0 && !self.penalizes() && self.logit_bias.is_empty()
    }

    /// Whether any penalty would change a logit.
    pub(crate) fn penalizes(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

/// What may be added to a logit: the OpenAI interface's bounds of `logit_bias`. A shift of 100 bans
/// or forces a token, and no shift within them overflows.
const SHIFTS: RangeInclusive<f32> = -100.0..=100.0;

/// Refuses a `got` outside `range`, NaN above all.
fn check(
    field: &'static str,
    got: f32,
    range: RangeInclusive<f32>,
    bound: &'static str,
) -> Result<(), Error> {
    if range.contains(&got) {
        return Ok(());
    }
    Err(Error::Option { field, bound, got: got.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_object_is_the_default() {
        let options: SamplingOptions = serde_json::from_str("{}").unwrap();
        assert_eq!(options, SamplingOptions::default());
    }

    #[test]
    fn an_unknown_field_is_named_in_the_error() {
        let error = serde_json::from_str::<SamplingOptions>(r#"{"top_q": 1}"#).unwrap_err();
        assert!(error.to_string().contains("top_q"), "{error}");
    }

    #[test]
    fn the_defaults_pass() {
        assert_eq!(SamplingOptions::default().validate(), Ok(()));
        assert_eq!(SamplingOptions::greedy().validate(), Ok(()));
    }

    #[test]
    fn every_bound_names_its_field() {
        let refused = |field: &str, change: fn(&mut SamplingOptions, f32), values: &[f32]| {
            for &value in values {
                let mut options = SamplingOptions::default();
                change(&mut options, value);
                let error = options.validate().unwrap_err().to_string();
                let start = format!("{field} is {value}, but must be ");
                assert!(error.starts_with(&start), "{error}");
            }
        };
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        refused("temperature", |o, x| o.temperature = x, &[-0.1, nan, inf]);
        refused("top_p", |o, x| o.top_p = x, &[-0.1, 1.1, nan]);
        refused("min_p", |o, x| o.min_p = x, &[-0.1, 1.1, nan]);
        refused("repetition_penalty", |o, x| o.repetition_penalty = x, &[0.0, -1.0, 101.0, nan]);
        refused("presence_penalty", |o, x| o.presence_penalty = x, &[nan, 100.5]);
        refused("frequency_penalty", |o, x| o.frequency_penalty = x, &[nan, -100.5]);
        refused("logit_bias", |o, x| o.logit_bias = [(3, x)].into(), &[nan, -inf, 101.0]);
    }

    proptest! {
        #[test]
        fn options_survive_json(
            temperature in 0f32..3.0,
            window in prop::option::of(any::<u32>()),
            bias in prop::collection::btree_map(any::<u32>(), -100f32..100.0, 0..4),
            seed in prop::option::of(any::<u64>()),
        ) {
            let options = SamplingOptions {
                temperature, penalty_window: window, logit_bias: bias, seed,
                ..SamplingOptions::default()
            };
            let json = serde_json::to_string(&options)?;
            prop_assert_eq!(serde_json::from_str::<SamplingOptions>(&json)?, options);
        }
    }
}
