//! How held-out examples fare.

use std::collections::BTreeMap;

use super::Examples;
use crate::Error;
use crate::tune::{Example, Scored, Scorer, Sequence};

/// Scores `examples`, `batch` at a time: the mean loss of the tokens that count, its exponential, the
/// share of tokens that the model would have chosen, and of choices how many are right, by the mean
/// log-probability of a candidate's tokens; of equal ones the first.
///
/// Sums are in double precision in the order of the examples, whatever `batch` is.
///
/// # Errors
/// If the model cannot run them.
pub fn evaluate_held_out(
    scorer: &mut dyn Scorer,
    examples: &dyn Examples,
    batch: usize,
) -> Result<BTreeMap<String, f64>, Error> {
    let mut sums = Sums::default();
    let count = examples.count();
    for first in (0..count).step_by(batch.max(1)) {
        let some = first..count.min(first + batch.max(1));
        let some = some.map(|i| examples.example(i)).collect::<Result<Vec<_>, Error>>()?;
        let sequences: Vec<Vec<Sequence>> = some.iter().map(sequences).collect();
        let all: Vec<&Sequence> = sequences.iter().flatten().collect();
        let scored = scorer.score(&all)?;
        let mut at = 0;
        for (example, own) in some.iter().zip(&sequences) {
            sums.add(example, &scored[at..at + own.len()]);
            at += own.len();
        }
    }
    Ok(sums.metrics())
}

/// What is scored of an example, the one that its loss is of first.
fn sequences(example: &Example) -> Vec<Sequence> {
    match example {
        Example::Text(sequence) => vec![sequence.clone()],
        Example::Answer { gold, .. } => vec![gold.clone()],
        Example::Preference { chosen, rejected } => vec![chosen.clone(), rejected.clone()],
        Example::Choice { prompt, candidates, .. } => {
            candidates.iter().map(|candidate| Sequence::of(prompt, candidate)).collect()
        }
    }
}

#[derive(Default)]
struct Sums {
    nats: f64,
    tokens: usize,
    greedy: usize,
    choices: usize,
    right: usize,
}

impl Sums {
    fn add(&mut self, example: &Example, scored: &[Scored]) {
        let mut gold = 0;
        if let Example::Choice { answers, .. } = example {
            gold = answers.first().copied().unwrap_or(0);
            let mean = |s: &Scored| s.logprob / s.tokens.max(1) as f64;
            let mut best = 0;
            for (at, one) in scored.iter().enumerate() {
                if mean(one) > mean(&scored[best]) {
                    best = at;
                }
            }
            self.choices += 1;
            self.right += usize::from(answers.contains(&best));
        }
        if let Example::Preference { .. } = example {
            self.choices += 1;
            self.right += usize::from(scored[0].logprob > scored[1].logprob);
        }
        let gold = &scored[gold];
        self.nats -= gold.logprob;
        self.tokens += gold.tokens;
        self.greedy += gold.greedy;
    }

    fn metrics(&self) -> BTreeMap<String, f64> {
        let tokens = self.tokens.max(1) as f64;
        let loss = self.nats / tokens;
        let mut all = BTreeMap::from([
            ("loss".to_owned(), loss),
            ("perplexity".to_owned(), libm::exp(loss)),
            ("token_accuracy".to_owned(), self.greedy as f64 / tokens),
        ]);
        if self.choices > 0 {
            let share = self.right as f64 / self.choices as f64;
            all.insert("accuracy".to_owned(), share);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of even ids have a log-probability of -1, others of -3.
    struct Even;

    impl Scorer for Even {
        fn score(&mut self, sequences: &[&Sequence]) -> Result<Vec<Scored>, Error> {
            let one = |s: &&Sequence| {
                let counted = s.tokens.iter().zip(&s.trained).filter(|(_, t)| **t);
                let ids: Vec<u32> = counted.map(|(id, _)| *id).collect();
                let greedy = ids.iter().filter(|id| *id % 2 == 0).count();
                let logprob = -3.0 * ids.len() as f64 + 2.0 * greedy as f64;
                Scored { logprob, tokens: ids.len(), greedy }
            };
            Ok(sequences.iter().map(one).collect())
        }

        fn generate(&mut self, _: &[&[u32]], _: usize) -> Result<Vec<Vec<u32>>, Error> {
            Err(Error::Stopped)
        }
    }

    #[test]
    fn metrics_equal_a_case_worked_by_hand() {
        let choice = |answers: Vec<usize>| Example::Choice {
            prompt: vec![7],
            candidates: vec![vec![2, 2, 3], vec![4]], // means -5/3 and -1: the second is chosen
            answers,
        };
        let all = vec![
            Example::Text(Sequence::of(&[1], &[2, 3])), // -4 of two tokens
            choice(vec![0]),                            // wrong; -5 of three
            choice(vec![1]),                            // right; -1 of one
        ];
        for batch in [1, 2, 100] {
            let metrics = evaluate_held_out(&mut Even, &all, batch).unwrap();
            assert_eq!(metrics["loss"], 10.0 / 6.0);
            assert_eq!(metrics["token_accuracy"], 4.0 / 6.0);
            assert_eq!(metrics["accuracy"], 0.5);
        }
        let none = evaluate_held_out(&mut Even, &all[..1].to_vec(), 1).unwrap();
        assert!(!none.contains_key("accuracy"), "no choices, no share of them");
    }
}
