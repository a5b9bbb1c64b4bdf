//! Negative metrics: losses without a gradient.
//!
//! Malladi et al. 2023, <https://arxiv.org/abs/2305.17333>, section 3.3: nothing in a zeroth-order step
//! needs the loss to have a gradient, so what is measured in the end can be what is trained on:
//! ```text
//! L = - mean over examples of metric
//! ```
//! Accuracy is of choices, by the mean log-probability of a candidate's tokens. Exact match and token
//! F1 are of answers, written greedily at the point itself and compared as SQuAD compares them
//! (Rajpurkar et al. 2016, <https://arxiv.org/abs/1606.05250>, section 6): lower case, no punctuation,
//! no articles, single spaces; the best of the given answers counts.
//!
//! A metric of few examples is the same at both ends of most directions, and such a step does nothing:
//! take larger batches and a larger eps than for a loss with a gradient.

use std::sync::Arc;

use offshoot_models::{Controls, Tokenizer};

use super::classification::{candidate_means, choices};
use super::{Objective, Part, Points, unfit};
use crate::Error;
use crate::tune::Example;
use crate::tune::eval::{exact_match, token_f1};
use crate::tune::zeroth_order::forward::TokenScore;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Choices whose likeliest candidate is right.
    Accuracy,
    /// Answers that are one of those given.
    ExactMatch,
    /// How many words an answer has in common with the nearest of those given.
    TokenF1,
}

/// A metric, to be made greater.
#[derive(Debug, Clone)]
pub struct Metric {
    kind: MetricKind,
    tokenizer: Arc<Tokenizer>,
    max_tokens: usize,
    end: Option<String>,
}

impl Metric {
    /// The metric `kind` of answers of at most `max_tokens` tokens, which `end`, if it is given, ends
    /// beside the model's end tokens.
    pub fn new(
        kind: MetricKind,
        tokenizer: Arc<Tokenizer>,
        max_tokens: usize,
        end: Option<String>,
    ) -> Self {
        Self { kind, tokenizer, max_tokens, end }
    }
}

impl Objective for Metric {
    fn name(&self) -> &'static str {
        match self.kind {
            MetricKind::Accuracy => "accuracy",
            MetricKind::ExactMatch => "exact-match",
            MetricKind::TokenF1 => "token-f1",
        }
    }

    fn parts(&mut self, at: &mut Points<'_>, batch: &[&Example]) -> Result<Vec<Vec<Part>>, Error> {
        if self.kind == MetricKind::Accuracy {
            return accuracy(at, batch);
        }
        let (prompts, answers) = prompts(batch, self.name())?;
        let made = at.generate(&prompts, self.max_tokens)?;
        let of_point = |texts: Vec<Option<Vec<u32>>>| {
            let each = texts.iter().zip(&answers);
            each.map(|(tokens, answers)| {
                let Some(tokens) = tokens else { return Part { sum: f64::NAN, weight: 1.0 } };
                let text = self.tokenizer.decode(tokens, Controls::Skip);
                let end = self.end.as_deref().and_then(|end| text.find(end));
                let text = text[..end.unwrap_or(text.len())].trim();
                let score = |answer: &String| match self.kind {
                    MetricKind::TokenF1 => token_f1(text, answer),
                    _ => f64::from(u8::from(exact_match(text, answer))),
                };
                Part { sum: -answers.iter().map(score).fold(0.0, f64::max), weight: 1.0 }
            })
            .collect()
        };
        Ok(made.into_iter().map(of_point).collect())
    }
}

fn accuracy(at: &mut Points<'_>, batch: &[&Example]) -> Result<Vec<Vec<Part>>, Error> {
    let (texts, _) = choices(batch, "accuracy")?;
    let right = |example: &Example, chosen: usize| match example {
        Example::Choice { answers, .. } => answers.contains(&chosen),
        _ => false,
    };
    let of_point = |scores: Vec<Vec<TokenScore>>| {
        let each = texts.iter().zip(batch).zip(scores);
        each.map(|((text, example), scores)| {
            let means = candidate_means(text, &scores);
            // The first of the greatest; a NaN anywhere spoils the loss as in other objectives.
            let mut chosen = 0;
            for (candidate, mean) in means.iter().enumerate() {
                if *mean > means[chosen] {
                    chosen = candidate;
                }
            }
            let spoiled = means.iter().any(|mean| mean.is_nan());
            let hit = f64::from(u8::from(right(example, chosen)));
            Part { sum: if spoiled { f64::NAN } else { -hit }, weight: 1.0 }
        })
        .collect()
    };
    Ok(at.score(&texts)?.into_iter().map(of_point).collect())
}

type PromptsAndAnswers<'a> = (Vec<&'a [u32]>, Vec<&'a [String]>);

/// The prompts of the answers of `batch`, and what would be right.
pub(super) fn prompts<'a>(
    batch: &[&'a Example],
    objective: &str,
) -> Result<PromptsAndAnswers<'a>, Error> {
    let one = |(index, example): (usize, &&'a Example)| match *example {
        Example::Answer { gold, prompt, answers } if *prompt > 0 => {
            Ok((&gold.tokens[..*prompt.min(&gold.tokens.len())], answers.as_slice()))
        }
        example => Err(unfit(index, example, objective, "answers behind a prompt")),
    };
    let all = batch.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?;
    Ok(all.into_iter().unzip())
}
