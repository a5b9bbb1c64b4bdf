//! Texts with slots: `{sentence} It was`.
//!
//! A slot names a field, and perhaps what is done to its text: `{question|ask|upper_first}`. Two
//! braces are one brace.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tune::data::error::{Fault, Shown};
use crate::tune::data::row::Row;

/// Words that stand for values of fields: by field, then by value.
pub(super) type Words = BTreeMap<String, BTreeMap<String, String>>;

/// The name of the slot for the choice that is being written.
pub(super) const EACH: &str = "each";

/// A text with slots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Slots {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Slot { field: String, filters: Vec<Filter> },
}

/// What is done to a field's text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Filter {
    /// White space at both ends goes.
    Trim,
    /// The first letter becomes a capital.
    UpperFirst,
    /// The first word loses its capitals, unless it is `I`.
    LowerFirstWord,
    /// All letters become small.
    Lower,
    /// A full stop at the end goes.
    NoFullStop,
    /// A question mark stands at the end.
    Ask,
    /// ReCoRD's highlights become a list of dashes.
    Bullets,
    /// The task's word for the value.
    Words,
    /// What stands before a text.
    Before(String),
    /// What stands behind a text.
    Behind(String),
    /// The choice in the place of a text.
    Fill(String),
}

/// Filters without an argument, by name.
const PLAIN: [(&str, Filter); 8] = [
    ("trim", Filter::Trim),
    ("upper_first", Filter::UpperFirst),
    ("lower_first_word", Filter::LowerFirstWord),
    ("lower", Filter::Lower),
    ("no_full_stop", Filter::NoFullStop),
    ("ask", Filter::Ask),
    ("bullets", Filter::Bullets),
    ("words", Filter::Words),
];

/// Makes a filter of its argument.
type WithText = fn(String) -> Filter;

/// Filters with an argument, by name.
const WITH: [(&str, WithText); 3] =
    [("before", Filter::Before), ("behind", Filter::Behind), ("fill", Filter::Fill)];

impl Filter {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some((_, filter)) = PLAIN.iter().find(|(name, _)| *name == text) {
            return Ok(filter.clone());
        }
        let (name, argument) = text.split_once(':').unwrap_or((text, ""));
        match WITH.iter().find(|(known, _)| *known == name) {
            Some((_, make)) if !argument.is_empty() => Ok(make(argument.to_owned())),
            _ => {
                let plain = PLAIN.iter().map(|(name, _)| (*name).to_owned());
                let with = WITH.iter().map(|(name, _)| format!("{name}:TEXT"));
                let known: Vec<String> = plain.chain(with).collect();
                Err(format!("no filter {}: there are {}", Shown(text), known.join(", ")))
            }
        }
    }

    fn apply(&self, text: String, at: &At<'_>, field: &str) -> Result<String, Fault> {
        Ok(match self {
            Self::Trim => text.trim().to_owned(),
            Self::UpperFirst => capital(&text),
            Self::LowerFirstWord => match text.split_once(' ').unwrap_or((&text, "")) {
                ("I", _) => text,
                (first, _) => first.to_lowercase() + &text[first.len()..],
            },
            Self::Lower => text.to_lowercase(),
            Self::NoFullStop => {
                let text = text.trim_end();
                text.strip_suffix('.').unwrap_or(text).to_owned()
            }
            Self::Ask if text.ends_with('?') => text,
            Self::Ask => text + "?",
            Self::Bullets => text.replace("@highlight\n", "- "),
            Self::Words => {
                let words = at.words.get(field).and_then(|words| words.get(&text));
                let missing = || format!("the task has no word for {}", Shown(&text));
                words.cloned().ok_or_else(|| at.row.fault(field, missing()))?
            }
            Self::Before(mark) => cut(&text, mark, at.row, field)?.0.to_owned(),
            Self::Behind(mark) => cut(&text, mark, at.row, field)?.1.to_owned(),
            Self::Fill(mark) => text.replace(mark.as_str(), at.each),
        })
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

fn cut<'t>(text: &'t str, mark: &str, row: &Row, field: &str) -> Result<(&'t str, &'t str), Fault> {
    let what = || format!("{} is not in the text", Shown(mark));
    text.split_once(mark).ok_or_else(|| row.fault(field, what()))
}

