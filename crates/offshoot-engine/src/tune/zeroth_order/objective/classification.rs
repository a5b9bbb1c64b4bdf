//! Cross-entropy over the candidates of a choice.
//!
//! MeZO's `train_as_classification` (Malladi et al. 2023, <https://arxiv.org/abs/2305.17333>, E.2):
//! with `t` the tokens of candidate `c` behind prompt `x`,
//! ```text
//! score_c = mean over tokens of log p(t | x, what is before it)
//! L       = - log softmax(score)_answer
//! ```
//! Departs from the reference in cost alone: a prompt is run once for all of its candidates
//! ([`TextTree::of_choice`]), where the reference runs it once for each.

use super::{Objective, Part, Points, unfit};
use crate::Error;
use crate::tune::Example;
use crate::tune::zeroth_order::forward::TokenScore;
use crate::tune::zeroth_order::tree::TextTree;

/// Cross-entropy over candidates.
#[derive(Debug, Clone, Copy, Default)]
pub struct Classification;

impl Objective for Classification {
    fn name(&self) -> &'static str {
        "classification"
    }

    fn parts(&mut self, at: &mut Points<'_>, batch: &[&Example]) -> Result<Vec<Vec<Part>>, Error> {
        let (texts, answers) = choices(batch, self.name())?;
        let scores = at.score(&texts)?;
        let of_point = |scores: Vec<Vec<TokenScore>>| {
            let each = texts.iter().zip(&answers).zip(scores);
            each.map(|((text, &answer), scores)| {
                let means = candidate_means(text, &scores);
                Part { sum: log_total(&means) - means[answer], weight: 1.0 }
            })
            .collect()
        };
        Ok(scores.into_iter().map(of_point).collect())
    }
}

/// The trees of the choices of `batch` and the candidates that are trained on.
pub(super) fn choices(
    batch: &[&Example],
    objective: &str,
) -> Result<(Vec<TextTree>, Vec<usize>), Error> {
    let choice = |(index, example): (usize, &&Example)| match example {
        Example::Choice { prompt, candidates, answers } => {
            let bad = |what: &str| Error::Training(format!("row {index} of the batch: {what}"));
            if prompt.is_empty() || candidates.iter().any(Vec::is_empty) {
                return Err(bad("a choice needs a prompt and candidates that are not empty"));
            }
            match answers.first() {
                Some(&answer) if answer < candidates.len() => {
                    Ok((TextTree::of_choice(prompt, candidates), answer))
                }
                _ => Err(bad("none of the candidates is the answer")),
            }
        }
        _ => Err(unfit(index, example, objective, "choices")),
    };
    let all = batch.iter().enumerate().map(choice).collect::<Result<Vec<_>, _>>()?;
    Ok(all.into_iter().unzip())
}

/// The mean log-probability of each candidate's tokens.
pub(super) fn candidate_means(text: &TextTree, scores: &[TokenScore]) -> Vec<f64> {
    let mut left = scores;
    let mean = |&n: &usize| {
        let (own, rest) = left.split_at(n.min(left.len()));
        left = rest;
        own.iter().fold(0.0, |sum, score| sum + score.logprob) / n as f64
    };
    text.counts.iter().map(mean).collect()
}

/// `log sum exp` of `scores`.
fn log_total(scores: &[f64]) -> f64 {
    let greatest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = scores.iter().fold(0.0, |sum, score| sum + libm::exp(score - greatest));
    greatest + libm::log(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_means_of_each_candidates_tokens() {
        let text = TextTree::of_choice(&[1], &[vec![2], vec![3, 4]]);
        let score = |logprob| TokenScore { logprob, greatest: false };
        let means = candidate_means(&text, &[score(-1.0), score(-2.0), score(-4.0)]);
        assert_eq!(means, [-1.0, -3.0]);
        let loss = log_total(&means) - means[0];
        assert!((loss - (1.0 + (-2f64).exp()).ln()).abs() < 1e-15);
    }

    #[test]
    fn what_is_no_sound_choice_is_told_with_its_row() {
        let choice = |prompt: &[u32], candidates: &[&[u32]], answers: &[usize]| Example::Choice {
            prompt: prompt.to_vec(),
            candidates: candidates.iter().map(|c| c.to_vec()).collect(),
            answers: answers.to_vec(),
        };
        let good = choice(&[1], &[&[2], &[3]], &[1]);
        assert_eq!(choices(&[&good], "c").unwrap().1, [1]);
        let text = Example::Text(crate::tune::Sequence::of(&[1], &[2]));
        for (bad, what) in [
            (choice(&[], &[&[2], &[3]], &[1]), "row 1"),
            (choice(&[1], &[&[2], &[]], &[1]), "not empty"),
            (choice(&[1], &[&[2], &[3]], &[2]), "none of the candidates"),
            (choice(&[1], &[&[2], &[3]], &[]), "none of the candidates"),
            (text, "takes choices"),
        ] {
            let told = choices(&[&good, &bad], "c").unwrap_err().to_string();
            assert!(told.contains(what) && told.contains("row 1"), "{told}");
        }
    }
}
