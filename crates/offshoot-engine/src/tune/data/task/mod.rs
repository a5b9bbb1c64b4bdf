//! Tasks: how the rows of a labelled data set become prompts and what stands behind them.
//!
//! A task is TOML, the same for those that are built in (`built_in.toml`) and those of users:
//!
//! ```toml
//! name = "spam"
//! template = "{text}\nIs this message spam?"
//! verbalizers = [
//!     { labels = ["0", "ham"], text = "no" },
//!     { labels = ["1", "spam"], text = "yes" },
//! ]
//! ```
//!
//! The built-in templates are those of MeZO (Malladi et al. 2023, appendix E.2,
//! <https://arxiv.org/abs/2305.17333>); where its prompts are for models that fill in a mask (SST-5,
//! TREC, SNLI, MNLI), a prompt that is read from left to right takes their place.

mod slots;

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{DataError, Fault, Shown};
use super::formats::texts;
use super::record::{Record, Said};
use super::row::{Row, scalar};
use crate::error::one_line;
use slots::{At, Slots, Words};

const BUILT_IN: &str = include_str!("built_in.toml");

/// Bytes of a task's file at most.
const FILE_BYTES: u64 = 1 << 20;

/// What a task is measured by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The share of rows whose best candidate is right.
    Accuracy,
    /// The mean over classes of the harmonic mean of precision and recall.
    MacroF1,
    /// The share of answers that are a gold one, after SQuAD's normalisation.
    ExactMatch,
    /// The overlap of words with the nearest gold answer, as SQuAD counts it.
    TokenF1,
    /// The longest common subsequence of words with the nearest gold answer.
    RougeL,
    /// The loss of the tokens that are predicted.
    Loss,
}

impl Metric {
    /// Its name in JSON and in tasks.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macro_f1",
            Self::ExactMatch => "exact_match",
            Self::TokenF1 => "token_f1",
            Self::RougeL => "rouge_l",
            Self::Loss => "loss",
        }
    }
}

/// The word for some labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verbalizer {
    /// How the file writes the label.
    labels: Vec<String>,
    /// What the model is to say.
    text: String,
}

/// A task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    name: String,
    /// The prompt.
    template: Slots,
    /// What stands between the prompt and what is behind it.
    #[serde(default = "space")]
    separator: String,
    /// The field with the label, of a classification, or the number of the right choice.
    #[serde(default = "label")]
    label: String,
    /// The number of the first choice.
    #[serde(default)]
    first_choice: usize,
    /// The classes.
    #[serde(default)]
    verbalizers: Vec<Verbalizer>,
    /// Texts of the choices.
    #[serde(default)]
    choices: Vec<Slots>,
    /// The field with a list for whose elements there is a choice each, written as `choices`' only one.
    #[serde(default)]
    each: Option<String>,
    /// The field with the texts that are right.
    #[serde(default)]
    answers: Option<String>,
    /// What ends an answer; none for the model's own end token.
    #[serde(default)]
    end: Option<String>,
    /// Words that stand for values of fields.
    #[serde(default)]
    words: Words,
    /// What it is measured by.
    #[serde(default)]
    metric: Option<Metric>,
    /// Tokens of an answer at most.
    #[serde(default = "max_new_tokens")]
    max_new_tokens: usize,
}

fn space() -> String {
    " ".to_owned()
}

fn label() -> String {
    "label".to_owned()
}

