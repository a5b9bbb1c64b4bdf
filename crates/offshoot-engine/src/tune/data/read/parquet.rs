//! Parquet, by rows: <https://parquet.apache.org/docs/file-format/>. Lists and structs within lists
//! become JSON's, so that a column `messages` reads as it does in JSON lines.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Value};

use super::{Rows, Source};
use crate::tune::data::{DataError, Row};

pub(super) fn rows(source: Source) -> Result<Rows, DataError> {
    let file = File::open(&source.path).map_err(|e| source.io(e))?;
    let reader = guarded(|| SerializedFileReader::new(file));
    let reader = reader.map_err(|what| source.wrong(what))?;
    let groups = reader.num_row_groups();
    let mut open = guarded(|| Ok(reader.into_iter())).map_err(|what| source.wrong(what))?;
    let (mut number, mut done) = (0, groups == 0);
    Ok(Box::new(std::iter::from_fn(move || {
        if done {
            return None;
        }
        number += 1;
        match guarded(|| open.next().transpose()) {
            Ok(None) => None,
            Ok(Some(record)) => Some(Ok(row(&source, number, record))),
            Err(what) => {
                done = true;
                Some(Err(source.wrong(format!("row {number}: {what}"))))
            }
        }
    })))
}

/// The library gives errors for most broken files and panics on some.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let what = error.to_string();
            Err(format!("broken or unusual Parquet: {}", what.escape_debug()))
        }
        Err(_) => Err("broken Parquet: its pages contradict its schema".to_owned()),
    }
}

fn row(source: &Source, number: u64, record: Record) -> Row {
    let fields = record.into_columns().into_iter().map(|(name, field)| (name, value(&field)));
    Row { place: source.row(number), fields: fields.collect() }
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => Value::from(*x),
        Field::Byte(x) => Value::from(*x),
        Field::Short(x) => Value::from(*x),
        Field::Int(x) | Field::Date(x) | Field::TimeMillis(x) => Value::from(*x),
        Field::Long(x)
        | Field::TimeMicros(x)
        | Field::TimestampMillis(x)
        | Field::TimestampMicros(x) => Value::from(*x),
        Field::UByte(x) => Value::from(*x),
        Field::UShort(x) => Value::from(*x),
        Field::UInt(x) => Value::from(*x),
        Field::ULong(x) => Value::from(*x),
        Field::Float16(x) => Value::from(x.to_f32()),
        Field::Float(x) => Value::from(*x),
        Field::Double(x) => Value::from(*x),
        Field::Decimal(_) => Value::from(field.to_string()),
        Field::Str(text) => Value::from(text.as_str()),
        // Old writers leave out that a column is text.
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(group) => {
            let fields = group.get_column_iter();
            Value::Object(fields.map(|(name, field)| (name.clone(), value(field))).collect())
        }
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter();
            let named = entries.map(|(key, field)| (key_of(key), value(field)));
            Value::Object(named.collect::<Map<_, _>>())
        }
    }
}

fn key_of(key: &Field) -> String {
    match value(key) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}
