//! Named values of a JSON object, each read as the type it must have.

use std::fmt::Display;

use serde_json::{Map, Value};

use super::wrong;
use crate::Error;
use crate::shown::Shown;

/// A JSON object of a file. A value of null is as good as none, as it is for transformers.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    file: &'a str,
    /// What stands before a field's name in errors.
    prefix: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object `value`, which is all of `file`.
    pub(super) fn whole(file: &'a str, value: &'a Value) -> Result<Self, Error> {
        let map = value.as_object().ok_or_else(|| wrong(file, "expected a JSON object"))?;
        Ok(Self { file, prefix: "", map })
    }

    /// The object called `name`; `prefix` is `name` with a dot.
    pub(super) fn inner(&self, name: &str, prefix: &'a str) -> Result<Option<Self>, Error> {
        self.typed(name, "an object", Value::as_object)
            .map(|map| map.map(|map| Self { file: self.file, prefix, map }))
    }

    /// The names as the file spells them, which an error shows as [`Shown`].
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The value, unless it is missing or null.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null, which says something else than a field left out where
    /// transformers has a default.
    pub(super) fn is_null(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(Value::is_null)
    }

    /// An error about the field `name`.
    pub(super) fn error(&self, name: &str, what: impl Display) -> Error {
        wrong(self.file, format_args!("{}{name}: {what}", self.prefix))
    }

    pub(super) fn missing(&self, name: &str) -> Error {
        self.error(name, "missing")
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let found =
            || self.error(name, format_args!("{}, expected {expected}", Shown(&value.to_string())));
        read(value).map(Some).ok_or_else(found)
    }

    pub(super) fn size(&self, name: &str) -> Result<Option<usize>, Error> {
        self.typed(name, "a whole number of 0 or more", |value| {
            usize::try_from(value.as_u64()?).ok()
        })
    }

    pub(super) fn required_size(&self, name: &str) -> Result<usize, Error> {
        self.size(name)?.ok_or_else(|| self.missing(name))
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        self.typed(name, "a number", Value::as_f64)
    }

    pub(super) fn required_number(&self, name: &str) -> Result<f64, Error> {
        self.number(name)?.ok_or_else(|| self.missing(name))
    }

    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Error> {
        self.typed(name, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, Error> {
        self.typed(name, "a string", Value::as_str)
    }

    pub(super) fn list(&self, name: &str) -> Result<Option<&'a [Value]>, Error> {
        self.typed(name, "a list", |value| value.as_array().map(Vec::as_slice))
    }
}
