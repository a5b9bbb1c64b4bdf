//! Which fields a format has, and how it is told from the names of a file's fields.
//!
//! The names are those that TRL, mlx-lm and LLaMA-Factory read:
//! <https://huggingface.co/docs/trl/dataset_formats>,
//! <https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md>.

use std::fmt;
use std::str::FromStr;

use super::error::Fault;
use super::formats::{self, Parse};
use super::record::Record;
use super::row::Row;

/// What the rows of a file mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `text`: every token is predicted.
    Text,
    /// `prompt` and `completion`, texts or messages.
    Completion,
    /// `messages` of `role` and `content`.
    Messages,
    /// `prompt`, `choices` and `answer`, the number of the right one from 0, or a list of them.
    Choices,
    /// `prompt` and `answers`, a text or a list of texts.
    Answers,
    /// `instruction`, `output`, and perhaps `input`, `system` and `history`.
    Alpaca,
    /// `conversations` of `from` and `value`.
    ShareGpt,
    /// `chosen` and `rejected`, and perhaps `prompt`; texts or messages.
    Preference,
}

/// A format with the fields that tell it.
struct Entry {
    format: Format,
    name: &'static str,
    /// All of these fields are there.
    fields: &'static [&'static str],
    parse: Parse,
}

/// The first entry whose fields a file has is its format.
const FORMATS: [Entry; 8] = [
    Entry {
        format: Format::Preference,
        name: "preference",
        fields: &["chosen", "rejected"],
        parse: formats::preference,
    },
    Entry {
        format: Format::Messages,
        name: "messages",
        fields: &["messages"],
        parse: formats::messages,
    },
    Entry {
        format: Format::ShareGpt,
        name: "sharegpt",
        fields: &["conversations"],
        parse: formats::sharegpt,
    },
    Entry {
        format: Format::Choices,
        name: "choices",
        fields: &["prompt", "choices", "answer"],
        parse: formats::choices,
    },
    Entry {
        format: Format::Answers,
        name: "answers",
        fields: &["prompt", "answers"],
        parse: formats::answers,
    },
    Entry {
        format: Format::Completion,
        name: "completion",
        fields: &["prompt", "completion"],
        parse: formats::completion,
    },
    Entry {
        format: Format::Alpaca,
        name: "alpaca",
        fields: &["instruction", "output"],
        parse: formats::alpaca,
    },
    Entry { format: Format::Text, name: "text", fields: &["text"], parse: formats::text },
];

impl Format {
    fn entry(self) -> &'static Entry {
        let found = FORMATS.iter().find(|entry| entry.format == self);
        found.expect("every format has an entry, as a test checks")
    }

    /// Its name in options.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// The fields that a row of it must have.
    pub fn fields(self) -> &'static [&'static str] {
        self.entry().fields
    }

    /// The format of a file whose rows have `fields`.
    ///
    /// # Errors
    /// In words, if no format has them, or one that is not supported.
    pub fn detect(fields: &[&str]) -> Result<Self, String> {
        let has = |name: &&str| fields.contains(name);
        let found = FORMATS.iter().find(|entry| entry.fields.iter().all(has));
        if has(&"label") {
            match found.map(|entry| entry.format) {
                Some(Format::Completion) => {
                    return Err(
                        "prompt, completion and label are unpaired preferences, which are \
                                not supported: take out the rows with a false label, then \
                                --format completion"
                            .to_owned(),
                    );
                }
                None | Some(Format::Text) => {
                    return Err(
                        "rows with a label are classified by a task: give --task with a TOML \
                                file, or the name of a built-in one, as sst2 (`offshoot data check \
                                --help` lists them)"
                            .to_owned(),
                    );
                }
                _ => {}
            }
        }
        found.map(|entry| entry.format).ok_or_else(|| {
            let named = |entry: &Entry| format!("{} ({})", entry.name, entry.fields.join(", "));
            let known: Vec<String> = FORMATS.iter().map(named).collect();
            format!(
                "the fields {} are of no format: rename them with --map NAME=FIELD, or give --task; \
                 formats are {}",
                super::error::Shown(&fields.join(", ")),
                known.join("; ")
            )
        })
    }

    /// What `row` says.
    pub(crate) fn parse(self, row: &Row) -> Result<Record, Fault> {
        (self.entry().parse)(row)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = FORMATS.iter().find(|entry| entry.name == text);
        found.map(|entry| entry.format).ok_or_else(|| {
            let names: Vec<&str> = FORMATS.iter().map(|entry| entry.name).collect();
            format!("{text:?} is no format: expected one of {}", names.join(", "))
        })
    }
}