/// What slots are filled from.
pub(super) struct At<'a> {
    pub(super) row: &'a Row,
    pub(super) words: &'a Words,
    /// The choice that is being written, empty where there is none.
    pub(super) each: &'a str,
}

impl Slots {
    /// The text for a row.
    pub(super) fn fill(&self, at: &At<'_>) -> Result<String, Fault> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Slot { field, filters } => {
                    let text = match field.as_str() {
                        EACH => at.each.to_owned(),
                        field => at.row.shown(field)?,
                    };
                    let filter = |text, filter: &Filter| filter.apply(text, at, field);
                    out.push_str(&filters.iter().try_fold(text, filter)?);
                }
            }
        }
        Ok(out)
    }
}

impl TryFrom<String> for Slots {
    type Error = String;

    fn try_from(source: String) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = source.as_str();
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(behind) = rest.strip_prefix(brace) {
                text.push_str(brace);
                rest = behind;
                continue;
            }
            let end = rest.find('}').filter(|_| brace == "{");
            let end = end
                .ok_or_else(|| format!("a brace alone in {}: write two for one", Shown(&source)))?;
            let mut names = rest[..end].split('|').map(str::trim);
            let field = names.next().filter(|name| !name.is_empty());
            let field = field.ok_or_else(|| format!("a slot of no field in {}", Shown(&source)))?;
            let filters = names.map(Filter::parse).collect::<Result<_, _>>()?;
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(Part::Slot { field: field.to_owned(), filters });
            rest = &rest[end + 1..];
        }
        text.push_str(rest);
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
        Ok(Self { source, parts })
    }
}

impl From<Slots> for String {
    fn from(slots: Slots) -> Self {
        slots.source
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::tune::data::{Count, Place};

    fn filled(source: &str) -> Result<String, String> {
        let fields = json!({"a": " x. ", "q": "who is it", "s": "The _ ran.", "w": "I Went",
            "v": "She Went home", "n": 3, "t": true, "k": "cause", "deep": {"er": "d"}});
        let serde_json::Value::Object(fields) = fields else { unreachable!() };
        let file: Arc<Path> = Arc::from(Path::new("f"));
        let row = Row { place: Place { file, count: Count::Line, number: 1 }, fields };
        let because = [("cause".to_owned(), "because".to_owned())].into_iter().collect();
        let words = [("k".to_owned(), because)].into_iter().collect();
        let slots = Slots::try_from(source.to_owned())?;
        let at = At { row: &row, words: &words, each: "dog" };
        slots.fill(&at).map_err(|fault| fault.to_string())
    }

    #[test]
    fn slots_take_fields_and_what_is_done_to_them() {
        for (source, text) in [
            ("{a|trim} It was", "x. It was"),
            ("{a|trim|no_full_stop}", "x"),
            ("{q|ask|upper_first}", "Who is it?"),
            ("{w|lower_first_word} {v|lower_first_word}", "I Went she Went home"),
            ("{v|lower}", "she went home"),
            ("{s|before:_}{each}{s|behind:_}", "The dog ran."),
            ("{s|fill:_}", "The dog ran."),
            ("{k|words} {n} {t} {deep.er}", "because 3 true d"),
            ("{{{n}}} {{}}", "{3} {}"),
            ("", ""),
        ] {
            assert_eq!(filled(source), Ok(text.to_owned()), "{source}");
        }
    }

    #[test]
    fn wrong_slots_are_told() {
        for (source, part) in [
            ("{a", "a brace alone"),
            ("a}", "a brace alone"),
            ("{}", "a slot of no field"),
            ("{a|shout}", "no filter \"shout\": there are trim,"),
            ("{a|before:}", "no filter"),
            ("{b}", "f:1:b: the field is missing"),
            ("{deep}", "f:1:deep: expected a text or a number, got an object of 1 fields"),
            ("{q|words}", "the task has no word for \"who is it\""),
            ("{q|before:_}", "\"_\" is not in the text"),
        ] {
            let told = filled(source).unwrap_err();
            assert!(told.contains(part), "{source}: {told}");
        }
    }
}
