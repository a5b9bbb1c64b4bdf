//! JSON: a list of objects, which is read element by element; an object of lists, as tables are
//! dumped by columns, or of one list of objects, or SQuAD's nested one (`squad.rs`), which are read
//! whole; or lines under another name.

use std::io::{BufRead, Read};

use serde_json::{Map, Value};

use super::{ROW_BYTES, Rows, Source, fault, lines::Lines, object, squad};
use crate::tune::data::{DataError, Row};

/// Bytes of a file that is read whole.
const WHOLE_BYTES: u64 = 1 << 30;

pub(super) fn rows(source: Source) -> Result<Rows, DataError> {
    let mut reader = source.open()?;
    let mut line = 1;
    loop {
        let buffer = reader.fill_buf().map_err(|e| source.io(e))?;
        match buffer.first() {
            Some(b'[') => {
                reader.consume(1);
                return Ok(Box::new(Elements::new(reader, source, line)));
            }
            Some(b) if b.is_ascii_whitespace() => {
                line += u64::from(*b == b'\n');
                reader.consume(1);
            }
            _ => break,
        }
    }
    if is_lines(&source)? {
        return Ok(Box::new(Lines::new(source.open()?, source)));
    }
    whole(source)
}

/// Whether the first line that is not blank is an object and something is behind it.
fn is_lines(source: &Source) -> Result<bool, DataError> {
    let mut reader = source.open()?;
    let mut first = Vec::new();
    loop {
        first.clear();
        let mut part = reader.by_ref().take(ROW_BYTES as u64);
        let read = part.read_until(b'\n', &mut first).map_err(|e| source.io(e))?;
        if read == 0 {
            return Ok(false);
        }
        if !first.iter().all(u8::is_ascii_whitespace) {
            break;
        }
    }
    if serde_json::from_slice::<Map<String, Value>>(&first).is_err() {
        return Ok(false);
    }
    let mut rest = [0; 4096];
    loop {
        match reader.read(&mut rest).map_err(|e| source.io(e))? {
            0 => return Ok(false),
            n if rest[..n].iter().all(u8::is_ascii_whitespace) => {}
            _ => return Ok(true),
        }
    }
}

/// Fields whose list is one conversation.
const TURNS: [&str; 3] = ["messages", "conversations", "conversation"];

fn whole(source: Source) -> Result<Rows, DataError> {
    let mut bytes = Vec::new();
    let mut reader = source.open()?.take(WHOLE_BYTES + 1);
    reader.read_to_end(&mut bytes).map_err(|e| source.io(e))?;
    if bytes.len() as u64 > WHOLE_BYTES {
        let what = format!("an object of more than {} MB: write JSON lines", WHOLE_BYTES >> 20);
        return Err(source.wrong(what));
    }
    let Row { fields, place } = object(&source, 1, &bytes)?;
    drop(bytes);
    if squad::is_one(&fields) {
        return Ok(Box::new(squad::questions(source, fields)));
    }
    // A single conversation is a row, not rows of turns.
    let is_row = fields.keys().any(|name| TURNS.contains(&name.as_str()));
    let lists: Option<Vec<_>> = match is_row {
        true => None,
        false => fields.values().map(Value::as_array).collect(),
    };
    let len = lists.as_ref().and_then(|lists| lists.first()).map(|list| list.len());
    match (lists, len) {
        (Some(lists), Some(_)) if lists.len() == 1 && lists[0].iter().all(Value::is_object) => {
            let rows = fields.into_iter().filter_map(|(_, value)| match value {
                Value::Array(rows) => Some(rows),
                _ => None,
            });
            let objects = rows.flatten().enumerate().filter_map(move |(i, row)| match row {
                Value::Object(fields) => Some(Ok(Row { place: source.row(i as u64 + 1), fields })),
                _ => None,
            });
            Ok(Box::new(objects))
        }
        (Some(lists), Some(len)) => match lists.iter().position(|list| list.len() != len) {
            None => Ok(Box::new(columns(source, fields, len))),
            Some(i) => {
                let name = fields.keys().nth(i).cloned();
                let what = format!("a list of {}, but the first has {len}", lists[i].len());
                Err(crate::tune::data::Fault { place, field: name, what }.into())
            }
        },
        _ => Ok(Box::new(std::iter::once(Ok(Row { place, fields })))),
    }
}

/// The rows of columns of the same length.
fn columns(
    source: Source,
    fields: Map<String, Value>,
    len: usize,
) -> impl Iterator<Item = Result<Row, DataError>> {
    let mut columns: Vec<(String, std::vec::IntoIter<Value>)> = fields
        .into_iter()
        .filter_map(|(name, value)| match value {
            Value::Array(values) => Some((name, values.into_iter())),
            _ => None,
        })
        .collect();
    (1..=len as u64).map(move |number| {
        let value = |(name, values): &mut (String, std::vec::IntoIter<Value>)| {
            (name.clone(), values.next().unwrap_or(Value::Null))
        };
        Ok(Row { place: source.row(number), fields: columns.iter_mut().map(value).collect() })
    })
}

/// The elements of a list, cut at commas outside of texts and brackets.
struct Elements<R> {
    reader: R,
    source: Source,
    line: u64,
    done: bool,
}

/// What stands behind an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    Comma,
    End,
    Nothing,
}

impl<R: BufRead> Elements<R> {
    fn new(reader: R, source: Source, line: u64) -> Self {
        Self { reader, source, line, done: false }
    }

    fn byte(&mut self) -> std::io::Result<Option<u8>> {
        let byte = self.reader.fill_buf()?.first().copied();
        self.reader.consume(usize::from(byte.is_some()));
        self.line += u64::from(byte == Some(b'\n'));
        Ok(byte)
    }

    /// Reads up to what ends the element, with the line that it begins on.
    fn element(&mut self, bytes: &mut Vec<u8>) -> std::io::Result<(u64, Behind)> {
        let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
        let mut begin = self.line;
        while let Some(byte) = self.byte()? {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'{' | b'[' => depth += 1,
                b']' if depth == 0 => return Ok((begin, Behind::End)),
                b',' if depth == 0 => return Ok((begin, Behind::Comma)),
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ if bytes.is_empty() && byte.is_ascii_whitespace() => {
                    begin = self.line;
                    continue;
                }
                _ => {}
            }
            if bytes.is_empty() {
                begin = self.line;
            }
            bytes.push(byte);
            if bytes.len() > ROW_BYTES {
                break;
            }
        }
        Ok((begin, Behind::Nothing))
    }
}

impl<R: BufRead> Iterator for Elements<R> {
    type Item = Result<Row, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let mut bytes = Vec::new();
        let (begin, behind) = match self.element(&mut bytes) {
            Ok(read) => read,
            Err(error) => {
                self.done = true;
                return Some(Err(self.source.io(error)));
            }
        };
        self.done = behind != Behind::Comma;
        if bytes.iter().all(u8::is_ascii_whitespace) && behind == Behind::End {
            return None;
        }
        if behind == Behind::Nothing {
            let what = match bytes.len() > ROW_BYTES {
                true => format!("the element has more than {} MB", ROW_BYTES >> 20),
                false => "the file ends within its list".to_owned(),
            };
            return Some(Err(fault(self.source.line(begin), what)));
        }
        Some(object(&self.source, begin, &bytes))
    }
}