/// A field that is read under another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// The name that the format knows.
    pub name: String,
    /// The field of the file.
    pub field: String,
}

impl FromStr for Rename {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=').map(|(name, field)| (name.trim(), field.trim())) {
            Some((name, field)) if !name.is_empty() && !field.is_empty() => {
                Ok(Self { name: name.to_owned(), field: field.to_owned() })
            }
            _ => Err("expected NAME=FIELD, such as prompt=question".to_owned()),
        }
    }
}

/// Gives the fields of `row` the names that the format knows. A field that is not there stays
/// missing, and is told where it is needed.
pub(crate) fn rename(row: &mut Row, renames: &[Rename]) {
    let values: Vec<_> = renames.iter().map(|r| row.get(&r.field).cloned()).collect();
    // All go before any comes, so that two fields can change their names.
    renames.iter().for_each(|rename| _ = row.fields.shift_remove(&rename.field));
    for (rename, value) in renames.iter().zip(values) {
        if let Some(value) = value {
            row.fields.insert(rename.name.clone(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_told_from_its_fields_and_read_by_its_name() {
        for entry in &FORMATS {
            assert_eq!(Format::detect(entry.fields), Ok(entry.format));
            assert_eq!(entry.name.parse(), Ok(entry.format));
            assert_eq!(entry.format.entry().name, entry.name);
        }
    }

    #[test]
    fn fields_of_several_formats_mean_the_one_that_says_more() {
        for (fields, format) in [
            (&["id", "text", "messages"][..], Format::Messages),
            (&["prompt", "chosen", "rejected", "messages"], Format::Preference),
            (&["prompt", "completion", "text"], Format::Completion),
            (&["prompt", "choices", "answer", "answers"], Format::Choices),
            (&["instruction", "input", "output", "text"], Format::Alpaca),
            (&["text", "source"], Format::Text),
        ] {
            assert_eq!(Format::detect(fields), Ok(format), "{fields:?}");
        }
    }

    #[test]
    fn what_is_of_no_format_is_told_with_what_to_do() {
        for (fields, part) in [
            (&["question", "reply"][..], "--map NAME=FIELD"),
            (&["text", "label"], "--task"),
            (&["sentence", "label"], "--task"),
            (&["prompt", "completion", "label"], "unpaired preferences"),
        ] {
            let told = Format::detect(fields).unwrap_err();
            assert!(told.contains(part) && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn fields_take_each_others_names_and_what_is_not_there_stays_missing() {
        let fields = serde_json::json!({"a": 1, "b": {"c": 2}, "d": 3});
        let serde_json::Value::Object(fields) = fields else { unreachable!() };
        let file = std::sync::Arc::from(std::path::Path::new("f"));
        let place = super::super::Place { file, count: super::super::Count::Line, number: 1 };
        let mut row = Row { place, fields };
        let renames = ["a=d", "d=a", "text=b.c", "x=nothing"].map(|text| text.parse().unwrap());
        rename(&mut row, &renames);
        let expected = serde_json::json!({"a": 3, "d": 1, "b": {"c": 2}, "text": 2});
        assert_eq!(serde_json::Value::Object(row.fields), expected);
        assert!(["", "a", "=b", "a="].iter().all(|text| text.parse::<Rename>().is_err()));
    }
}