/// MeZO's for SQuAD and DROP.
fn max_new_tokens() -> usize {
    50
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tasks {
    task: Vec<Task>,
}

impl Task {
    /// The names of the tasks that are built in.
    pub fn built_in() -> Vec<String> {
        table().into_iter().map(|task| task.name).collect()
    }

    /// The task that is built in under `text`, else the one in the file of that name.
    ///
    /// # Errors
    /// [`DataError::Task`] if there is neither, or the file is no task; [`DataError::Io`].
    pub fn find(text: &str) -> Result<Self, DataError> {
        if let Some(task) = table().into_iter().find(|task| task.name == text) {
            return Ok(task);
        }
        let path = Path::new(text);
        if path.extension().is_none_or(|e| e != "toml") {
            let what = format!(
                "is not built in; there are {}, or give a file NAME.toml",
                Self::built_in().join(", ")
            );
            return Err(DataError::Task { name: Shown(text).to_string(), what });
        }
        let len = std::fs::metadata(path).map_err(DataError::io(path))?.len();
        if len > FILE_BYTES {
            let what = format!("has {len} bytes, more than a task's file may have");
            return Err(DataError::file(path, what));
        }
        let source = std::fs::read_to_string(path).map_err(DataError::io(path))?;
        Self::parse(&source).map_err(|what| DataError::Task { name: text.to_owned(), what })
    }

    /// Reads a task.
    ///
    /// # Errors
    /// In words, on one line, if it is none.
    pub fn parse(source: &str) -> Result<Self, String> {
        let task: Self = toml::from_str(source).map_err(|e| with_line(&e, source))?;
        task.validate()?;
        Ok(task)
    }

    fn validate(&self) -> Result<(), String> {
        let kinds = [!self.verbalizers.is_empty(), !self.choices.is_empty(), self.generates()];
        if kinds.iter().filter(|&&is| is).count() != 1 {
            return Err("expected one of verbalizers, choices, or answers without choices".into());
        }
        if self.verbalizers.len() == 1 || (self.choices.len() == 1) != self.each.is_some() {
            return Err("expected at least two verbalizers or choices, or one with each".into());
        }
        if self.each.is_some() && self.answers.is_none() {
            return Err("each needs answers, the field with those that are right".into());
        }
        if self.verbalizers.iter().any(|v| v.text.is_empty() || v.labels.is_empty()) {
            return Err("a verbalizer without a text or without labels".into());
        }
        let mut labels: Vec<&String> = self.verbalizers.iter().flat_map(|v| &v.labels).collect();
        labels.sort_unstable();
        if let Some(twice) = labels.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("the label {} has two verbalizers", Shown(twice[0])));
        }
        if self.max_new_tokens == 0 {
            return Err("max_new_tokens is 0, expected at least 1".into());
        }
        Ok(())
    }

    fn generates(&self) -> bool {
        self.answers.is_some() && self.choices.is_empty()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is measured by.
    pub fn metric(&self) -> Metric {
        let usual = if self.generates() { Metric::TokenF1 } else { Metric::Accuracy };
        self.metric.unwrap_or(usual)
    }

    /// Tokens of an answer at most.
    pub fn max_new_tokens(&self) -> usize {
        self.max_new_tokens
    }

    /// The text that ends an answer, if it is not the model's own end token.
    pub fn end(&self) -> Option<&str> {
        self.end.as_deref()
    }

    /// The words of its classes, where it has some.
    pub fn classes(&self) -> Vec<&str> {
        self.verbalizers.iter().map(|v| v.text.as_str()).collect()
    }

    /// What `row` says.
    pub(crate) fn parse_row(&self, row: &Row) -> Result<Record, Fault> {
        let at = |each| At { row, words: &self.words, each };
        let prompt = Said::Text(self.template.fill(&at(""))?);
        let behind = |text: &str| format!("{}{text}", self.separator);
        if !self.verbalizers.is_empty() {
            let candidates = self.verbalizers.iter().map(|v| behind(&v.text)).collect();
            return Ok(Record::Choice { prompt, candidates, answers: vec![self.class(row)?] });
        }
        if let (Some(each), Some(answers)) = (&self.each, &self.answers) {
            let (all, right) = (texts(row, each)?, texts(row, answers)?);
            if all.len() < 2 {
                return Err(row.fault(each, "fewer than two choices"));
            }
            let written = all.iter().map(|each| self.choices[0].fill(&at(each)));
            let written = written.map(|text| Ok(behind(&text?))).collect::<Result<_, Fault>>()?;
            let is_right = |i: &usize| right.contains(&all[*i]);
            let right: Vec<usize> = (0..all.len()).filter(is_right).collect();
            if right.is_empty() {
                return Err(row.fault(answers, format!("none of them is among {}", one_line(each))));
            }
            return Ok(Record::Choice { prompt, candidates: written, answers: right });
        }
        if let Some(answers) = &self.answers {
            let (answers, end) = (texts(row, answers)?, self.end.clone());
            return Ok(Record::Answer { prompt, separator: self.separator.clone(), answers, end });
        }
        let candidates = self.choices.iter().map(|slots| Ok(behind(&slots.fill(&at(""))?)));
        let candidates = candidates.collect::<Result<Vec<_>, Fault>>()?;
        Ok(Record::Choice {
            prompt,
            answers: vec![self.number(row, candidates.len())?],
            candidates,
        })
    }

    fn class(&self, row: &Row) -> Result<usize, Fault> {
        let value = row.need(&self.label)?;
        // Whole numbers that a table keeps as floats.
        let label = match value.as_f64().filter(|x| x.fract() == 0.0 && x.abs() < 1e9) {
            Some(whole) => Some((whole as i64).to_string()),
            None => scalar(value),
        };
        let label = label.as_deref().map(str::trim);
        let label = label.ok_or_else(|| row.expected(&self.label, "a label", value))?;
        let found = self.verbalizers.iter().position(|v| v.labels.iter().any(|l| l == label));
        found.ok_or_else(|| {
            let known = self.verbalizers.iter().flat_map(|v| &v.labels);
            let known: Vec<&str> = known.map(String::as_str).collect();
            let what = match label {
                "-1" => "-1 marks the unlabelled rows of a hidden test set: leave them out".into(),
                _ => {
                    format!("the label {}: expected {}", Shown(label), one_line(&known.join(", ")))
                }
            };
            row.fault(&self.label, what)
        })
    }

    fn number(&self, row: &Row, choices: usize) -> Result<usize, Fault> {
        let text = row.shown(&self.label)?;
        let number = text.trim().parse::<usize>().ok();
        let index = number.and_then(|n| n.checked_sub(self.first_choice)).filter(|&n| n < choices);
        index.ok_or_else(|| {
            let last = self.first_choice + choices - 1;
            let what = format!("expected {} to {last}, got {}", self.first_choice, Shown(&text));
            row.fault(&self.label, what)
        })
    }
}

fn table() -> Vec<Task> {
    let tasks: Tasks = toml::from_str(BUILT_IN).expect("a test reads it");
    tasks.task
}

/// The parser's words without its drawing of the place.
fn with_line(error: &toml::de::Error, source: &str) -> String {
    let at = error.span().map_or(0, |span| span.start.min(source.len()));
    let line = source.as_bytes()[..at].iter().filter(|&&b| b == b'\n').count() + 1;
    format!("line {line}: {}", one_line(&error.message().replace('\n', " ")))
}

#[cfg(test)]
mod tests;
