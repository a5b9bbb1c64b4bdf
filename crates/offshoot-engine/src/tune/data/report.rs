//! What a data file holds, counted.

use serde::{Deserialize, Serialize};

use crate::tune::{Example, Sequence};

/// One of the files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileReport {
    /// The file.
    pub path: String,
    /// How it keeps its rows.
    pub container: String,
    /// What they mean.
    pub format: String,
    /// Fields that nothing was made of.
    pub unused: Vec<String>,
    /// How many rows it has, wrong ones among them.
    pub rows: u64,
}

/// All of the files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Report {
    /// Each of them.
    pub files: Vec<FileReport>,
    /// Rows, wrong ones among them.
    pub rows: u64,
    /// Rows that are wrong.
    pub faults: u64,
    /// Examples that were made.
    pub examples: u64,
    /// Rows that were too long and were cut, or lost some of their examples.
    pub cut: u64,
    /// Rows that were too long and were left out.
    pub dropped: u64,
    /// Conversations that are learned answer by answer, since the model's template writes earlier
    /// turns otherwise once there are later ones.
    pub split: u64,
    /// Rows that another has before them in the same words; they are kept.
    pub duplicates: u64,
    /// Tokens that one pass over the examples runs through the model, a shared prompt once.
    pub tokens: u64,
    /// Those of them that are predicted.
    pub targets: u64,
    /// Tokens of the longest sequence.
    pub longest: u64,
    /// By power of two, how many examples have a longest sequence of so many tokens: the first of
    /// 1, the next of 2 and 3, then of 4 to 7.
    pub lengths: Vec<u64>,
    /// By number of the right candidate, how many examples have it.
    pub answers: Vec<u64>,
}

impl Report {
    pub(crate) fn count(&mut self, example: &Example) {
        let (tokens, targets, longest) = match example {
            Example::Text(sequence) | Example::Answer { gold: sequence, .. } => size(sequence),
            Example::Choice { prompt, candidates, answers } => {
                let behind: usize = candidates.iter().map(Vec::len).sum();
                let longest = candidates.iter().map(Vec::len).max().unwrap_or(0);
                let right = answers[0];
                if self.answers.len() <= right {
                    self.answers.resize(right + 1, 0);
                }
                self.answers[right] += 1;
                (prompt.len() + behind, behind, prompt.len() + longest)
            }
            Example::Preference { chosen, rejected, .. } => {
                let (a, b) = (size(chosen), size(rejected));
                (a.0 + b.0, a.1 + b.1, a.2.max(b.2))
            }
        };
        self.examples += 1;
        self.tokens += tokens as u64;
        self.targets += targets as u64;
        self.longest = self.longest.max(longest as u64);
        let bucket = longest.max(1).ilog2() as usize;
        if self.lengths.len() <= bucket {
            self.lengths.resize(bucket + 1, 0);
        }
        self.lengths[bucket] += 1;
    }
}

fn size(sequence: &Sequence) -> (usize, usize, usize) {
    (sequence.tokens.len(), sequence.targets(), sequence.tokens.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_prompt_counts_once() {
        let mut report = Report::default();
        let candidates = vec![vec![1], vec![2, 3]];
        report.count(&Example::Choice { prompt: vec![0; 5], candidates, answers: vec![1] });
        report.count(&Example::Text(Sequence::of(&[1, 2], &[3, 4])));
        assert_eq!((report.tokens, report.targets, report.longest), (12, 5, 7));
        assert_eq!((report.lengths, report.answers), (vec![0, 0, 2], vec![0, 1]));
    }
}
