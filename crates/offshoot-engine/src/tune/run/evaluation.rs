//! How held-out examples fare while a model is tuned.

use std::collections::BTreeMap;

use offshoot_models::Tokenizer;

use super::config::Metric;
use super::{Examples, RunConfig, RunError};
use crate::tune::data::Task;
use crate::tune::eval::{EvalOptions, evaluate};
use crate::tune::{Example, Scorer};
use crate::{Control, Error};

/// Measures a model on the held-out examples: metrics by name, `loss` among them. The last argument is
/// told how many are done, and may stop it: then it ends with [`Error::Stopped`].
pub type Evaluate<'e> = &'e mut dyn FnMut(
    &mut dyn Scorer,
    &dyn Examples,
    &mut dyn FnMut(u64) -> Control,
) -> Result<BTreeMap<String, f64>, Error>;

/// How answers are written, as far as the task says it; the rest as always.
pub(super) fn answers(config: &RunConfig) -> Result<EvalOptions, Error> {
    let usual = EvalOptions::default();
    let Some(name) = &config.task else { return Ok(usual) };
    let task = Task::find(name)?;
    let end = task.end().map(str::to_owned);
    Ok(EvalOptions { max_new_tokens: task.max_new_tokens(), end, ..usual })
}

/// Checks that a run can use all examples, and that the held-out ones have the metric by which
/// they are to be compared.
///
/// # Errors
/// [`RunError::Config`] says what is missing; those of reading an example.
pub fn check_examples(
    config: &RunConfig,
    train: &dyn Examples,
    held_out: &dyn Examples,
) -> Result<(), Error> {
    let wrong = |what: String| Err(RunError::Config { place: String::new(), what }.into());
    let has = |of: &dyn Examples, wanted: fn(&Example) -> bool| {
        (0..of.count()).try_fold(false, |had, i| Ok::<_, Error>(had || wanted(&of.example(i)?)))
    };
    let pair: fn(&Example) -> bool = |example| matches!(example, Example::Preference { .. });
    if has(train, pair)? || has(held_out, pair)? {
        return wrong("data: pairs of a better and a worse text have no loss here".to_owned());
    }
    let (kind, wanted): (_, fn(&Example) -> bool) = match config.metric {
        Metric::Loss => return Ok(()),
        Metric::Accuracy | Metric::MacroF1 => {
            ("choices", |example| matches!(example, Example::Choice { .. }))
        }
        Metric::ExactMatch | Metric::TokenF1 => {
            ("answers to write", |example| matches!(example, Example::Answer { .. }))
        }
    };
    if held_out.count() > 0 && !has(held_out, wanted)? {
        let name = config.metric.name();
        return wrong(format!("metric: {name} is of {kind}, and the held-out examples have none"));
    }
    Ok(())
}

/// Scores `examples` as `offshoot eval` does. Answers are written only if the run's metric is of
/// them. `progress` is told after each batch how many are done, and may stop it.
///
/// # Errors
/// If the model cannot run them; [`Error::Stopped`].
pub fn evaluate_held_out(
    config: &RunConfig,
    tokenizer: &Tokenizer,
    scorer: &mut dyn Scorer,
    examples: &dyn Examples,
    progress: &mut dyn FnMut(u64) -> Control,
) -> Result<BTreeMap<String, f64>, Error> {
    let options = EvalOptions {
        batch: config.batch as usize,
        write: config.metric.is_of_answers(),
        ..answers(config)?
    };
    let mut all = (0..examples.count()).map(|index| examples.example(index));
    let metrics = evaluate(scorer, &mut all, tokenizer, &options, progress)?;
    Ok(metrics.named().into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
