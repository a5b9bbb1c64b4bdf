//! Metrics of a model on examples.
//!
//! ```text
//! loss         - sum of log p of the tokens that are right / how many they are
//! perplexity   exp(loss)
//! score(c)     mean log p of candidate c's tokens behind the prompt, or their sum
//! choice loss  - log softmax over candidates of score, at the right one      (MeZO's for classes)
//! accuracy     share of rows whose best candidate is right; the lowest of equals is the best
//! ```
//! Sums are made in the order of the examples, in double precision: the batch changes none of them.

use offshoot_models::{Controls, Tokenizer};
use serde::Serialize;

use super::classes::{ClassMetrics, Classes};
use super::text::{exact_match, rouge_l, token_f1};
use crate::tune::data::Metric;
use crate::tune::{Example, Scored, Scorer, Sequence};
use crate::{Control, Error};

/// What a candidate's score is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChoiceScore {
    /// The mean of its tokens' log-probabilities: longer ones are not worse for it.
    #[default]
    Mean,
    /// Their sum: the probability of the candidate itself.
    Sum,
}

/// How examples are evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalOptions {
    /// Examples that are handed to the model together; at least 1.
    pub batch: usize,
    /// What the score of a candidate is.
    pub choice: ChoiceScore,
    /// Tokens of a written answer at most.
    pub max_new_tokens: usize,
    /// Text at which a written answer ends, beside the model's end tokens.
    pub end: Option<String>,
    /// Whether answers are written at all; else they are told by their loss alone.
    pub write: bool,
}

impl Default for EvalOptions {
    /// Answers of MeZO's length.
    fn default() -> Self {
        let choice = ChoiceScore::Mean;
        Self { batch: 16, choice, max_new_tokens: 50, end: None, write: true }
    }
}

/// What was measured; a metric is there if some example has it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Metrics {
    /// Examples.
    pub examples: u64,
    /// Tokens that the loss is of: those of texts, of right candidates and first answers, and of what
    /// is preferred.
    pub tokens: u64,
    /// Their mean negative log-probability, in nats.
    pub loss: Option<f64>,
    /// `exp(loss)`.
    pub perplexity: Option<f64>,
    /// Of how many of them no token was likelier, as a share.
    pub token_accuracy: Option<f64>,
    /// The share of choices whose best candidate is right.
    pub accuracy: Option<f64>,
    /// The mean loss of choices among their candidates, in nats.
    pub choice_loss: Option<f64>,
    /// The mean of the classes' F1, where all examples have the same candidates.
    pub macro_f1: Option<f64>,
    /// The classes, by number of their candidate.
    pub classes: Option<Vec<ClassMetrics>>,
    /// The share of written answers that are a right one.
    pub exact_match: Option<f64>,
    /// Their mean F1 of words with the nearest right one.
    pub token_f1: Option<f64>,
    /// Their mean ROUGE-L with the nearest right one.
    pub rouge_l: Option<f64>,
    /// The share of pairs whose better side is the likelier.
    pub preference_accuracy: Option<f64>,
}

