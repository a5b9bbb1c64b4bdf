//! SQuAD's own file: articles, of each the paragraphs, of each the questions
//! (<https://rajpurkar.github.io/SQuAD-explorer/>).
//!
//! ```text
//! { data: [ { title, paragraphs: [ { context, qas: [ { id, question, answers: [
//!     { text, answer_start } ], is_impossible } ] } ] } ] }
//! ```
//! Each question is a row with the fields of the hub's tables (`rajpurkar/squad`): `id`, `title`,
//! `context`, `question`, `answers` of `text` and `answer_start`, in the order of the file.

use serde_json::{Map, Value, json};

use super::{Source, fault};
use crate::tune::data::{DataError, Row};

/// Whether an object is such a file.
pub(super) fn is_one(fields: &Map<String, Value>) -> bool {
    let articles = fields.get("data").and_then(Value::as_array);
    articles.and_then(|articles| articles.first()).is_some_and(|a| a.get("paragraphs").is_some())
}

/// The questions of a file, numbered from 1.
pub(super) fn questions(
    source: Source,
    fields: Map<String, Value>,
) -> impl Iterator<Item = Result<Row, DataError>> {
    let articles = fields.into_iter().filter(|(name, _)| name == "data").map(|(_, data)| data);
    let mut number = 0;
    articles.flat_map(list).flat_map(of_article).map(move |question| {
        number += 1;
        let place = source.row(number);
        match question {
            Ok(fields) => Ok(Row { place, fields }),
            Err(what) => Err(fault(place, what)),
        }
    })
}

type Question = Result<Map<String, Value>, String>;

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// The list `name` of `object`, which the file has everywhere.
fn within(object: &mut Value, name: &str) -> Result<Vec<Value>, String> {
    match object.get_mut(name).map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(format!("expected a list {name:?}, as every part of a file of SQuAD's form has")),
    }
}

fn of_article(mut article: Value) -> Vec<Question> {
    match within(&mut article, "paragraphs") {
        Err(what) => vec![Err(what)],
        Ok(all) => {
            all.into_iter().flat_map(|paragraph| of_paragraph(&article, paragraph)).collect()
        }
    }
}

fn of_paragraph(article: &Value, mut paragraph: Value) -> Vec<Question> {
    match within(&mut paragraph, "qas") {
        Err(what) => vec![Err(what)],
        Ok(all) => all.into_iter().map(|asked| of_question(article, &paragraph, asked)).collect(),
    }
}

fn of_question(article: &Value, paragraph: &Value, mut asked: Value) -> Question {
    let answers = within(&mut asked, "answers")?;
    let column =
        |name: &str| answers.iter().map(|answer| answer[name].clone()).collect::<Vec<Value>>();
    let row = json!({
        "id": asked["id"],
        "title": article["title"],
        "context": paragraph["context"],
        "question": asked["question"],
        "answers": { "text": column("text"), "answer_start": column("answer_start") },
    });
    match row {
        Value::Object(fields) => Ok(fields),
        _ => Err("expected an object".to_owned()),
    }
}
