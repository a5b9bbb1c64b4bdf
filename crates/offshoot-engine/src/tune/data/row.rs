//! One row of a data file, whatever the file's format, and access to its fields by name.

use serde_json::{Map, Value};

use super::error::{Fault, Place, Shown};

/// A row: values under names.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Where it stands.
    pub place: Place,
    /// Its fields, in the file's order.
    pub fields: Map<String, Value>,
}

impl Row {
    /// A fault of `field`.
    pub(crate) fn fault(&self, field: &str, what: impl ToString) -> Fault {
        let field = Some(field.to_owned());
        Fault { place: self.place.clone(), field, what: what.to_string() }
    }

    /// The value of `field`, if it is there and not null. A dot leads into an object, as in
    /// `answers.text`, where no field has the whole name.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        let found = match self.fields.get(field) {
            Some(value) => Some(value),
            None => {
                let mut parts = field.split('.');
                let first = parts.next().and_then(|name| self.fields.get(name));
                parts.try_fold(first?, |value, name| value.get(name))
            }
        };
        found.filter(|value| !value.is_null())
    }

    /// The value of `field`.
    pub(crate) fn need(&self, field: &str) -> Result<&Value, Fault> {
        self.get(field).ok_or_else(|| {
            let names: Vec<&str> = self.fields.keys().map(String::as_str).take(12).collect();
            let there = names.join(", ");
            let what = format!("the field is missing; the row has {}", Shown(&there));
            self.fault(field, what)
        })
    }

    /// The text of `field`, which may be empty.
    pub(crate) fn text(&self, field: &str) -> Result<&str, Fault> {
        let value = self.need(field)?;
        value.as_str().ok_or_else(|| self.expected(field, "a text", value))
    }

    /// The text of `field` if it is there.
    pub(crate) fn optional_text(&self, field: &str) -> Result<Option<&str>, Fault> {
        self.get(field).map(|_| self.text(field)).transpose()
    }

    /// A text, number or truth value as text, as labels and slots of templates are read.
    pub(crate) fn shown(&self, field: &str) -> Result<String, Fault> {
        let value = self.need(field)?;
        scalar(value).ok_or_else(|| self.expected(field, "a text or a number", value))
    }

    /// The elements of `field`. A text that is a JSON list is one, too: tables have nothing else.
    pub(crate) fn list(&self, field: &str) -> Result<Vec<Value>, Fault> {
        let value = self.need(field)?;
        let parsed = match value {
            Value::String(text) if text.trim_start().starts_with('[') => {
                serde_json::from_str::<Vec<Value>>(text).ok()
            }
            Value::Array(items) => Some(items.clone()),
            _ => None,
        };
        parsed.ok_or_else(|| self.expected(field, "a list", value))
    }

    /// What a fault says where `got` has the wrong type.
    pub(crate) fn expected(&self, field: &str, expected: &str, got: &Value) -> Fault {
        self.fault(field, format!("expected {expected}, got {}", kind(got)))
    }
}

/// A value that is neither list nor object, as text.
pub(crate) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A value for an error message.
pub(crate) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => Shown(text).to_string(),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(fields) => format!("an object of {} fields", fields.len()),
    }
}