impl Metrics {
    /// What a task is measured by, if some example has it.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Accuracy => self.accuracy,
            Metric::MacroF1 => self.macro_f1,
            Metric::ExactMatch => self.exact_match,
            Metric::TokenF1 => self.token_f1,
            Metric::RougeL => self.rouge_l,
            Metric::Loss => self.loss,
        }
    }

    /// The metrics that there are, by name, as in their JSON.
    pub fn named(&self) -> Vec<(&'static str, f64)> {
        let all = [
            ("loss", self.loss),
            ("perplexity", self.perplexity),
            ("token_accuracy", self.token_accuracy),
            ("accuracy", self.accuracy),
            ("choice_loss", self.choice_loss),
            ("macro_f1", self.macro_f1),
            ("exact_match", self.exact_match),
            ("token_f1", self.token_f1),
            ("rouge_l", self.rouge_l),
            ("preference_accuracy", self.preference_accuracy),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Measures `scorer` on `examples`. `progress` is told how many are done, and may stop it.
///
/// # Errors
/// What `examples` or the model gives; [`Error::Stopped`].
pub fn evaluate(
    scorer: &mut dyn Scorer,
    examples: &mut dyn Iterator<Item = Result<Example, Error>>,
    tokenizer: &Tokenizer,
    options: &EvalOptions,
    progress: &mut dyn FnMut(u64) -> Control,
) -> Result<Metrics, Error> {
    let mut sums = Sums::default();
    loop {
        let batch = examples.take(options.batch.max(1)).collect::<Result<Vec<_>, _>>()?;
        if batch.is_empty() {
            return Ok(sums.metrics());
        }
        score(scorer, &batch, options, &mut sums)?;
        if options.write {
            write(scorer, &batch, tokenizer, options, &mut sums)?;
        }
        if progress(sums.examples) == Control::Stop {
            return Err(Error::Stopped);
        }
    }
}

/// What is summed over examples.
#[derive(Debug, Default)]
struct Sums {
    examples: u64,
    logprob: f64,
    tokens: u64,
    greedy: u64,
    choices: u64,
    right: u64,
    choice_loss: f64,
    classes: Classes,
    /// The candidates of all examples so far, and whether they were always the same.
    candidates: Option<Vec<Vec<u32>>>,
    other_candidates: bool,
    written: u64,
    exact: u64,
    f1: f64,
    rouge_l: f64,
    pairs: u64,
    preferred: u64,
}

impl Sums {
    fn text(&mut self, scored: Scored) {
        self.logprob += scored.logprob;
        self.tokens += scored.tokens as u64;
        self.greedy += scored.greedy as u64;
    }

    fn choice(
        &mut self,
        candidates: &[Vec<u32>],
        answers: &[usize],
        scored: &[Scored],
        choice: ChoiceScore,
    ) {
        let score = |s: &Scored| match choice {
            ChoiceScore::Mean => s.logprob / s.tokens.max(1) as f64,
            ChoiceScore::Sum => s.logprob,
        };
        let scores: Vec<f64> = scored.iter().map(score).collect();
        let best =
            (1..scores.len()).fold(0, |best, c| if scores[c] > scores[best] { c } else { best });
        self.text(scored[answers[0]]);
        self.choices += 1;
        self.right += u64::from(answers.contains(&best));
        let total: f64 = scores.iter().map(|score| libm::exp(score - scores[best])).sum();
        self.choice_loss += scores[best] + libm::log(total) - scores[answers[0]];
        let first = self.candidates.get_or_insert_with(|| candidates.to_vec());
        self.other_candidates |= first != candidates;
        if !self.other_candidates {
            // Of several right answers the one that was given counts as the true class.
            let truth = if answers.contains(&best) { best } else { answers[0] };
            self.classes.add(truth, best);
        }
    }

    fn answer(&mut self, said: &str, answers: &[String]) {
        let best = |measure: fn(&str, &str) -> f64| {
            answers.iter().map(|gold| measure(said, gold)).fold(0.0, f64::max)
        };
        self.written += 1;
        self.exact += u64::from(answers.iter().any(|gold| exact_match(said, gold)));
        self.f1 += best(token_f1);
        self.rouge_l += best(rouge_l);
    }

    fn metrics(self) -> Metrics {
        let mean = |sum: f64, n: u64| (n > 0).then(|| sum / n as f64);
        let loss = mean(-self.logprob, self.tokens);
        let classified = self.choices > 0 && !self.other_candidates;
        Metrics {
            examples: self.examples,
            tokens: self.tokens,
            loss,
            perplexity: loss.map(libm::exp),
            token_accuracy: mean(self.greedy as f64, self.tokens),
            accuracy: mean(self.right as f64, self.choices),
            choice_loss: mean(self.choice_loss, self.choices),
            macro_f1: classified.then(|| self.classes.macro_f1()),
            classes: classified.then(|| self.classes.each()),
            exact_match: mean(self.exact as f64, self.written),
            token_f1: mean(self.f1, self.written),
            rouge_l: mean(self.rouge_l, self.written),
            preference_accuracy: mean(self.preferred as f64, self.pairs),
        }
    }
}

/// Scores all texts of a batch at once.
fn score(
    scorer: &mut dyn Scorer,
    batch: &[Example],
    options: &EvalOptions,
    sums: &mut Sums,
) -> Result<(), Error> {
    let candidates: Vec<Vec<Sequence>> = batch
        .iter()
        .map(|example| match example {
            Example::Choice { prompt, candidates, .. } => {
                candidates.iter().map(|candidate| Sequence::of(prompt, candidate)).collect()
            }
            _ => Vec::new(),
        })
        .collect();
    let mut sequences: Vec<&Sequence> = Vec::new();
    for (example, candidates) in batch.iter().zip(&candidates) {
        match example {
            Example::Text(sequence) | Example::Answer { gold: sequence, .. } => {
                sequences.push(sequence);
            }
            Example::Choice { .. } => sequences.extend(candidates),
            Example::Preference { chosen, rejected, .. } => sequences.extend([chosen, rejected]),
        }
    }
    let scored = scorer.score(&sequences)?;
    let mut rest = &scored[..];
    for example in batch {
        let mut take = |n: usize| {
            let (taken, others) = rest.split_at(n);
            rest = others;
            taken
        };
        sums.examples += 1;
        match example {
            Example::Text(_) | Example::Answer { .. } => sums.text(take(1)[0]),
            Example::Choice { candidates, answers, .. } => {
                sums.choice(candidates, answers, take(candidates.len()), options.choice);
            }
            Example::Preference { .. } => {
                let pair = take(2);
                sums.text(pair[0]);
                sums.pairs += 1;
                sums.preferred += u64::from(pair[0].logprob > pair[1].logprob);
            }
        }
    }
    Ok(())
}

/// Writes the answers of a batch and compares them.
fn write(
    scorer: &mut dyn Scorer,
    batch: &[Example],
    tokenizer: &Tokenizer,
    options: &EvalOptions,
    sums: &mut Sums,
) -> Result<(), Error> {
    let asked: Vec<(&[u32], &[String])> = batch
        .iter()
        .filter_map(|example| match example {
            Example::Answer { gold, prompt, answers } => {
                Some((&gold.tokens[..*prompt], &answers[..]))
            }
            _ => None,
        })
        .collect();
    let prompts: Vec<&[u32]> = asked.iter().map(|(prompt, _)| *prompt).collect();
    if prompts.is_empty() {
        return Ok(());
    }
    let said = scorer.generate(&prompts, options.max_new_tokens)?;
    for (tokens, (_, answers)) in said.iter().zip(&asked) {
        let text = tokenizer.decode(tokens, Controls::Skip);
        let text = text.trim_start();
        let end = options.end.as_deref().and_then(|end| text.find(end));
        sums.answer(text[..end.unwrap_or(text.len())].trim(), answers);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(logprobs: &[(f64, usize)]) -> Vec<Scored> {
        let scored = |&(logprob, tokens): &(f64, usize)| Scored { logprob, tokens, greedy: 0 };
        logprobs.iter().map(scored).collect()
    }

    /// Two candidates of one and two tokens: by mean the second is better, by sum the first.
    #[test]
    fn long_candidates_win_by_their_mean_and_lose_by_their_sum() {
        let candidates = [vec![1], vec![2, 3]];
        let of = |choice| {
            let mut sums = Sums::default();
            sums.choice(&candidates, &[1], &scored(&[(-2.0, 1), (-3.0, 2)]), choice);
            sums.metrics()
        };
        let (mean, sum) = (of(ChoiceScore::Mean), of(ChoiceScore::Sum));
        assert_eq!((mean.accuracy, sum.accuracy), (Some(1.0), Some(0.0)));
        assert_eq!(mean.loss, Some(1.5));
        let by_hand = (1.0 + (-0.5f64).exp()).ln();
        assert!((mean.choice_loss.unwrap() - by_hand).abs() < 1e-12);
        assert!((sum.choice_loss.unwrap() - (1.0 + 1f64.exp()).ln()).abs() < 1e-12);
    }

    #[test]
    fn classes_are_told_only_of_the_same_candidates() {
        let mut sums = Sums::default();
        let candidates = [vec![1], vec![2]];
        for (answer, best) in [(0, 0), (0, 0), (1, 0), (1, 1)] {
            let mut logprobs = [(-2.0, 1), (-2.0, 1)];
            logprobs[best].0 = -1.0;
            sums.choice(&candidates, &[answer], &scored(&logprobs), ChoiceScore::Mean);
        }
        let same = std::mem::take(&mut sums).metrics();
        // F1 of the first 4/5, of the second 2/3.
        assert!((same.macro_f1.unwrap() - 11.0 / 15.0).abs() < 1e-12);
        sums.choice(&candidates, &[0], &scored(&[(-1.0, 1), (-2.0, 1)]), ChoiceScore::Mean);
        sums.choice(&[vec![1], vec![9]], &[0], &scored(&[(-1.0, 1), (-2.0, 1)]), ChoiceScore::Mean);
        let other = sums.metrics();
        assert_eq!((other.macro_f1, other.accuracy), (None, Some(1.0)));
    }

    #[test]
    fn any_right_answer_counts_and_the_first_of_equal_scores_is_the_best() {
        let mut sums = Sums::default();
        let candidates = [vec![1], vec![2], vec![3]];
        let equal = scored(&[(-1.0, 1), (-1.0, 1), (-5.0, 1)]);
        sums.choice(&candidates, &[0, 2], &equal, ChoiceScore::Mean);
        sums.choice(&candidates, &[1], &equal, ChoiceScore::Mean);
        assert_eq!(sums.metrics().accuracy, Some(0.5));
    }
}
