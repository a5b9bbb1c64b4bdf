//! How held-out examples fare while a model is tuned.

use std::collections::BTreeMap;

use offshoot_models::Tokenizer;

use super::{Examples, RunConfig};
use crate::tune::Scorer;
use crate::tune::eval::{EvalOptions, evaluate};
use crate::{Control, Error};

/// Measures a model on the held-out examples: metrics by name, `loss` among them.
pub type Evaluate<'e> =
    &'e mut dyn FnMut(&mut dyn Scorer, &dyn Examples) -> Result<BTreeMap<String, f64>, Error>;

/// Scores `examples` as `offshoot eval` does. Answers are written only if the run's metric is of
/// them.
///
/// # Errors
/// If the model cannot run them.
pub fn evaluate_held_out(
    config: &RunConfig,
    tokenizer: &Tokenizer,
    scorer: &mut dyn Scorer,
    examples: &dyn Examples,
) -> Result<BTreeMap<String, f64>, Error> {
    let options = EvalOptions {
        batch: config.batch as usize,
        write: config.metric.is_of_answers(),
        ..EvalOptions::default()
    };
    let mut all = (0..examples.count()).map(|index| examples.example(index));
    let going = &mut |_| Control::Continue;
    let metrics = evaluate(scorer, &mut all, tokenizer, &options, going)?;
    Ok(metrics.named().into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
